"""The one file of an upload, written to disk as it arrives. Source: RFC 7578."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

from synapse_ops.local.qdrant_server.answers import BadRequest

HEAD_LIMIT_BYTES = 64 * 1024


async def receive_file(content_type: str, pieces: AsyncIterator[bytes], folder: Path) -> Path:
    """Write the first part that has a file name into `folder`, and return where; the rest is read and dropped."""
    match = re.search(r'boundary="?([^";,]+)"?', content_type)
    if not content_type.startswith("multipart/form-data") or match is None:
        raise BadRequest("Could not find multipart boundary")
    end = b"\r\n--" + match[1].encode()
    buffer, head = b"\r\n", b""
    async for piece in pieces:  # to the end of the part's head
        buffer += piece
        begin = buffer.find(b"filename=")
        if begin >= 0 and (stop := buffer.find(b"\r\n\r\n", begin)) >= 0:
            head, buffer = buffer[:stop], buffer[stop + 4 :]
            break
        if len(buffer) > HEAD_LIMIT_BYTES:
            break
    name = re.search(rb'filename="([^"/\\]{1,200})"', head)
    if name is None or name[1] in (b".", b".."):
        raise BadRequest("Multipart stream is incomplete")
    path = folder / name[1].decode(errors="replace")
    with path.open("wb") as file:
        has_ended = False
        while not has_ended:
            stop = buffer.find(end)
            has_ended = stop >= 0
            keep = stop if has_ended else max(0, len(buffer) - len(end) + 1)
            file.write(buffer[:keep])
            buffer = buffer[keep:]
            if not has_ended:
                piece = await anext(pieces, b"")
                if not piece:
                    raise BadRequest("Multipart stream is incomplete")
                buffer += piece
    async for _ in pieces:
        pass
    return path
