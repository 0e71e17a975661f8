"""By how much the labels of a whole pair are off beside those of the others: noise that no number of tiles averages.

A label that says where a pair lies is wrong for all its tiles alike, or one sensor shows things beside where they are
(radar leans towards its sensor). The network cannot follow such shifts, since they differ from pair to pair; left in
the labels, they teach it to trust nothing. So each pair's shift is told apart from its tiles' noise, as a random effect
(Laird and Ware, Biometrics 1982): the mean of what the network finds less the labels. What all pairs share is the
network's to learn and stays in the labels, unless flips and turns hide it from the network.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regnet.tiles.patch import Tile
from regnet.training.samples import Batch

FIRST_SHARE, LAST_SHARE = 0.2, 0.02
"""Share of a tile in the running mean of its pair: of the first one, and of one of many."""
LEAST_RESPONSE = 0.25
"""A network that follows less than this share of a known displacement tells nothing yet."""


class PairShifts:
    """Running means, pair by pair, of what a network finds beyond the labels.

    A network that is unsure finds a share of what there is. How large a share is told by the displacements that were
    drawn, which are known, and made good.

    Args:
        names: of all pairs; where but one of them is trained on, it has no shift.
        common: whether a shift that all pairs share is theirs too; else their sum is zero.
    """

    def __init__(self, names: list[str], common: bool) -> None:
        self._names, self._common = names, common
        self._seen = torch.zeros(len(names))
        self._shifts = torch.zeros(len(names), 2)
        self._response = torch.ones(2)

    def corrected(self, tile: Tile) -> Tile:
        """A tile with its pair's shift added to its label."""
        shift = self._own()[self._names.index(tile.pair), :, None, None].numpy()
        return replace(tile, label_offset=tile.label_offset + shift)

    @staticmethod
    @torch.no_grad()
    def means(batch: Batch, found: Tensor) -> Tensor:
        """What `learn` needs of a batch of corrected tiles and what a network found, (B, 2, S, S) px.

        Returns:
            (B, 5): whether anything is known of a tile, and the means of what was found and of its target, px.
        """
        rows = torch.zeros(len(batch), 5)
        for place in range(len(batch)):
            known = batch.target_valid[place, 0]
            if known.any():
                means = [field[place][:, known].mean(1).cpu() for field in (found, batch.target)]
                rows[place] = torch.cat([torch.ones(1), *means])
        return rows

    def learn(self, batch: Batch, means: Tensor) -> None:
        """Follow the `means` of a batch, (B, 5)."""
        own = self._own()
        for place, name in enumerate(batch.pairs):
            known, answer, target = means[place, 0], means[place, 1:3], means[place, 3:]
            if not known:
                continue
            self._response.lerp_(torch.stack((answer @ target, target @ target)), LAST_SHARE)
            response = float(self._response[0] / self._response[1].clamp_min(1e-6))
            beyond = answer / max(response, LEAST_RESPONSE) - target
            at = self._names.index(name)
            share = max(LAST_SHARE, 1 / (1 / FIRST_SHARE + float(self._seen[at])))
            self._shifts[at].lerp_(own[at] + batch.turns[place].T.cpu() @ beyond, share)
            self._seen[at] += 1

    @property
    def several(self) -> bool:
        """Whether more than one pair was seen."""
        return int((self._seen > 0).sum()) > 1

    def shifts_px(self) -> dict[str, list[float]]:
        """What is to be added to the labels of each pair that was seen: dx, dy."""
        rows = zip(self._names, self._seen, self._own().tolist(), strict=True)
        return {name: shift for name, seen, shift in rows if seen}

    @property
    def spread_px(self) -> float:
        """Root mean square length of a pair's shift; 0 where there is but one pair."""
        free = int((self._seen > 0).sum()) - (not self._common)
        return float((self._own().square().sum() / max(free, 1)).sqrt())

    def _own(self) -> Tensor:
        """Shift of every pair, (n, 2) px; 0 of those that were not seen."""
        known = self._seen > 0
        if not self.several:
            return torch.zeros_like(self._shifts)
        common = torch.zeros(2) if self._common else self._shifts[known].mean(0)
        return torch.where(known[:, None], self._shifts - common, 0)

    def state(self) -> dict[str, Tensor]:
        """What `load` needs to go on."""
        return {"seen": self._seen, "shifts": self._shifts, "response": self._response}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of the same pairs."""
        self._seen, self._shifts, self._response = state["seen"], state["shifts"], state["response"]
