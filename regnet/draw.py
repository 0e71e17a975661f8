"""How all figures look: one palette that colour-blind readers tell apart, images in display colours, scale bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from skimage.feature import canny

from regnet.files import write_figure
from regnet.tiles.store import Scene

# Okabe and Ito 2008.
BLUE, SKY, ORANGE, VERMILION, GREEN, PURPLE = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7"
PART_COLOURS = {"train": BLUE, "validation": SKY, "test": ORANGE, "shifted": PURPLE}
ERROR_COLOURS = mpl.colormaps["cividis"].with_extremes(bad="#d9d9d9")
VOID = 0.85
"""Grey of what has no data."""
MOST_RATIO = 3.0
"""Taller figures would cost gigabytes to draw."""
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY]),
}


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_figure(path, figure, dpi, facecolor="white", bbox_inches="tight", pad_inches=0.06)


def new_figure(width_in: float, height_in: float) -> Figure:
    """A figure in regnet's style; the caller draws on it within `matplotlib.rc_context(STYLE)`.

    It is as tall as asked for, up to `MOST_RATIO` times its width: pairs may be long and narrow.
    """
    return Figure(figsize=(width_in, min(height_in, MOST_RATIO * width_in)))


def rows_that_fit(width_in: float, row_in: float) -> int:
    """Rows of pictures that a figure can show in full, one at least."""
    return max(1, int(MOST_RATIO * width_in / row_in))


def display(image: NDArray[np.float32], valid: NDArray[np.bool_], channels: Sequence[int] = ()) -> NDArray[np.float32]:
    """Turn normalised channels into display values.

    Args:
        image: (C, H, W).
        valid: (H, W); elsewhere the result is light grey.
        channels: red, green, blue or one for grey, counted from 1; empty: the first three, or the mean in grey if
            there are fewer.

    Returns:
        (H, W, 3), 0 to 1.
    """
    if channels:
        picked = image[[channel - 1 for channel in channels]]
    else:
        picked = image[:3] if len(image) >= 3 else image.mean(0, keepdims=True)
    picked = np.broadcast_to(picked, (3, *picked.shape[1:])) if len(picked) != 3 else picked
    shown = np.full((3, *valid.shape), VOID, np.float32)
    for band, values in zip(shown, picked, strict=True):
        if valid.any():
            low, high = np.percentile(values[valid], (1, 99))
            band[valid] = np.clip((values[valid] - low) / max(high - low, 1e-6), 0, 1) ** 0.8
    return np.moveaxis(shown, 0, -1)


def evened(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Turn normalised channels (C, H, W) into greys (H, W) from 0 to 1, each shade as frequent as the others.

    So images of two modalities are about as bright as each other, and neither speckle nor a few bright roofs take the
    contrast from the rest. Elsewhere than `valid` (H, W) the result is light grey.
    """
    grey = image.mean(0)
    known = np.sort(grey[valid])
    rank = np.searchsorted(known, grey, "left") + np.searchsorted(known, grey, "right")
    return np.where(valid, rank / max(2 * known.size, 1), VOID).astype(np.float32)


def thumbnail(scene: Scene, longest_px: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Read a scene's fixed image reduced by block means, strip by strip.

    Returns:
        (C, h, w) image, (h, w) validity, and how many pixels of the scene one of them covers along an axis.
    """
    height, width = scene.shape
    # Of a very long scene the shorter side still has a pixel, and the longer one more than `longest_px`.
    step = min(-(-max(height, width) // longest_px), height, width)
    rows, cols = height // step, width // step
    images, valids = [], []
    tall = max(1, 512 // step)
    for row in range(0, rows, tall):
        count = min(tall, rows - row)
        patch = scene.read(row * step, 0, count * step, cols * step)
        images.append(patch.fixed.reshape(len(patch.fixed), count, step, cols, step).mean((2, 4)))
        valids.append(patch.fixed_valid.reshape(count, step, cols, step).mean((1, 3)) > 0.5)
    return np.concatenate(images, 1), np.concatenate(valids), step


def edges(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Lines of an image of any modality, 0 or 1 (H, W), one pixel wide: Canny's, from the strongest twentieth on."""
    found = canny(image.mean(0), 1.5, 0.85, 0.95, mask=valid, use_quantiles=True)
    return np.asarray(found, np.float32)


def outlines(image: NDArray[np.float32], edge: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw lines, (H, W) coverage, in orange over a grey version of an image (H, W, 3)."""
    grey = np.broadcast_to(image.mean(-1, keepdims=True), image.shape) * 0.8
    colour = np.asarray(mpl.colors.to_rgb(ORANGE), np.float32)
    cover = np.clip(edge, 0, 1)[..., None]
    return np.asarray(grey * (1 - cover) + colour * cover, np.float32)


def picture(axes: Axes, image: NDArray[Any], title: str, **options: Any) -> Any:
    """Show an image without ticks."""
    shown = axes.imshow(image, interpolation="nearest", **options)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def paint_tiles(
    axes: Axes, tiles: pd.DataFrame, values: NDArray[np.floating], shades: ScalarMappable, tile_px: int, side_px: float
) -> None:
    """Paint the middle of tiles on a picture of their scene, the greatest values last, over the others.

    Args:
        axes: of the picture, in pixels of the scene.
        tiles: (n) with columns row, col.
        values: (n,) to colour them by; NaN is left out.
        shades: colours of the values.
        tile_px: side of a tile.
        side_px: side of what is painted of it.
    """
    start = (tile_px - side_px) / 2
    rows, cols = tiles["row"].to_numpy(), tiles["col"].to_numpy()
    for place in np.argsort(values):
        if np.isfinite(values[place]):
            colour, corner = shades.to_rgba(values[place]), (cols[place] + start, rows[place] + start)
            axes.add_patch(Rectangle(corner, side_px, side_px, facecolor=colour, alpha=0.8, edgecolor="none"))


def scale_bar(axes: Axes, width_px: float, gsd_m: float) -> None:
    """Draw a bar of a round length, about a quarter of the picture, labelled in metres.

    Args:
        axes: of the picture.
        width_px: of the picture, in its own pixels.
        gsd_m: length of one of them on the ground; NaN if not known, which gives no bar.
    """
    if np.isnan(gsd_m):
        return
    wanted = width_px * gsd_m / 4
    power = 10 ** np.floor(np.log10(wanted))
    length_m = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted)
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    bar = length_m / gsd_m
    axes.plot(
        [0.04, 0.04 + bar / width_px], [0.05, 0.05], transform=axes.transAxes, color="white", linewidth=4, zorder=5
    )
    axes.plot(
        [0.04, 0.04 + bar / width_px], [0.05, 0.05], transform=axes.transAxes, color="black", linewidth=2, zorder=6
    )
    axes.text(
        0.04,
        0.075,
        text,
        transform=axes.transAxes,
        fontsize=8,
        zorder=6,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
    )
