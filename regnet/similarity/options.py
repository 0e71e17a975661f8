"""Options of the similarity stage."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option
from regnet.tiles.options import PARTS


@dataclass(frozen=True)
class SimilarityOptions:
    """Which tiles are compared, by what readout, and how."""

    parts: list[str] = option(["train"], "parts of the split that make the reference set", choices=PARTS)
    query_parts: list[str] = option(
        ["validation", "test", "shifted"],
        "parts that are compared to the reference set; those that make it are left out",
        choices=PARTS,
    )
    max_tiles: int = option(400, "most reference tiles, drawn evenly over the regions", unit="tiles", low=1)
    max_query_tiles: int = option(100, "most query tiles of each part", unit="tiles", low=0)
    seed: int = option(0, "seed of the draw of tiles and of the sketch", low=0)
    readout: str = option(
        "centre_offset",
        "what is differentiated: the displacement at the tile's centre, its mean or its sum over the tile",
        choices=["centre_offset", "mean_offset", "sum_offset"],
    )
    parameters: list[str] = option(["*"], "glob patterns of the parameters to differentiate in")
    checkpoints: str = option(
        "last", "the trained model, or the mean kernel of the checkpoints along its training", choices=["last", "mean"]
    )
    trajectory: list[str] = option(
        [],
        "networks to compare the same tiles by, for trajectory.png: glob patterns in the training's folder, such as "
        "checkpoints/*.safetensors or round_*/model.safetensors",
    )
    metric: str = option(
        "plain",
        "J J^T, or J D J^T with Adam's D = 1 / sqrt(v), bounded at 100 times its median",
        choices=["plain", "adam"],
    )
    backend: str = option(
        "exact", "all pairs exactly, from sketches, or sums only", choices=["exact", "sketch", "linear"]
    )
    precision: str = option("float32", "precision of the pair products", choices=["float32", "bfloat16", "float64"])
    batch: int = option(16, "tiles a batch", unit="tiles", low=1)
    memory_mb: float = option(
        1024,
        "memory that comparing pairs may take: the kernel and blocks of its products, or a sketch's landmarks",
        unit="MB",
        low=16,
    )
    keep_gradients: bool = option(False, "keep the Jacobians or sketches on disk after the kernel is made")
    sketch_floats: int = option(1024, "size of a tile's sketch", unit="numbers", low=8)
    landmarks: int = option(
        256, "tiles whose Jacobians span the sketch; fewer if memory_mb does not hold them", unit="tiles", low=1
    )
    tau: float = option(0.5, "least kC of a hard neighbour", low=-1, high=1)
    alpha: float = option(2.0, "exponent of the neighbour count N_alpha", low=0.1, high=20)
    nearest: int = option(10, "nearest neighbours kept of every tile", unit="tiles", low=1)
    search: str = option(
        "exact", "how the nearest are found: among all pairs, or of sketches by faiss", choices=["exact", "faiss"]
    )


@dataclass(frozen=True)
class PaperToyOptions:
    """The paper's toy problem: networks fitted to sinusoids of growing frequency on a line."""

    frequencies: list[float] = option(
        [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0], "periods on the closed line", low=0.1, high=64
    )
    replicas: int = option(3, "networks fitted to each frequency, from different starts", low=1)
    points: int = option(256, "points on the line", low=8)
    width: int = option(64, "neurons a layer", low=2)
    layers: int = option(3, "hidden layers", low=1)
    steps: int = option(1000, "steps of Adam on all points", low=1)
    learning_rate: float = option(3e-3, "of Adam, falling to 0 as a half cosine", low=1e-6, high=1)
    seed: int = option(0, "seed of the first replica", low=0)
