"""The stages of a run: which depends on which, and which are skipped because their outputs are there already.

A stage's folder is stamped, once it is whole, with the stage's settings, the stamps of the stages before it, and the
size and time of its input files. A stage is skipped when it would be stamped alike. One that is refused before it has
changed anything leaves its old outputs as valid as they were. A stage that has run takes away the stamps of all stages
after it. A study is a stage that only `run` with `study=<name>` runs, after those that it needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from regnet.config import RunConfig
from regnet.denoising.stage import denoise_stage
from regnet.errors import ConfigError, StoreError
from regnet.evaluation.labels import UNKNOWN
from regnet.evaluation.methods import weights_digest
from regnet.evaluation.stage import evaluate_stage
from regnet.evaluation.validation import run_denoising_validation
from regnet.files import (
    STAMP,
    held,
    input_marks,
    is_stamped,
    read_json,
    stamped_digest,
    unstamped,
    write_json,
    write_stamp,
    write_text,
)
from regnet.geo.sources import files_behind, is_vector
from regnet.options import recipe
from regnet.ranks import Ranks, launch
from regnet.report.build import build_report
from regnet.report.summary import collect_summary
from regnet.similarity.stage import similarity_stage
from regnet.similarity.toy import run_paper_toy
from regnet.tiles.prepare import check_parts, prepare
from regnet.tiles.store import VERSION, TileStore
from regnet.training.enforced import run_enforced_similarity
from regnet.training.rounds import train_rounds
from regnet.training.sweep import sweep_level

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: of the command.
        folder: what it fills, inside the run's folder.
        needs: stages whose outputs must be there.
        reads: stages whose outputs it reads if they are there.
        settings: those of the run's settings that it depends on.
        work: fills the folder, given the run's settings and the run's folder.
        inputs: files that it reads beside other stages' outputs, whose size and time tell whether they changed.
        whole: tells of a run's folder whose stage is stamped whether none of its outputs is missing, and nothing that
            failed is to be tried again.
        shared: every rank does its share of the work; otherwise the first rank does it alone.
        study: belongs to no run but one whose `study` names it.
        spared: stages of `needs` that it can do without under these settings.
        swaps: replaces its folder as a whole at its end, so that the old one stays whole if it fails.
        fits: trains on the tiles of the part train, and stops by the error on those of the part validation.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    settings: Callable[[RunConfig], Mapping[str, Any]]
    work: Callable[[RunConfig, Path], None]
    inputs: Callable[[RunConfig], Sequence[str | None]] = lambda _: []
    whole: Callable[[Path], bool] = lambda _: True
    shared: bool = False
    study: bool = False
    spared: Callable[[RunConfig], Sequence[str]] = lambda _: ()
    swaps: bool = False
    fits: bool = False


def _model(run: Path) -> Path:
    return run / "train" / "model.safetensors"


def _prepare(config: RunConfig, run: Path) -> None:
    prepare(config.prepare, run / "prepare")


def _train(config: RunConfig, run: Path) -> None:
    ranks = launch(config.fabric)
    train_rounds(TileStore.open(run / "prepare"), config.model, config.training, run / "train", ranks)


def _similarity(config: RunConfig, run: Path) -> None:
    store = TileStore.open(run / "prepare")
    similarity_stage(store, _model(run), config.similarity, run / "similarity", launch(config.fabric))


def _denoise(config: RunConfig, run: Path) -> None:
    if config.denoise.retrainings and not is_stamped(run / "train", _stamp(STAGES["train"], config, run)):
        raise ConfigError(
            f"denoise.retrainings={config.denoise.retrainings}: the model was trained with other settings than these; "
            f"give those, or run `regnet train output_dir={run}` first"
        )
    store = TileStore.open(run / "prepare")
    denoise_stage(store, _model(run), run / "similarity", config.denoise, config.training, run / "denoise")


def _evaluate(config: RunConfig, run: Path) -> None:
    compared = run / "similarity" if _digest(run, "similarity") else None
    store = TileStore.open(run / "prepare")
    device = launch(config.fabric).device
    evaluate_stage(store, _model(run), config.evaluate, run / "evaluate", config.seed, compared, device)


def _nothing_failed(run: Path) -> bool:
    """Tell whether no method of the evaluation failed, nor the comparison of neighbours where there is a kernel."""
    summary = read_json(run / "evaluate" / SUMMARY)
    parts = [part for name, part in summary.items() if name != "neighbours"]
    rows = [row for part in parts for family in part.values() for row in family.values()]
    compared = "status" not in summary.get("neighbours", {}) or not (run / "similarity" / "kernel.zarr").is_dir()
    return compared and all(row["status"] in ("ok", UNKNOWN) for row in rows)


def _report(config: RunConfig, run: Path) -> None:
    build_report(run, config.report)


def _paper_toy(config: RunConfig, run: Path) -> None:
    run_paper_toy(config.paper_toy, run / "paper_toy")


def _denoising_validation(config: RunConfig, run: Path) -> None:
    store, folder = TileStore.open(run / "prepare"), run / "denoising_validation"
    run_denoising_validation(store, config.model, config.denoising_validation, config.evaluate.neighbours, folder)


def _noise_sweep(_: RunConfig, run: Path) -> None:
    sweep_level(TileStore.open(run / "prepare"), run / "train", run / "noise_sweep")


def _paper_enforced_similarity(config: RunConfig, run: Path) -> None:
    store, folder = TileStore.open(run / "prepare"), run / "paper_enforced_similarity"
    run_enforced_similarity(store, config.model, config.training, config.paper_enforced_similarity, folder)


def _pair_files(config: RunConfig) -> list[str]:
    return [path for pair in config.prepare.pairs for name in (pair.fixed, pair.moving) for path in files_behind(name)]


def _parts_of(name: str | None) -> list[str | None]:
    """All files of a vector layer; of a table, itself."""
    return [*files_behind(name)] if name and is_vector(name) else [name]


def _prepare_settings(config: RunConfig) -> Mapping[str, Any]:
    return {**recipe(config.prepare), "version": VERSION}


def _train_settings(config: RunConfig) -> Mapping[str, Any]:
    return {"model": asdict(config.model), "training": recipe(config.training), "seed": config.seed}


def _denoising_validation_settings(config: RunConfig) -> Mapping[str, Any]:
    neighbours = config.evaluate.neighbours
    return {
        "model": asdict(config.model),
        **asdict(config.denoising_validation),
        "neighbours": asdict(neighbours),
        "weights": [weights_digest(network) for network in neighbours.networks],
    }


def _enforced_settings(config: RunConfig) -> Mapping[str, Any]:
    return {**_train_settings(config), **asdict(config.paper_enforced_similarity)}


def _evaluate_settings(config: RunConfig) -> Mapping[str, Any]:
    networks = [config.evaluate.baselines.perceptual.network, *config.evaluate.neighbours.networks]
    return {
        **asdict(config.evaluate),
        "weights": [weights_digest(network) for network in networks],
        "seed": config.seed,
    }


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "prepare", (), (), _prepare_settings, _prepare, inputs=_pair_files, swaps=True),
        Stage("train", "train", ("prepare",), (), _train_settings, _train, shared=True, swaps=True, fits=True),
        Stage(
            "similarity",
            "similarity",
            ("prepare", "train"),
            (),
            lambda config: asdict(config.similarity),
            _similarity,
            shared=True,
        ),
        Stage(
            "denoise",
            "denoise",
            ("prepare", "train", "similarity"),
            (),
            lambda config: asdict(config.denoise),
            _denoise,
            inputs=lambda config: _parts_of(config.denoise.regions),
        ),
        Stage(
            "evaluate",
            "evaluate",
            ("prepare", "train"),
            ("similarity",),
            _evaluate_settings,
            _evaluate,
            inputs=lambda config: _parts_of(config.evaluate.check_points),
            whole=_nothing_failed,
            spared=lambda config: () if "model" in config.evaluate.methods else ("train",),
        ),
        Stage(
            "report",
            "figures",
            ("prepare",),
            ("train", "similarity", "denoise", "evaluate"),
            lambda config: asdict(config.report),
            _report,
            whole=lambda run: (run / "report.html").is_file(),
        ),
        Stage("paper_toy", "paper_toy", (), (), lambda config: asdict(config.paper_toy), _paper_toy, study=True),
        Stage(
            "denoising_validation",
            "denoising_validation",
            ("prepare",),
            (),
            _denoising_validation_settings,
            _denoising_validation,
            study=True,
        ),
        Stage("noise_sweep", "noise_sweep", ("prepare", "train"), (), lambda _: {}, _noise_sweep, study=True),
        Stage(
            "paper_enforced_similarity",
            "paper_enforced_similarity",
            ("prepare",),
            (),
            _enforced_settings,
            _paper_enforced_similarity,
            study=True,
            swaps=True,
            fits=True,
        ),
    )
}


def run_stages(config: RunConfig, names: Sequence[str] | None = None) -> list[str]:
    """Run stages in their order, each unless its outputs are there and were made alike.

    Args:
        config: the run's settings.
        names: stages to run, what they need of others must be there already; None: what `run` does, all stages or the
            chosen study with those that it needs.

    Returns:
        Names of the stages that ran.

    Raises:
        ConfigError: the split leaves no part that one of the stages trains on.
        StoreError: a stage that another needs has not run in this folder.
        OutputError: another process is at work in the folder, or it cannot be written.
    """
    run, ranks = Path(config.output_dir), launch(config.fabric)
    ran = []
    chosen = _whole_run(config.study) if names is None else names
    if "prepare" in chosen and any(STAGES[name].fits for name in chosen):
        check_parts(config.prepare, ("train", "validation"))
    with held(run) if ranks.main else nullcontext():
        for stage in (stage for name, stage in STAGES.items() if name in chosen):
            new = _run_stage(stage, config, run, ranks)
            if new:
                ran.append(stage.name)
            if ranks.main and (new or not (run / SUMMARY).is_file()):
                write_text(run / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
                write_json(run / SUMMARY, collect_summary(run))
    return ran


def _whole_run(study: str) -> Sequence[str]:
    if study != "none":
        return (*STAGES[study].needs, study)
    return [stage.name for stage in STAGES.values() if not stage.study]


def seed_everything(seed: int, threads: int) -> None:
    """Make what follows the same at every run on one machine, but for rounding: seeds, kernels, number of threads."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the libraries below may draw from numpy's old global state
    torch.manual_seed(seed)
    # As use_deterministic_algorithms(True, warn_only=True), which imports the compiler first: two seconds.
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if threads:
        torch.set_num_threads(threads)


