"""Where the bytes of one picture are, and reading them without trusting anything.

Imported by the decode workers: standard library only.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

MAX_FILE_BYTES = 256 * 1024**2
"""Largest file that is read: far above any photograph, far below a machine's memory."""

_FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


MAX_TAR_HEADER_BYTES = 1024**2
"""Largest extended header of a tar member; `tarfile` searches it in time that grows with the square of its size."""


class BoundedTarInfo(tarfile.TarInfo):
    """Refuses absurd sizes of members, names and attributes, for `tarfile.open(..., tarinfo=BoundedTarInfo)`.

    With a negative size a member would be followed by itself, for ever (CVE-2025-8194).
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedTarInfo:
        """The header in `buf`.

        Raises:
            tarfile.ReadError: Its size is negative, or it announces an extended header over `MAX_TAR_HEADER_BYTES`.
        """
        info = super().frombuf(buf, encoding, errors)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if info.type in (*extended, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK) and (
            info.size > MAX_TAR_HEADER_BYTES
        ):
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        _refuse_negative(info.size)
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> BoundedTarInfo:
        """The next member, whose size an extended header may have replaced.

        Raises:
            tarfile.ReadError: Its size is negative.
        """
        info = super().fromtarfile(tarfile)
        _refuse_negative(info.size)
        return info

    def _block(self, count: int) -> int:
        # Where tarfile computes the place of the next header, in the middle of reading an extended one. Versions that
        # refuse it themselves take it for the end of the archive, and what follows would be missing without a word.
        _refuse_negative(count)
        return super()._block(count)  # type: ignore[misc, no-any-return]


def _refuse_negative(n_bytes: int) -> None:
    if n_bytes < 0:
        raise tarfile.ReadError(f"a member of {n_bytes:,} bytes")


class UnreadablePictureError(Exception):
    """One picture cannot be used.

    Attributes:
        reason: Why, for people, as the end of "left out: …".
        passing: Whether that may be the system's fault, and another time it can be read.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passing = passing


@dataclass(frozen=True)
class FileLocation:
    """A file in a folder."""

    path: str


@dataclass(frozen=True)
class ZipMember:
    """A member of a zip archive, by the name that its directory gives it."""

    archive: str
    name: str


@dataclass(frozen=True)
class TarMember:
    """A member of an uncompressed tar archive: `size` bytes, from `offset` bytes into the file on.

    `tarfile.TarInfo.offset_data` and `.size` of a regular member that is not sparse.
    """

    archive: str
    offset: int
    size: int


@dataclass(frozen=True)
class StreamedTarMember:
    """A regular member of a compressed tar archive, which can be read from its start only.

    Of several members of one name the first one is meant.
    """

    archive: str
    name: str
    size: int


Location: TypeAlias = FileLocation | ZipMember | TarMember | StreamedTarMember
_KINDS: dict[str, type[Any]] = {
    "file": FileLocation,
    "zip": ZipMember,
    "tar": TarMember,
    "streamed-tar": StreamedTarMember,
}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_json(location: Location) -> dict[str, Any]:
    """`location` as JSON values; undecodable bytes in a path survive as lone surrogates."""
    return {"kind": _KIND_NAMES[type(location)], **vars(location)}


def from_json(value: dict[str, Any]) -> Location:
    """The location that `to_json` wrote as `value`.

    Raises:
        ValueError: `value` is not such a value.
    """
    fields = dict(value)
    try:
        location: Location = _KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Not a picture's location: {value!r}.") from error
    return location


def read_bytes(location: Location) -> bytes:
    """All bytes of one picture's file.

    Raises:
        UnreadablePictureError: There is no such regular file or member, or it cannot be read whole.
    """
    with LocationReader() as reader:
        return reader.read(location)


