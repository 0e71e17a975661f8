"""Bands of raster files: which are asked for, and what is seen of each.

A band with a colour table is seen as its red, green and blue: between indices, unlike colours, there is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from regnet.errors import InputError


class Band(NamedTuple):
    """What is seen of a band of a file.

    Attributes:
        dataset: the file.
        number: of the band, counted from 1.
        name: of what is seen.
        shades: (n,) values to see in place of 0 to n - 1, NaN for none; None to see the band's own values.
    """

    dataset: DatasetReader
    number: int
    name: str
    shades: NDArray[np.float32] | None = None


def band_numbers(path: str, names: Sequence[str], bands: Sequence[int | str]) -> list[int]:
    """Numbers, counted from 1, of bands given by number or name.

    Args:
        path: of the raster, for messages.
        names: of all its bands.
        bands: those wanted; empty for all.

    Raises:
        InputError: there is no such band, or several have the name.
    """
    numbers = []
    for band in bands:
        same = [number for number, name in enumerate(names, 1) if name.casefold() == str(band).casefold()]
        if len(same) > 1:
            raise InputError(f"{path}: {len(same)} of its bands are called {band}; choose by number, counted from 1")
        if not same and str(band).isdecimal() and 1 <= int(band) <= len(names):
            same = [int(band)]
        if not same:
            raise InputError(f"{path}: has no band {band}; it has {len(names)}, counted from 1: {', '.join(names)}")
        numbers += same
    return numbers or list(range(1, len(names) + 1))


def own_bands(path: str, datasets: Sequence[DatasetReader]) -> list[Band]:
    """All bands of a stack but for alpha."""
    every = [
        band
        for dataset in datasets
        for number in sorted(set(dataset.indexes) - set(alpha_bands(dataset)))
        for band in _seen(dataset, number)
    ]
    if not every:
        raise InputError(f"{path}: has no bands beside alpha")
    return every


def _seen(dataset: DatasetReader, number: int) -> list[Band]:
    """A band as it is, or the colours of its table: one of greys, and none that is the same in all of the table."""
    name = dataset.descriptions[number - 1] or Path(dataset.name).stem + (f"_{number}" if dataset.count > 1 else "")
    own = Band(dataset, number, name)
    if dataset.colorinterp[number - 1] != ColorInterp.palette:
        return [own]
    table = dataset.colormap(number)
    # One more than there are indices, for whatever has no colour.
    colours = np.full((3, max(table) + 2), np.nan, np.float32)
    for index, (*colour, opacity) in table.items():
        if opacity > 0:
            colours[:, index] = colour
    told = [np.unique(shades[np.isfinite(shades)]).size > 1 for shades in colours]
    if any(told) and np.array_equal(colours, colours[:1].repeat(3, 0), equal_nan=True):
        return [own._replace(shades=colours[0])]
    named = zip(("red", "green", "blue"), colours, told, strict=True)
    return [own._replace(name=f"{name}_{colour}", shades=shades) for colour, shades, tells in named if tells] or [own]


def alpha_bands(dataset: DatasetReader) -> list[int]:
    """Numbers of the bands that are opacity."""
    meanings = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return [band for band, meaning in meanings if meaning == ColorInterp.alpha]
