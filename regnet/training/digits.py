"""The similarity term on handwritten digits, as the paper tries it: images of one class are known to be alike.

Source: Charpiat et al. 2019, on enforcing similarity (MNIST there; here the 8 x 8 digits that scikit-learn ships).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.training.alike import similarity_in_training
from regnet.training.options import DigitsOptions


def load_images() -> tuple[Tensor, Tensor]:
    """All 1,797 images, (n, 64) in 0..1, and their classes, (n,).

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("scikit-learn is not installed; run `pip install regnet[digits]`") from error
    images, classes = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(classes).long()


def label_log_odds(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Log-odds of each image's class against all others, (n, 1): the binary view of section 2."""
    logits = model(images)
    own = torch.arange(logits.shape[1], device=logits.device) == classes[:, None]
    rest = logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    odds: Tensor = (logits * own).sum(1, keepdim=True) - rest
    return odds


def train_digits(options: DigitsOptions, weight: float, seed: int) -> list[dict[str, Any]]:
    """Train once from the start and in the order that the seed gives; one row an epoch.

    Returns:
        Rows of `epoch` (from 1), `error` (share of the other images told wrongly), `kc` (mean similarity of pairs of
        one class among them) and `seconds` (since the start, of training alone).
    """
    generator = np.random.default_rng(seed)
    images, classes = load_images()
    order = generator.permutation(len(images))
    seen, unseen = order[: options.images], order[options.images :]
    shown = _partners(classes.numpy(), unseen[:128], unseen, np.random.default_rng(0))
    torch.manual_seed(seed)
    width = options.width
    layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    model = nn.Sequential(*layers)
    names = [name for name, _ in model.named_parameters()]
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    rows, seconds = [], 0.0
    for epoch in range(1, options.epochs + 1):
        begin = time.perf_counter()
        shuffled = generator.permutation(seen)
        for start in range(0, len(shuffled) - options.batch + 1, options.batch):
            batch = shuffled[start : start + options.batch]
            pairs = _partners(classes.numpy(), batch[: options.pairs], seen, generator)
            loss = F.cross_entropy(model(images[batch]), classes[batch])
            if weight > 0:
                found = similarity_in_training(model, label_log_odds, names, [images[pairs], classes[pairs]])
                loss = loss - weight * found.mean()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        seconds += time.perf_counter() - begin
        with torch.no_grad():
            wrong = model(images[unseen]).argmax(1) != classes[unseen]
            kc = similarity_in_training(model, label_log_odds, names, [images[shown], classes[shown]]).mean()
        rows.append({"epoch": epoch, "error": float(wrong.float().mean()), "kc": float(kc), "seconds": seconds})
    return rows


def _partners(
    classes: NDArray[np.integer],
    chosen: NDArray[np.integer],
    among: NDArray[np.integer],
    generator: np.random.Generator,
) -> NDArray[np.integer]:
    """Positions of images and, behind them, of one of the same class for each."""
    others = [generator.choice(among[classes[among] == classes[position]]) for position in chosen]
    return np.concatenate((chosen, np.array(others, chosen.dtype)))
