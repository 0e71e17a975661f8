"""What the data set scripts share: the data's folder, checks of a raster, and the pairs on paper."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from regnet.config import default_data_root
from regnet.errors import InputError, RegnetError
from regnet.geo.sources import open_raster
from regnet.tiles.options import PairOptions


def check_raster(path: Path, *, width: int, height: int, bands: int, epsg: int) -> str:
    """Check that a raster is the one that the data set has.

    Returns:
        Its path, for `PairOptions`.

    Raises:
        InputError: missing, damaged, or of another size, band count or CRS.
    """
    with open_raster(str(path)) as dataset:
        found = (dataset.width, dataset.height, dataset.count, dataset.crs.to_epsg())
    expected = (width, height, bands, epsg)
    if found != expected:
        raise InputError(
            "{}: is {} x {} px, {} bands, EPSG:{}".format(path, *found)
            + " where {} x {} px, {} bands, EPSG:{} was expected; fetch it again".format(*expected)
        )
    return str(path)


def as_yaml(pairs: Sequence[PairOptions]) -> str:
    """The pairs as they stand in an experiment's file, without what is left at its default. JSON is YAML, too."""
    lines = []
    for pair in pairs:
        plain = asdict(PairOptions(pair.name, pair.fixed, pair.moving))
        chosen = {k: v for k, v in asdict(pair).items() if v != plain[k] or k in ("name", "fixed", "moving")}
        lines.append(f"    - {json.dumps(chosen)}")
    return "\n".join(["prepare:", "  pairs:", *lines]) + "\n"


def main(locate: Callable[[Path], list[PairOptions]], description: str | None) -> None:
    """Command line of a data set that lies under the data's folder: locate, verify, print the pairs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, default=Path(default_data_root()), help="folder of the data sets")
    arguments = parser.parse_args()
    run(lambda: print(as_yaml(locate(arguments.root)), end=""))


def run(work: Callable[[], None]) -> None:
    """Do a script's work; an error meant for the user is one line and exit code 2."""
    try:
        work()
    except RegnetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
