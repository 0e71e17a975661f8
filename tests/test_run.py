from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from regnet import run
from regnet.config import RunConfig
from regnet.denoising.options import DenoiseOptions
from regnet.errors import ConfigError, InputError, OutputError, StoreError
from regnet.evaluation.options import EvaluateOptions
from regnet.files import STAMP, held, read_json, write_json
from regnet.tiles.options import PairOptions, PrepareOptions, SplitOptions
from regnet.training.options import TrainingOptions
from tests.conftest import write_raster

ALL = ["prepare", "train", "similarity", "denoise", "evaluate", "report"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings of a run whose stages only make their folders."""

    def empty(folder: str) -> Callable[[RunConfig, Path], None]:
        def work(_: RunConfig, path: Path) -> None:
            (path / folder).mkdir(parents=True, exist_ok=True)
            if folder == "evaluate":
                write_json(path / folder / "summary.json", evaluated("ok"))
            if folder == "figures":
                (path / "report.html").write_text("report")

        return work

    stages = {name: replace(stage, work=empty(stage.folder)) for name, stage in run.STAGES.items()}
    monkeypatch.setattr(run, "STAGES", stages)
    for name in ("fixed", "moving", "below"):
        write_raster(tmp_path / f"{name}.tif", np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    build_vrt(tmp_path / "fixed.vrt", tmp_path / "below.tif")
    pair = PairOptions("pair", f"{tmp_path}/fixed.tif | {tmp_path}/fixed.vrt", f"{tmp_path}/moving.tif")
    return RunConfig(output_dir=str(tmp_path / "out"), prepare=PrepareOptions([pair]))


def evaluated(status: str) -> dict[str, Any]:
    return {"evaluation": {"smooth": {"mind": {"status": "ok"}, "classical.elastix": {"status": status}}}}


def build_vrt(path: Path, source: Path) -> None:
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def test_stages_run_in_order_and_then_are_skipped(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.run_stages(config, ALL) == ALL
    assert run.run_stages(config, ALL) == []
    assert capsys.readouterr().out.count("skipped") == len(ALL)


@pytest.mark.parametrize(
    ("split", "parts", "message"),
    [
        (
            SplitOptions(validation_share=0),
            [None],
            r"split\.validation_share=0: training needs .* larger share",
        ),
        (SplitOptions(rule="pairs"), ["train", "test"], "prepare.pairs: no pair is of the part validation"),
        (SplitOptions(), ["validation", "test"], "prepare.pairs: no pair is of the part train,"),
    ],
)
def test_a_split_without_a_part_to_train_on_is_refused_before_anything_is_done(
    split: SplitOptions, parts: list[str | None], message: str, config: RunConfig
) -> None:
    pairs = [replace(config.prepare.pairs[0], part=part) for part in parts]
    without = replace(config, prepare=replace(config.prepare, pairs=pairs, split=split))
    for study in ("none", "noise_sweep", "paper_enforced_similarity"):
        with pytest.raises(ConfigError, match=message):
            run.run_stages(replace(without, study=study))
    assert not Path(config.output_dir).exists()
    assert run.run_stages(without, ["prepare"]) == ["prepare"]


def test_parts_that_pairs_or_the_split_bring_are_enough(config: RunConfig) -> None:
    pairs = [replace(config.prepare.pairs[0], part=part) for part in ("validation", None)]
    brought = replace(config.prepare, pairs=pairs, split=SplitOptions(validation_share=0))
    assert run.run_stages(replace(config, prepare=brought), ["prepare", "train"]) == ["prepare", "train"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prepare": PrepareOptions(tile_px=64)}, ALL),
        ({"training": TrainingOptions(epochs=3)}, ALL[1:]),
        ({"denoise": DenoiseOptions(region_px=64)}, ["denoise", "report"]),
        ({"seed": 1}, ALL[1:]),
        ({"threads": 1}, []),
    ],
)
def test_a_changed_setting_runs_its_stage_and_those_after(
    change: dict[str, object], expected: list[str], config: RunConfig
) -> None:
    run.run_stages(config, ALL)
    assert run.run_stages(replace(config, **change), ALL) == expected


def test_how_much_memory_may_be_taken_changes_nothing(config: RunConfig) -> None:
    run.run_stages(config, ALL)
    less = replace(config.prepare, memory_mb=64)
    assert run.run_stages(replace(config, prepare=less, training=TrainingOptions(cache_mb=16)), ALL) == []


@pytest.mark.parametrize("name", ["fixed.tif", "fixed.vrt", "below.tif", "moving.tif"])
def test_a_changed_input_file_runs_everything(name: str, config: RunConfig) -> None:
    """Of files that are stacked each, and what lies below a virtual one."""
    run.run_stages(config, ALL)
    path = Path(config.output_dir).with_name(name)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    assert run.run_stages(config, ALL) == ALL


def test_changed_attributes_of_a_shapefile_run_everything(config: RunConfig, tmp_path: Path) -> None:
    """They are what `where` chooses by."""
    square = shapely.box(500_000, 4_999_940, 500_060, 5_000_000)
    outlines = gpd.GeoDataFrame({"kind": ["house"]}, geometry=[square], crs="EPSG:32633")
    outlines.to_file(tmp_path / "outlines.shp")
    pair = PairOptions("pair", str(tmp_path / "fixed.tif"), str(tmp_path / "outlines.shp"))
    config = replace(config, prepare=PrepareOptions([pair]))
    run.run_stages(config, ALL)
    assert run.run_stages(config, ALL) == []
    outlines.assign(kind="shed").to_file(tmp_path / "elsewhere.shp")
    shutil.copyfile(tmp_path / "elsewhere.dbf", tmp_path / "outlines.dbf")
    assert run.run_stages(config, ALL) == ALL
    averaged = replace(config, denoise=DenoiseOptions(regions=str(tmp_path / "elsewhere.shp")))
    run.run_stages(averaged, ALL)
    (tmp_path / "elsewhere.prj").touch()
    assert run.run_stages(averaged, ALL) == ["denoise", "report"]


def test_changed_regions_are_averaged_over_again(config: RunConfig, tmp_path: Path) -> None:
    regions = tmp_path / "regions.geojson"
    regions.write_text("west and east")
    config = replace(config, denoise=DenoiseOptions(regions=str(regions)))
    run.run_stages(config, ALL)
    assert run.run_stages(config, ALL) == []
    regions.write_text("north and south")
    assert run.run_stages(config, ALL) == ["denoise", "report"]


@pytest.mark.parametrize(
    "failure",
    [evaluated("failed in 1 of 2 blocks: no network"), evaluated("ok") | {"neighbours": {"status": "no network"}}],
)
def test_a_method_that_failed_is_tried_again(failure: dict[str, Any], config: RunConfig) -> None:
    run.run_stages(config, ALL)
    (Path(config.output_dir) / "similarity" / "kernel.zarr").mkdir()
    write_json(Path(config.output_dir) / "evaluate" / "summary.json", failure)
    assert run.run_stages(config, ALL) == ["evaluate", "report"]
    assert run.run_stages(config, ALL) == []


def test_neighbours_without_a_kernel_are_not_compared_again(config: RunConfig) -> None:
    run.run_stages(config, ALL)
    lacking = evaluated("ok") | {"neighbours": {"status": "there is no kernel"}}
    write_json(Path(config.output_dir) / "evaluate" / "summary.json", lacking)
    assert run.run_stages(config, ALL) == []


def test_what_was_deleted_is_written_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run.run_stages(config, ALL)
    folder = Path(config.output_dir)
    (folder / "report.html").unlink()
    assert run.run_stages(config, ["report"]) == ["report"]
    for name, file in {"train": "model.safetensors", "denoise": "tiles.parquet"}.items():
        work = run.STAGES[name].work

        def with_a_file(config: RunConfig, path: Path, work: Any = work, made: Path = Path(name) / file) -> None:
            work(config, path)
            (path / made).write_text("whole")

        monkeypatch.setitem(run.STAGES, name, replace(run.STAGES[name], work=with_a_file))
        (folder / name / STAMP).unlink()
    run.run_stages(config, ALL)
    (folder / "denoise" / "tiles.parquet").unlink()
    assert run.run_stages(config, ALL) == ["denoise", "report"]
    (folder / "train" / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="train: missing or not whole; run `regnet train"):
        run.run_stages(config, ["similarity"])
    assert run.run_stages(config, ALL) == ALL[1:]
    (folder / "summary.json").unlink()
    assert run.run_stages(config, ALL) == []
    assert "evaluation" in read_json(folder / "summary.json")


def test_a_stage_that_failed_is_not_taken_for_whole(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run.run_stages(config, ALL)

    def killed(_: RunConfig, path: Path) -> None:
        raise KeyboardInterrupt

    whole = run.STAGES["train"]
    monkeypatch.setitem(run.STAGES, "train", replace(whole, work=killed))
    other = replace(config, training=TrainingOptions(epochs=3))
    with pytest.raises(KeyboardInterrupt):
        run.run_stages(other, ALL)
    monkeypatch.setitem(run.STAGES, "train", whole)
    assert run.run_stages(other, ALL) == ALL[1:]


@pytest.mark.parametrize(
    ("name", "change"),
    [("prepare", {"prepare": PrepareOptions(tile_px=64)}), ("train", {"training": TrainingOptions(epochs=3)})],
)
def test_what_prepare_and_train_refuse_leaves_a_finished_run_whole(
    name: str, change: dict[str, object], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run_stages(config, ALL)

    def refused(_: RunConfig, path: Path) -> None:
        raise InputError("no such file")

    whole = run.STAGES[name]
    monkeypatch.setitem(run.STAGES, name, replace(whole, work=refused))
    with pytest.raises(InputError):
        run.run_stages(replace(config, **change), ALL)
    monkeypatch.setitem(run.STAGES, name, whole)
    assert run.run_stages(config, ALL) == []


@pytest.mark.parametrize("writes", [False, True])
def test_what_a_later_stage_refuses_before_it_writes_leaves_a_finished_run_whole(
    writes: bool, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run_stages(config, ALL)

    def refused(_: RunConfig, path: Path) -> None:
        if writes:
            (path / "evaluate" / "table.csv").write_text("half")
        raise InputError("no such file")

    whole = run.STAGES["evaluate"]
    monkeypatch.setitem(run.STAGES, "evaluate", replace(whole, work=refused))
    with pytest.raises(InputError):
        run.run_stages(replace(config, evaluate=EvaluateOptions(check_points="nope.csv")), ["evaluate"])
    monkeypatch.setitem(run.STAGES, "evaluate", whole)
    assert run.run_stages(config, ALL) == (["evaluate", "report"] if writes else [])


def test_a_damaged_stamp_counts_as_none(config: RunConfig) -> None:
    run.run_stages(config, ALL)
    stamp = Path(config.output_dir) / "train" / STAMP
    stamp.write_text(stamp.read_text()[:20])
    assert run.run_stages(config, ALL) == ALL[1:]


def test_a_stage_refuses_to_run_before_what_it_needs(config: RunConfig) -> None:
    run.run_stages(config, ["prepare"])
    with pytest.raises(StoreError, match=r"train: missing or not whole; run `regnet train output_dir=.*` first"):
        run.run_stages(config, ["denoise"])


def test_methods_that_need_no_training_are_evaluated_without_one(config: RunConfig) -> None:
    alone = replace(config, evaluate=EvaluateOptions(methods=["none", "matcher_mind"]))
    run.run_stages(alone, ["prepare"])
    assert run.run_stages(alone, ["evaluate"]) == ["evaluate"]
    assert run.run_stages(alone, ["evaluate"]) == []
    with pytest.raises(StoreError, match="train: missing or not whole"):
        run.run_stages(config, ["evaluate"])


def test_retrainings_are_as_the_training_was(config: RunConfig) -> None:
    original, folder = run._denoise, Path(config.output_dir)
    run.run_stages(config, ALL)
    again = replace(config, denoise=DenoiseOptions(retrainings=1))
    with pytest.raises(ConfigError, match=r"denoise\.retrainings=1: the model was trained with other settings"):
        original(replace(again, training=TrainingOptions(epochs=3)), folder)
    with pytest.raises(StoreError, match="no tile store"):  # which is looked for next
        original(again, folder)


def test_two_runs_do_not_share_a_folder(config: RunConfig) -> None:
    """The second would take away what the first has just written, and both would say that they were done."""
    folder = Path(config.output_dir)
    with held(folder), pytest.raises(OutputError, match="another regnet is at work in it; wait"):
        run.run_stages(config, ALL)
    assert not folder.exists()
    assert run.run_stages(config, ALL) == ALL


def test_what_is_refused_leaves_no_folder(config: RunConfig) -> None:
    with pytest.raises(InputError, match="no such file"):
        run.run_stages(replace(config, prepare=PrepareOptions([PairOptions("a", "nix.tif", "nox.tif")])), ALL)
    assert not Path(config.output_dir).exists()


def test_a_study_runs_with_what_it_needs_and_nothing_else(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.run_stages(config) == ALL
    monkeypatch.setitem(run.STAGES, "paper_toy", replace(run.STAGES["paper_toy"], needs=("prepare", "train")))
    chosen = replace(config, study="paper_toy", training=TrainingOptions(epochs=3))
    assert run.run_stages(chosen) == ["train", "paper_toy"]
    assert run.run_stages(chosen) == []


def test_a_stage_that_runs_alone_makes_later_ones_stale(config: RunConfig) -> None:
    run.run_stages(config, ALL)
    changed = replace(config, training=TrainingOptions(epochs=3))
    assert run.run_stages(changed, ["train"]) == ["train"]
    assert run.run_stages(changed, ["evaluate"]) == ["evaluate"]
    assert run.run_stages(changed, ALL) == ["similarity", "denoise", "evaluate", "report"]
