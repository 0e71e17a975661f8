"""Words of a command line as Hydra takes them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from regnet.arguments import hydra_arguments
from regnet.config import RegisterConfig, RunConfig


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("where=kind='a'", "where", "kind='a'"),
        ("where=name = 'O''Neil, x' AND n > 3", "where", "name = 'O''Neil, x' AND n > 3"),
        ("where=\"kind='a'\"", "where", "kind='a'"),
        ("where=null", "where", None),
        ("output_dir=2024_01", "output_dir", "2024_01"),
        ("output_dir=1e3", "output_dir", "1e3"),
        ("moving=true", "moving", "true"),
        ("fixed=my (1).tif|your [2], {3}.tif", "fixed", "my (1).tif|your [2], {3}.tif"),
        ("fixed=https://a.b/c.tif?x=1&y=2", "fixed", "https://a.b/c.tif?x=1&y=2"),
        ("fixed=it's", "fixed", "it's"),
        ("fixed=C:\\data\\", "fixed", "C:\\data\\"),
        ("fixed='quoted'", "fixed", "quoted"),
        (f"fixed={'x' * 300}.tif", "fixed", f"{'x' * 300}.tif"),
        ("fixed=" + "|".join(["/a/b/" * 40 + "c.tif"] * 40), "fixed", "|".join(["/a/b/" * 40 + "c.tif"] * 40)),
        ("model=null", "model", None),
        ("moving_bands=[1,B04]", "moving_bands", [1, "B04"]),
        ("adapt=true", "adapt.enabled", True),
        ("adapt.minutes=3", "adapt.minutes", 3),
    ],
)
def test_what_a_user_writes_is_what_is_set(word, key, value):
    (override,) = OverridesParser.create().parse_overrides(hydra_arguments([word], RegisterConfig))
    assert (override.key_or_group, override.value()) == (key, value)


def test_a_switch_may_be_swept():
    words = hydra_arguments(["--multirun", "adapt=true,false"], RegisterConfig)
    assert words == ["adapt.enabled=true,false", "--multirun"]


def test_texts_are_swept_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.tif").touch()
    words = ["-m", "moving=a.tif,b.tif", "fixed=a,b.tif", "descriptor=choice(mind,ngf)", "where=n in (1,2)"]
    assert hydra_arguments(words, RegisterConfig) == [
        "moving=a.tif,b.tif",
        "fixed='a,b.tif'",
        "descriptor=choice(mind,ngf)",
        "where='n in (1,2)'",
        "-m",
    ]


def test_the_name_of_a_file_of_settings_is_no_text():
    words = ["experiment=demo", "model=unet", "output_dir=x"]
    assert hydra_arguments(words, RunConfig) == ["experiment=demo", "model=unet", "output_dir='x'"]


def test_rows_alone_lie_in_folders_of_their_own_number():
    rows = ["pairs=p.csv", "row=3,5", "moving_bands=[1,2]", "-m"]
    assert "hydra.sweep.subdir=${row}" in hydra_arguments(rows, RegisterConfig)
    assert "hydra.sweep.subdir=${row}" not in hydra_arguments([*rows, "descriptor=mind,ngf"], RegisterConfig)
