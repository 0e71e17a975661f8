from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regnet.errors import ConfigError
from regnet.geo.grid import Box
from regnet.tiles.index import Block, Cell, cut, lattice, odd_cells, split_blocks, split_columns, tile_boxes
from regnet.tiles.options import SplitOptions


def distance_px(one: Box, other: Box) -> int:
    """Pixels between two boxes along the wider of the two gaps; negative if they overlap."""
    rows = max(one.row, other.row) - min(one.row + one.height, other.row + other.height)
    cols = max(one.col, other.col) - min(one.col + one.width, other.col + other.width)
    return max(rows, cols)


def check_split(blocks: list[Block], shape: tuple[int, int], gap_px: int, tile_px: int) -> None:
    for block in blocks:
        box = block.box
        assert box.row >= 0
        assert box.col >= 0
        assert box.row + box.height <= shape[0]
        assert box.col + box.width <= shape[1]
        for tile in tile_boxes(box, tile_px, tile_px // 2):
            assert box.row <= tile.row <= tile.row + tile.height <= box.row + box.height
            assert box.col <= tile.col <= tile.col + tile.width <= box.col + box.width
    for one, other in combinations(blocks, 2):
        assert distance_px(one.box, other.box) >= (gap_px if one.part != other.part else 0)
    assert len({block.block_id for block in blocks}) == len(blocks)


def cells_of(shape: tuple[int, int], options: SplitOptions, generator: np.random.Generator) -> list[Cell]:
    return [
        Cell(row, col, box, generator.normal(size=6), float(box.height * box.width))
        for row, col, box in lattice(shape, options)
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(300, 1500), st.integers(300, 1500), st.integers(48, 90), st.integers(0, 40), st.integers(0, 10**6))
def test_parts_share_no_pixel_and_keep_the_gap(height: int, width: int, block: int, gap: int, seed: int) -> None:
    options = SplitOptions(block_px=block, gap_px=gap)
    cells = cells_of((height, width), options, np.random.default_rng(seed))
    blocks = split_blocks("a", cells, options, seed)
    check_split(blocks, (height, width), gap, 32)
    assert {block.part for block in blocks} == {"train", "validation", "test", "shifted"}


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 3000), st.integers(200, 3000), st.integers(0, 40), st.floats(0, 0.6), st.floats(0, 0.3))
def test_columns_keep_the_gap(height: int, width: int, gap: int, test: float, validation: float) -> None:
    assume(test == 0 or test * width > gap + 1)
    assume(validation == 0 or validation * height > 1)
    options = SplitOptions("columns", gap_px=gap, test_share=test, validation_share=validation)
    blocks = split_columns("a", (height, width), options)
    check_split(blocks, (height, width), gap, 32)
    area = sum(block.box.height * block.box.width for block in blocks if block.part == "test")
    assert area / (height * width) == pytest.approx(test, abs=(gap + 1) / width)


@pytest.mark.parametrize("shares", [{"test_share": 0.1}, {"validation_share": 0.001}])
def test_a_part_that_would_have_no_ground_is_refused(shares: dict[str, float]) -> None:
    (name, share), part = next(iter(shares.items())), next(iter(shares)).removesuffix("_share")
    with pytest.raises(
        ConfigError, match=rf"prepare.split.{name}={share:g} leaves the part {part} of pair a no ground"
    ):
        split_columns("a", (320, 320), SplitOptions("columns", gap_px=80, **shares))


def test_train_is_west_and_test_east() -> None:
    parts = {block.part: block.box for block in split_columns("a", (900, 900), SplitOptions("columns", gap_px=30))}
    assert parts["train"].col == parts["validation"].col == 0
    assert parts["test"].col >= parts["train"].width + 30
    assert parts["test"].height == 900


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((2048, 1500), [(2048, 1500)]),
        ((2049, 100), [(1024, 100), (1025, 100)]),
        ((5000, 4097), [(h, w) for h in (1667, 1666, 1667) for w in (1366, 1365, 1366)]),
    ],
)
def test_large_parts_are_cut(shape: tuple[int, int], sides: list[tuple[int, int]]) -> None:
    blocks = cut("a", [("test", Box(7, 9, *shape))])
    assert [(block.box.height, block.box.width) for block in blocks] == sides
    assert len({block.block_id for block in blocks}) == len(blocks)
    covered = np.zeros(shape, int)
    for block in blocks:
        row, col = block.box.row - 7, block.box.col - 9
        covered[row : row + block.box.height, col : col + block.box.width] += 1
    assert (covered == 1).all()


