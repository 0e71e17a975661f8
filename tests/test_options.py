from dataclasses import dataclass, field

import numpy as np
import pytest

from regnet.errors import ConfigError
from regnet.options import check_options, option


@dataclass(frozen=True)
class Inner:
    size_px: int = option(4, "size", unit="px", low=1, high=8)
    kind: str = option("a", "kind", choices=("a", "b"))


@dataclass(frozen=True, kw_only=True)
class Typed:
    path: str = option(help="path")
    size: float | None = option(None, "size")
    count: int = option(1, "count")
    on: bool = option(False, "on")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = option([], "several")


def test_values_in_range_pass():
    check_options(Outer(Inner(8, "b"), [Inner()]))
    check_options(Typed(path="a"))
    check_options(Typed(path="a", size=np.float32(2), count=np.int64(3), on=True))
    check_options(Typed(path="a", size=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Outer(Inner(9)), r"inner\.size_px=9 is out of range; it must be between 1 and 8 px"),
        (Outer(Inner(kind="c")), r"inner\.kind='c' is not known; choose one of a, b"),
        (Outer(many=[Inner(), Inner(0)]), r"many\.1\.size_px=0"),
        (Typed(path=""), "path is empty; give path="),
        (Typed(path="a", size="a"), "size='a' is not of the right type: it must be a number"),
        (Typed(path="a", size=True), "size=True is not of the right type: it must be a number"),
        (Typed(path="a", count=1.5), "count=1.5 is not of the right type: it must be a whole number"),
        (Typed(path="a", count=None), "count=None is not of the right type"),
        (Typed(path="a", on=1), "on=1 is not of the right type: it must be true or false"),
    ],
)
def test_a_bad_value_is_named_with_its_key(options, message):
    with pytest.raises(ConfigError, match=message):
        check_options(options)
