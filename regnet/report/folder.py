"""What the report finds in a run folder; what is not there is `AbsentError`, and the report says so in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from numpy.typing import NDArray

from regnet.displacement import warp
from regnet.files import STAMP, read_json
from regnet.geo.vector import CHANNELS
from regnet.tiles.patch import Patch, displaced
from regnet.tiles.store import TileStore

MARGIN_PX = 24
VECTOR_CHANNELS = list(CHANNELS)


class AbsentError(Exception):
    """A stage's output is not there; the message is the sentence that the report shows instead."""


@dataclass(frozen=True)
class Example:
    """A window of a held-out block with a known displacement, before and after.

    Attributes:
        part: of the split that it lies in.
        patch: fixed, and moving displaced by the known field.
        errors_px: (H, W) end-point error of each method, NaN where the pair is not valid.
        warped: (C, H, W) moving after each method.
        gsd_m: length of a pixel on the ground.
    """

    part: str
    patch: Patch
    errors_px: dict[str, NDArray[np.float32]]
    warped: dict[str, NDArray[np.float32]]
    gsd_m: float


class RunFolder:
    """The outputs of a run's stages, read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def store(self) -> TileStore:
        """The prepared tiles."""
        return TileStore.open(self._stage("prepare"))

    def summary(self, stage: str) -> dict[str, Any]:
        """A stage's summary.json."""
        return dict(read_json(self.file(stage, "summary.json")))

    def settings(self, stage: str) -> dict[str, Any]:
        """The settings that a stage was made with."""
        return dict(read_json(self.file(stage, STAMP))["settings"]["settings"])

    def file(self, stage: str, name: str) -> Path:
        """A file of a stage."""
        path = self._stage(stage) / name
        if not path.exists():
            raise AbsentError(f"The stage {stage} left no {name}.")
        return path

    def table(self, stage: str, name: str) -> gpd.GeoDataFrame:
        """A GeoParquet table of a stage."""
        return gpd.read_parquet(self.file(stage, name))

    @lru_cache(maxsize=4)  # noqa: B019 - one folder a report
    def examples(self, family: str, side_px: int) -> list[Example]:
        """One window of every evaluated part: the part's block with the most structure.

        Args:
            family: of random displacements.
            side_px: longest side of the window.
        """
        found = []
        blocks = self.store.blocks
        for part in ("test", "shifted", "validation", "train"):
            names = [(f"{part}_{family}_{row.block_id}_0", row) for row in blocks[blocks["part"] == part].itertuples()]
            there = [(name, row) for name, row in names if self._prediction(name, "truth").is_file()]
            if there:
                name, row = max(there, key=lambda item: self._structure(item[0]))
                found.append(self._example(name, row, side_px))
        if not found:
            raise AbsentError(f"No prediction under the displacements {family} is kept in this run.")
        return found

    def _example(self, name: str, block: Any, side_px: int) -> Example:
        with np.load(self._prediction(name, "truth")) as saved:
            true, valid = saved["true"], saved["valid"]
        # The window with some ground around it, so that what is displaced into the window is known.
        wide = tuple(_middle(length, side_px + 2 * MARGIN_PX) for length in valid.shape)
        window = tuple(_middle(part.stop - part.start, side_px) for part in wide)
        scene = self.store.scene(block.pair)
        size = tuple(part.stop - part.start for part in wide)
        patch = scene.read(int(block.row) + wide[0].start, int(block.col) + wide[1].start, *size)
        true, valid = true[:, *wide], valid[wide]
        given = displaced(patch, true).moving
        errors, warped = {}, {}
        for method in self._methods(name):
            with np.load(self._prediction(name, method)) as saved:
                if str(saved["failure"]):
                    continue
                field = saved["displacement"][:, *wide]
            length = np.where(valid, np.hypot(*(field - true)), np.nan)
            errors[method] = np.asarray(length[window], np.float32)
            warped[method] = warp(torch.from_numpy(given)[None], torch.from_numpy(field)[None])[0][:, *window].numpy()
        shown = Patch(
            fixed=patch.fixed[:, *window],
            moving=given[:, *window],
            fixed_valid=patch.fixed_valid[window],
            moving_valid=valid[window],
            structure=patch.structure[window],
        )
        return Example(block.part, shown, errors, warped, scene.gsd_m)

    def _structure(self, name: str) -> int:
        with np.load(self._prediction(name, "truth")) as truth:
            return int((truth["structure"] & truth["valid"]).sum())

    def _methods(self, name: str) -> list[str]:
        listed = self.settings("evaluate").get("methods", [])
        return [method for method in listed if self._prediction(name, method).is_file()]

    def _prediction(self, name: str, method: str) -> Path:
        return self._stage("evaluate") / "predictions" / method / f"{name}.npz"

    def _stage(self, stage: str) -> Path:
        folder = self.path / stage
        if not (folder / STAMP).is_file():
            raise AbsentError(f"The stage {stage} has not run in this folder, or was not finished.")
        return folder


def _middle(length: int, side: int) -> slice:
    side = min(length, side)
    return slice((length - side) // 2, (length - side) // 2 + side)
