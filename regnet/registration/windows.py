"""Predict a displacement of any size by overlapping windows, in memory that the window and the raster's width bound."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from regnet.errors import ConfigError
from regnet.ranks import Ranks
from regnet.registration.ahead import worked
from regnet.registration.options import WindowOptions
from regnet.registration.progress import Progress
from regnet.tiles.patch import Patch

# Windows start at multiples of this, so that every window is pooled on the same coarse grid by the pyramid.
ALIGN_PX = 16
# Memory of the process beside the windows (libraries, GDAL's cache, the global stage), and what a pixel of a row of
# windows and of a strip takes at the peak.
BASE_MB, ROW_BYTES, STRIP_BYTES = 750, 44, 150
COPY_BYTES = 200
"""What a pixel of a window takes in copies, on its way to the process that matches it and back."""
GAPS = 1.15
"""The heap grows to so many times what windows take, since others' blocks lie between their arrays."""
FAIR_PX = 512
"""Windows smaller than this overlap too much to be worth the threads that work on them."""
STRIP_PX = 64
"""Finished rows are given so many at a time."""


@dataclass(frozen=True)
class Match:
    """What is known of a window's displacement.

    Attributes:
        displacement: (2, H, W) px.
        quality: (K, H, W): how far to trust it; the first channel is the confidence in 0..1, what the others mean is
            the matcher's own.
    """

    displacement: NDArray[np.float32]
    quality: NDArray[np.float32]


@dataclass(frozen=True)
class Strip:
    """Finished rows of a prediction: `displacement` (2, h, W) and `quality` (K, h, W), the first of them row `row`."""

    row: int
    displacement: NDArray[np.float32]
    quality: NDArray[np.float32]


Matcher = Callable[[Patch], Match]
Reader = Callable[[int, int, int, int], Patch]


@dataclass(frozen=True)
class Mosaic:
    """Overlapping windows that make up a pair, and what matches them; blended by raised cosines.

    The outer quarter of an overlap counts for nothing, since a window knows too little there: a matcher that looks no
    farther than `overlap_px / 4` gives just what it gives on the whole raster at once.

    Attributes:
        matcher: maps a window of the pair to its displacement; windows without any pixel valid in both are skipped.
        read: `read(row, col, height, width)`; windows may reach beyond the raster, where it gives invalid pixels.
        shape: (H, W) of the raster, px.
        options: size and overlap of the windows.
        channels: K, how many channels of quality the matcher gives.
        at_once: how many windows are matched at the same time, each by one thread if they are several.
    """

    matcher: Matcher
    read: Reader
    shape: tuple[int, int]
    options: WindowOptions
    channels: int = 1
    at_once: int = 1

    def strips(self, kept: Progress | None = None, shown: str = "") -> Iterator[Strip]:
        """Predict the rows of the raster and give them as they are finished.

        Args:
            kept: rows of windows that are finished, and where those to come are kept.
            shown: what the progress bar says; none is shown if empty.

        Yields:
            Strips from top to bottom that make up the raster; displacement and quality are 0 where nothing is valid.
        """
        (height, width), rows = self.shape, self._rows
        kept = kept or Progress(None)
        done = [kept.has(place) for place in range(len(rows))]
        todo = [row for row, whole in zip(rows, done, strict=True) if not whole]
        tail = None
        with closing(self._sums(todo, shown)) as found:
            for place, (row, following) in enumerate(zip(rows, [*rows[1:], height], strict=True)):
                count = following - row
                if done[place]:
                    buffer = kept.load(place)
                else:
                    buffer = next(found)
                    kept.save(place, buffer)
                if tail is not None:
                    buffer[:, : tail.shape[1]] += tail
                    tail = None
                for start in range(0, count, STRIP_PX):
                    sums = buffer[:, start : min(start + STRIP_PX, count), :width]
                    means = sums[:-1] / np.maximum(sums[-1], 1e-12)
                    yield Strip(row + start, means[:2], means[2:])
                tail = buffer[:, count:].copy()

    def whole(self, shown: str = "") -> Match:
        """Predict all rows together, of a raster whose displacement fits into memory."""
        strips = list(self.strips(shown=shown))
        return Match(
            np.concatenate([strip.displacement for strip in strips], 1),
            np.concatenate([strip.quality for strip in strips], 1),
        )

    def share(self, ranks: Ranks, kept: Progress, shown: str = "") -> None:
        """Match a rank's own rows of windows and keep them; when it returns all ranks have kept theirs.

        All ranks call it, with one folder that they share. `strips` then finds all rows finished.
        """
        rows = self._rows
        places = [place for place in ranks.own(range(len(rows))) if not kept.has(place)]
        with closing(self._sums([rows[place] for place in places], shown)) as found:
            for place, sums in zip(places, found, strict=True):
                kept.save(place, sums)
        ranks.barrier()

    @property
    def _rows(self) -> list[int]:
        return layout(self.shape[0], self.options)[0]

    def _sums(self, rows: Sequence[int], shown: str) -> Generator[NDArray[np.float32]]:
        """Match rows of windows that start at these rows of the raster.

        Yields:
            For each, sums over its windows: weighted displacement and quality, and weights, (3 + channels, height,
            width); in the same array every time.
        """
        overlap = self.options.overlap_px
        height, (cols, width) = layout(self.shape[0], self.options)[1], layout(self.shape[1], self.options)
        weight = np.outer(_ramp(height, overlap), _ramp(width, overlap)).astype(np.float32)
        buffer = np.zeros((3 + self.channels, height, cols[-1] + width), np.float32)  # takes no memory until written to
        reads = [partial(self.read, row, col, height, width) for row in rows for col in cols]
        bar = tqdm(total=len(reads), desc=shown, unit="window", disable=not shown)
        with bar, closing(worked(reads, partial(_matched, self.matcher), self.at_once, apart=True)) as matches:
            for _ in rows:
                for col, match in zip(cols, matches, strict=False):
                    if match is not None:
                        target = buffer[:, :, col : col + width]
                        target[:2] += match.displacement * weight
                        target[2:-1] += match.quality * weight
                        target[-1] += weight
                    bar.update()
                yield buffer
                buffer[:] = 0


