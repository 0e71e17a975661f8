from dataclasses import dataclass, field

import pytest

from regnet.errors import ConfigError
from regnet.options import check_options, option


@dataclass(frozen=True)
class Inner:
    size_px: int = option(4, "size", unit="px", low=1, high=8)
    kind: str = option("a", "kind", choices=("a", "b"))


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = option([], "several")


def test_values_in_range_pass():
    check_options(Outer(Inner(8, "b"), [Inner()]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Outer(Inner(9)), r"inner\.size_px=9 is out of range; it must be between 1 and 8 px"),
        (Outer(Inner(kind="c")), r"inner\.kind='c' is not known; choose one of a, b"),
        (Outer(many=[Inner(), Inner(0)]), r"many\.1\.size_px=0"),
    ],
)
def test_a_bad_value_is_named_with_its_key(options, message):
    with pytest.raises(ConfigError, match=message):
        check_options(options)
