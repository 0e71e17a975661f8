"""The kernel of a set of reference tiles on disk: what the denoising stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from regnet.errors import StoreError
from regnet.files import whole_path


@dataclass(frozen=True)
class StoredKernel:
    """The kernel among n reference tiles, exact or as features.

    Attributes:
        tile_id: (n,).
        values: (n, 2) displacement predicted at the tiles' centres, px.
        self_kernel: (n, d, d) float64 K(x, x).
        blocks: (n, d, n, d) float64 K, or None.
        features: (n, d, k) float64 Phi with `K = Phi Phi^T`, or None.
    """

    tile_id: NDArray[np.int64]
    values: NDArray[np.floating]
    self_kernel: NDArray[np.float64]
    blocks: NDArray[np.float64] | None = None
    features: NDArray[np.float64] | None = None


def save_kernel(path: Path, kernel: StoredKernel) -> None:
    """Write a kernel as one Zarr group, whole or not at all."""
    arrays: dict[str, NDArray[Any] | None] = dict(vars(kernel))
    with whole_path(path) as partial:
        group = zarr.open_group(str(partial), mode="w")
        for name, values in arrays.items():
            if values is not None:
                chunks = (max(1, min(len(values), 64)), *values.shape[1:])
                group.create_array(name, data=np.ascontiguousarray(values), chunks=chunks)


def load_kernel(path: Path) -> StoredKernel:
    """Read a kernel.

    Raises:
        StoreError: it is not there or damaged.
    """
    if not Path(path).is_dir():
        raise StoreError(f"{path}: there is no kernel; run `regnet similarity` with backend=exact or sketch first")
    try:
        group = zarr.open_group(str(path), mode="r")
        arrays: dict[str, Any] = {name: group[name][:] for name in group.array_keys()}
        return StoredKernel(**arrays)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise StoreError(f"{path}: damaged; delete the similarity folder and run `regnet similarity` again") from error
