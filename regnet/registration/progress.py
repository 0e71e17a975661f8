"""Finished rows of windows on disk: a killed registration goes on from there, and several processes share them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet import files

SETTINGS = "settings.json"


class Progress:
    """A folder of finished rows of windows; as a context manager it goes at the end, unless that is an interruption.

    Args:
        folder: of the rows; None keeps nothing.
        settings: all that the rows depend on. Rows that were made with others are thrown away.
        own: whether it is this process that makes the folder and takes it away, and not another that works there too.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any] | None = None, own: bool = True) -> None:
        self._folder, self._own = folder, own
        if folder is None or not own:
            return
        mark = files.digest(settings or {})
        if not (folder / SETTINGS).is_file() or files.read_json(folder / SETTINGS) != mark:
            if folder.exists():
                files.remove(folder)
            files.write_json(folder / SETTINGS, mark)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None and self._own and (kind is None or issubclass(kind, Exception)):
            files.remove(self._folder)

    def has(self, place: int) -> bool:
        """Tell whether a row of windows has been finished."""
        return self._folder is not None and self._row(self._folder, place).is_file()

    def load(self, place: int) -> NDArray[np.float32]:
        """What `save` was given for a row of windows that has been finished."""
        assert self._folder is not None
        return np.asarray(np.load(self._row(self._folder, place)))

    def save(self, place: int, sums: NDArray[np.float32]) -> None:
        """Keep a row of windows: the sums over those that are done."""
        if self._folder is None:
            return
        with files.whole_path(self._row(self._folder, place)) as partial, partial.open("wb") as stream:
            # numpy's own way of writing the values tells nothing of why it failed.
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(sums))
            stream.write(np.ascontiguousarray(sums).data)

    @staticmethod
    def _row(folder: Path, place: int) -> Path:
        return folder / f"row-{place}.npy"
