"""Words of a command line as Hydra takes them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from regnet.arguments import hydra_arguments


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("where=kind='a'", "where", "kind='a'"),
        ("where=name = 'O''Neil, x' AND n > 3", "where", "name = 'O''Neil, x' AND n > 3"),
        ("where=\"kind='a'\"", "where", "kind='a'"),
        ("where=null", "where", None),
        ("adapt=true", "adapt.enabled", True),
        ("adapt.minutes=3", "adapt.minutes", 3),
    ],
)
def test_what_a_user_writes_is_what_is_set(word, key, value):
    (override,) = OverridesParser.create().parse_overrides(hydra_arguments([word]))
    assert (override.key_or_group, override.value()) == (key, value)


def test_a_switch_may_be_swept():
    assert hydra_arguments(["--multirun", "adapt=true,false"]) == ["adapt.enabled=true,false", "--multirun"]
