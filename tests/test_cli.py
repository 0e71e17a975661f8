from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio

import regnet.models
import regnet.similarity
from regnet.files import whole_path

MiniRun = tuple[Path, "CompletedProcess[str]"]
Command = Callable[..., "CompletedProcess[str]"]


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
        (["register", "fixed=a.tif", "output_dir=o"], "moving is missing"),
        (
            ["prepare", "prepare.pairs=[{name: a, fixed: nowhere.tif, moving: nowhere.tif}]", "output_dir=o"],
            "nowhere.tif",
        ),
    ],
)
def test_a_wrong_command_in_the_console_is_one_line_and_leaves_nothing(
    arguments: list[str], expected: str, regnet: Any, tmp_path: Path
) -> None:
    assert expected in refused(regnet(*arguments, folder=tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["denoise"], "output_dir is missing"),
        (["register", "fixed=a.tif"], "moving and output_dir are missing; give moving=... output_dir=... on the"),
        (["register", "fixed=a.tif,b.tif", "moving=c.tif", "--multirun"], "output_dir is missing; give"),
        (["apply"], "displacement, output and target are missing"),
        (["prepare", "output_dir=o", "+extra=1"], "keys can neither be added nor deleted"),
        (["prepare", "output_dir=o", "--loud"], "--loud is not a flag"),
        (["regster", "output_dir=o"], "did you mean register?"),
        (["train", "output_dir=o"], "run `regnet prepare output_dir=o` first"),
        (["report", "output_dir=o"], "run `regnet prepare output_dir=o` first"),
        (["register", "fixed=nowhere.tif", "moving=nowhere.tif", "output_dir=o"], "nowhere.tif"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(
    arguments: list[str], expected: str, here: Command, tmp_path: Path
) -> None:
    assert expected in refused(here(*arguments))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_line(here: Command, mini_settings: list[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = here("prepare", *mini_settings, "output_dir=o")
    assert result.returncode == 2
    assert "output_dir" in result.stderr.splitlines()[-1]


def test_output_dir_below_a_file_is_one_line(here: Command, mini_settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = here("prepare", *mini_settings, "output_dir=file/o")
    assert result.returncode == 2, result.stderr
    assert "file/o" in result.stderr.splitlines()[-1]


def test_help_names_every_command_and_keys_with_units(here: Command, tmp_path: Path) -> None:
    overview = here("--help")
    assert overview.returncode == 0
    for name in ("prepare", "train", "similarity", "denoise", "evaluate", "register", "report", "run"):
        assert f"\n  {name} " in overview.stdout
    text = here("prepare", "--help").stdout
    assert "prepare.tile_px\n      side of a tile [whole number; in px; default 128; 16..1024]" in text
    assert "experiment={cadaster_banepa,demo,denoising_validation,noise_sweep,optical_sar," in text
    assert "training.epochs" not in text
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_answers_without_torch() -> None:
    """What is wrong with a setting is said in a fraction of a second; loading torch takes several."""
    code = "import sys, regnet.cli; print(sorted({'torch', 'geopandas', 'zarr', 'cv2', 'rasterio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_bars_are_drawn_seldom_where_nobody_watches() -> None:
    code = "import sys; sys.argv = ['regnet', '--version']; from regnet.start import main; main()"
    code += "; from tqdm import tqdm; print(tqdm(range(1)).mininterval)"
    master, terminal = os.openpty()
    for stream, expected in ((subprocess.DEVNULL, "10.0"), (terminal, "0.1")):
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stream, text=True)
        assert done.stdout.splitlines()[-1] == expected
    os.close(terminal)
    os.close(master)


def test_packages_whose_names_load_on_demand_have_them_all() -> None:
    for package in (regnet, regnet.models, regnet.similarity):
        assert dir(package) == sorted(package.__all__)
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
            package.nothing  # noqa: B018


def test_no_command_is_bad_usage(here: Command) -> None:
    assert here().returncode == 2


def test_paths_with_odd_characters_need_no_quotes(here: Command, tmp_path: Path) -> None:
    odd = tmp_path / "it's (1), a=b.tif"
    odd.touch()
    result = here("register", f"fixed={odd}", f"moving={odd}", "output_dir=o", "--cfg", "job")
    assert result.returncode == 0, result.stderr
    assert str(odd) in result.stdout


def test_a_defect_is_one_line_and_keeps_its_traceback(
    here: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("regnet.run.run_stages", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = here("report", "output_dir=o")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "defect of regnet (ZeroDivisionError: on purpose)" in result.stderr
    assert "ZeroDivisionError" in next(tmp_path.glob("regnet-traceback-*")).read_text()


def test_runs_that_cannot_be_put_together_are_told_by_the_exit_code(
    here: Command, mini_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regnet.run.run_stages", lambda *_: [])
    sweep = [setting for setting in mini_settings if setting.startswith("prepare.pairs")]
    result = here("run", "experiment=noise_sweep", *sweep, "output_dir=sweep")
    assert result.returncode == 2
    assert "holds no whole run of noise_sweep" in result.stderr


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_a_signal_ends_cleans_up_and_says_so(
    here: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, how: str
) -> None:
    def stopped(*_: Any) -> None:
        with whole_path(Path("half")) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), number)
            pytest.fail("it went on")

    before = signal.getsignal(number)
    monkeypatch.setattr("regnet.run.run_stages", stopped)
    result = here("train", "output_dir=o")
    assert result.returncode == code
    assert result.stderr.splitlines() == [f"regnet: {how}; the same command goes on from what is whole"]
    assert os.listdir() == []
    assert signal.getsignal(number) == before


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


def test_a_second_run_skips_every_stage(
    mini_run: MiniRun, here: Command, mini_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mini_run[0]
    monkeypatch.chdir(folder.parent)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = here("run", *mini_settings, "output_dir=mini")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("skipped") == 6
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_the_same_seed_gives_the_same_numbers(
    mini_run: MiniRun, here: Command, mini_settings: list[str], tmp_path: Path
) -> None:
    """Also stage by stage instead of all at once."""
    for stage in ("prepare", "train", "similarity", "denoise", "evaluate"):
        result = here(stage, *mini_settings, "output_dir=again", "threads=1")
        assert result.returncode == 0, result.stderr[-2000:]
    first, again = (json.loads((folder / "summary.json").read_text()) for folder in (mini_run[0], tmp_path / "again"))
    for family, methods in first["evaluation"].items():
        for method, row in methods.items():
            other = again["evaluation"][family][method]
            assert other["epe_mean_px"] == pytest.approx(row["epe_mean_px"], rel=1e-5), (family, method)
    assert again["denoise"]["factor_mean"] == pytest.approx(first["denoise"]["factor_mean"], rel=1e-4)


def test_single_stages_are_the_stages_of_the_run(mini_run: MiniRun, here: Command, mini_settings: list[str]) -> None:
    result = here("denoise", *mini_settings, f"output_dir={mini_run[0]}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("denoise: skipped")


def test_multirun_gives_every_combination_its_own_folder(
    here: Command, mini_settings: list[str], tmp_path: Path
) -> None:
    arguments = ["--multirun", *mini_settings, "prepare.noise.seed=1,2", "output_dir=sweep"]
    result = here("prepare", *arguments)
    assert result.returncode == 0, result.stderr
    labels = [
        np.stack(gpd.read_parquet(tmp_path / "sweep" / job / "prepare" / "index.parquet")["label_offset"])
        for job in "01"
    ]
    assert not np.array_equal(*labels)


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
