"""Noise of the labels: drawn once for a pair, read by window, the same for the same seed."""

from __future__ import annotations

import math
import zlib
from typing import Protocol

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from regnet.displacement import gaussian
from regnet.errors import ConfigError
from regnet.geo.grid import Box
from regnet.geo.vector import PolygonRaster, burn
from regnet.tiles.options import NoiseOptions

OBJECT_MARGIN_PX = 4.0
"""An object's offset holds this far around its outline."""


class Noise(Protocol):
    """Noise of one pair's labels."""

    def read(self, box: Box) -> NDArray[np.float32]:
        """Draw the noise on a tile: (2, height, width) px."""


def make_noise(
    options: NoiseOptions, pair: str, shape: tuple[int, int], outlines: NDArray[np.object_] | None = None
) -> Noise:
    """Make the noise of a pair's labels.

    Args:
        options: kind, size and seed.
        pair: name of the pair; another name is another draw.
        shape: (H, W) of the scene.
        outlines: (n,) polygons of the pair in pixels, for kind `object`.

    Raises:
        ConfigError: kind `object` for a pair without objects.
    """
    seeds = [options.seed, zlib.crc32(pair.encode())]
    generator = np.random.default_rng(seeds)
    sigma = options.sigma_px
    drawn: Noise | None = None
    if options.kind == "knots":
        drawn = KnotField.independent(shape, options.spacing_px, sigma, generator)
    elif options.kind == "smooth":
        drawn = KnotField.smooth(shape, options.smooth_sigma_px, sigma, generator)
    elif options.kind == "tile":
        drawn = TileNoise(seeds, sigma)
    elif options.kind == "object":
        if outlines is None:
            raise ConfigError(f"prepare.noise.kind=object needs polygons, and pair {pair} has a raster; take another")
        ground = KnotField.smooth(shape, options.smooth_sigma_px, sigma, generator)
        drawn = ObjectNoise(outlines, sigma, ground, generator)
    shift = ConstantNoise(*systematic_shift(options))
    return shift if drawn is None else SumOfNoise(drawn, shift)


def systematic_shift(options: NoiseOptions) -> tuple[float, float]:
    """The shift (dx, dy) px that all labels have in common: no averaging removes it."""
    return (0.0, 0.0) if options.kind == "none" else (options.shift_dx_px, options.shift_dy_px)


