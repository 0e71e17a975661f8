"""Test cases: a block of ground whose moving image is displaced by a known random field."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet import displacement
from regnet.evaluation.check_points import FAMILY, sparse_truth
from regnet.evaluation.options import FamilyOptions
from regnet.tiles.patch import Patch, displaced
from regnet.tiles.store import Scene, TileStore


@dataclass(frozen=True)
class Case:
    """One block under one random displacement.

    Attributes:
        part: train, validation, test or shifted.
        family: name of the displacement's family.
        draw: number of the random field.
        block: the block's row in the store's table of blocks.
        margin_px: context read around the block, px.
        points: (n, 4) check points of the pair, see `read_check_points`; None: the moving image is displaced.
    """

    part: str
    family: FamilyOptions
    draw: int
    block: Any
    margin_px: int
    points: NDArray[np.float64] | None = None

    @property
    def name(self) -> str:
        """Unique within a run, and fit for a file name."""
        return f"{self.part}_{self.family.name}_{self.block.block_id}_{self.draw}"

    @property
    def own(self) -> tuple[slice, slice]:
        """Rows and columns of the block's own pixels within its window."""
        margin = self.margin_px
        return slice(margin, margin + int(self.block.height)), slice(margin, margin + int(self.block.width))


@dataclass(frozen=True)
class Problem:
    """What the methods are given, and the answer: `true` (2, H, W) px with moving(x + true(x)) ~ fixed(x), or NaN."""

    patch: Patch
    true: NDArray[np.float32]


def list_cases(
    store: TileStore,
    parts: list[str],
    families: list[FamilyOptions],
    draws: int,
    margin_px: int,
    points: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> list[Case]:
    """List every case of a run, block after block; `points` are the check points of each pair."""
    cases = []
    for part in parts:
        for block in store.blocks[store.blocks["part"] == part].itertuples():
            cases += [Case(part, family, draw, block, margin_px) for family in families for draw in range(draws)]
            near = points.get(block.pair)
            window = (int(block.row), int(block.col), (int(block.height), int(block.width)))
            if near is not None and np.isfinite(sparse_truth(near, *window)).any():
                cases.append(Case(part, FamilyOptions(FAMILY, 0.0, 1.0), 0, block, margin_px, near))
    return cases


class CaseMaker:
    """Makes the problems of cases; keeps the scene and field it used last, since the cases come in that order."""

    def __init__(self, store: TileStore, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._fields: dict[tuple[str, str, int], SceneField] = {}

    def problem(self, case: Case) -> Problem:
        """Read a case's block with its context and displace its moving image.

        The pair as it is counts as aligned, so with a random field t the displaced image `moving(x + invert(t)(x))` has
        just the true displacement t. With check points the pair stays as it is, and its structure is where they are.
        """
        scene = self._store.scene(case.block.pair)
        margin = case.margin_px
        row, col = int(case.block.row) - margin, int(case.block.col) - margin
        height, width = int(case.block.height) + 2 * margin, int(case.block.width) + 2 * margin
        if case.points is not None:
            true = sparse_truth(case.points, row, col, (height, width))
            return Problem(replace(scene.read(row, col, height, width), structure=np.isfinite(true[0])), true)
        true = self._field(case, scene).window(row, col, height, width)
        return Problem(displaced(scene.read(row, col, height, width), true), true)

    def _field(self, case: Case, scene: Scene) -> SceneField:
        key = (case.block.pair, case.family.name, case.draw)
        if key not in self._fields:
            if next(iter(self._fields), key)[0] != key[0]:
                self._fields.clear()
            names = [zlib.crc32(name.encode()) for name in key[:2]]
            generator = np.random.default_rng([self._seed, *names, case.draw])
            self._fields[key] = SceneField(scene.shape, case.family, generator)
        return self._fields[key]


class SceneField:
    """One random displacement over a whole scene, kept on a coarse grid and read by window."""

    def __init__(self, shape: tuple[int, int], family: FamilyOptions, generator: np.random.Generator) -> None:
        self._step = max(1, int(family.sigma_px // 4))
        self._border = 4
        coarse = (-(-shape[0] // self._step) + 2 * self._border, -(-shape[1] // self._step) + 2 * self._border)
        field = displacement.random_field(coarse, family.peak_px, family.sigma_px / self._step, generator)
        self._coarse = torch.from_numpy(field)[None]

    def window(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        """Interpolate the window (2, height, width) px that starts at a row and column of the scene."""
        rows = (torch.arange(row, row + height) + 0.5) / self._step - 0.5 + self._border
        cols = (torch.arange(col, col + width) + 0.5) / self._step - 0.5 + self._border
        pull = torch.stack(
            (
                (cols - torch.arange(width)).expand(height, width),
                (rows - torch.arange(height))[:, None].expand(height, width),
            )
        )
        return displacement.warp(self._coarse, pull[None], "bicubic")[0].numpy()
