"""Cached predictions: every figure can be redone, and metrics added, without running a method again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from regnet import files, metrics
from regnet.baselines.registry import Method
from regnet.errors import InputError, RegnetError
from regnet.evaluation.cases import Case, CaseMaker, Problem
from regnet.evaluation.memory import peak_memory

TRUTH = "truth"


@dataclass(frozen=True)
class Outcome:
    """One method's result on one case, over the block's own pixels (h, w).

    Attributes:
        errors_px: (h, w) end-point error; NaN where the pair is not valid; None if the method failed.
        structure: (h, w), the structure mask of fixed.
        seconds: wall time of the method; NaN if it could not even start.
        peak_mb: largest resident memory of the process meanwhile; NaN where that is not known.
        failure: why it failed; empty if it did not.
    """

    case: Case
    method: str
    errors_px: NDArray[np.float32] | None
    structure: NDArray[np.bool_]
    seconds: float
    peak_mb: float
    failure: str


def predict_all(cases: list[Case], maker: CaseMaker, solvers: dict[str, Method | str], folder: Path) -> None:
    """Run every method on every case whose prediction is not in the folder yet, or that it failed on before.

    Args:
        cases: what to run on.
        maker: makes the cases' problems.
        solvers: by the method's name; a text instead of a function says why the method cannot run at all.
        folder: of the predictions.
    """
    with tqdm(total=len(cases) * len(solvers), desc="evaluate", unit="block") as bar:
        for case in cases:
            missing = [name for name in solvers if not _has_answer(prediction_path(folder, case, name))]
            bar.update(len(solvers) - len(missing))
            if not missing and truth_path(folder, case).is_file():
                continue
            problem = maker.problem(case)
            _save(truth_path(folder, case), **_truth(problem, case))
            for name in missing:
                solver = solvers[name]
                outcome = {"failure": np.str_(solver)} if isinstance(solver, str) else _run(solver, problem, case)
                _save(prediction_path(folder, case, name), **outcome)
                bar.update()


def read_outcomes(cases: list[Case], method: str, folder: Path) -> Iterator[Outcome]:
    """Compare one method's cached predictions with the truth, case by case."""
    for case in cases:
        with np.load(truth_path(folder, case)) as truth, np.load(prediction_path(folder, case, method)) as saved:
            structure, failure = truth["structure"], str(saved["failure"])
            errors = None
            if not failure:
                errors = metrics.epe(saved["displacement"], truth["true"]).astype(np.float32)
                errors[~truth["valid"]] = np.nan
            seconds, peak_mb = (float(saved.get(name, np.nan)) for name in ("seconds", "peak_mb"))
            yield Outcome(case, method, errors, structure, seconds, peak_mb, failure)


def prediction_path(folder: Path, case: Case, method: str) -> Path:
    """Where one method's prediction of one case is kept."""
    return folder / method / f"{case.name}.npz"


def truth_path(folder: Path, case: Case) -> Path:
    """Where the truth and the masks of one case are kept."""
    return folder / TRUTH / f"{case.name}.npz"


def _has_answer(path: Path) -> bool:
    """Whether a prediction is there; why a method failed, as a missing package, may have changed."""
    if not path.is_file():
        return False
    with np.load(path) as saved:
        return not str(saved["failure"])


def _truth(problem: Problem, case: Case) -> dict[str, NDArray[np.generic]]:
    patch, own = problem.patch, case.own
    valid = patch.fixed_valid & patch.moving_valid
    return {"true": problem.true[:, *own], "valid": valid[own], "structure": patch.structure[own]}


def _run(solver: Method, problem: Problem, case: Case) -> dict[str, NDArray[np.generic]]:
    outcome: dict[str, Any] = {"failure": ""}
    peak, start = peak_memory(), time.perf_counter()
    try:
        outcome["displacement"] = solver(problem.patch)[:, *case.own]
        if not np.isfinite(outcome["displacement"]).all():
            raise InputError("it gave no displacement for some pixels")  # they would not be counted
    except (RegnetError, cv2.error) as error:
        outcome["failure"] = str(error).strip()
    outcome |= {"seconds": time.perf_counter() - start, "peak_mb": peak()}
    return {name: np.asarray(value) for name, value in outcome.items()}


def _save(path: Path, **arrays: NDArray[np.generic]) -> None:
    with files.whole_path(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
