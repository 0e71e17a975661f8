"""The report: one HTML file that holds all it shows, and the same figures as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from regnet import draw
from regnet.errors import StoreError
from regnet.files import STAMP, read_json, write_text
from regnet.report import maps, neighbours, network, tables
from regnet.report.folder import AbsentError, RunFolder
from regnet.report.options import ReportOptions
from regnet.report.page import Picture, Section, facts_of, inlined, render_page
from regnet.report.summary import collect_summary

SIMILAR = "What the network takes for the same"
NEIGHBOURS = "Neighbours by gradients and by other eyes"
NOISE = "Noise that was averaged away"
STAGES = ("prepare", "train", "similarity", "denoise", "evaluate")
FIGURES = "figures"
ONLY_POINTS = "Only check points were evaluated, no random displacements; evaluate/maps/ has their errors."


@dataclass(frozen=True)
class _Sheet:
    """A figure: its folder within the run, its name, its caption and how it is drawn; None: the stage has drawn it."""

    folder: str
    name: str
    caption: str
    draw: Callable[[], Figure] | None = None


_Plan = tuple[Section, list[_Sheet]]


def build_report(run_folder: Path, options: ReportOptions | None = None) -> Path:
    """Write `report.html` and `figures/*.png` of what a run folder holds; older figures go.

    Args:
        run_folder: output_dir of a run; stages that have not run are named in the report.
        options: sizes of the figures.

    Returns:
        Path of the report.

    Raises:
        StoreError: the folder holds no stage of a run.
        ConfigError: `options.rgb` are no channels of fixed.
    """
    options = options or ReportOptions()
    run = RunFolder(Path(run_folder))
    if not any((run.path / stage / STAMP).is_file() for stage in STAGES):
        raise StoreError(f"{run.path}: holds no stage of a run; run `regnet run output_dir={run.path}` first")
    if (run.path / "prepare" / STAMP).is_file():
        run.store.check_fixed_channels("report.rgb", options.rgb, counts=(0, 1, 3))
    for old in (run.path / FIGURES).glob("*.png"):
        old.unlink()
    sections = _sections(run, options)
    write_text(run.path / "report.html", render_page(run.path.resolve().name, sections, _settings(run)))
    return run.path / "report.html"


def _sections(run: RunFolder, options: ReportOptions) -> list[Section]:
    plans = [*_ground(run, options), *_learning(run, options)]
    for section, sheets in tqdm(plans, desc="report", unit="section"):
        _draw(section, sheets, run, options)
    sections = [section for section, _ in plans]
    _fill(sections, run)
    return sections


def _ground(run: RunFolder, options: ReportOptions) -> list[_Plan]:
    """What is seen on the ground: overview, table, split, before and after, errors."""
    families = _families(run)
    note = "" if families else ONLY_POINTS
    overview = "Before and after registration, {} displacements; errors on one scale."
    return [
        (
            Section("Overview", "What the run came to, seen on one window.", note=note),
            # Of several families the last, the roughest, is shown.
            [
                _Sheet(FIGURES, "overview", overview.format(name), partial(maps.overview_figure, run, name, options))
                for name in families[-1:]
            ],
        ),
        (
            Section(
                "Accuracy",
                "End-point errors where the ground has structure and, in one column, everywhere beside it; every "
                f"method saw the same images.{_structure_rule(run)}{_unknown(run)}",
            ),
            [],
        ),
        (
            Section("Ground", "Parts share no pixel and lie a gap apart."),
            [_Sheet(FIGURES, "split", "The parts of the scene.", partial(maps.split_figure, run, options))],
        ),
        (
            Section("Before and after", "Lines of moving over fixed: they must lie on the lines of fixed.", note=note),
            _by_family("before_after", families, maps.before_after_figure, run, options),
        ),
        (
            Section(
                "Errors on the map",
                "One colour scale for all methods; means over the ground with structure, the rest is grey.",
                note=note,
            ),
            _by_family("errors", families, maps.error_figure, run, options),
        ),
    ]


def _by_family(
    name: str,
    families: list[str],
    figure: Callable[[RunFolder, str, ReportOptions], Figure],
    run: RunFolder,
    options: ReportOptions,
) -> list[_Sheet]:
    return [
        _Sheet(FIGURES, f"{name}_{family}", f"{family} displacements.", partial(figure, run, family, options))
        for family in families
    ]


def _learning(run: RunFolder, options: ReportOptions) -> list[_Plan]:
    """What is known of the network: training, similarity, denoising."""
    along = _Sheet("similarity", "trajectory", "Similarity and density of neighbours along the training.")
    return [
        (
            Section("Training", "The labels are noisy: validation is against labels too, so its floor is their noise."),
            [_Sheet("train", "loss", "Loss and validation error.")],
        ),
        (
            Section(SIMILAR, "Tiles beside those with the greatest kC to them."),
            [
                _Sheet(
                    FIGURES,
                    "nearest",
                    "Fixed above, moving below.",
                    partial(network.nearest_figure, run, options),
                ),
                *([along] if (run.path / along.folder / f"{along.name}.png").is_file() else []),
            ],
        ),
        (
            Section(
                NEIGHBOURS,
                "Whom the network's gradients (kC), an ImageNet network, pixels and the network's own features take "
                "for a tile's neighbours. Outputs should agree among tiles that are the same to the network; "
                "study=denoising_validation tells which says whose noise was averaged.",
            ),
            [
                _Sheet(
                    FIGURES,
                    "neighbours",
                    "A tile and those most like it, with the network's outputs.",
                    partial(neighbours.run_neighbours_figure, run, options),
                )
            ],
        ),
        (
            Section(
                NOISE,
                "A factor of 0.3: of 1 px of label noise 0.3 px are left. Foretold from one training, it tells better "
                "which tiles keep more of the noise than how much they keep: where trainings on several draws of "
                "noise showed that, it was mostly more than foretold. study=denoising_validation shows it of this "
                "run's own pairs.",
            ),
            [
                _Sheet("denoise", "factor", "Denoising factor by tile and by region, and its distribution."),
                _Sheet("denoise", "audit", "Labels that fit badly to what the network learned from the others."),
            ],
        ),
    ]


def _draw(section: Section, sheets: list[_Sheet], run: RunFolder, options: ReportOptions) -> None:
    for sheet in sheets:
        file = f"{sheet.name}.png"
        try:
            if sheet.draw is None:
                path = run.file(sheet.folder, file)
            else:
                path = run.path / sheet.folder / file
                with mpl.rc_context(draw.STYLE):
                    draw.save(sheet.draw(), path, options.dpi)
        except AbsentError as reason:
            section.note = str(reason)
            continue
        section.pictures.append(Picture(inlined(path), sheet.caption, f"{sheet.folder}/{file}"))


def _fill(sections: list[Section], run: RunFolder) -> None:
    """Add tables and numbers to the sections that have them."""
    summary = collect_summary(run.path)
    by_title = {section.title: section for section in sections}
    accuracy = by_title["Accuracy"]
    accuracy.tables = tables.accuracy_tables(summary)
    if not accuracy.tables:
        accuracy.note = "The stage evaluate has not run in this folder, or was not finished."
    by_title["Training"].tables = tables.round_tables(summary)
    _fill_neighbours(by_title[NEIGHBOURS], run, summary.get("neighbours", {}))
    noise = by_title[NOISE]
    if not noise.note:
        noise.tables = [
            tables.region_table(run.table("denoise", "regions.parquet")),
            tables.audit_table(run.table("denoise", "tiles.parquet")),
        ]
    for title, stage in (("Training", "train"), (SIMILAR, "similarity"), (NOISE, "denoise")):
        by_title[title].facts = facts_of(summary.get(stage, {}))
    noise.text = " ".join([noise.text, *summary.get("denoise", {}).get("remarks", [])])
    if sentence := noise.facts.pop("not_averaged", ""):
        noise.text += f" {sentence}"


def _fill_neighbours(section: Section, run: RunFolder, found: dict[str, object]) -> None:
    """Numbers of the comparison of neighbours, or why there is none."""
    section.note = str(found.get("status", section.note))
    if section.note:
        return
    rows = pd.read_csv(run.file("evaluate", "neighbours.csv"))
    section.tables, section.facts = tables.neighbour_tables(rows), facts_of(found)
    if rows["averaged_label_error_px"].notna().any():
        section.text += (
            " Neighbours have other displacements, so a similarity must not be judged by the error of averaged labels "
            "alone."
        )


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


def _unknown(run: RunFolder) -> str:
    """Whose true offset nobody knows, in a sentence."""
    try:
        text = tables.unknown_text(run.store.unknown_pairs)
    except AbsentError:
        return ""
    return f" {text}" if text else ""


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
