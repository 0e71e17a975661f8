from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from regnet.draw import MOST_RATIO, display, edges, outlines, paint_tiles, thumbnail
from regnet.errors import ConfigError, StoreError
from regnet.files import read_json, write_json
from regnet.report.build import build_report
from regnet.report.folder import AbsentError, Example, RunFolder
from regnet.report.maps import overview_figure
from regnet.report.neighbours import run_neighbours_figure
from regnet.report.network import nearest_figure
from regnet.report.options import ReportOptions
from regnet.report.page import facts_of
from regnet.report.tables import accuracy_tables, accuracy_text, cell, neighbour_tables, round_tables
from regnet.tiles.patch import Patch

QUICK = ReportOptions(dpi=50, queries=1, nearest=1)
MiniRun = tuple[Path, "subprocess.CompletedProcess[str]"]
SECTIONS = (
    "Overview",
    "Accuracy",
    "Ground",
    "Before and after",
    "Errors on the map",
    "Training",
    "What the network takes for the same",
    "Neighbours by gradients and by other eyes",
    "Noise that was averaged away",
    "Settings",
    "Software",
)


def copy_of(mini_run: MiniRun, place: Path, *missing: str) -> Path:
    """A run folder of one's own, without its report and some of its stages."""
    return Path(
        shutil.copytree(mini_run[0], place / "run", ignore=shutil.ignore_patterns("figures", "report.html", *missing))
    )


def test_report_holds_everything_it_shows(mini_run: MiniRun) -> None:
    page = (mini_run[0] / "report.html").read_text()
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in page
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 11
    assert 'class="note"' not in page
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|url\(|@import|<script', page)
    assert outside == []


def test_figures_are_pictures_with_something_on_them(mini_run: MiniRun) -> None:
    files = sorted((mini_run[0] / "figures").glob("*.png"))
    assert "overview" in [path.stem for path in files]
    for path in files:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10, path.name


def test_numbers_of_the_report_are_those_of_the_summary(mini_run: MiniRun) -> None:
    page = (mini_run[0] / "report.html").read_text()
    for row in read_json(mini_run[0] / "summary.json")["evaluation"]["rough"].values():
        assert f"<td>{row['epe_mean_px']:.3f}</td>" in page
    assert "a standard deviation above 0.033 in a Gaussian window of 8 px" in page


def test_a_tile_without_neighbours_is_shown_alone(mini_run: MiniRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(mini_run[0], folder)
    path = folder / "similarity" / "nearest.npz"
    with np.load(path) as saved:
        tile_id, nearest, kc = saved["tile_id"], saved["nearest_tile_id"], saved["kc"]
    nearest[0], kc[0] = -1, np.nan
    np.savez(path, tile_id=tile_id, nearest_tile_id=nearest, kc=kc)
    axes = nearest_figure(RunFolder(folder), ReportOptions(queries=2, nearest=2)).axes
    assert [place.get_title()[:5] for place in axes[:3]] == ["query", "", ""]
    assert [len(place.images) for place in axes] == [1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["evaluate"], "The stage evaluate has not run in this folder, or was not finished."),
        (["similarity"], "The stage similarity has not run in this folder, or was not finished."),
        (["train", "similarity", "denoise", "evaluate"], "The stage train has not run"),
    ],
)
def test_what_is_absent_is_said_in_a_sentence(
    missing: list[str], sentence: str, mini_run: MiniRun, tmp_path: Path
) -> None:
    page = build_report(copy_of(mini_run, tmp_path, *missing), QUICK).read_text()
    assert sentence in page
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no stage of a run"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_opens_in_a_browser(mini_run: MiniRun, browse: Callable[[Path], str]) -> None:
    shown = browse(mini_run[0] / "report.html")
    # Every picture was decoded, and on a narrow screen the page does not scroll sideways.
    assert 'data-loaded="11/11"' in shown
    assert 'data-overflow="0"' in shown


def test_table_marks_the_least_error_and_survives_a_failure() -> None:
    ok = {"status": "ok"}
    rows = {
        "none": {"epe_mean_px": 3.0, **ok},
        "model": {"epe_mean_px": 0.5, "beside": {"epe_mean_px": 0.25}, **ok},
        "broken": {"epe_mean_px": None, "status": "failed in 2 of 2 blocks: too plain"},
        "half": {"epe_mean_px": 0.1, "status": "failed in 1 of 2 blocks: too plain"},
    }
    summary = {"evaluation": {"smooth": rows}, "evaluation_shifted": {"smooth": rows}, "evaluation_everything": {}}
    tables = accuracy_tables(summary)
    assert [table.title for table in tables] == [
        "test part, smooth displacements",
        "shifted part, smooth displacements",
    ]
    beside = tables[0].head.index("mean beside structure, px")
    assert [row[beside] for row in tables[0].rows] == ["–", "0.250", "–", "–"]
    # What failed on the harder blocks is not the best for its error on the easy ones.
    assert tables[0].best == [False, True, False, False]
    assert tables[0].rows[3][-1] == "failed in 1 of 2 blocks: too plain"
    text = accuracy_text(summary).splitlines()
    assert text[2].split() == ["test", "smooth", "3.000", "0.500", "–", "0.100*"]
    assert text[-1] == "* over the blocks that it did not fail on"
    del rows["half"]
    assert "*" not in accuracy_text(summary)