def noise_covariance(
    options: NoiseOptions,
    pair: NDArray[np.str_],
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    on_object: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Covariance of the noise drawn for n labels, in units of `sigma_px` squared: (n, n), the same for dx and dy.

    Labels of one place, such as several augmentations of one tile, have the same noise.

    Args:
        options: kind and size.
        pair: (n,) names; noise of different pairs is independent.
        row: (n,) pixel that the label is read at; the upper left one of the tile will do for kind `tile`.
        col: (n,) likewise.
        on_object: (n,) which labels lie on an object (kind `object`); the few that share one are taken for independent.
    """
    same_pair = np.equal.outer(pair, pair)
    alike = same_pair & np.equal.outer(row, row) & np.equal.outer(col, col)
    if options.kind == "knots":
        down, across = (_knot_covariance(place, options.spacing_px) for place in (row, col))
        between: NDArray[np.float64] = down * across * same_pair
        return between
    if options.kind in ("smooth", "object"):
        squared = np.subtract.outer(row, row) ** 2.0 + np.subtract.outer(col, col) ** 2.0
        # White noise through a Gaussian of s.
        smooth = np.exp(-squared / (4 * options.smooth_sigma_px**2)) * same_pair
        apart = np.logical_or.outer(on_object, on_object) & (options.kind == "object")
        mixed: NDArray[np.float64] = np.where(apart, alike, smooth)
        return mixed
    own: NDArray[np.float64] = alike.astype(np.float64)
    return own


def _knot_covariance(place: NDArray[np.integer], spacing_px: float) -> NDArray[np.float64]:
    weights = knot_weights(place, spacing_px, math.ceil(place.max(initial=0) / spacing_px) + 3)
    return weights @ weights.T


class ConstantNoise:
    """The same shift everywhere."""

    def __init__(self, dx_px: float, dy_px: float) -> None:
        self._shift = np.array([dx_px, dy_px], np.float32)[:, None, None]

    def read(self, box: Box) -> NDArray[np.float32]:
        """(2, height, width) px."""
        return np.tile(self._shift, (1, box.height, box.width))


class TileNoise:
    """One offset for each tile, independent of every other, known by the tile's place."""

    def __init__(self, seeds: list[int], sigma_px: float) -> None:
        self._seeds, self._sigma_px = seeds, sigma_px

    def read(self, box: Box) -> NDArray[np.float32]:
        """(2, height, width) px."""
        generator = np.random.default_rng([*self._seeds, box.row, box.col])
        return ConstantNoise(*generator.normal(0, self._sigma_px, 2)).read(box)


class SumOfNoise:
    """Two kinds of noise, one on top of the other."""

    def __init__(self, one: Noise, other: Noise) -> None:
        self._parts = one, other

    def read(self, box: Box) -> NDArray[np.float32]:
        """(2, height, width) px."""
        one, other = (part.read(box) for part in self._parts)
        return one + other


class KnotField:
    """A field known at the knots of a grid, cubic between (Keys 1981, a = -1/2: exact at the knots).

    Args:
        knots: (2, rows, columns) px; knot (k, l) lies at pixel `((l - 1) * spacing_px, (k - 1) * spacing_px)`.
        spacing_px: distance of the knots, px.
    """

    def __init__(self, knots: NDArray[np.float64], spacing_px: float) -> None:
        self._knots, self._spacing_px = knots, spacing_px

    @staticmethod
    def size(shape: tuple[int, int], spacing_px: float) -> tuple[int, int]:
        """Rows and columns of knots for a scene of (H, W)."""
        return math.ceil(shape[0] / spacing_px) + 3, math.ceil(shape[1] / spacing_px) + 3

    @classmethod
    def independent(
        cls, shape: tuple[int, int], spacing_px: float, sigma_px: float, generator: np.random.Generator
    ) -> KnotField:
        """White Gaussian noise at the knots, of this standard deviation a component."""
        return cls(generator.normal(0, sigma_px, (2, *cls.size(shape, spacing_px))), spacing_px)

    @classmethod
    def smooth(
        cls, shape: tuple[int, int], smooth_sigma_px: float, sigma_px: float, generator: np.random.Generator
    ) -> KnotField:
        """White noise through a Gaussian, of this standard deviation a component: no knot is seen in it."""
        spacing_px, wide = max(1.0, smooth_sigma_px / 3), min(3.0, smooth_sigma_px)
        rows, columns = cls.size(shape, spacing_px)
        margin = math.ceil(3.5 * wide)
        white = generator.standard_normal((1, 2, rows + 2 * margin, columns + 2 * margin))
        impulse = torch.zeros(1, 1, 4 * margin + 1, 4 * margin + 1, dtype=torch.float64)
        impulse[..., 2 * margin, 2 * margin] = 1
        gain = float(gaussian(impulse, wide).square().sum().sqrt())
        field = gaussian(torch.from_numpy(white), wide)[0, :, margin : margin + rows, margin : margin + columns]
        return cls(field.numpy() * (sigma_px / gain), spacing_px)

    def read(self, box: Box) -> NDArray[np.float32]:
        """(2, height, width) px."""
        down = knot_weights(box.row + np.arange(box.height), self._spacing_px, self._knots.shape[1])
        across = knot_weights(box.col + np.arange(box.width), self._spacing_px, self._knots.shape[2])
        return np.asarray(down @ self._knots @ across.T, np.float32)


def knot_weights(pixel: NDArray[np.integer], spacing_px: float, knots: int) -> NDArray[np.float64]:
    """How much each knot of a line counts at each of n pixels, (n, knots)."""
    place = pixel / spacing_px + 1
    distance = np.abs(place[:, None] - np.arange(knots))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


class ObjectNoise:
    """One offset for each object, on its outline grown a little, and a smooth field beside."""

    def __init__(
        self, outlines: NDArray[np.object_], sigma_px: float, ground: KnotField, generator: np.random.Generator
    ) -> None:
        self._objects, self._ground = PolygonRaster(outlines), ground
        self._offsets = generator.normal(0, sigma_px, (len(outlines), 2)).astype(np.float32)

    def read(self, box: Box) -> NDArray[np.float32]:
        """(2, height, width) px."""
        offset = self._ground.read(box)
        near = self._objects.near(box, OBJECT_MARGIN_PX + 1)
        grown = shapely.buffer(self._objects.outlines[near], OBJECT_MARGIN_PX, quad_segs=4)
        owner = burn(
            [*zip(grown, near + 1, strict=True), *zip(self._objects.outlines[near], near + 1, strict=True)],
            box,
            (box.height, box.width),
            "int32",
        )
        owned = owner > 0
        offset[:, owned] = self._offsets[owner[owned] - 1].T
        return offset
