"""What is in a zip or tar archive, listed without extracting it or trusting its names."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from netloom.data.layout import Entry
from netloom.data.location import BoundedTarInfo, StreamedTarMember, TarMember, ZipMember
from netloom.data.samples import Rejected
from netloom.errors import DataError
from netloom.progress import printable

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_UTF8_FLAG = 0x800
_PLAUSIBLE_RATIO = 100
_ENCRYPTED_FLAG = 0x1
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,  # among others those of gzip and bz2
    ValueError,
    NotImplementedError,
    # From headers of tar archives that end too soon, lie beyond any file, or follow each other by the thousand.
    IndexError,
    OverflowError,
    RecursionError,
)

Listing = tuple[list[Entry], list[Rejected]]


def list_archive(path: Path) -> Listing:
    """The files of an archive, and the members that are left out, with reasons.

    Left out are absolute paths, `..`, backslashes, drive letters, links, devices, encrypted members
    and all but one of several members of the same name.

    Raises:
        DataError: The archive is damaged or not of the kind that its name says.
    """
    try:
        if path.name.casefold().endswith(".zip"):
            return _list_zip(path)
        return _list_tar(path)
    except _DAMAGE as error:
        raise DataError(
            f"{path} cannot be read as an archive: {error or type(error).__name__}. It may be "
            "incomplete; download or pack it again."
        ) from error


def _list_zip(path: Path) -> Listing:
    entries: list[Entry] = []
    rejected: list[Rejected] = []
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        decode = _name_decoder(members)
        for member in members:
            name = decode(member)
            parts = _parts(name)
            reason = _zip_reason(archive, member) or _path_reason(name, parts)
            if reason:
                rejected.append(Rejected(printable(name), reason))
            else:
                entries.append(Entry(parts, ZipMember(str(path), member.filename)))
    return entries, rejected


def _zip_reason(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if stat.S_ISLNK(kind):
        return "a link in an archive"
    if kind not in (0, stat.S_IFREG):
        return "not a regular file in its archive"
    if member.flag_bits & _ENCRYPTED_FLAG:
        return "encrypted with a password"
    if archive.getinfo(member.filename) is not member:
        return "the archive holds another file of the same name"
    return None


def _name_decoder(members: Sequence[zipfile.ZipInfo]) -> Callable[[zipfile.ZipInfo], str]:
    """How to read member names, in the encoding that fits all names of the archive.

    Names without the UTF-8 flag are cp437 by the format's specification (APPNOTE 4.4.4), but macOS
    writes UTF-8 and Korean Windows cp949 there.
    """
    raw: dict[str, bytes] = {}
    for member in members:
        if not member.flag_bits & _UTF8_FLAG and not member.filename.isascii():
            try:
                raw[member.filename] = member.filename.encode("cp437")
            except UnicodeEncodeError:  # zipfile already took the name from a Unicode extra field
                continue
    encoding = _encoding_of(b"/".join(raw.values()))
    decoded = {name: data.decode(encoding) for name, data in raw.items()}
    return lambda member: decoded.get(member.filename, member.filename)


def _encoding_of(text: bytes) -> str:
    """`utf-8`, `cp949` or `cp437`: the first that fits.

    Nearly any bytes are cp949 of some kind. Western names in it become syllables outside KS X 1001,
    which are rare in Korean: `é` and a letter are one such syllable. So most must be inside.
    """
    for encoding in ("utf-8", "cp949"):
        try:
            wide = [c for c in text.decode(encoding) if not c.isascii()]
        except UnicodeDecodeError:
            continue
        common = sum(len(c.encode("euc_kr", "ignore")) == 2 for c in wide)
        if encoding == "utf-8" or common > len(wide) / 2:
            return encoding
    return "cp437"


def _list_tar(path: Path) -> Listing:
    entries: list[Entry] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    archive, is_plain = _open_tar(path)
    with archive:
        for member in archive:
            if not is_plain:
                _refuse_bomb(path, member)
            if member.isdir():
                continue
            parts = _parts(member.name)
            reason = _tar_reason(member, seen) or _path_reason(member.name, parts)
            seen.add(member.name)
            if reason:
                rejected.append(Rejected(printable(member.name), reason))
                continue
            location = (
                TarMember(str(path), member.offset_data, member.size)
                if is_plain
                else StreamedTarMember(str(path), member.name, member.size)
            )
            entries.append(Entry(parts, location))
        # tarfile takes half a header for the end.
        if is_plain and 0 < path.stat().st_size - archive.offset < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends within a header")
    return entries, rejected


def _refuse_bomb(path: Path, member: tarfile.TarInfo) -> None:
    """Refuse a compressed archive before it is unpacked up to the end of a member that makes it a bomb.

    Raises:
        tarfile.ReadError: It would unpack to over a gigabyte and to over a hundred times its size, which pictures,
            compressed already, never do.
    """
    unpacked, packed = member.offset_data + member.size, path.stat().st_size
    if unpacked > max(1024**3, _PLAUSIBLE_RATIO * packed):
        raise tarfile.ReadError(f"its {packed:,} bytes would unpack to over {unpacked:,}, as those of no pictures do")


def _open_tar(path: Path) -> tuple[tarfile.TarFile, bool]:
    """The archive, and whether it is uncompressed, so that members can be read where they lie."""
    try:
        return tarfile.open(path, "r:", tarinfo=BoundedTarInfo), True
    except tarfile.ReadError:
        return tarfile.open(path, "r|*", tarinfo=BoundedTarInfo), False


def _tar_reason(member: tarfile.TarInfo, seen: set[str]) -> str | None:
    if member.issym() or member.islnk():
        return "a link in an archive"
    if not member.isreg() or member.issparse():
        return "not a regular file in its archive"
    if member.name in seen:
        return "the archive holds another file of the same name"
    return None


def _path_reason(name: str, parts: tuple[str, ...]) -> str | None:
    """Why a member's name is not taken for a relative path; None if it is a harmless one."""
    if "\\" in name:
        return "a path with backslashes in an archive"
    if name.startswith("/") or name[1:2] == ":":
        return "an absolute path in an archive"
    if ".." in parts:
        return "a path that leads out of its archive"
    if not parts:
        return "a member without a name"
    return None


def _parts(name: str) -> tuple[str, ...]:
    parts = name.split("/")
    if "" in parts or "." in parts:
        parts = [part for part in parts if part not in ("", ".")]
    return tuple(parts)