def test_edges_lie_on_the_border_of_two_fields() -> None:
    image = np.zeros((1, 40, 40), np.float32)
    image[:, :, 20:] = 1
    found = edges(image, np.ones((40, 40), bool))
    rows, columns = np.nonzero(found)
    assert len(set(rows)) > 30
    assert set(columns) <= {19, 20}


def test_display_stretches_valid_pixels_and_greys_the_rest() -> None:
    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    valid = np.ones((8, 8), bool)
    valid[0] = False
    shown = display(image, valid)
    assert shown.shape == (8, 8, 3)
    assert np.allclose(shown[0], 0.85)
    assert shown[1, 0, 0] < 0.1
    assert shown[-1, -1, 0] == 1
    bands = np.concatenate([image, -image, image * 0])
    assert np.allclose(display(bands, valid, [2, 1, 3])[..., 0], display(bands, valid)[..., 1])


def test_outlines_are_orange_on_grey() -> None:
    edge = np.zeros((4, 4), np.float32)
    edge[1] = 1
    shown = outlines(np.full((4, 4, 3), 0.5, np.float32), edge)
    assert shown[1, 0, 0] > shown[1, 0, 2] + 0.5
    assert np.ptp(shown[0, 0]) == 0


def test_what_figures_of_denoising_do_not_say_is_said(mini_run: MiniRun) -> None:
    told = read_json(mini_run[0] / "denoise" / "summary.json")
    assert told["remarks"][0].startswith("12 of ")  # as many tiles as similarity.max_tiles allows
    page = html.unescape((mini_run[0] / "report.html").read_text())
    assert all(said in page for said in (*told["remarks"], told["not_averaged"]))


def test_rounds_are_a_table() -> None:
    rounds = [{"round": 1, "labels_epe_mean_px": 5.0, "model_systematic_px": 0.25}, {"round": 2}]
    (table,) = round_tables({"train": {"rounds": rounds}})
    assert (table.head[0], table.rows[0][:2], table.rows[0][-1]) == ("round", ["1", "5.000"], "0.250")
    assert table.rows[1] == ["2", *["–"] * (len(table.head) - 1)]
    assert round_tables({"train": {"epochs": 3}}) == []


def test_check_points_alone_have_no_figures_of_families(mini_run: MiniRun, tmp_path: Path) -> None:
    folder = copy_of(mini_run, tmp_path, "train", "similarity", "denoise")
    stamp = read_json(folder / "evaluate" / "stamp.json")
    stamp["settings"]["settings"]["families"] = []
    write_json(folder / "evaluate" / "stamp.json", stamp)
    page = build_report(folder, QUICK).read_text()
    assert page.count("Only check points were evaluated") == 3
    assert [path.name for path in (folder / "figures").glob("*.png")] == ["split.png"]


def test_older_figures_go(mini_run: MiniRun, tmp_path: Path) -> None:
    folder = copy_of(mini_run, tmp_path, "train", "similarity", "denoise", "evaluate")
    (folder / "figures").mkdir()
    (folder / "figures" / "errors_other.png").write_text("of other families")
    build_report(folder, QUICK)
    assert [path.name for path in (folder / "figures").glob("*.png")] == ["split.png"]


@pytest.mark.parametrize("rgb", [[1, 2], [3, 2, 9], [1, 2, 3, 1]])
def test_channels_that_cannot_be_shown_are_refused(rgb: list[int], mini_run: MiniRun, tmp_path: Path) -> None:
    folder = copy_of(mini_run, tmp_path, "train", "similarity", "denoise", "evaluate")
    with pytest.raises(ConfigError, match=r"report\.rgb=\["):
        build_report(folder, ReportOptions(rgb=rgb))
    assert not (folder / "report.html").exists()


def test_one_channel_is_shown_in_grey() -> None:
    shown = display(np.random.default_rng(0).random((3, 8, 8), np.float32), np.ones((8, 8), bool), [2])
    assert shown.shape == (8, 8, 3)
    assert np.ptp(shown, axis=2).max() == 0


def ground(part: str, *methods: str) -> Any:
    """A run with one evaluated window."""
    image, yes = np.random.default_rng(0).random((3, 32, 32), np.float32), np.ones((32, 32), bool)
    example = Example(
        part, Patch(image, image, yes, yes, yes), dict.fromkeys(methods, image[0]), dict.fromkeys(methods, image), 10.0
    )
    return SimpleNamespace(examples=lambda *_: [example], store=SimpleNamespace(moving_channels=["a", "b", "c"]))


