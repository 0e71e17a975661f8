"""The Inria Aerial Image Labeling data set: aerial images at 0.3 m and masks of their buildings.

Download and unpack it from https://project.inria.fr/aerialimagelabeling (it asks for the terms to be accepted), then
`python -m data_prep.inria path/to/AerialImageDataset --output conf/experiment/inria.yaml` verifies the files and writes
an experiment: whole cities for training, validation and test, image onto building mask.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.common import as_yaml, run
from regnet.errors import InputError
from regnet.files import write_text
from regnet.geo.sources import open_raster
from regnet.tiles.options import PairOptions

NAME = re.compile(r"(?P<city>[a-z][a-z-]*?)(?P<number>\d+)")
VALIDATION_CITIES = ("tyrol-w",)
TEST_CITIES = ("vienna",)


def lay_out(
    folder: Path, validation: Sequence[str] = VALIDATION_CITIES, test: Sequence[str] = TEST_CITIES
) -> list[PairOptions]:
    """Pair every image with its mask and give it to a part by its city.

    Args:
        folder: the data set, with `train/images/<city><number>.tif` and `train/gt/` of the same names. (Its own `test`
            folder has no masks.)
        validation: cities to validate on.
        test: cities to test on; all others train.

    Raises:
        InputError: no images, a name that is not a city and a number, a mask that is missing or does not fit its image,
            or a city that is not there.
    """
    images = sorted((folder / "train" / "images").glob("*.tif"), key=_key)
    if not images:
        raise InputError(f"{folder}: has no train/images/*.tif; give the folder AerialImageDataset of the download")
    cities = {_key(image)[0] for image in images}
    missing = [city for city in (*validation, *test) if city not in cities]
    if missing:
        raise InputError(f"{folder}: has no city {missing[0]}; it has {', '.join(sorted(cities))}")
    if not cities - {*validation, *test}:
        raise InputError(f"{folder}: no city is left to train on; validate and test on fewer")
    pairs = []
    for image in images:
        city = _key(image)[0]
        part = "test" if city in test else "validation" if city in validation else "train"
        mask = folder / "train" / "gt" / image.name
        _check_fit(image, mask)
        pairs.append(PairOptions(name=image.stem, fixed=str(image), moving=str(mask), part=part))
    return pairs


def _key(image: Path) -> tuple[str, int]:
    match = NAME.fullmatch(image.stem)
    if match is None:
        raise InputError(f"{image}: is not named by a city and a number, like vienna12.tif")
    return match["city"], int(match["number"])


def _check_fit(image: Path, mask: Path) -> None:
    with open_raster(str(image)) as fixed, open_raster(str(mask)) as moving:
        if moving.count != 1 or fixed.shape != moving.shape or not fixed.transform.almost_equals(moving.transform):
            raise InputError(
                f"{mask}: does not lie on the grid of its image, or has more than one band; unpack it again"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the unpacked folder AerialImageDataset")
    parser.add_argument("--validation", nargs="+", default=VALIDATION_CITIES, metavar="CITY")
    parser.add_argument("--test", nargs="+", default=TEST_CITIES, metavar="CITY")
    parser.add_argument("--output", type=Path, help="experiment file to write; printed if not given")
    arguments = parser.parse_args()

    def work() -> None:
        pairs = lay_out(arguments.folder.absolute(), arguments.validation, arguments.test)
        run_folder = f"outputs/{arguments.output.stem if arguments.output else 'inria'}"
        text = f"# @package _global_\noutput_dir: {run_folder}\n" + as_yaml(pairs) + "  split: {rule: pairs}\n"
        if arguments.output is None:
            print(text, end="")
        else:
            write_text(arguments.output, text)
            print(f"{len(pairs)} pairs: {arguments.output}")

    run(work)


if __name__ == "__main__":
    main()
