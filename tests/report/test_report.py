from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet.errors import StoreError
from regnet.files import read_json
from regnet.report.build import build_report
from regnet.report.draw import display, edges, outlines
from regnet.report.folder import RunFolder
from regnet.report.network import nearest_figure
from regnet.report.options import ReportOptions
from regnet.report.tables import accuracy_tables, accuracy_text, round_tables

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
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("figures", "report.html", *missing)
    shutil.copytree(mini_run[0], folder, ignore=ignored)
    page = build_report(folder, ReportOptions(dpi=50, queries=1, nearest=1)).read_text()
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
    assert accuracy_text(summary).splitlines()[2].split() == ["test", "smooth", "3.000", "0.500", "–", "0.100"]


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


def test_what_is_not_averaged_is_said(mini_run: MiniRun) -> None:
    said = read_json(mini_run[0] / "denoise" / "summary.json")["not_averaged"]
    assert said in (mini_run[0] / "report.html").read_text()


def test_rounds_are_a_table() -> None:
    rounds = [{"round": 1, "labels_epe_mean_px": 5.0, "model_systematic_px": 0.25}, {"round": 2}]
    (table,) = round_tables({"train": {"rounds": rounds}})
    assert (table.head[0], table.rows[0][:2], table.rows[0][-1]) == ("round", ["1", "5.000"], "0.250")
    assert table.rows[1] == ["2", *["–"] * (len(table.head) - 1)]
    assert round_tables({"train": {"epochs": 3}}) == []
