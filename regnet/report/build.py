"""The report: one HTML file that holds all it shows, and the same figures as PNG files."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from regnet.errors import StoreError
from regnet.files import STAMP, read_json, write_text
from regnet.report import draw, maps, neighbours, network, noise
from regnet.report.folder import AbsentError, RunFolder
from regnet.report.options import ReportOptions
from regnet.report.summary import collect_summary
from regnet.report.tables import Table, accuracy_tables, neighbour_tables, round_tables

NEIGHBOURS = "Neighbours by gradients and by other eyes"
STAGES = ("prepare", "train", "similarity", "denoise", "evaluate")
SOFTWARE = ("regnet", "torch", "numpy", "rasterio", "geopandas", "zarr", "scikit-image", "opencv-python-headless")


@dataclass
class Picture:
    """A figure in the report: an inlined WebP, its caption, and the file's name if there is one beside the report."""

    source: str
    caption: str
    name: str = ""


@dataclass
class Section:
    """A part of the report; `note` says what is missing."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class _Sheet:
    """A figure to make: its file, its caption and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[], Figure]


_Plan = tuple[Section, list[_Sheet]]


def build_report(run_folder: Path, options: ReportOptions | None = None) -> Path:
    """Write `report.html` and `figures/*.png` of what a run folder holds.

    Args:
        run_folder: output_dir of a run; stages that have not run are named in the report.
        options: sizes of the figures.

    Returns:
        Path of the report.

    Raises:
        StoreError: the folder holds no stage of a run.
    """
    options = options or ReportOptions()
    run = RunFolder(Path(run_folder))
    if not any((run.path / stage / STAMP).is_file() for stage in STAGES):
        raise StoreError(f"{run.path}: holds no stage of a run; run `regnet run output_dir={run.path}` first")
    sections = _sections(run, options)
    write_text(run.path / "report.html", render_page(run.path.resolve().name, sections, _settings(run)))
    return run.path / "report.html"


