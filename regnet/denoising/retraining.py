"""What more noise on the labels does to a training of its own kind, which needs no truth.

A training on random displacements, with a loss of its own, is no plain smoother of its labels, and a few hundredths of
the labels' noise are not to be seen in predictions next to all else that these hold. So the network is trained again
from the same start and in the same order, on its labels with noise drawn once more on top: what differs is due to that
noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet.denoising.operators import Array, Operator
from regnet.denoising.smoother import Smoother
from regnet.errors import ConfigError, InputError
from regnet.files import digest, file_digest, remove, whole_path
from regnet.models import ModelOptions, load_checkpoint
from regnet.options import recipe
from regnet.similarity.stage import predict
from regnet.tiles.store import TileStore
from regnet.training.fit import MODEL, Fit
from regnet.training.options import TrainingOptions

_BATCH = 16
_UNDER_WAY = ".retraining-"


@dataclass(frozen=True)
class Seen:
    """What K retrainings showed of n tiles.

    Attributes:
        noise: (K, n, 2) px, what was added to the labels.
        changes: (K, n, 2) px, by how much the predictions differ for it.
    """

    noise: Array
    changes: Array

    def share(self) -> float:
        """Root mean square of the changes over that of the noise."""
        return float(np.sqrt((self.changes**2).sum() / (self.noise**2).sum()))

    def factor(self, found: Smoother, correlation: Array | None = None) -> Array:
        """Factors (n,) of a smoother, at most 1, so large that they foretell as much for the draws as was seen.

        Args:
            found: the smoother.
            correlation: (n, n) of the label noise between tiles, the identity if None.
        """
        foretold = float(np.sqrt((found.factor() ** 2).mean()))
        result: Array = np.minimum(found.factor(correlation) * (self.share() / max(foretold, 1e-12)), 1.0)
        return result


def even_noise(kernel: Operator, sigma_px: float, generator: np.random.Generator) -> Array:
    """Draw white noise (n, d), px, that has just as much power along each of a kernel's eigenvectors.

    A smoother with these eigenvectors then leaves exactly as much of a single draw as of noise in the mean, however few
    of them it passes (as random signs give a matrix's trace with the least variance in the basis that diagonalises it:
    Hutchinson 1990).
    """
    _, vectors = kernel.spectrum
    drawn = generator.normal(0, sigma_px, kernel.n * kernel.d)
    along = vectors.T @ drawn
    even: Array = drawn + vectors @ (sigma_px * np.sign(along) - along)
    return even.reshape(kernel.n, kernel.d)


def retrain_model(
    store: TileStore,
    positions: NDArray[np.int64],
    predictions: Array,
    kernel: Operator,
    model_path: Path,
    training: TrainingOptions,
    sigma_px: float,
    count: int,
    folder: Path,
) -> Seen:
    """Train `count` times more, as the model was, on its labels with an independent constant more for each tile.

    A killed retraining goes on from its last epoch, and those that the folder holds are not trained again.

    Args:
        store: the tiles with the labels that the model learned from.
        positions: all of its training tiles.
        predictions: (n, 2) px, the model's at their centres.
        kernel: K among them.
        model_path: the model.
        training: what it was trained with.
        sigma_px: standard deviation of the noise, a component.
        count: how many.
        folder: where `retraining_<k>.npz` go; what other settings left there is deleted.

    Raises:
        ConfigError: these are not all of the training tiles.
        InputError: the size of the noise is not known.
    """
    tiles = store.tiles("train")
    if set(tiles) != set(positions):
        raise ConfigError(
            f"denoise.retrainings={count}: noise goes on all {len(tiles)} training tiles, and just these are to be "
            f"compared; set similarity.parts=[train] and similarity.max_tiles={len(tiles)} or more"
        )
    if not sigma_px > 0:
        raise InputError(
            f"denoise.retrainings={count}: the size of the labels' noise cannot be told; set denoise.noise_sigma_px"
        )
    model_options = load_checkpoint(model_path).options
    mark = digest([file_digest(model_path), recipe(training), store.manifest])
    generators = [np.random.default_rng((training.seed, 1_000_007, number)) for number in range(count)]
    draws = [even_noise(kernel, sigma_px, generator) for generator in generators]
    seen = [
        _retrained(store, positions, model_options, training, noise, folder / f"retraining_{number}.npz", mark)
        for number, noise in enumerate(draws)
    ]
    for left in folder.glob(f"{_UNDER_WAY}*"):
        remove(left)
    return Seen(np.stack(draws), np.stack(seen) - predictions)


def _retrained(
    store: TileStore,
    positions: NDArray[np.int64],
    model_options: ModelOptions,
    training: TrainingOptions,
    noise: Array,
    path: Path,
    mark: str,
) -> Array:
    """Predictions (n, 2) px after a training on labels with noise (n, 2) px on top; kept in a file."""
    mark = digest([mark, noise.round(6).tolist()])
    if path.is_file():
        with np.load(path) as saved:
            if str(saved["mark"]) == mark:
                kept: Array = saved["predictions"]
                return kept
    place = path.with_name(f"{_UNDER_WAY}{mark[:12]}")
    options = replace(training, rounds=1, familiarity_tiles=0)
    Fit(_noisier(store, positions, noise, place / "labels.zarr"), model_options, options, place).run()
    predictions = predict(store, load_checkpoint(place / MODEL), positions, _BATCH).astype(np.float64)
    with whole_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, mark=mark, noise=noise, predictions=predictions)
    remove(place)
    return predictions


def _noisier(store: TileStore, positions: NDArray[np.int64], noise: Array, path: Path) -> TileStore:
    """The tiles with a constant (n, 2) px added to the labels at some positions."""
    with whole_path(path) as partial:
        labels = store.copy_labels(partial)
        for position, added in zip(positions.tolist(), noise.astype(np.float32), strict=True):
            labels[position] = labels[position] + added[:, None, None]
    return store.with_labels(path)
