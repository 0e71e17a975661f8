from dataclasses import replace

import numpy as np
import torch

from regnet.tiles.patch import Tile
from regnet.training.options import TrainingOptions
from regnet.training.pair_shifts import PairShifts
from regnet.training.samples import draw_batches
from regnet.training.validation import validation_epe

SIDE = 16
OFF = {"a": (3.0, -1.0), "b": (-1.0, 0.5), "c": (1.0, 2.0)}
"""Where each pair really lies; its labels say zero."""
OPTIONS = TrainingOptions(photometric=0.0, peak_px=0.0, batch=4)


def tiles(each=6):
    valid = np.ones((SIDE, SIDE), bool)
    image = np.zeros((1, SIDE, SIDE), np.float32)
    label = np.zeros((2, SIDE, SIDE), np.float32)
    return [Tile(image, image, valid, valid, valid, label, None, pair) for pair in OFF for _ in range(each)]


def follow(flips, names=tuple(OFF), steps=90, noise_px=0.5):
    """Train nobody: what is found is where the pair lies, under the batch's turns, and noise."""
    own = [tile for tile in tiles() if tile.pair in names]
    shifts = PairShifts(["unseen", *names], common=flips)
    options, generator = replace(OPTIONS, flips=flips), np.random.default_rng(3)
    positions = np.arange(len(own))
    torch.manual_seed(0)
    for batch in draw_batches(own, positions, options, steps, (1,), shifts.corrected):
        plain = torch.stack([torch.tensor(OFF[name]) for name in batch.pairs])
        corrected = torch.stack([torch.tensor(shifts.shifts_px().get(name, [0.0, 0.0])) for name in batch.pairs])
        beyond = torch.einsum("bij,bj->bi", batch.turns, plain - corrected)
        wrong = torch.from_numpy(generator.normal(0, noise_px, (len(plain), 2)).astype(np.float32))
        shifts.learn(batch, PairShifts.means(batch, batch.target + (beyond + wrong)[:, :, None, None]))
    return shifts


def test_pairs_are_found_where_they_lie_under_flips_and_turns():
    shifts = follow(flips=True)
    assert set(shifts.shifts_px()) == set(OFF)
    for name, off in OFF.items():
        assert np.hypot(*(np.array(shifts.shifts_px()[name]) - off)) < 0.4
    assert abs(shifts.spread_px - np.sqrt(np.mean([x * x + y * y for x, y in OFF.values()]))) < 0.3


def test_what_all_pairs_share_is_left_to_the_network_without_flips():
    shifts = follow(flips=False)
    found, off = np.array(list(shifts.shifts_px().values())), np.array(list(OFF.values()))
    assert np.abs(found - (off - off.mean(0))).max() < 0.4
    assert np.abs(found.sum(0)).max() < 1e-5


def test_a_single_pair_has_no_shift():
    shifts = follow(flips=True, names=("a",))
    assert shifts.shifts_px() == {"a": [0.0, 0.0]}
    assert shifts.spread_px == 0
    assert not shifts.several


def test_a_state_goes_on():
    shifts = follow(flips=True, steps=20)
    other = PairShifts(["unseen", *OFF], common=True)
    other.load(shifts.state())
    assert other.shifts_px() == shifts.shifts_px()


class Off(torch.nn.Module):
    """Says where each pair lies, whatever it sees: the pair's number is in the image."""

    def forward(self, fixed, moving, fixed_valid, moving_valid):
        number = fixed[:, 0, 0, 0].round().long()
        place = torch.tensor(list(OFF.values()))[number][:, :, None, None]
        self.displacement = place.expand(-1, -1, SIDE, SIDE)
        return self


def test_validation_counts_a_pair_s_shift_or_not():
    named = [replace(tile, fixed=tile.fixed + list(OFF).index(tile.pair)) for tile in tiles(4)]
    options = replace(OPTIONS, shift_px=0.0)
    args = (Off(), named, np.arange(len(named)), options)
    assert np.isclose(validation_epe(*args), np.mean([np.hypot(*off) for off in OFF.values()]), atol=1e-5)
    assert np.isclose(validation_epe(*args, beside_shifts=True), 0, atol=1e-6)