class LocationReader:
    """Reads many locations; every archive is opened, and its directory parsed, once."""

    def __init__(self) -> None:
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._tars: dict[str, BinaryIO] = {}

    def __enter__(self) -> LocationReader:
        return self

    def __exit__(self, *_: object) -> None:
        for zip_archive in self._zips.values():
            zip_archive.close()
        for tar_archive in self._tars.values():
            tar_archive.close()
        self._zips.clear()
        self._tars.clear()

    def read(self, location: Location) -> bytes:
        """All bytes at `location`.

        Raises:
            UnreadablePictureError: There is no such regular file or member, or it cannot be read
                whole, or it is larger than `MAX_FILE_BYTES`.
        """
        if isinstance(location, FileLocation):
            return _read_file(location.path)
        if isinstance(location, ZipMember):
            return self._read_zip_member(location)
        if isinstance(location, TarMember):
            return self._read_tar_member(location)
        for _, data in stream_tar(location.archive, [location]):
            if isinstance(data, UnreadablePictureError):
                raise data
            return data
        raise UnreadablePictureError(f"{location.archive} has no member {location.name!r}")

    def _read_zip_member(self, member: ZipMember) -> bytes:
        archive = self._open_zip(member.archive)
        try:
            info = archive.getinfo(member.name)
        except KeyError:
            raise UnreadablePictureError(f"{member.archive} has no member {member.name!r}") from None
        if info.is_dir():
            raise UnreadablePictureError("not a regular file, but a folder")
        _check_size(info.file_size)
        if info.flag_bits & 0x1:
            raise UnreadablePictureError("encrypted with a password in its zip archive")
        try:
            # The size in the directory may lie: never inflate more than the cap.
            with archive.open(info) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except NotImplementedError as error:
            raise UnreadablePictureError(
                f"compressed in its zip archive by a method that is not supported ({error})"
            ) from error
        except Exception as error:  # zlib, lzma, struct, EOF and BadZipFile errors, and more
            raise UnreadablePictureError(f"damaged in its zip archive ({error})", passing=_passes(error)) from error
        _check_size(len(data))
        return data

    def _open_zip(self, path: str) -> zipfile.ZipFile:
        if path not in self._zips:
            try:
                self._zips[path] = zipfile.ZipFile(path)
            except Exception as error:  # as above; each is a reason why nothing in it can be read
                raise UnreadablePictureError(f"{path} cannot be opened ({error})", passing=_passes(error)) from error
        return self._zips[path]

    def _open_tar(self, path: str) -> BinaryIO:
        if path not in self._tars:
            self._tars[path] = Path(path).open("rb")  # noqa: SIM115 -- closed in __exit__
        return self._tars[path]

    def _read_tar_member(self, member: TarMember) -> bytes:
        _check_size(member.size)
        try:
            file = self._open_tar(member.archive)
            file.seek(member.offset)
            data = file.read(member.size)
        except (OSError, ValueError) as error:
            raise UnreadablePictureError(
                f"{member.archive} cannot be read ({error})", passing=_passes(error)
            ) from error
        if len(data) < member.size:
            raise UnreadablePictureError(f"{member.archive} ends before this member does")
        return data


def stream_tar(
    archive: str, members: Iterable[StreamedTarMember]
) -> Iterator[tuple[StreamedTarMember, bytes | UnreadablePictureError]]:
    """Read `members` of one compressed tar archive in one pass, in the archive's order.

    One member is in memory at a time. Members that the archive lacks, or that lie behind damage in
    it, come last, each with its `UnreadablePictureError`.
    """
    wanted: dict[str, StreamedTarMember] = {member.name: member for member in members}
    reason, passing = f"{archive} has no such member", False
    try:
        with tarfile.open(archive, "r|*", tarinfo=BoundedTarInfo) as tar:
            for info in tar:
                if info.name in wanted:
                    data = _read_tar_stream(tar, info)
                    yield wanted.pop(info.name), data
                if not wanted:
                    break
    except (tarfile.TarError, OSError, EOFError, ValueError, IndexError, OverflowError, RecursionError) as error:
        reason, passing = f"{archive} is damaged here or before ({error})", _passes(error)
    except Exception as error:  # zlib.error and lzma.LZMAError, without importing either
        reason = f"{archive} cannot be decompressed here or before ({error})"
    for member in wanted.values():
        yield member, UnreadablePictureError(reason, passing=passing)


def _read_tar_stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | UnreadablePictureError:
    if info.size > MAX_FILE_BYTES:
        return UnreadablePictureError(_too_large(info.size))
    file = tar.extractfile(info) if info.isreg() else None
    if file is None:
        return UnreadablePictureError("not a regular file in its tar archive")
    data = file.read()
    if len(data) < info.size:
        raise EOFError("it ends within a member")
    return data


def _read_file(path: str) -> bytes:
    try:
        _check_regular(Path(path).stat())
        # Should a named pipe take the file's place just now, opening must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            _check_regular(status)
            _check_size(status.st_size)
            # Asked for the most that is allowed, Python makes room for all of it: twice the time of a small file.
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:  # it has grown since, or its system does not tell sizes
                data += file.read(MAX_FILE_BYTES + 1 - len(data))
    except (OSError, ValueError) as error:
        raise UnreadablePictureError(_os_reason(path, error), passing=_passes(error)) from error
    _check_size(len(data))
    return data


def _passes(error: Exception) -> bool:
    """Whether it is the system that failed (a network drive, a locked file, too little memory), not the content.

    Errors of the system have a number; those that decompression raises have none.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _FILE_KINDS if test(status.st_mode)), "something else")
        raise UnreadablePictureError(f"not a regular file, but {kind}")


def _check_size(n_bytes: int) -> None:
    if n_bytes < 0:
        raise UnreadablePictureError(f"its size is said to be {n_bytes:,} bytes")
    if n_bytes > MAX_FILE_BYTES:
        raise UnreadablePictureError(_too_large(n_bytes))


def _too_large(n_bytes: int) -> str:
    return f"{n_bytes / 1024**2:.0f} MiB large; files over {MAX_FILE_BYTES // 1024**2} MiB are not read"


def _os_reason(path: str, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link that points nowhere" if Path(path).is_symlink() else "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"
