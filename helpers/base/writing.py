"""Files and folders that appear whole or not at all."""

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4
from zlib import crc32

import psutil

from helpers.base.paths import shown


def write_json(path: Path, data: dict) -> Path:
    """Writes `data` to `path` whole or not at all (see `new_file`)."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Writes `text` to `path` in UTF-8, whole or not at all (see `new_file`)."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


class NotWritten(OSError):
    """There was no room to write something; what was there before is as it was."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `path` is as it was. It has a name of its own, so that several runs may
    write one `path` at once: the last counts. A process that is killed leaves it behind, hidden, beside `path`, until
    this machine writes `path` again. Raises NotWritten where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _beside(path)
    try:
        with saying_no_room(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `folder` is as it was. On Linux the two exchange their names in one step.
    Elsewhere the earlier one is set aside first, to `.<name>-before`: a process that is killed right then leaves it
    there, and `put_back` gives it its name again, which this function and whatever loads an adapter begin with. What
    else it leaves goes when this machine writes `folder` again. Several runs may write one `folder` at once: the last
    counts. Raises NotWritten where the disk is full.
    """
    folder = Path(folder)
    put_back(folder)
    _remove_leftovers(folder)
    created = [parent for parent in folder.parents if not parent.exists()]
    temporary = _beside(folder)
    try:
        with saying_no_room(folder):
            temporary.mkdir(parents=True)
            yield temporary
            for path in filter(Path.is_file, temporary.rglob("*")):
                _sync(path)
            _take_place(temporary, folder)
    except BaseException:
        put_back(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)  # by now the earlier one, where there was one


def put_back(folder: Path) -> None:
    """Gives a folder its name again that `new_folder` had set aside when its process was killed; else does nothing."""
    if not folder.exists() and _aside(folder).is_dir():
        with suppress(OSError):  # another run was first
            os.rename(_aside(folder), folder)
            print(f"Put back {shown(folder)}, which a run that was killed had set aside", flush=True)


def _beside(path: Path) -> Path:
    """A new name beside `path`, which says who writes there: machine and process."""
    return path.with_name(f".{path.name}-{_machine()}-{os.getpid()}-{uuid4().hex[:8]}")


def _machine() -> str:
    """A name for this machine, or container: process numbers are its own, and folders may be shared."""
    return f"{crc32(platform.node().encode()):08x}"


def _remove_leftovers(path: Path) -> None:
    """Removes what processes of this machine that are gone had begun to write in place of `path`."""
    if not path.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(path.name)}-{_machine()}-(\d+)-[0-9a-f]{{8}}")
    for left in list(path.parent.iterdir()):
        if (found := name.fullmatch(left.name)) and not psutil.pid_exists(int(found[1])):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-before")


def _sync(path: Path) -> None:
    """Waits until the file is on the disk: without it a machine that vanishes may leave the new name on an empty file,
    and network file systems tell only now that they are full."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _take_place(new: Path, folder: Path) -> None:
    """Gives `new` the name `folder`; what has it by then is removed, or gets the name `new`."""
    while True:
        try:
            os.rename(new, folder)  # there is nothing, or an empty folder
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _exchange(new, folder):
            break
        shutil.rmtree(_aside(folder), ignore_errors=True)
        try:
            os.rename(folder, _aside(folder))
        except OSError as error:  # those are another run's doing, which is at the same place
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step (renameat2, Linux); False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


@contextmanager
def saying_no_room(path: Path, setting: str = "DATA_DIR") -> Iterator[None]:
    """Turns whatever a library raises on a full disk into NotWritten; `setting` says where `path` lies."""
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers put it
        in_torch = re.search(r"inline_container\.cc|basic_ios::clear", str(error))  # which does not say why
        code = int(in_rust[1]) if in_rust else errno.ENOSPC if in_torch else getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NotWritten(
            f"There is no room to write {shown(Path(path))} ({os.strerror(code)}). What was there before is as it was. "
            f"Free some space, or let {setting} name a folder on another disk."
        ) from error
