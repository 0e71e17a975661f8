"""What `register` and `apply` can be told, and how a raster is cut into windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regnet.options import option


@dataclass(frozen=True)
class WindowOptions:
    """How a raster is cut into windows for prediction."""

    window_px: int = option(1024, "side of a window", unit="px", low=32, high=65_536)
    overlap_px: int = option(
        64, "least overlap of neighbouring windows, which are blended there", unit="px", low=0, high=4096
    )


@dataclass(frozen=True)
class AdaptOptions:
    """How descriptors are trained on the pair itself, its present alignment being the noisy label."""

    enabled: bool = option(False, "train descriptors on the pair itself first; adapt=true is short for it")
    minutes: float = option(5.0, "time after which the training ends, steps or no steps", unit="min", low=0.05)
    steps: int = option(200, "optimiser steps; a run that reaches them in time is the same at every run", low=1)
    seed: int = option(0, "seed of tiles, weights and random displacements", low=0)


def _polygons() -> Any:
    return option(
        "rigid",
        "rigid: each polygon moves as a whole by its own robust offset; joined: polygons that touch move together, so "
        "that shared walls stay shared; vertices: every vertex by the field, and more where it bends long edges",
        choices=("rigid", "joined", "vertices"),
    )


def _resampling() -> Any:
    return option(
        "auto",
        "of the raster that is moved; nearest is for classes, whose values mean nothing in between; auto: nearest if "
        "it has a colour table, else cubic",
        choices=("auto", "nearest", "cubic"),
    )


@dataclass(frozen=True)
class RegisterOptions:
    """Everything that a registration depends on."""

    fixed: str = option(help="raster that stays; several files joined by | are stacked as bands")
    moving: str = option(
        help="raster that moves onto fixed (files joined by | are stacked), or vector file of polygons"
    )
    model: str | None = option(None, "checkpoint of a trained model (model.safetensors); null: training-free")
    descriptor: str = option("mind", "training-free descriptor, used when no model is given", choices=("mind", "ngf"))
    adapt: AdaptOptions = option(AdaptOptions(), "training on the pair itself, from the model or without one")
    fixed_bands: list[int | str] = option(
        [], "bands of fixed to match by, by number from 1 or by description; empty: all", low=1
    )
    moving_bands: list[int | str] = option(
        [], "bands of moving to match by, by number from 1 or by description; empty: all", low=1
    )
    fixed_transform: str = option("none", "log: match by the logarithm, for SAR amplitude", choices=("none", "log"))
    moving_transform: str = option("none", "log: match by the logarithm, for SAR amplitude", choices=("none", "log"))
    layer: str | None = option(None, "layer of a vector file; null: its only or first one")
    where: str | None = option(None, "filter of the vector's features, as in SQL's WHERE")
    gsd_m: float | None = option(None, "ground sampling distance of the working grid; null: fixed's", unit="m", low=0)
    polygons: str = _polygons()
    resampling: str = _resampling()
    global_stage: bool = option(True, "first look for a shift, rotation and scale of the whole pair")
    trust_shift: bool = option(
        False,
        "take the shift that the whole pair has in common as it is found, though images that agree as badly, as radar "
        "and optics do, are found as far off where they are in place",
    )
    max_error_px: float = option(
        4.0,
        "greatest expected error, beside what the whole pair may be off by in common, at which a place counts as "
        "registered; towards it displacements fade out",
        unit="px",
        low=0.05,
        high=100,
    )
    check_windows: int = option(
        2,
        "windows that are displaced by a known field and matched again, to check the expected error; 0: none",
        low=0,
        high=1000,
    )
    tie_spacing_px: int = option(64, "distance of the tie points that are written", unit="px", low=4)
    memory_mb: int = option(1800, "memory to keep to; windows are made smaller for it", unit="MB", low=800)
    windows: WindowOptions = option(WindowOptions(), "windows of the prediction")


@dataclass(frozen=True)
class ApplyOptions:
    """What moves, by which displacement, and to where."""

    displacement: str = option(help="displacement.tif that `register` wrote")
    target: str = option(
        help="raster (files joined by | are stacked) or vector file of the same place, as far off as moving was"
    )
    output: str = option(help="file of the result: .tif for a raster; .gpkg, .geojson, .fgb or .parquet for a vector")
    grid: str = option(
        "target",
        "target: a raster keeps its own pixels' size and CRS; fixed: it comes onto the displacement's grid",
        choices=("target", "fixed"),
    )
    polygons: str = _polygons()
    resampling: str = _resampling()
    layer: str | None = option(None, "layer of a vector file; null: its only or first one")
    where: str | None = option(None, "filter of the vector's features, as in SQL's WHERE")
