"""Writing files so that a reader finds the old content or the new, never half of either."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from netloom.errors import NetloomError, RunError

_PARTIAL = ".partial"
# Behind the end of any file that is locked, since Windows keeps others from reading what is locked.
_LOCKED_BYTE = 2**30
_MOST_NAME_BYTES = 160  # of the 255 that file systems allow; a Hangul syllable takes three
# A list of numbers, one on each line; a string cannot look like it, since it holds no line breaks.
_NUMBERS = re.compile(r"\[\n([-+0-9.eE,\s]+)\]")
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "there is no permission to write there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "something else of that name is there",
    errno.ENOENT: "its folder is not there and cannot be made",
    errno.ENAMETOOLONG: "a name in the path is too long",
}


def with_home(path: str | Path) -> Path:
    """`path` with a `~` or `~user` at its beginning as that home; where there is none, it is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextlib.contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a message that names it and says what to do.

    Raises:
        RunError: The disk is full or read-only, permission is missing, or anything else the system says.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise RunError(f"Cannot write {path}: {reason}. {remedy}") from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8) in one step that survives a crash or a loss of power.

    Raises:
        RunError: The disk is full or read-only, or permission is missing; an old file is left as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path, "Free some space or choose another folder; what was there before is unchanged."):
        temporary = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _flush_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def lock_file(path: Path, busy: str) -> IO[bytes]:
    """Open a file that no other process has open so; the system ends the lock with the process.

    Others may read the file. Network drives without locks let everybody in.

    Args:
        path: Made where there is none; what it holds stays.
        busy: What to say where another process has it.

    Raises:
        RunError: Another process has it, or it cannot be written.
    """
    with writing(path, "Give write permission to its folder."):
        file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise RunError(busy) from error
    except OSError:  # a network drive without locks
        pass
    return file


def partial_files(folder: Path) -> list[Path]:
    """Half-written files that killed processes left in `folder`."""
    return list(folder.glob(f".*{_PARTIAL}"))


def _flush_folder(folder: Path) -> None:
    """Make a renaming in `folder` survive a loss of power, on systems where folders can be flushed."""
    if os.name == "posix":
        # Some shared folders refuse it, and those that may be written into but not be read cannot be opened for it. By
        # now the file is in its place, so that a refusal is no failure of the writing.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def prepare_to_write(path: Path, *, force: bool) -> None:
    """Refuse to replace a file of the user's unasked, and make its folder; called before the work that would be lost.

    Raises:
        RunError: There is something of that name, and `force` does not allow to replace it, or the folder cannot be
            made.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not force:
        raise RunError(f"{path} exists already. Give another name, or --force to replace it.")
    with writing(path.parent, "Give the name of a file in another folder."):
        path.parent.mkdir(parents=True, exist_ok=True)


def safe_name(name: str) -> str:
    """`name` as a part of a file's name on every system: letters of any script, digits and `_ . + -`; may be empty."""
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    return plain.encode()[:_MOST_NAME_BYTES].decode(errors="ignore")


def json_text(value: Any) -> str:
    """`value` as indented JSON: a list of numbers is one line, and NaN and infinity, which JSON lacks, are null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON (see `json_text`), atomically."""
    write_atomically(path, json_text(value) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NetloomError: The file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NetloomError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise NetloomError(f"{path} is not valid JSON ({error}); the file is damaged.") from error
