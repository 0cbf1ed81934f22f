"""Compresses one log file in place: `x.log` becomes `x.log.gz`, with its time, owner, mode and attributes.

Order: a hidden file beside it is written, read back and compared, flushed to disk, then linked under its name (which
must be free), and only then the original is removed. A cut at any step leaves the original, or the original and its
whole copy, which the next run compares and finishes; what a cut leaves of the hidden file has a name of ours.
gzip, because that is what logrotate writes and `zgrep`, `zless` and log shippers read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress

from synapse_ops.domain.cleanup.files import COMPRESSED_SUFFIX, PART_PREFIX, PART_SUFFIX
from synapse_ops.systems.host.filesystem import Directory, EntryChanged, has_no_other_opener

CHUNK_BYTES = 1024**2
LEVEL = 6  # gzip's own default
_GZIP = 31  # zlib's window bits for a gzip header and trailer
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def compress_in_place(directory: Directory, name: str, seen: os.stat_result) -> int:
    """Compress a file and return how many bytes that freed (negative for what does not compress).

    seen: what the file must still be. Raises EntryChanged when it is not, when its name with .gz is taken by something
    else, when another process opens it meanwhile, or when the copy cannot be written; then the original is as it was.
    """
    try:
        source = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory.fd)
        try:
            return _compress(directory, name, source, seen)
        finally:
            os.close(source)
    except OSError as error:
        raise EntryChanged(f"it could not be compressed: {error.strerror}") from error


def _compress(directory: Directory, name: str, source: int, seen: os.stat_result) -> int:
    _check_unchanged(directory, name, source, seen)
    target = name + COMPRESSED_SUFFIX
    part = f"{PART_PREFIX}{secrets.token_hex(8)}{PART_SUFFIX}"
    if _exists(directory, target):
        size = _check_same_content(directory, target, source, seen)
    else:
        try:
            size = _write_part(directory, part, source, seen)
            _check_unchanged(directory, name, source, seen)
            try:
                os.link(part, target, src_dir_fd=directory.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
            except FileExistsError:
                raise EntryChanged("its name with .gz is taken") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=directory.fd)
        os.fsync(directory.fd)
    try:
        _check_unchanged(directory, name, source, seen)
    except EntryChanged:
        os.unlink(target, dir_fd=directory.fd)  # a copy of what the file no longer is
        raise
    os.unlink(name, dir_fd=directory.fd)
    return seen.st_size - size


def _check_unchanged(directory: Directory, name: str, source: int, seen: os.stat_result) -> None:
    for now in (os.fstat(source), os.stat(name, dir_fd=directory.fd, follow_symlinks=False)):
        if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
            seen.st_dev,
            seen.st_ino,
            seen.st_size,
            seen.st_mtime_ns,
        ):
            raise EntryChanged("it was written or replaced since")
    if has_no_other_opener(source) is False:
        raise EntryChanged("a process has it open")


def _write_part(directory: Directory, part: str, source: int, seen: os.stat_result) -> int:
    """Write, compare and flush the compressed copy; return its size."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
    copy = os.open(part, flags, 0o600, dir_fd=directory.fd)
    try:
        digest = hashlib.sha256()
        deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
        for chunk in _chunks(source):
            digest.update(chunk)
            _write_all(copy, deflate.compress(chunk))
        _write_all(copy, deflate.flush())
        if _digest_of_compressed(copy) != digest.digest():
            raise EntryChanged("its compressed copy did not read back as it was written")
        os.fchown(copy, seen.st_uid, seen.st_gid)
        _copy_attributes(source, copy)
        os.fchmod(copy, stat.S_IMODE(seen.st_mode))
        os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        os.fsync(copy)
        return os.fstat(copy).st_size
    finally:
        os.close(copy)


def _check_same_content(directory: Directory, target: str, source: int, seen: os.stat_result) -> int:
    """Return the size of a copy that an earlier run completed; raises EntryChanged when it is something else."""
    copy = os.open(target, os.O_RDONLY | _FLAGS, dir_fd=directory.fd)
    try:
        status = os.fstat(copy)
        if not stat.S_ISREG(status.st_mode) or status.st_mtime_ns != seen.st_mtime_ns:
            raise EntryChanged("its name with .gz is taken")
        digest = hashlib.sha256()
        for chunk in _chunks(source):
            digest.update(chunk)
        if _digest_of_compressed(copy) != digest.digest():
            raise EntryChanged("its name with .gz is taken by other content")
        return status.st_size
    finally:
        os.close(copy)


def _digest_of_compressed(copy: int) -> bytes:
    digest = hashlib.sha256()
    inflate = zlib.decompressobj(_GZIP)
    try:
        for chunk in _chunks(copy):
            pending = chunk
            while pending:
                digest.update(inflate.decompress(pending, CHUNK_BYTES))
                pending = inflate.unconsumed_tail
        digest.update(inflate.flush())
    except zlib.error:
        return b""
    return digest.digest() if inflate.eof and not inflate.unused_data else b""


def _chunks(fd: int) -> Iterator[bytes]:
    offset = 0
    while chunk := os.pread(fd, CHUNK_BYTES, offset):
        offset += len(chunk)
        yield chunk


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy_attributes(source: int, copy: int) -> None:
    """Copy access lists and labels, as far as the file system lets us; they are not the log's content."""
    with suppress(OSError):
        for attribute in os.listxattr(source):
            with suppress(OSError):
                os.setxattr(copy, attribute, os.getxattr(source, attribute))


def _exists(directory: Directory, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