def render_page(title: str, sections: list[Section], settings: Mapping[str, str]) -> str:
    """A report as HTML that holds all it shows; `settings` are texts by the name of what they belong to."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regnet.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html")
    return template.render(title=title, sections=sections, settings=settings, software=_software())


def _sections(run: RunFolder, options: ReportOptions) -> list[Section]:
    plans = [*_ground(run, _families(run), options), *_learning(run, options)]
    for section, sheets in tqdm(plans, desc="report", unit="section"):
        _draw(section, sheets, run, options)
    sections = [section for section, _ in plans]
    _fill(sections, run)
    return sections


def _ground(run: RunFolder, families: list[str], options: ReportOptions) -> list[_Plan]:
    """What is seen on the ground: overview, table, split, before and after, errors."""
    return [
        (
            Section("Overview", "What the run came to, on ground that the network was not trained on."),
            [
                _Sheet(
                    "overview",
                    f"Before and after registration, {families[-1]} displacements; errors on one scale.",
                    lambda: maps.overview_figure(run, families, options),
                )
            ],
        ),
        (
            Section(
                "Accuracy",
                "End-point errors where the ground has structure and, in one column, everywhere beside it; every "
                f"method saw the same images.{_structure_rule(run)}",
            ),
            [],
        ),
        (
            Section("Ground", "Parts share no pixel and lie a gap apart."),
            [_Sheet("split", "The parts of the scene.", lambda: maps.split_figure(run, options))],
        ),
        (
            Section("Before and after", "Lines of moving over fixed: they must lie on the lines of fixed."),
            [
                _Sheet(
                    f"before_after_{name}",
                    f"{name} displacements.",
                    _bound(maps.before_after_figure, run, name, options),
                )
                for name in families
            ],
        ),
        (
            Section(
                "Errors on the map",
                "One colour scale for all methods; means over the ground with structure, the rest is grey.",
            ),
            [
                _Sheet(f"errors_{name}", f"{name} displacements.", _bound(maps.error_figure, run, name, options))
                for name in families
            ],
        ),
    ]


def _learning(run: RunFolder, options: ReportOptions) -> list[_Plan]:
    """What is known of the network: training, similarity, denoising."""
    return [
        (
            Section("Training", "The labels are noisy: validation is against labels too, so its floor is their noise."),
            [_Sheet("training", "Loss and validation error.", lambda: network.loss_figure(run))],
        ),
        (
            Section("What the network takes for the same", "Tiles beside those with the greatest kC to them."),
            [_Sheet("nearest", "Fixed above, moving below.", lambda: network.nearest_figure(run, options))],
        ),
        (
            Section(
                NEIGHBOURS,
                "Whom the network's gradients (kC), an ImageNet network, pixels and the network's own features take "
                "for a tile's neighbours. Outputs should agree among tiles that are the same to the network. "
                "Neighbours have other displacements, so a similarity must not be judged by the error of averaged "
                "labels alone; experiment=denoising_validation tells which says whose noise was averaged.",
            ),
            [
                _Sheet(
                    "neighbours",
                    "A tile and those most like it, with the network's outputs.",
                    lambda: neighbours.run_neighbours_figure(run, options),
                )
            ],
        ),
        (
            Section(
                "Noise that was averaged away",
                "A factor of 0.3: of 1 px of label noise 0.3 px are left. Foretold from one training, it tells "
                "tiles apart; where it could be checked (experiment=denoising_validation) 1.4 times as much was left.",
            ),
            [
                _Sheet("factor_map", "Denoising factor by tile.", lambda: noise.factor_map_figure(run, options)),
                _Sheet("factor_histogram", "Distribution over tiles.", lambda: noise.histogram_figure(run)),
            ],
        ),
    ]


def _bound(function: Callable[..., Figure], *arguments: Any) -> Callable[[], Figure]:
    return lambda: function(*arguments)


def _draw(section: Section, sheets: list[_Sheet], run: RunFolder, options: ReportOptions) -> None:
    for sheet in sheets:
        path = run.path / "figures" / f"{sheet.name}.png"
        try:
            with mpl.rc_context(draw.STYLE):
                draw.save(sheet.draw(), path, options.dpi)
        except AbsentError as reason:
            section.note = str(reason)
            continue
        section.pictures.append(Picture(inlined(path), sheet.caption, sheet.name))


def inlined(path: Path) -> str:
    """A picture as a data URI, in WebP, which is a fifth of the PNG's size."""
    with Image.open(path) as picture, io.BytesIO() as stream:
        picture.convert("RGB").save(stream, "WEBP", quality=88)
        return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _fill(sections: list[Section], run: RunFolder) -> None:
    """Add tables and numbers to the sections that have them."""
    summary = collect_summary(run.path)
    by_title = {section.title: section for section in sections}
    accuracy = by_title["Accuracy"]
    accuracy.tables = accuracy_tables(summary)
    if not accuracy.tables:
        accuracy.note = "The stage evaluate has not run in this folder, or was not finished."
    by_title["Training"].tables = round_tables(summary)
    beside = by_title[NEIGHBOURS]
    beside.note = summary.get("neighbours", {}).get("status", beside.note)
    if not beside.note:
        beside.tables = neighbour_tables(pd.read_csv(run.file("evaluate", "neighbours.csv")))
    for title, stage in (
        ("Training", "train"),
        ("What the network takes for the same", "similarity"),
        (NEIGHBOURS, "neighbours"),
        ("Noise that was averaged away", "denoise"),
    ):
        numbers = {key: value for key, value in summary.get(stage, {}).items() if isinstance(value, int | float | str)}
        if sentence := numbers.pop("not_averaged", ""):
            by_title[title].text += f" {sentence}"
        by_title[title].facts = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in numbers.items()
        }


def _structure_rule(run: RunFolder) -> str:
    """What counts as structure, in a sentence."""
    try:
        rule = run.settings("prepare")
    except AbsentError:
        return ""
    return (
        " Structure is one mask for all, made from fixed alone: where its brightness (0 to 1, smoothed by "
        f"{rule['structure_fine_px']:g} px) has a standard deviation above {rule['structure_threshold']:g} in a "
        f"Gaussian window of {rule['structure_sigma_px']:g} px (prepare.structure_*)."
    )


def _families(run: RunFolder) -> list[str]:
    try:
        return [family["name"] for family in run.settings("evaluate")["families"]]
    except AbsentError:
        # One figure is then tried of each kind, and says what is absent.
        return ["rough"]


def _settings(run: RunFolder) -> dict[str, str]:
    """Settings of each stage that has run, as YAML."""
    found = {}
    for stage in STAGES:
        path = run.path / stage / STAMP
        if path.is_file():
            found[stage] = yaml.safe_dump(read_json(path)["settings"].get("settings", {}), sort_keys=False)
    return found


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions
