"""Descriptors trained on the pair itself, with its present alignment as the noisy label.

The pair as it lies is off by an unknown displacement, and that is the noise of its labels. A network cannot tell apart
places that look alike, so it learns the mean of what their labels say, and the noise averages away (Charpiat et al.,
NeurIPS 2019, section 2). Where the matcher to start from follows known shifts, its answer is a label with less noise,
and it is taken instead, as between the rounds of Girard et al. (IGARSS 2019, section 2).

Two means keep what is no noise out of what is learned. Every tile is shown in all eight symmetries of the square, its
label turned along, so that an offset that is the same everywhere has a mean of zero too. And the matcher's own constant
shift, which would learn such an offset, stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from regnet.files import read_json, write_json
from regnet.geo.grid import Box
from regnet.models import load_checkpoint, model_for
from regnet.models.base import device_of
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.ranks import FabricOptions, Ranks
from regnet.registration.consistency import half_difference
from regnet.registration.network import NetworkMatcher
from regnet.registration.options import AdaptOptions
from regnet.registration.windows import Reader
from regnet.tiles.index import lattice, tile_boxes
from regnet.tiles.options import SplitOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, Tile
from regnet.training.fit import MODEL, SUMMARY, Fit
from regnet.training.options import TrainingOptions
from regnet.training.rounds import under_shifts

LAYOUTS = ((192, 384, 2), (192, 258, 2), (128, 172, 4), (64, 86, 8))
"""Sides of tiles and of the blocks of ground they are taken from, px, and tiles a step; the first that gives enough
blocks is used. Blocks may come out smaller by a quarter, and a tile fits even then."""
MIN_BLOCKS, HELD_OUT = 8, 6
"""Every so many blocks, one is kept for validation."""
MIN_VALID, MIN_STRUCTURE = 0.9, 0.2
MOST_TILES, MEMORY_SHARE = 256, 0.1
SHIFTS, SHIFT_PX, TRUST_PX = 2, 3.0, 1.0
"""A start is trusted on a tile where its answers under so many shifts differ by no more than `TRUST_PX` (rms)."""
STEPS = 25
MOST_JUDGES, JUDGE_PX = 4, 256
"""Windows around held-out blocks on which the matcher before and after are compared, and their side."""
DONE = "adapt.json"


class PairTiles:
    """Tiles of one pair, in memory, with the labels that training is to see; a `TileSource`.

    Args:
        tiles: with their labels.
        held_out: (n,), those that are for validation.
        channels: names of fixed's and of moving's.

    Attributes:
        tile_px: side of a tile, px.
        pairs: the name of the one pair.
    """

    name = "the pair"

    def __init__(self, tiles: list[Tile], held_out: list[bool], channels: tuple[list[str], list[str]]) -> None:
        self.manifest: dict[str, Any] = {"tiles": len(tiles)}
        self.fixed_channels, self.moving_channels = channels
        self.pairs = [tiles[0].pair]
        self.tile_px = tiles[0].structure.shape[0]
        self._tiles, self._held_out = tiles, np.array(held_out, bool)

    def tiles(self, part: str) -> NDArray[np.int64]:
        """Positions of the tiles of `train` or `validation`."""
        return np.flatnonzero(self._held_out == (part == "validation"))

    def tile(self, position: int) -> Tile:
        """The tile at a position."""
        return self._tiles[position]


def adapt(
    start: Matcher | UNet,
    pair: PairReader,
    options: AdaptOptions,
    memory_mb: int,
    folder: Path,
) -> tuple[Matcher | UNet, dict[str, Any]]:
    """Train a matcher on a pair, from a training-free one or from a trained one.

    Args:
        start: the matcher that is to become better; it stays as it is.
        pair: as it lies, or as the global stage put it.
        options: how long, and the seed.
        memory_mb: of the process, of which a share is for tiles.
        folder: of the model and the record of its training; a training that was killed goes on from there.

    Returns:
        The matcher to use, and what became of the training. The matcher is `start` where the pair has too little ground
        to train on, and where the halves of held-out windows agree better under `start`.
    """
    begin = time.perf_counter()
    if (folder / DONE).is_file():
        done: dict[str, Any] = read_json(folder / DONE)
        return (load_checkpoint(folder / MODEL).to(device_of(start)) if done["used"] else start), done
    start.eval()
    tiles, held_out, judges = sample_tiles(pair.read, pair.shape, start, memory_mb * MEMORY_SHARE, options.seed)
    told: dict[str, Any] = {"used": False, "tiles": len(tiles)}
    seconds = options.minutes * 60 - (time.perf_counter() - begin)
    if all(held_out) or seconds <= 0:
        ground = "too little ground with structure in both images to train on"
        return start, told | {"reason": ground if all(held_out) else "adapt.minutes were over before any training"}
    source = PairTiles(tiles, held_out, (pair.fixed_channels, pair.moving_channels))
    told["labels_corrected"] = float(np.mean([tile.label_offset.any() for tile in tiles]))
    told |= _train(start, source, options, seconds, folder)
    model = load_checkpoint(folder / MODEL).to(device_of(start))
    told |= {name: disagreement(judged, judges) for name, judged in (("before_px", start), ("after_px", model))}
    told["used"] = told["after_px"] <= told["before_px"]
    write_json(folder / DONE, told)
    return (model if told["used"] else start), told


def _train(
    start: Matcher | UNet, source: PairTiles, options: AdaptOptions, seconds: float, folder: Path
) -> dict[str, Any]:
    """Train for so many seconds at most, unless that is done already; tells how it went."""
    steps = min(STEPS, options.steps)
    batch = next(batch for tile_px, _, batch in LAYOUTS if tile_px == source.tile_px)
    settings = TrainingOptions(
        epochs=-(-options.steps // steps),
        steps=steps,
        batch=batch,
        patience=options.steps,
        familiarity_tiles=0,
        seed=options.seed,
    )
    if not (folder / SUMMARY).is_file():
        model = learner(start, (source.fixed_channels, source.moving_channels), options.seed)
        alone = Ranks(FabricOptions(accelerator=device_of(start).type))
        Fit(source, model.options, settings, folder, model, seconds, alone).run()
    trained = read_json(folder / SUMMARY)
    told = {key: trained[key] for key in ("epochs", "best_epoch", "validation_epe_px", "seconds")}
    if trained["epochs"] < settings.epochs:
        told["reason"] = f"adapt.minutes were over after {trained['epochs']} of {settings.epochs} epochs"
    return told


def learner(start: Matcher | UNet, channels: tuple[list[str], list[str]], seed: int) -> Matcher | UNet:
    """A network that can be trained: `start` as it is or, without anything to train, beside descriptors to learn."""
    trainable = not isinstance(start, Matcher) or start.trainable
    options = start.options if trainable else replace(start.options, descriptor=f"{start.options.descriptor}+learned")
    torch.manual_seed(seed)
    model = model_for(options, *channels)
    if trainable:
        model.load_state_dict(start.state_dict())
    if isinstance(model, Matcher):
        model.shift.requires_grad_(False)
    return model


def sample_tiles(
    read: Reader, shape: tuple[int, int], start: Matcher | UNet, most_mb: float, seed: int
) -> tuple[list[Tile], list[bool], list[Patch]]:
    """Take tiles with enough valid ground and structure from blocks all over a pair, in random order.

    Args:
        read: `read(row, col, height, width)` gives a window of the pair.
        shape: (H, W) of the pair, px.
        start: corrects the labels where it follows known shifts.
        most_mb: memory for the tiles.
        seed: of the order of the blocks and of the shifts.

    Returns:
        Tiles with their labels, which of them lie on blocks that are held out, and windows around such blocks.
    """
    generator = np.random.default_rng(seed)
    tile_px, blocks = _blocks(shape)
    tiles: list[Tile] = []
    held_out: list[bool] = []
    judges: list[Patch] = []
    useful = 0
    for place in tqdm(generator.permutation(len(blocks)), desc="sample tiles", unit="block"):
        block = blocks[place]
        patch = read(block.row, block.col, block.height, block.width)
        inside = tile_boxes(Box(0, 0, block.height, block.width), tile_px, tile_px // 2)
        boxes = [box for box in inside if _is_useful(patch, box)]
        if not boxes:
            continue
        said = _says(patch, start, generator)
        tiles += [_tile(patch, said, box) for box in boxes]
        is_held_out = useful % HELD_OUT == 0
        held_out += [is_held_out] * len(boxes)
        if is_held_out and len(judges) < MOST_JUDGES:
            judges.append(read(*_around(block, shape)))
        useful += 1
        if len(tiles) >= min(MOST_TILES, most_mb * 2**20 / tiles[0].nbytes):
            break
    return tiles, held_out, judges


def _around(block: Box, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Row, column, height and width of a window around the middle of a block, inside the pair."""
    sides = [min(JUDGE_PX, side) for side in shape]
    middles = (block.row + block.height // 2, block.col + block.width // 2)
    row, col = (
        min(max(middle - side // 2, 0), whole - side) for middle, side, whole in zip(middles, sides, shape, strict=True)
    )
    return row, col, sides[0], sides[1]


def _is_useful(patch: Patch, box: Box) -> bool:
    valid = (patch.fixed_valid & patch.moving_valid)[box.slices]
    return bool(valid.mean() >= MIN_VALID and (valid & patch.structure[box.slices]).mean() >= MIN_STRUCTURE)


def _tile(patch: Patch, said: NDArray[np.float32], box: Box) -> Tile:
    """Cut a tile; its label is what (n, 2, H, W) answers say together, or zero where they differ."""
    parts = {name: values[..., *box.slices].copy() for name, values in vars(patch).items()}
    answers = said[..., *box.slices]
    label = answers.mean(0)
    trusted = np.square(answers - label).sum(1).mean() <= TRUST_PX**2
    return Tile(**parts, label_offset=label * np.float32(trusted), true_offset=None)


@torch.no_grad()
def _says(patch: Patch, start: Matcher | UNet, generator: np.random.Generator) -> NDArray[np.float32]:
    """What a matcher says of a window whose moving image is shifted by known steps, less these: (n, 2, H, W) px."""
    shifts = generator.uniform(-SHIFT_PX, SHIFT_PX, (SHIFTS, 2)).astype(np.float32)
    return np.asarray(under_shifts(patch, start, torch.from_numpy(shifts)).numpy())


def _blocks(shape: tuple[int, int]) -> tuple[int, list[Box]]:
    """Side of the tiles, px, and the blocks that they are taken from."""
    layouts = [
        (tile_px, [box for _, _, box in lattice(shape, SplitOptions(block_px=block_px, gap_px=0))])
        for tile_px, block_px, _ in LAYOUTS
    ]
    enough = (layout for layout in layouts if len(layout[1]) >= MIN_BLOCKS and min(shape) >= layout[0])
    return next(enough, layouts[-1])


def disagreement(model: Matcher | UNet, windows: list[Patch]) -> float:
    """Half of the difference between what a matcher says of two halves of the ground, root mean square, px."""
    matcher = NetworkMatcher(model)
    return float(np.sqrt(np.mean([half_difference(matcher, window) ** 2 for window in windows])))
