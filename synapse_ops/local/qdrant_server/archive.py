"""Snapshots in the layout of a real server: tars whose segments are tars in turn, with the holes of files left out.

    shard:       segments/<uuid>.tar, wal/*, replica_state.json, shard_config.json
    collection:  <shard>/... as above, version.info, config.json, shard_key_mapping.json, payload_index.json
    <uuid>.tar:  snapshot/files/...

Files of the engine are mostly holes (32 MiB for three points), so members are written as GNU sparse ones, which
Python's tarfile reads but does not write. The WAL is never left out: its index says which writes a segment holds.
Source: GNU tar manual, "Old GNU Format"; a real server's archives.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from synapse_ops.local.qdrant_server.answers import Fault

BLOCK = 512
PIECE_BYTES = 1024 * 1024
SEGMENT_FILES = "snapshot/files/"
STATE_FILES = ("replica_state.json", "shard_config.json")
_STREAMED = re.compile(r"^((?:\d+/)?segments/[^/]+)/files/")  # segments of a streamed snapshot are not tars
_SEGMENT = re.compile(r"(segments/[0-9A-Za-z-]+)\.tar")


def write_shard(out: tarfile.TarFile, shard: Path, prefix: str, scratch: Path) -> None:
    """Add a shard whose engine has been flushed and is not written to meanwhile. scratch: space for one segment."""
    for segment in sorted((shard / "segments").iterdir()):
        if segment.is_dir():
            _add_segment(out, segment, f"{prefix}segments/{segment.name}.tar", scratch)
    for file in sorted((shard / "wal").iterdir()):
        _add_file(out, file, f"{prefix}wal/{file.name}")
    for name in STATE_FILES:
        _add_file(out, shard / name, prefix + name)


def write_files(out: tarfile.TarFile, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        _add_file(out, folder / name, name)


def open_to_write(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "w", format=tarfile.GNU_FORMAT)


def _add_segment(out: tarfile.TarFile, segment: Path, name: str, scratch: Path) -> None:
    made = scratch / f"{segment.name}.tar"
    with open_to_write(made) as inner:
        for file in sorted(path for path in segment.rglob("*") if path.is_file()):
            _add_file(inner, file, SEGMENT_FILES + file.relative_to(segment).as_posix())
    _add_file(out, made, name)
    made.unlink()


def _add_file(out: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb", buffering=0) as file:
        info = out.gettarinfo(arcname=name, fileobj=file)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        size = info.size
        extents = list(_extents(file, size))
        if sum(length for _, length in extents) == size:
            file.seek(0)
            out.addfile(info, file)
            return
        _add_sparse(out, info, file, extents)


def _extents(file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of data, without holes; whole blocks, only the last one may end with the file."""
    position = 0
    while position < size:
        try:
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        start -= start % BLOCK
        position = min(size, position + -position % BLOCK)
        yield start, position - start


def _add_sparse(out: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes], extents: list[tuple[int, int]]) -> None:
    size, stored = info.size, sum(length for _, length in extents)
    entries = extents if extents and sum(extents[-1]) == size else [*extents, (size, 0)]
    info.type, info.size = tarfile.GNUTYPE_SPARSE, stored
    headers = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head = memoryview(headers)[-BLOCK:]  # a long name has its own blocks before it
    for index, entry in enumerate(entries[:4]):
        head[386 + 24 * index : 410 + 24 * index] = _entry(entry)
    head[482] = len(entries) > 4
    head[483:495] = _octal(size)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    blocks = [bytes(headers)]
    for begin in range(4, len(entries), 21):
        table = b"".join(_entry(entry) for entry in entries[begin : begin + 21]).ljust(504, b"\0")
        blocks.append(table + bytes([begin + 21 < len(entries)]) + b"\0" * 7)
    target = cast("IO[bytes]", out.fileobj)
    written = target.write(b"".join(blocks))
    for offset, length in extents:
        file.seek(offset)
        written += _copy(file, target, length)
    out.offset += written + target.write(b"\0" * (-written % BLOCK))


def _entry(extent: tuple[int, int]) -> bytes:
    return _octal(extent[0]) + _octal(extent[1])


def _octal(number: int) -> bytes:
    return b"%011o\0" % number if number < 8**11 else b"\x80" + number.to_bytes(11, "big")


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> int:
    left = length
    while left:
        piece = source.read(min(PIECE_BYTES, left))
        if not piece:
            raise Fault("a file became shorter while it was copied")
        target.write(piece)
        left -= len(piece)
    return length


def unpack(archive: Path, target: Path) -> None:
    """Write a snapshot's files into a folder, segments opened. Raises Fault for what is torn or has a strange name."""
    try:
        with tarfile.open(archive, "r:") as opened:
            _unpack_members(opened, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Fault(f"File IO error: failed to unpack `{archive.name}`: {error}") from error


def _unpack_members(opened: tarfile.TarFile, target: Path) -> None:
    for member in opened:
        parts = Path(member.name).parts
        if member.name.startswith("/") or ".." in parts:
            raise Fault(f"File IO error: strange name in the archive: `{member.name}`")
        content = opened.extractfile(member) if member.isfile() else None
        place = target / _STREAMED.sub(r"\1/", member.name)
        if content is None:
            if not member.isdir():
                raise Fault(f"File IO error: `{member.name}` is neither a file nor a folder")
            place.mkdir(parents=True, exist_ok=True)
        elif (segment := _segment_of(member.name)) is not None:
            with tarfile.open(fileobj=content, mode="r:") as inner:
                _unpack_segment(inner, target / segment)
        else:
            _write(content, place, member.size)


def _segment_of(name: str) -> str | None:
    shard, _, rest = name.rpartition("segments/")
    match = _SEGMENT.fullmatch("segments/" + rest)
    return shard + match[1] if match and (not shard or re.fullmatch(r"\d+/", shard)) else None


def _unpack_segment(inner: tarfile.TarFile, target: Path) -> None:
    for member in inner:
        content = inner.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        name = member.name.removeprefix(SEGMENT_FILES)
        if name == member.name or name.startswith("/") or ".." in Path(name).parts:
            raise Fault(f"File IO error: strange name in a segment: `{member.name}`")
        _write(content, target / name, member.size)


def _write(content: IO[bytes], place: Path, size: int) -> None:
    """Write a file, its holes as holes."""
    place.parent.mkdir(parents=True, exist_ok=True)
    left = size
    with place.open("wb") as file:
        while left:
            piece = content.read(min(PIECE_BYTES, left))
            if not piece:
                raise EOFError(f"{place.name} ends {left} bytes early")
            left -= len(piece)
            if piece.strip(b"\0"):
                file.write(piece)
            else:
                file.seek(len(piece), os.SEEK_CUR)
        file.truncate(size)
