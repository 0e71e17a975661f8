"""How many neighbours a tile has in the network's eyes, and which.

Source: Charpiat et al. 2019, section 4: `N_S(x) = sum_x' kC(x, x')`, `N_tau(x) = #{x': kC(x, x') >= tau}`,
`N_alpha(x) = sum_x' max(kC(x, x'), 0)^alpha`. A tile counts as its own neighbour, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet.errors import InputError


@dataclass(frozen=True)
class Neighbours:
    """Neighbour counts and the k nearest of n tiles.

    Attributes:
        n_soft: (n,) N_S.
        n_tau: (n,) N_tau.
        n_alpha: (n,) N_alpha.
        nearest: (n, k) positions of the most similar tiles, best first, the tile itself left out; -1 where there are
            fewer.
        similarity: (n, k) their kC; NaN where there are fewer.
    """

    n_soft: NDArray[np.float64]
    n_tau: NDArray[np.float64]
    n_alpha: NDArray[np.float64]
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float64]


def count(
    similarities: NDArray[np.floating], tau: float, alpha: float, k: int, self_columns: NDArray[np.int64] | None = None
) -> Neighbours:
    """Count and rank neighbours from kC.

    A tile of the set is wholly like itself, which rounding, sketches and floored eigenvalues only near. A kC of just 0,
    which a tile without gradient has to all, makes no neighbour, whatever tau.

    Args:
        similarities: (n, m) kC of n tiles to m tiles of the set.
        tau: least similarity of a hard neighbour.
        alpha: exponent of N_alpha.
        k: number of nearest neighbours.
        self_columns: (n,) where each tile stands in the set, -1 if it is new: not listed among its own nearest.
    """
    values = np.array(similarities, dtype=np.float64)
    columns = np.full(len(values), -1) if self_columns is None else self_columns
    rows = np.flatnonzero(columns >= 0)
    own = rows, columns[rows]
    values[own] = values[own] != 0
    alike = values != 0
    ranked = np.where(alike, values, -np.inf)
    ranked[own] = -np.inf
    nearest = largest(ranked, min(k, values.shape[1] - (len(rows) > 0)))
    return Neighbours(
        values.sum(1),
        (alike & (values >= tau)).sum(1).astype(np.float64),
        (np.maximum(values, 0) ** alpha).sum(1),
        *_listed(nearest, np.take_along_axis(ranked, nearest, 1)),
    )


def _listed(
    nearest: NDArray[np.int64], similarity: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lists without what is no neighbour, of similarity -infinity."""
    missing = np.isneginf(similarity)
    return np.where(missing, -1, nearest), np.where(missing, np.nan, similarity).astype(np.float64)


def nearest_others(similarities: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Positions (n, k) of the tiles most similar to each of n tiles, (n, n), best first, the tile itself left out."""
    ranked = np.where(np.eye(len(similarities), dtype=bool), -np.inf, similarities).astype(np.float64)
    return largest(ranked, min(k, len(similarities) - 1))


def largest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Columns of the k largest of every row, largest first."""
    if k == 0:
        return np.zeros((len(values), 0), np.int64)
    columns = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(values, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


def soft_only(n_soft: NDArray[np.floating]) -> Neighbours:
    """N_S alone: what the linear backend knows; the other counts are NaN and no neighbour is listed."""
    n = len(n_soft)
    unknown = np.full(n, np.nan)
    return Neighbours(n_soft.astype(np.float64), unknown, unknown, np.zeros((n, 0), np.int64), np.zeros((n, 0)))


def without_self(
    nearest: NDArray[np.int64], similarity: NDArray[np.floating], self_columns: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Leave a tile out of its own list of k + 1 nearest, and kC of just 0 as `count` does: (n, k) each."""
    none = (nearest == self_columns[:, None]) | (similarity == 0)
    kept = np.argsort(none, axis=1, kind="stable")[:, :k]
    ranked = np.where(none, -np.inf, similarity)
    return _listed(*(np.take_along_axis(values, kept, 1) for values in (nearest, ranked)))


def nearest_faiss(
    features: NDArray[np.float32], queries: NDArray[np.float32], k: int, exact_below: int = 20_000
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest tiles by scalar product through faiss (extra `knn`).

    From `exact_below` tiles on it looks only into the eighth of the set's cells (Voronoi cells of k-means) that are
    next to the query, and so may miss a neighbour; into all of them where these hold fewer than k tiles.

    Args:
        features: (n, q) normalised sketches flattened and divided by sqrt(d), so that their product is kC.
        queries: (m, q).
        k: how many.
        exact_below: sets smaller than this are searched whole.

    Returns:
        Positions (m, k) and kC (m, k), best first; a tile of the set finds itself too.

    Raises:
        InputError: faiss is not installed.
    """
    faiss = load_faiss()
    m, width = features.shape
    index: Any = faiss.IndexFlatIP(width)
    if m >= exact_below:
        cells = int(m**0.5)
        index = faiss.IndexIVFFlat(index, width, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = -(-cells // 8)
        index.train(features)
    index.add(np.ascontiguousarray(features, dtype=np.float32))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    similarity, nearest = index.search(queries, k)
    short = (nearest < 0).any(1)
    if short.any():
        index.nprobe = cells
        similarity[short], nearest[short] = index.search(queries[short], k)
    return nearest, similarity


def load_faiss() -> Any:
    """Import faiss (extra `knn`).

    Raises:
        InputError: it is not installed.
    """
    try:
        import faiss  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            "the k nearest of a large set need faiss, which is not installed; pip install 'regnet[knn]'"
        ) from error
    return faiss
