"""The registration methods that people have, by the name under which `evaluate` lists them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet.baselines.bspline import bspline
from regnet.baselines.ecc import ecc
from regnet.baselines.elastix import elastix
from regnet.baselines.flow import dis, tvl1
from regnet.baselines.klt import klt
from regnet.baselines.options import BaselineOptions
from regnet.baselines.perceptual_registration import perceptual
from regnet.baselines.phase import phase_correlation
from regnet.baselines.sift import sift
from regnet.errors import ConfigError
from regnet.tiles.patch import Patch

# From a pair to its displacement (2, H, W) px. A method that finds nothing raises InputError: it never answers with
# zeros.
Method = Callable[[Patch], NDArray[np.float32]]


def nothing(patch: Patch) -> NDArray[np.float32]:
    """Leave the pair as it is: the error before registration."""
    return np.zeros((2, *patch.fixed_valid.shape), np.float32)


METHODS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "none": nothing,
    "perceptual": perceptual,
    "classical.phase": phase_correlation,
    "classical.ecc": ecc,
    "classical.sift": sift,
    "classical.klt": klt,
    "classical.dis": dis,
    "classical.tvl1": tvl1,
    "classical.bspline": bspline,
    "classical.elastix": elastix,
}


def find_method(name: str, options: BaselineOptions = BaselineOptions()) -> Method:
    """Find a method by its name, with its section of the options.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is not known; choose among {', '.join(METHODS)}")
    section = section_of(name, options)
    return METHODS[name] if section is None else partial(METHODS[name], **vars(section))


def section_of(name: str, options: BaselineOptions) -> Any:
    """A method's section of the options; None if it has no settings."""
    return getattr(options, name.removeprefix("classical."), None)
