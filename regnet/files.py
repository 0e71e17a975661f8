"""Files that are either whole or absent, and run folders stamped with the settings that made them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAMP = "stamp.json"
UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write a file or folder to, and rename it when the block ends well.

    Whatever stood at `path` before is untouched until the rename, and stays if the block raises.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    partial = _sibling(path, "partial")
    try:
        with _replacing(path, partial):
            remove(partial)
            yield partial
    finally:
        if partial.exists():
            remove(partial)


@contextmanager
def next_folder(path: Path, own: bool = True) -> Iterator[Path]:
    """Give a hidden sibling of a folder to work in, `.next-<name>`, which takes its place when the block ends well.

    Whatever stood at `path` before is untouched until then. If the block raises or is killed, what it has written is
    there for the next one to go on from.

    Args:
        path: of the folder.
        own: whether it is this process that puts the sibling in its place, and not another that works there too.

    Raises:
        OutputError: as `whole_path` does.
    """
    place = _sibling(path, "next")
    with _replacing(path, place) if own else nullcontext():
        yield place


@contextmanager
def _replacing(path: Path, successor: Path) -> Iterator[None]:
    """Put a file or folder in the place of `path` when the block ends well."""
    older = _sibling(path, "older")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(older, path)
        yield
        if path.is_dir():
            # A folder cannot be replaced by another, and to delete one takes long enough to be killed in.
            os.replace(path, older)
        os.replace(successor, path)
        remove(older)
    except OSError as error:
        raise _told(path, error) from error
    finally:
        _put_back(older, path)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder inside another, for what is too large for memory; it is gone when the block ends.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    place = folder / ".scratch"
    try:
        remove(place)  # of a process that was killed
        place.mkdir(parents=True)
        yield place
    except OSError as error:
        raise _told(folder, error) from error
    finally:
        remove(place)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder to this process: two that fill it would take each other's files away.

    The lock is the system's own and ends with the process, however that ends; where the file system has none for
    folders, nothing is locked. A folder that is made here and stays empty is gone when the block ends.

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _told(folder, error) from error
    try:
        _lock(handle, folder)
        yield
    finally:
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{folder}: another regnet is at work in it; wait until it has ended, or choose another output_dir"
        ) from error
    except OSError:
        return


def _told(path: Path, error: OSError) -> OSError | OutputError:
    """An error of writing as the user is told it; any other as it is."""
    if error.errno not in UNWRITABLE:
        return error
    return OutputError(f"{path}: cannot be written ({error.strerror}); free some space or write to another folder")


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{path.name}")


def _put_back(older: Path, path: Path) -> None:
    """Of a replacement that was killed half-way: the older folder comes back, unless the new one is there."""
    if older.exists():
        if path.exists():
            remove(older)
        else:
            os.replace(older, path)


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; NaN and infinities become null, since JSON has none."""
    write_text(path, json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")


def write_figure(path: Path, figure: Figure, dpi: int = 150, **options: Any) -> None:
    """Write a figure as PNG whole or not at all; `options` go to `Figure.savefig`."""
    with whole_path(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi, **options)


def read_json(path: Path) -> Any:
    """Read a JSON file that regnet wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(data: Any) -> str:
    """Hash settings (anything JSON can hold) to 16 hexadecimal digits, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(_plain(data), sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def input_marks(names: list[str]) -> dict[str, list[int] | None]:
    """Size and time of change of files, which tell whether they are still the same; None for what is no local file."""
    marks: dict[str, list[int] | None] = {}
    for name in names:
        is_file = os.path.isfile(name)
        marks[name] = [os.stat(name).st_size, os.stat(name).st_mtime_ns] if is_file else None
    return marks


def write_stamp(folder: Path, settings: Mapping[str, Any]) -> None:
    """Mark a stage's folder as whole, with the settings that made it and the names of what it holds."""
    names = sorted(path.name for path in folder.iterdir() if path.name != STAMP) if folder.is_dir() else []
    write_json(folder / STAMP, {"digest": digest(settings), "settings": dict(settings), "files": names})


def is_stamped(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether a stage's folder is whole and was made with just these settings."""
    return stamped_digest(folder) == digest(settings)


@contextmanager
def unstamped(folder: Path) -> Iterator[None]:
    """Take a folder's stamp away while it is written to; it comes back if the block raises and has changed nothing."""
    stamp = folder / STAMP
    if not stamp.is_file():
        yield
        return
    text = stamp.read_text(encoding="utf-8")
    stamp.unlink()
    before = _contents(folder)
    try:
        yield
    except BaseException:
        if _contents(folder) == before:
            write_text(stamp, text)
        raise


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below a folder."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            state = path.lstat()
            found[path] = (state.st_size, state.st_mtime_ns)
    return found


def inherited(place: Path, earlier: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether a folder is whole and was made with just these settings; an earlier one that was is copied there."""
    if not is_stamped(place, settings) and is_stamped(earlier, settings):
        copy_whole(earlier, place)
    return is_stamped(place, settings)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file or folder; the copy appears when it is whole."""
    with whole_path(target) as partial:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, partial)


def stamped_digest(folder: Path) -> str | None:
    """Digest of the settings that made a stage's folder; None if something of it is gone, or its stamp is damaged."""
    try:
        stamp = read_json(folder / STAMP)
        whole = all((folder / name).exists() for name in stamp["files"])
        return str(stamp["digest"]) if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if hasattr(data, "item") and getattr(data, "ndim", 1) == 0:
        data = data.item()
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return str(data) if isinstance(data, Path) else data