def _matched(matcher: Matcher, patch: Patch) -> Match | None:
    """The match of a window; None if no pixel is valid in both images."""
    return matcher(patch) if (patch.fixed_valid & patch.moving_valid).any() else None


def layout(length: int, options: WindowOptions) -> tuple[list[int], int]:
    """Place windows along one axis.

    Args:
        length: of the axis, px.
        options: greatest size and least overlap of the windows.

    Returns:
        The starts, evenly spaced multiples of `ALIGN_PX`, and the windows' common size: no larger than as many windows
        need. The last one may reach beyond the axis.
    """
    size = min(_aligned(options.window_px), _aligned(length))
    if size >= length:
        return [0], size
    overlap = min(_aligned(options.overlap_px), size - ALIGN_PX)
    count = -(-(length - overlap) // (size - overlap))
    step = _aligned(-(-(length - overlap) // count))
    return [step * position for position in range(count)], step + overlap


def corners(shape: tuple[int, int], options: WindowOptions) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Row and column of the first pixel of every window on a raster (H, W), and the windows' height and width."""
    (rows, height), (cols, width) = (layout(side, options) for side in shape)
    return [(row, col) for row in rows for col in cols], (height, width)


def _aligned(length: int) -> int:
    return -(-length // ALIGN_PX) * ALIGN_PX


def _ramp(size: int, overlap_px: int) -> NDArray[np.float64]:
    """Weight along one axis of a window: next to nothing, a rising raised cosine, one, and the same backwards."""
    ramp = max(overlap_px / 2, 1e-6)
    inside = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    rise = np.clip((inside - overlap_px / 4) / ramp, 0, 1)
    # The outermost pixels keep a trace of weight: at the raster's own border no other window speaks for them.
    return np.asarray(np.maximum(0.5 - 0.5 * np.cos(np.pi * rise), 1e-6))


def bounded(options: WindowOptions, width: int, memory_mb: int, pixel_bytes: int) -> WindowOptions:
    """Make windows smaller, if need be, so that a prediction keeps to a memory.

    Args:
        options: the windows that are wanted.
        width: of the raster, px.
        memory_mb: for the whole process.
        pixel_bytes: what a pixel of a window takes at the peak.

    Raises:
        ConfigError: even the smallest windows take more.
    """
    side = _aligned(options.window_px)
    least = max(_aligned(options.overlap_px) + ALIGN_PX, 64)
    while (needed := BASE_MB + _peak_bytes(side, width, pixel_bytes, options.overlap_px) / 2**20) > memory_mb:
        if side - 4 * ALIGN_PX < least:
            raise ConfigError(f"memory_mb={memory_mb} is too little for a raster {width} px wide; give {needed:.0f}")
        side -= 4 * ALIGN_PX
    return replace(options, window_px=min(side, options.window_px))


def side_by_side(
    options: WindowOptions, shape: tuple[int, int], memory_mb: int, pixel_bytes: int, threads: int
) -> tuple[WindowOptions, int]:
    """As `bounded`, for as many windows at once as there are threads and as the memory leaves them a fair size.

    Args:
        options: the windows that are wanted.
        shape: (H, W) of the raster, px.
        memory_mb: for the whole process.
        pixel_bytes: what a pixel of a window takes at the peak.
        threads: that may work.

    Returns:
        The windows, and how many of them at once.
    """
    for at_once in range(threads, 1, -1):
        with suppress(ConfigError):
            windows = bounded(options, shape[1], memory_mb, at_once * (pixel_bytes + COPY_BYTES))
            if windows.window_px >= min(options.window_px, FAIR_PX) and len(corners(shape, windows)[0]) >= at_once:
                return windows, at_once
    return bounded(options, shape[1], memory_mb, pixel_bytes), 1


def _peak_bytes(side: int, width: int, pixel_bytes: int, overlap: int) -> int:
    """What windows of a side and the rows and strips that they make of a raster of a width take."""
    return round(side**2 * pixel_bytes * GAPS) + width * ((side + overlap) * ROW_BYTES + STRIP_PX * STRIP_BYTES)


class PatchReader:
    """Reads windows of a pair in memory; beyond it they are zero and invalid."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch

    def __call__(self, row: int, col: int, height: int, width: int) -> Patch:
        """Cut out a window that starts inside the pair."""
        patch = self._patch
        full = patch.fixed_valid.shape
        rows, cols = slice(row, min(row + height, full[0])), slice(col, min(col + width, full[1]))
        pad = ((0, height - (rows.stop - row)), (0, width - (cols.stop - col)))
        return Patch(
            np.pad(patch.fixed[:, rows, cols], ((0, 0), *pad)),
            np.pad(patch.moving[:, rows, cols], ((0, 0), *pad)),
            np.pad(patch.fixed_valid[rows, cols], pad),
            np.pad(patch.moving_valid[rows, cols], pad),
            np.pad(patch.structure[rows, cols], pad),
        )