def test_shares_are_kept_by_structure_and_dealt_along_the_likeness() -> None:
    generator = np.random.default_rng(0)
    options = SplitOptions(block_px=64, gap_px=8, validation_share=0.2, test_share=0.3, shifted_share=0.0)
    cells = [
        Cell(row, col, box, np.array([kind := generator.uniform(-3, 3), 2 * kind]), generator.uniform(0.5, 1))
        for row, col, box in lattice((1500, 1500), options)
    ]
    blocks = split_blocks("a", cells, options, 3)
    weight: dict[str, float] = dict.fromkeys(("train", "validation", "test"), 0.0)
    kinds: dict[str, list[float]] = {part: [] for part in weight}
    for cell in cells:
        part = next(block.part for block in blocks if distance_px(block.box, cell.box) < 0)
        weight[part] += cell.weight
        kinds[part].append(float(cell.features[0]))
    total = sum(weight.values())
    shares = [weight[part] / total for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    for part in kinds:
        everywhere = np.percentile([cell.features[0] for cell in cells], [0, 25, 50, 75, 100])
        assert np.percentile(kinds[part], [0, 25, 50, 75, 100]) == pytest.approx(everywhere, abs=0.25)


def test_the_odd_ground_is_the_shifted_part() -> None:
    generator = np.random.default_rng(0)
    options = SplitOptions(block_px=64, gap_px=8, shifted_share=0.15)
    cells = []
    for row, col, box in lattice((720, 720), options):
        marsh = row >= 8 and col < 8
        cells.append(Cell(row, col, box, generator.normal(4.0 if marsh else 0.0, 0.5, 5), 1.0))
    odd = {(cells[place].row, cells[place].col) for place in odd_cells(cells, 0.15)}
    assert 14 <= len(odd) <= 16
    assert all(row >= 8 and col < 8 for row, col in odd)
    assert odd_cells(cells, 0.0) == []


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    options = SplitOptions(block_px=64, gap_px=8)
    cells = cells_of((720, 720), options, np.random.default_rng(0))
    splits = [[(b.part, b.box) for b in split_blocks("a", cells, options, seed)] for seed in (1, 1, 2, 3, 4)]
    assert splits[0] == splits[1]
    assert any(splits[0] != other for other in splits[2:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (SplitOptions(block_px=352), "gives pair a 1 blocks with structure for 4 parts; choose smaller blocks"),
        (SplitOptions(block_px=64, test_share=0.5, validation_share=0.4), "leave nothing to train on"),
    ],
)
def test_what_cannot_be_split_is_refused(options: SplitOptions, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split_blocks("a", cells_of((400, 400), options, np.random.default_rng(0)), options, 0)


def test_ground_without_structure_belongs_to_no_part() -> None:
    options = SplitOptions(block_px=64, gap_px=8)
    cells = cells_of((720, 720), options, np.random.default_rng(0))
    sea = [cell for cell in cells if cell.col >= 6]
    cells = [Cell(c.row, c.col, c.box, c.features, 0.0) if c in sea else c for c in cells]
    blocks = split_blocks("a", cells, options, 0)
    assert max(block.box.col + block.box.width for block in blocks) <= min(cell.box.col for cell in sea)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 64), st.integers(7, 64))
def test_tiles_reach_every_border_of_their_block(height: int, width: int, tile: int, stride: int) -> None:
    boxes = tile_boxes(Box(5, 7, height, width), tile, stride)
    if height < tile or width < tile:
        assert boxes == []
        return
    assert len(boxes) == len(set(boxes))
    assert min(box.row for box in boxes) == 5
    assert max(box.row + box.height for box in boxes) == 5 + height
    assert max(box.col + box.width for box in boxes) == 7 + width