def _run_stage(stage: Stage, config: RunConfig, run: Path, ranks: Ranks) -> bool:
    folder, stamp = run / stage.folder, _stamp(stage, config, run)
    whole = is_stamped(folder, stamp) and stage.whole(run)
    if ranks.main:
        print(
            f"{stage.name}: {f'skipped, {folder} was made with these settings' if whole else f'writing {folder}'}",
            flush=True,
        )
    if whole:
        return False
    ranks.barrier()  # all have seen the stamps as they were
    seed_everything(config.seed, config.threads)
    with unstamped(folder) if ranks.main and not stage.swaps else nullcontext():
        if stage.shared or ranks.main:
            stage.work(config, run)
    ranks.barrier()
    if ranks.main:
        for name in _after(stage):
            (run / STAGES[name].folder / STAMP).unlink(missing_ok=True)
        write_stamp(folder, stamp)
    ranks.barrier()
    return True


def _stamp(stage: Stage, config: RunConfig, run: Path) -> dict[str, Any]:
    before = {name: _digest(run, name) for name in (*stage.needs, *stage.reads)}
    for name in stage.needs:
        if before[name] is None and name not in stage.spared(config):
            raise StoreError(
                f"{run / STAGES[name].folder}: missing or not whole; run `regnet {name} output_dir={run}` first"
            )
    return {
        "settings": stage.settings(config),
        "before": before,
        "inputs": input_marks([name for name in stage.inputs(config) if name]),
    }


def _digest(run: Path, name: str) -> str | None:
    return stamped_digest(run / STAGES[name].folder)


def _after(stage: Stage) -> list[str]:
    """Stages that read this one's outputs, directly or through others."""
    readers = [other for other in STAGES.values() if stage.name in (*other.needs, *other.reads)]
    return list(dict.fromkeys(name for other in readers for name in (other.name, *_after(other))))
