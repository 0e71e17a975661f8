"""The split of the ground into parts, and the tiles that lie inside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from regnet.errors import ConfigError
from regnet.geo.grid import Box
from regnet.tiles.options import SplitOptions
from regnet.tiles.store import SPLIT

MOST_SIDE_PX = 2048
"""A block is read as a whole by what evaluates."""
MOST_SHARED = 0.01
"""Borders of pairs that lie side by side, and corners in other CRSs, may overlap by this share of a block."""


@dataclass(frozen=True)
class Block:
    """A rectangle of one part; blocks of different parts lie at least the gap apart."""

    block_id: str
    pair: str
    part: str
    box: Box


@dataclass(frozen=True)
class Cell:
    """A square of the scene before it is given to a part.

    Attributes:
        row, col: place in the lattice of cells.
        box: pixels of the cell.
        features: (k,) what the ground looks like.
        weight: pixels with structure.
    """

    row: int
    col: int
    box: Box
    features: NDArray[np.float64]
    weight: float


def lattice(shape: tuple[int, int], options: SplitOptions) -> list[tuple[int, int, Box]]:
    """Cells of about `block_px`, the gap apart, stretched to fill the scene: (row, column, pixels) of each."""
    rows, columns = (_spans(side, options.block_px, options.gap_px) for side in shape)
    return [
        (i, j, Box(top, left, height, width))
        for i, (top, height) in enumerate(rows)
        for j, (left, width) in enumerate(columns)
    ]


def _spans(side: int, block_px: float, gap_px: int) -> list[tuple[int, int]]:
    count = max(1, round((side + gap_px) / (block_px + gap_px)))
    starts = np.round(np.arange(count + 1) * (side + gap_px) / count).astype(int)
    return [(int(start), int(end - start - gap_px)) for start, end in pairwise(starts)]


def split_blocks(pair: str, cells: list[Cell], options: SplitOptions, seed: int) -> list[Block]:
    """Give each cell to a part: every kind of ground in train, validation and test; the odd ground is `shifted`.

    Cells are described by their features. Those farthest from the median ground are `shifted`; the others are put in
    order of likeness and dealt out so that each part keeps its share all along that order.

    Raises:
        ConfigError: too few cells with structure for the parts asked for.
    """
    shares = {
        "train": 1 - options.validation_share - options.test_share - options.shifted_share,
        "validation": options.validation_share,
        "test": options.test_share,
        "shifted": options.shifted_share,
    }
    if shares["train"] <= 0:
        raise ConfigError(
            "prepare.split: validation_share, test_share and shifted_share leave nothing to train on; lower them"
        )
    wanted = [part for part, share in shares.items() if share > 0]
    cells = [cell for cell in cells if cell.weight > 0]
    if len(cells) < len(wanted):
        raise ConfigError(
            f"prepare.split.block_px={options.block_px} gives pair {pair} {len(cells)} blocks with structure for "
            f"{len(wanted)} parts; choose smaller blocks, or prepare.split.rule=columns or pairs"
        )
    odd = odd_cells(cells, shares["shifted"])
    rest = [place for place in range(len(cells)) if place not in odd]
    parts = dict.fromkeys(odd, "shifted") | deal(
        cells, rest, {part: shares[part] for part in wanted if part != "shifted"}, seed
    )
    empty = [part for part in wanted if part not in parts.values()]
    if empty:
        raise ConfigError(
            f"prepare.split.block_px={options.block_px} leaves the part {empty[0]} of pair {pair} without a block; "
            "choose smaller blocks or a larger share"
        )
    return merge(pair, [(cell, parts[place]) for place, cell in enumerate(cells)])


def standardise(cells: list[Cell]) -> NDArray[np.float64]:
    """Features of cells (n, k), less their weighted median, over their median absolute deviation."""
    features = np.stack([cell.features for cell in cells])
    order = np.argsort(features, axis=0)
    weights = np.cumsum(np.array([cell.weight for cell in cells])[order], axis=0)
    middle = (weights >= weights[-1] / 2).argmax(axis=0)
    median = np.take_along_axis(features, np.take_along_axis(order, middle[None], 0), 0)
    spread = np.median(np.abs(features - median), axis=0) + 0.1 * features.std(axis=0) + 1e-9
    return np.asarray(np.clip((features - median) / spread, -6, 6))


def odd_cells(cells: list[Cell], share: float) -> list[int]:
    """Cells farthest from the median ground, up to a share of all structure; at least one if the share is not 0."""
    distance = np.linalg.norm(standardise(cells), axis=1)
    odd: list[int] = []
    total, taken = sum(cell.weight for cell in cells), 0.0
    for place in np.argsort(-distance, kind="stable").tolist():
        if share == 0 or (odd and taken + cells[place].weight / 2 > share * total):
            break
        odd.append(place)
        taken += cells[place].weight
    return odd


def deal(cells: list[Cell], places: list[int], shares: dict[str, float], seed: int) -> dict[int, str]:
    """Deal cells, in order of likeness, each to the part that is furthest behind its share."""
    if not places:
        return {}
    features = standardise([cells[place] for place in places])
    axis = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][0]
    generator = np.random.default_rng(seed)
    behind = {part: share * generator.random() for part, share in shares.items()}
    unit = sum(cells[place].weight for place in places) / len(places)
    total_share, parts = sum(shares.values()), {}
    for position in np.argsort(features @ axis, kind="stable").tolist():
        place = places[position]
        weight = cells[place].weight / unit
        for part, share in shares.items():
            behind[part] += share / total_share * weight
        part = max(behind, key=lambda name: behind[name])
        behind[part] -= weight
        parts[place] = part
    return parts


def merge(pair: str, cells: Iterable[tuple[Cell, str]]) -> list[Block]:
    """Join neighbours of one part in a row of cells, over the gap between them, and name the blocks."""
    blocks: list[tuple[Cell, str]] = []
    for cell, part in sorted(cells, key=lambda item: (item[0].row, item[0].col)):
        if blocks:
            last, last_part = blocks[-1]
            if last_part == part and last.row == cell.row and last.col + 1 == cell.col:
                width = cell.box.col + cell.box.width - last.box.col
                blocks[-1] = (replace(cell, box=replace(last.box, width=width)), part)
                continue
        blocks.append((cell, part))
    return [Block(f"{pair}-{place:03d}", pair, part, cell.box) for place, (cell, part) in enumerate(blocks)]


def split_columns(pair: str, shape: tuple[int, int], options: SplitOptions) -> list[Block]:
    """Train in the west with a validation strip at its foot, a gap, and test in the east.

    Raises:
        ConfigError: the scene is too small for the shares and the gap.
    """
    height, width = shape
    west = round(width * (1 - options.test_share))
    foot = round(height * options.validation_share / (1 - options.test_share))
    gap = options.gap_px
    boxes = {
        "train": Box(0, 0, height - foot - (gap if foot else 0), west - gap // 2 if west < width else west),
        "validation": Box(height - foot, 0, foot, west - gap // 2 if west < width else west),
        "test": Box(0, west + gap - gap // 2, height, width - west - (gap - gap // 2)),
    }
    if boxes["train"].height <= 0 or boxes["train"].width <= 0:
        raise ConfigError(f"prepare.split: pair {pair} is too small for its shares and gap_px={gap}; lower them")
    for part, share in (("validation", options.validation_share), ("test", options.test_share)):
        if share > 0 and min(boxes[part].height, boxes[part].width) <= 0:
            raise ConfigError(
                f"prepare.split.{part}_share={share:g} leaves the part {part} of pair {pair} no ground beside "
                f"gap_px={gap}; choose a larger share or a smaller gap"
            )
    return cut(pair, [(part, box) for part, box in boxes.items() if box.height > 0 and box.width > 0])


def cut(pair: str, boxes: Iterable[tuple[str, Box]]) -> list[Block]:
    """Cut the boxes of parts into blocks whose sides are at most MOST_SIDE_PX, and name these."""
    pieces = []
    for part, box in boxes:
        rows, columns = (_spans(side, side / math.ceil(side / MOST_SIDE_PX), 0) for side in (box.height, box.width))
        pieces += [(part, Box(box.row + r, box.col + c, height, width)) for r, height in rows for c, width in columns]
    return [Block(f"{pair}-{place:03d}", pair, part, box) for place, (part, box) in enumerate(pieces)]


def check_apart(blocks: gpd.GeoDataFrame) -> None:
    """Refuse pairs of the same ground that belongs to one part in one and to another in the other.

    Args:
        blocks: a row a block: pair, split, geometry.

    Raises:
        ConfigError: two blocks of different pairs and parts overlap; what is tested on would have been trained on.
    """
    one, two = blocks.sindex.query(blocks.geometry, predicate="intersects")
    shapes, pairs, parts = blocks.geometry.to_numpy(), blocks["pair"].to_numpy(), blocks[SPLIT].to_numpy()
    differ = (pairs[one] != pairs[two]) & (parts[one] != parts[two])
    one, two = one[differ], two[differ]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[two]))
    least = np.minimum(shapely.area(shapes[one]), shapely.area(shapes[two]))
    if (found := np.flatnonzero(shared > MOST_SHARED * least)).size:
        here, there = one[found[0]], two[found[0]]
        raise ConfigError(
            f"prepare.pairs: {pairs[here]} and {pairs[there]} show the same ground, {parts[here]} in one and "
            f"{parts[there]} in the other; give both the same `part`, or take prepare.split.rule=columns for pairs of "
            "one extent"
        )


def tile_boxes(block: Box, tile_px: int, stride_px: int) -> list[Box]:
    """Tiles wholly inside a block, a stride apart, the last ones flush with its far border."""
    rows, columns = (_starts(side, tile_px, stride_px) for side in (block.height, block.width))
    return [Box(block.row + row, block.col + column, tile_px, tile_px) for row in rows for column in columns]


def _starts(side: int, tile_px: int, stride_px: int) -> list[int]:
    if side < tile_px:
        return []
    starts = list(range(0, side - tile_px + 1, stride_px))
    return starts if starts[-1] == side - tile_px else [*starts, side - tile_px]
