"""Files: what is written appears whole or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from helpers.profiles import ROOT


class DiskFull(OSError):
    """There was no room to write something; what was there before is as it was."""

    errno = errno.ENOSPC


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `path` is as it was. Raises DiskFull where the disk is full. What is no
    file on a disk, as /dev/stdout, is written as it is.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    path = Path(os.path.realpath(path))  # a link stays one
    if path.is_file():  # on Windows Excel may hold it open: said now, not when all is written
        path.open("ab").close()
    if os.path.ismount(path):
        raise IsADirectoryError(f"Nothing takes the place of {path}, a mount point; name a folder in it.")
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    earlier = temporary.with_name(f"{temporary.name}-earlier")
    with clear_disk_errors(path):
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path.is_dir() and temporary.is_dir():  # which nothing replaces in one step; a file never does
                os.replace(path, earlier)
            os.replace(temporary, path)
        finally:
            if earlier.exists() and not path.exists():
                os.replace(earlier, path)
            for left in (temporary, earlier):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends without an error (see `new_file`)."""
    with new_file(folder) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library raises on a full disk into DiskFull, which names `path`."""
    try:
        yield
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers put it
        in_torch = re.search(r"inline_container\.cc|basic_ios::clear", str(error))  # which does not say why
        code = int(in_rust[1]) if in_rust else errno.ENOSPC if in_torch else getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or isinstance(error, DiskFull):
            raise
        raise DiskFull(
            f"There is no room to write {shown(path)} ({os.strerror(code)}). What was there before is as it was. "
            "Free some space, or let DATA_DIR name a folder on another disk."
        ) from error


def write_text(path: Path, text: str) -> Path:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: Path, data: dict) -> Path:
    """Writes `data` to `path` as JSON, whole or not at all."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def shown(path: Path) -> str:
    """`path` as a message names it: from the repository's root where it lies inside, else whole."""
    path = Path(path)
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
