"""Speed and precision of the similarity engine: `python -m benchmarks.similarity --json FILE`.

One process, one thread, CPU time; every competitor runs in the same process on the same data. Peak memory is
measured in a child process each (Linux only), since it never falls within one. Of the tools in
`benchmarks.similarity_peers`, those that are installed take part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from benchmarks import similarity_peers
from regnet.models import ModelOptions, build_model, centre_offset
from regnet.similarity.exact import gram
from regnet.similarity.gradients import Jacobians
from regnet.similarity.kernel import inverse_roots, normalised, self_products, whitened
from regnet.similarity.linear import SoftCounter
from regnet.similarity.readouts import forward
from regnet.similarity.reference import reference_jacobians
from regnet.similarity.sketch import Sketcher, sketched_kc

TILE_PX, BATCH = 64, 16
MODELS = {"matcher": ModelOptions(), "unet": ModelOptions(name="unet", width=48, levels=1)}
LANDMARKS, FLOATS = 384, 1024


def cpu_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Least CPU time of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def make_model(name: str) -> nn.Module:
    """A model whose weights all matter: those that start at zero get small random values."""
    torch.manual_seed(0)
    model = build_model(MODELS[name], 3, 1)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def make_tiles(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Textured scenes of varying grain, and their shifted, transformed channel: alike in parts, as real tiles are."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randn(n, 3, TILE_PX, TILE_PX, generator=generator)
    for row in range(n):
        for _ in range(row % 5):
            fixed[row] = nn.functional.avg_pool2d(fixed[row], 3, 1, 1)
    fixed = fixed / fixed.std((1, 2, 3), keepdim=True)
    moving = torch.tanh(-fixed.mean(1, keepdim=True)).roll((1, 2), (2, 3))
    return fixed, moving


def two_backwards(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """The limit: one forward and two backward passes."""
    values = centre_offset(model, *batch)
    for output in range(2):
        torch.autograd.grad(
            values[:, output].sum(), list(model.parameters()), retain_graph=output == 0, allow_unused=True
        )


def bench_gradients(name: str) -> dict[str, float]:
    model, batch = make_model(name), make_tiles(BATCH)
    engine = Jacobians(model)
    engine(*batch)
    names = engine.names
    ways: list[Callable[[], Any]] = [
        lambda: two_backwards(model, batch),
        lambda: engine(*batch),
        lambda: reference_jacobians(model, centre_offset, names, batch),
    ]
    rounds = [[cpu_seconds(way, 1) for way in ways] for _ in range(5)]  # taking turns, so that all see the same load
    limit, fast, slow = np.min(rounds, axis=0)
    reference = reference_jacobians(model, centre_offset, names, batch)
    whole = torch.cat([reference[key].reshape(BATCH, 2, -1) for key in names], 2)
    return {
        "parameters": engine.size,
        "seconds_a_tile": fast / BATCH,
        "ratio_to_two_backwards": fast / limit,
        "ratio_to_vmap": fast / slow,
        "relative_error": float((engine(*batch)[1] - whole).norm() / whole.norm()),
    }


def bench_peers() -> dict[str, dict[str, float]]:
    """Other tools and ours on one network: ratios of our time to theirs, and how far the numbers differ."""
    x = torch.randn(BATCH, 4, TILE_PX, TILE_PX, generator=torch.Generator().manual_seed(0))
    engine = Jacobians(similarity_peers.make_network(), forward)
    ours, peers = engine(x)[1], dict(similarity_peers.installed())
    for way in peers.values():
        way(x)
    ways: list[Callable[[], Any]] = [lambda: engine(x), *(lambda way=way: way(x) for way in peers.values())]
    fast, *others = np.min([[cpu_seconds(way, 1) for way in ways] for _ in range(3)], axis=0)
    return {
        name: {
            "seconds_a_tile": seconds / BATCH,
            "ratio": fast / seconds,
            "difference": float((way(x) - ours).norm() / ours.norm()),
        }
        for (name, way), seconds in zip(peers.items(), others, strict=True)
    }


def sqrtm_pairs(jacobians: np.ndarray, pairs: int) -> np.ndarray:
    """The pairwise reference: three products and two square roots a pair."""
    out = np.empty(pairs)
    for place in range(pairs):
        a, b = jacobians[place % len(jacobians)], jacobians[(7 * place + 1) % len(jacobians)]
        left, right = (np.linalg.inv(sqrtm(row @ row.T).real) for row in (a, b))
        out[place] = np.trace(left @ (a @ b.T) @ right) / 2
    return out


def bench_pairs(jacobians: Tensor) -> dict[str, float]:
    n, d = jacobians.shape[:2]
    tested = 200
    pairwise = cpu_seconds(lambda: sqrtm_pairs(jacobians.numpy(), tested), 1) / tested
    reference = sqrtm_pairs(jacobians.double().numpy(), tested)
    roots = inverse_roots(self_products(jacobians)).roots
    unit = normalised(jacobians, roots)
    rows = np.arange(tested) % n, (7 * np.arange(tested) + 1) % n
    result = {}
    half = unit.to(torch.bfloat16)
    for kind, data in (("float32", unit), ("bfloat16", half)):
        seconds = cpu_seconds(lambda data=data: gram(data, scalar=True, memory_mb=4096))
        kc = gram(data, scalar=True, memory_mb=4096).double().numpy() / d
        result[f"speedup_{kind}"] = pairwise / (seconds / n**2)
        result[f"error_{kind}"] = float(np.abs(kc[rows] - reference).max())
    double = normalised(jacobians.double(), roots)
    kc = gram(double, scalar=True, memory_mb=8192).numpy() / d
    result["error_float64"] = float(np.abs(kc[rows] - reference).max())
    flat = unit.flatten(1)
    peak = cpu_seconds(lambda: flat @ flat.T)
    result["gemm_share_of_peak"] = peak / cpu_seconds(lambda: gram(unit, scalar=True, memory_mb=4096))
    counter = SoftCounter()
    counter.add(jacobians)
    soft = counter.count(jacobians)
    result["soft_relative_error"] = float((soft - torch.from_numpy(kc.sum(1))).abs().max() / soft.abs().max())
    return result


def recall(exact: Tensor, rough: Tensor, k: int = 10) -> float:
    """Share of the k nearest by `exact` that are among the k nearest by `rough`; tiles do not find themselves."""
    n = len(exact)
    hidden = torch.eye(n, dtype=torch.bool)
    lists = [values.masked_fill(hidden, -torch.inf).topk(k).indices.tolist() for values in (exact, rough)]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*lists, strict=True)]))


def bench_sketch(jacobians: Tensor, gradient_seconds: float) -> dict[str, float]:
    unit = whitened(jacobians)
    sketcher, others = Sketcher(unit[:LANDMARKS], FLOATS), jacobians[LANDMARKS:]

    def sketch() -> Tensor:
        return sketcher(whitened(others))

    sketches, rows = sketch(), unit[LANDMARKS:]
    exact = (gram(rows, scalar=True, memory_mb=4096) / 2).double()
    rough = sketched_kc(sketches, sketches).double()
    off = ~torch.eye(len(others), dtype=torch.bool)
    seconds = cpu_seconds(sketch) / len(others)
    result = {}
    if find_spec("trak"):
        projected = similarity_peers.trak_sketch(rows, FLOATS)
        random = sketched_kc(projected, projected).double()
        result["trak_rms"] = float((exact - random)[off].square().mean().sqrt())
        result["trak_recall_at_10"] = recall(exact, random)
    return result | {
        "rms": float((exact - rough)[off].square().mean().sqrt()),
        "recall_at_10": recall(exact, rough),
        "share_of_gradient_time": seconds / gradient_seconds,
        "seconds_a_tile": seconds,
    }


def peak_memory_mb(way: str, name: str) -> float:
    """Peak of a child process that does nothing but gradients one way."""
    command = [sys.executable, "-m", "benchmarks.similarity", "--peak", way, "--model", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(way: str, name: str) -> None:
    model, batch = make_model(name), make_tiles(BATCH)
    engine = Jacobians(model)
    if way == "idle":
        pass
    elif way == "vmap":
        reference_jacobians(model, centre_offset, engine.names, batch)
    else:
        for _ in range(2):
            engine(*batch)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def collect(engine: Jacobians, n: int) -> Tensor:
    fixed, moving = make_tiles(n, seed=1)
    parts = [engine(f, m)[1] for f, m in zip(fixed.split(BATCH), moving.split(BATCH), strict=True)]
    return torch.cat(parts)


def million(gradients: dict[str, float], sketch: dict[str, float]) -> dict[str, float]:
    """What a million tiles would take on one core, from the measured rates."""
    n = 1e6
    return {
        "gradient_hours": n * gradients["seconds_a_tile"] / 3600,
        "sketch_hours": n * sketch["seconds_a_tile"] / 3600,
        "sketch_disk_gb": n * FLOATS * 4 / 1e9,
        "landmark_memory_gb": LANDMARKS * 2 * gradients["parameters"] * 4 / 1e9,
        "jacobians_disk_tb_if_kept": n * 2 * gradients["parameters"] * 4 / 1e12,
    }


def run(tiles: int) -> dict[str, Any]:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "tile_px": TILE_PX}
    result["models"] = {name: bench_gradients(name) for name in MODELS}
    result["gradients"] = result["models"]["matcher"]
    result["peers"] = bench_peers()
    jacobians = collect(Jacobians(make_model("matcher")), LANDMARKS + tiles)
    result["pairs"] = bench_pairs(jacobians[LANDMARKS:])
    result["sketch"] = bench_sketch(jacobians, result["gradients"]["seconds_a_tile"])
    result["sketch"]["tiles"] = tiles
    idle, fast, slow = (peak_memory_mb(way, "matcher") for way in ("idle", "gradients", "vmap"))
    result["memory"] = {"gradients_peak_mb": fast, "vmap_peak_mb": slow, "idle_mb": idle}
    result["million_tiles"] = million(result["gradients"], result["sketch"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--tiles", type=int, default=256, help="tiles that are compared, beside the landmarks")
    parser.add_argument("--peak", choices=["idle", "gradients", "vmap"], help=argparse.SUPPRESS)
    parser.add_argument("--model", default="matcher", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="There is a performance drop")
    if arguments.peak:
        measure_peak(arguments.peak, arguments.model)
        return
    text = json.dumps(run(arguments.tiles), indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
