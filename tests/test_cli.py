from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio

MiniRun = tuple[Path, "CompletedProcess[str]"]


def refused(result: CompletedProcess[str]) -> str:
    """The one line on stderr of a command that ended with code 2."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("regnet: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "experiment=demo", "prepare.tile_pxx=64"], "did you mean prepare.tile_px?"),
        (["train", "output_dir=o", "training.epochs=0"], "training.epochs=0 is out of range"),
        (["denoise"], "output_dir is missing"),
        (["register", "fixed=a.tif", "output_dir=o"], "moving is missing"),
        (["prepare", "output_dir=o", "+extra=1"], "keys can neither be added nor deleted"),
        (["prepare", "output_dir=o", "--loud"], "--loud is not a flag"),
        (["regster", "output_dir=o"], "did you mean register?"),
        (["train", "output_dir=o"], "run `regnet prepare output_dir=o` first"),
        (["report", "output_dir=o"], "run `regnet prepare output_dir=o` first"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(
    arguments: list[str], expected: str, regnet: Any, tmp_path: Path
) -> None:
    assert expected in refused(regnet(*arguments, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_missing_input_file_is_one_line_and_leaves_nothing(regnet: Any, tmp_path: Path) -> None:
    pair = "prepare.pairs=[{name: a, fixed: nowhere.tif, moving: nowhere.tif}]"
    message = refused(regnet("prepare", pair, "output_dir=o", folder=tmp_path))
    assert "nowhere.tif" in message
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_line(regnet: Any, mini_settings: list[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "output_dir" in refused(regnet("prepare", *mini_settings, "output_dir=o", folder=tmp_path))


def test_output_dir_below_a_file_is_one_line(regnet: Any, mini_settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = regnet("prepare", *mini_settings, "output_dir=file/o", folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "file/o" in result.stderr.splitlines()[-1]


def test_help_names_every_command_and_keys_with_units(regnet: Any, tmp_path: Path) -> None:
    overview = regnet("--help", folder=tmp_path)
    assert overview.returncode == 0
    for name in ("prepare", "train", "similarity", "denoise", "evaluate", "register", "report", "run"):
        assert f"\n  {name} " in overview.stdout
    text = regnet("prepare", "--help", folder=tmp_path).stdout
    assert "prepare.tile_px\n      side of a tile [whole number; in px; default 128; 16..1024]" in text
    assert "experiment={cadaster_banepa,demo,optical_sar}" in text
    assert "training.epochs" not in text
    assert list(tmp_path.iterdir()) == []


def test_no_command_is_bad_usage(regnet: Any, tmp_path: Path) -> None:
    assert regnet(folder=tmp_path).returncode == 2


def test_paths_with_odd_characters_need_no_quotes(regnet: Any, tmp_path: Path) -> None:
    odd = tmp_path / "it's (1), a=b.tif"
    odd.touch()
    arguments = ["register", f"fixed={odd}", f"moving={odd}", "output_dir=o", "--cfg", "job"]
    result = regnet(*arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(odd) in result.stdout


def test_a_whole_run_leaves_what_it_promises(mini_run: MiniRun) -> None:
    folder, result = mini_run
    assert result.returncode == 0, result.stderr[-2000:]
    for name in (
        "config.yaml",
        "prepare",
        "train/model.safetensors",
        "similarity",
        "denoise",
        "evaluate",
        "report.html",
    ):
        assert (folder / name).exists(), name
    assert "mean end-point error, px" in result.stdout
    assert result.stdout.rstrip().endswith("report: mini/report.html")
    assert [path.name for path in folder.parent.iterdir()] == ["mini"]


def test_summary_has_the_keys_of_the_design(mini_run: MiniRun) -> None:
    summary = json.loads((mini_run[0] / "summary.json").read_text())
    for family in ("smooth", "rough"):
        for method in ("none", "labels", "model", "matcher_mind", "classical.phase"):
            row = summary["evaluation"][family][method]
            assert {"epe_mean_px", "epe_median_px", "epe_p95_px", "pck_1px", "pck_3px", "seconds"} <= set(row)
    assert {"noise_sigma_px", "factor_mean", "shift_mean_px", "spearman", "slope", "noise_transfer"} <= set(
        summary["denoise"]
    )


def test_a_second_run_skips_every_stage(mini_run: MiniRun, regnet: Any, mini_settings: list[str]) -> None:
    folder = mini_run[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = regnet("run", *mini_settings, "output_dir=mini", folder=folder.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("skipped") == 6
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_single_stages_are_the_stages_of_the_run(mini_run: MiniRun, regnet: Any, mini_settings: list[str]) -> None:
    result = regnet("denoise", *mini_settings, "output_dir=mini", folder=mini_run[0].parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("denoise: skipped")


def test_multirun_gives_every_combination_its_own_folder(regnet: Any, mini_settings: list[str], tmp_path: Path) -> None:
    arguments = ["--multirun", *mini_settings, "prepare.noise.seed=1,2", "output_dir=sweep"]
    result = regnet("prepare", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    labels = [gpd.read_parquet(tmp_path / "sweep" / job / "prepare" / "index.parquet")["label_dx_px"] for job in "01"]
    assert not labels[0].equals(labels[1])


def test_register_through_the_console(
    mini_run: MiniRun, regnet: Any, mini_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    fixed, moving = mini_pair
    model = mini_run[0] / "train" / "model.safetensors"
    arguments = [f"fixed={fixed}", f"moving={moving}", f"model={model}", "output_dir=out"]
    result = regnet("register", *arguments, folder=tmp_path)
    assert result.returncode in (0, 3), result.stderr
    with rasterio.open(tmp_path / "out" / "displacement.tif") as source:
        assert source.descriptions == ("dx_px", "dy_px", "expected_error_px")
        field = source.read()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary
    # Code 3 says that it abstained everywhere: then nothing moves and the expected error is infinite.
    assert (result.returncode == 3) == bool(np.isinf(field[2]).all())


def test_a_defect_is_one_line_and_keeps_its_traceback(regnet: Any, mini_run: MiniRun, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import regnet.report.build\n\ndef broken(*_):\n    raise ZeroDivisionError('on purpose')\n\n"
        "regnet.report.build.build_report = broken\n"
    )
    arguments = ["report", f"output_dir={mini_run[0]}", "report.dpi=60"]
    result = regnet(*arguments, folder=tmp_path, PYTHONPATH=str(tmp_path), TMPDIR=str(tmp_path))
    assert result.returncode == 1
    assert "defect of regnet (ZeroDivisionError: on purpose)" in result.stderr.splitlines()[-1]
    assert "ZeroDivisionError" in next(tmp_path.glob("regnet-traceback-*")).read_text()