def test_the_overview_says_which_ground_it_shows() -> None:
    for part, seen in (("train", "trained on"), ("test", "not trained on")):
        figure = overview_figure(ground(part, "none", "model"), "smooth", QUICK)
        assert figure.axes[0].get_title() == f"fixed, {part} part, {seen}"
        assert figure.axes[2].get_title().endswith("after (model)")


def test_before_is_not_shown_as_after() -> None:
    with pytest.raises(AbsentError, match="No method registered this ground"):
        overview_figure(ground("test", "none"), "smooth", QUICK)


@pytest.mark.parametrize("nearest", [1, 2, 12])
def test_rows_of_tiles_keep_their_size(nearest: int, mini_run: MiniRun) -> None:
    run, options = RunFolder(mini_run[0]), ReportOptions(queries=20, nearest=nearest)
    for figure in (nearest_figure(run, options), run_neighbours_figure(run, options)):
        width, height = figure.get_size_inches()
        rows = figure.axes[0].get_subplotspec().get_gridspec().nrows
        columns = figure.axes[0].get_subplotspec().get_gridspec().ncols
        assert height / rows >= width / columns
        assert height <= MOST_RATIO * width


def test_a_very_long_scene_has_a_thumbnail() -> None:
    shape = (6, 8000)
    image = np.ones((1, *shape), np.float32)

    def read(row: int, col: int, height: int, width: int) -> Any:
        part = (slice(row, row + height), slice(col, col + width))
        return SimpleNamespace(fixed=image[:, *part], fixed_valid=np.ones(shape, bool)[part])

    small, valid, step = thumbnail(SimpleNamespace(shape=shape, read=read), 900)
    assert small.shape == (1, *valid.shape) == (1, 1, 8000 // step)
    assert valid.all()


def test_the_greatest_values_are_painted_over_the_others() -> None:
    axes = Figure().subplots()
    tiles = pd.DataFrame({"row": [0, 8, 16], "col": [0, 0, 0]}, index=[7, 3, 5])
    paint_tiles(axes, tiles, np.array([0.9, np.nan, 0.1]), ScalarMappable(Normalize(0, 1), "gray"), 32, 16)
    assert [patch.get_xy() for patch in axes.patches] == [(8, 24), (8, 8)]
    assert [patch.get_width() for patch in axes.patches] == [16, 16]


def test_what_denoise_found_is_shown(mini_run: MiniRun) -> None:
    page, run = (mini_run[0] / "report.html").read_text(), RunFolder(mini_run[0])
    worst = run.table("denoise", "tiles.parquet").sort_values("audit_score").iloc[-1]
    regions, summary = run.table("denoise", "regions.parquet"), run.summary("denoise")
    assert f"<td>{cell(float(worst['suggested_dx_px']))}</td>" in page
    assert f"<td>{cell(float(regions['smoother_factor'].max()))}</td>" in page
    assert f"<dt>mean_label_px</dt><dd>{cell(summary['mean_label_px'])}</dd>" in page
    for file in ("denoise/factor.png", "denoise/audit.png", "train/loss.png"):
        assert f"({file})" in page


def test_the_trajectory_is_shown_where_there_is_one(mini_run: MiniRun, tmp_path: Path) -> None:
    folder = copy_of(mini_run, tmp_path, "train", "denoise", "evaluate")
    shutil.copy(mini_run[0] / "train" / "loss.png", folder / "similarity" / "trajectory.png")
    assert "(similarity/trajectory.png)" in build_report(folder, QUICK).read_text()
    assert "trajectory" not in (mini_run[0] / "report.html").read_text().split('<section id="settings">')[0]


def test_numbers_are_written_alike() -> None:
    assert [cell(value) for value in (0.25, 0.0, 1234.5, 0.0000125, 7, "ok", [1.5, 2], None, np.nan, np.inf)] == [
        *("0.250", "0.000", "1234.500", "1.25e-05", "7", "ok", "1.500, 2", "–", "–", "–")
    ]
    assert facts_of({"a": 1.5, "b": [0.5, 1], "c": None, "d": [], "e": [1] * 9, "f": {"g": 1}, "h": ["x"]}) == {
        "a": "1.500",
        "b": "0.500, 1",
    }


def test_errors_of_averaged_labels_are_shown_where_they_are_known() -> None:
    rows = pd.DataFrame({"name": [f"kC, {way}, without own" for way in ("5 nearest", "10 nearest", "power 1")]})
    rows = rows.assign(similarity="kC", kind="gradient", own=False, outputs_apart_px=0.5)
    for error, columns in ((np.nan, 4), (1.0, 7)):
        (table,) = neighbour_tables(rows.assign(averaged_label_error_px=error))
        assert len(table.head) == len(table.rows[0]) == columns
