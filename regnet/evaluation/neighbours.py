"""Neighbours by the network's gradients beside neighbours by other eyes: what can be said of them without replicas.

Charpiat et al. 2019, section 5 and its figures: a network's outputs should agree among tiles that it takes for the
same, and the mean of their labels should be better than the labels. Where neighbours have other displacements, a
similarity must not be judged by the error of averaged labels alone; where all have the same one, as in pairs that are
co-registered, any tiles average as well, and nothing is said of it. `regnet.evaluation.validation` judges fairly.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from regnet.baselines.retrieval import (
    Reader,
    feature_distances,
    gaussian_similarities,
    perceptual_distances,
    pixel_distances,
)
from regnet.denoising.contest import (
    contestants_by,
    mean_apart,
    mean_error,
    outputs_apart,
    own_label,
    tell_neighbours,
)
from regnet.denoising.operators import operator_of, similarities
from regnet.errors import ConfigError
from regnet.evaluation.options import NeighbourOptions
from regnet.files import whole_path
from regnet.models.checkpoint import load_checkpoint
from regnet.similarity.neighbours import nearest_others
from regnet.similarity.result import load_kernel
from regnet.similarity.tiles import read_batch
from regnet.tiles.store import TileStore

TABLE, NEAREST = "neighbours.csv", "neighbours.npz"
GRADIENT = "kC"


class Similarity(NamedTuple):
    """Similarities of n tiles by one pair of eyes.

    Attributes:
        kind: gradient, perceptual, pixels or features.
        name: shown in tables.
        values: (n, n), one for a tile and itself.
    """

    kind: str
    name: str
    values: NDArray[np.float64]


def by_other_eyes(read: Reader, n: int, options: NeighbourOptions, model: nn.Module) -> Iterator[Similarity]:
    """Similarities of tiles by everything but gradients.

    Args:
        read: gives fixed and moving of the tiles of a slice.
        n: number of tiles.
        options: which ImageNet networks, and what they see.
        model: a trained model, for its own features.

    Raises:
        InputError: the weights of an ImageNet network are missing, or channels that they are to see.
    """
    for network in options.networks:
        for one in perceptual_distances(read, n, network, options.rgb):
            yield Similarity(one.kind, one.name, gaussian_similarities(one.squared))
    for one in (*pixel_distances(read, n), feature_distances(read, n, model)):
        yield Similarity(one.kind, one.name, gaussian_similarities(one.squared))


def check_neighbours(options: NeighbourOptions, store: TileStore) -> None:
    """Refuse what cannot be compared, before anything else is done.

    Raises:
        ConfigError: a network twice, weights or channels of fixed that are not there.
    """
    key, names = "evaluate.neighbours", [network.name for network in options.networks]
    for place, network in enumerate(options.networks):
        if network.name in names[:place]:
            raise ConfigError(
                f"{key}.networks: {network.name} is there twice, and tables tell networks by their names; leave one out"
            )
        if network.weights and not Path(network.weights).is_file():
            raise ConfigError(f"{key}.networks.{place}.weights={network.weights}: there are no weights; check the path")
    store.check_fixed_channels(f"{key}.rgb", options.rgb)


def compare_neighbours(
    store: TileStore, model_path: Path, similarity_folder: Path, options: NeighbourOptions, folder: Path
) -> dict[str, Any]:
    """Compare whom the network's gradients and other eyes take for a tile's neighbours.

    Writes `neighbours.csv`, a row for each of the weights that are made of a similarity (`regnet.denoising.contest`):
    name, similarity, kind, own, outputs_apart_px, averaged_label_error_px (over the tiles whose truth is known; NaN
    where all have the same, if any), and `neighbours.npz`: tile_id, name of every similarity, and the ids of the
    nearest tiles (similarities, n, k).

    Args:
        store: the prepared tiles.
        model_path: the trained model.
        similarity_folder: what the similarity stage wrote; its reference tiles are compared.
        options: which ImageNet networks, how many nearest are kept.
        folder: where to write.

    Returns:
        Means over the tiles: `outputs_apart_px` of any two, and at the centres of those whose truth is known
        `label_error_px` (NaN if there are none) and `prediction_error_px` (NaN too where all have the same truth, which
        a network need not look at them to know).

    Raises:
        InputError: the weights of an ImageNet network are missing.
        StoreError: the similarity stage left no kernel.
    """
    stored = load_kernel(similarity_folder / "kernel.zarr")
    positions = store.positions(stored.tile_id)
    rows = store.index.iloc[positions]
    n, outputs = len(positions), stored.values.astype(np.float64)
    labels, truth = (rows[[f"{of}_dx_px", f"{of}_dy_px"]].to_numpy(dtype=np.float64) for of in ("label", "true"))
    differ = len(np.unique(truth[np.isfinite(truth).all(1)], axis=0)) > 1
    seen = [Similarity("gradient", GRADIENT, similarities(operator_of(stored)))]
    seen += by_other_eyes(lambda part: read_batch(store, positions[part]), n, options, load_checkpoint(model_path))
    apart = outputs_apart(outputs)
    entered = chain([own_label(n)], *(contestants_by(one.name, one.kind, one.values) for one in seen))
    judged = truth if differ else None
    table = [{**one.described(), **tell_neighbours(one, apart, labels[None], judged)} for one in entered]
    nearest = np.stack([stored.tile_id[nearest_others(similarity.values, options.kept)] for similarity in seen])
    with whole_path(folder / TABLE) as partial:
        pd.DataFrame(table).to_csv(partial, index=False, float_format="%.6g")
    with whole_path(folder / NEAREST) as partial, partial.open("wb") as stream:
        names = np.array([similarity.name for similarity in seen])
        np.savez(stream, tile_id=stored.tile_id, name=names, nearest_tile_id=nearest)
    return {
        "tiles": n,
        "outputs_apart_px": mean_apart(apart),
        "label_error_px": mean_error(labels, truth),
        "prediction_error_px": mean_error(outputs, truth) if differ else float("nan"),
    }
