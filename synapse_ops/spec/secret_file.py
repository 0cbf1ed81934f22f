"""Reads a file that an operator named as a secret: once, a regular one, little of it, and never for long.

A FIFO without a writer, a device without an end, a file system whose server is gone: each would hold the process that
reads, or fill its memory. What still hangs is left to a thread of its own, one for each file.
"""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import Future

MAX_BYTES = 64 * 1024
TIMEOUT_S = 5.0

_under_way: dict[str, Future[bytes]] = {}
_starting = threading.Lock()


def read_secret_file(path: str) -> str:
    """Return the text of a file. Raises ValueError with the reason, in words, when it is not one that is read."""
    with _starting:
        reading = _under_way.get(path)
        if reading is None:
            reading = _under_way[path] = Future()
            threading.Thread(target=_fill, args=(path, reading), name="secret", daemon=True).start()
    try:
        data = reading.result(TIMEOUT_S)
    except TimeoutError:
        raise ValueError(f"its file system does not answer within {TIMEOUT_S:g} s") from None
    except OSError as fault:
        raise ValueError(fault.strerror or type(fault).__name__) from fault
    if b"\0" in data:
        raise ValueError("it holds zero bytes, as no text does")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None  # the error would carry what was read


def _fill(path: str, reading: Future[bytes]) -> None:
    data, fault = b"", None
    try:
        data = _read(path)
    except (OSError, ValueError, MemoryError) as error:
        fault = error
    with _starting:  # before anyone hears of it: whoever asks from here on reads anew
        _under_way.pop(path, None)
    reading.set_result(data) if fault is None else reading.set_exception(fault)


def _read(path: str) -> bytes:
    _refuse_other_than_file(os.stat(path))  # before it is opened: opening some devices does something  # noqa: PTH116
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        _refuse_other_than_file(os.fstat(descriptor))
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return data


def _refuse_other_than_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a regular file")
