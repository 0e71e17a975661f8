from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from regnet.baselines.options import BaselineOptions
from regnet.baselines.registry import METHODS
from regnet.config import RegisterConfig, RunConfig, conf_folder, explain, keys, register_schemas, typed
from regnet.errors import ConfigError
from regnet.run import STAGES

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
MODELS = sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))


def composed(*overrides: str, name: str = "run", schema: type = RunConfig) -> RunConfig:
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return typed(compose(name, list(overrides)), schema)


def complaint(*overrides: str) -> str:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed(*overrides)
    return explain(caught.value, RunConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = composed(f"experiment={name}")
    assert Path(config.output_dir) == Path("outputs") / name
    needs = STAGES[config.study].needs if config.study != "none" else ("prepare",)
    assert bool(config.prepare.pairs) == ("prepare" in needs)
    if config.study != "none":
        return
    families = {family.name: (family.peak_px, family.sigma_px) for family in config.evaluate.families}
    assert families == {"smooth": (8, 80), "rough": (8, 20)}


def test_experiments_are_there() -> None:
    assert {"demo", "cadaster_banepa", "optical_sar"} <= set(EXPERIMENTS)


def test_every_study_can_be_chosen_and_has_its_experiment() -> None:
    studies = {stage.name for stage in STAGES.values() if stage.study}
    choices = next(key.metadata["choices"] for key in keys(RunConfig) if key.path == "study")
    assert set(choices) == {"none", *studies}
    assert studies <= {composed(f"experiment={name}").study for name in EXPERIMENTS}


def test_every_baseline_has_its_file_with_the_library_s_own_defaults() -> None:
    sections = {spec.name for spec in fields(BaselineOptions)}
    assert sections == {name.removeprefix("classical.") for name in METHODS} - {"none"}
    assert {path.stem for path in (conf_folder() / "baseline").glob("*.yaml")} == sections
    assert composed("output_dir=o").evaluate.baselines == BaselineOptions()
    for name in sections:
        text = (conf_folder() / "baseline" / f"{name}.yaml").read_text()
        assert f"@package evaluate.baselines.{name}\n" in text
        assert set(yaml.safe_load(text)) == {spec.name for spec in fields(getattr(BaselineOptions(), name))}
    changed = composed("output_dir=o", "baseline=[klt]", "evaluate.baselines.klt.window_px=21").evaluate.baselines
    assert changed.klt.window_px == 21
    assert changed.phase == BaselineOptions().phase


def test_optical_sar_tests_on_the_pairs_kept_back() -> None:
    parts = {pair.name: pair.part for pair in composed("experiment=optical_sar").prepare.pairs}
    assert {name for name, part in parts.items() if part == "test"} == {"258", "270", "282"}
    assert len(parts) == 10
    assert "validation" in parts.values()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes(name: str) -> None:
    assert composed(f"model={name}", "output_dir=o").model.name in ("matcher", "unet")


def test_without_overrides_the_defaults_of_the_rooms_hold() -> None:
    config = composed("output_dir=o")
    assert config == replace(RunConfig(output_dir="o"), model=config.model)


def test_settings_survive_as_lists_of_sections() -> None:
    config = composed("output_dir=o", "prepare.pairs=[{name: a, fixed: f.tif, moving: m.tif, fixed_bands: [2]}]")
    assert asdict(config.prepare.pairs[0])["fixed_bands"] == [2]
    assert config.prepare.pairs[0].where is None


def test_seed_reaches_every_stage() -> None:
    config = composed("output_dir=o", "seed=7")
    assert (config.prepare.seed, config.training.seed, config.similarity.seed, config.paper_toy.seed) == (7, 7, 7, 7)


def test_data_root_comes_from_the_environment_and_can_be_overridden() -> None:
    config = composed("experiment=cadaster_banepa", "data.root=/somewhere")
    assert config.prepare.pairs[0].fixed == "/somewhere/banepa/image.tif"


@pytest.mark.parametrize("schema", [RunConfig, RegisterConfig])
def test_every_key_is_explained_and_lengths_have_units(schema: type) -> None:
    for key in keys(schema):
        assert key.metadata.get("help"), key.path
        if key.path.endswith(("_px", "_m")):
            assert key.metadata["unit"] in ("px", "m"), key.path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prepare.tile_pxx=64", "prepare.tile_pxx is not a key; did you mean prepare.tile_px?"),
        ("prepar.tile_px=64", "prepar is not a key; did you mean prepare?"),
        ("training.flips=maybe", "training.flips=maybe is not of the right type: it must be true or false"),
        ("training.epochs=many", "training.epochs=many is not of the right type: it must be a whole number"),
        (
            "experiment=nowhere",
            "experiment=nowhere is not known; choose one of cadaster_banepa, demo, denoising_validation, noise_sweep, ",
        ),
        ("a=b=c", "a=b=c: cannot be read as key=value"),
        ("prepare.pairs=[{nmae: a}]", "did you mean prepare.pairs[].name?"),
        ("prepare.pairs=7", "prepare.pairs"),
        ("prepare.split=7", "prepare.split=7 is not of the right type: set its keys, block_px, gap_px, rule, "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, expected: str) -> None:
    message = complaint("output_dir=o", override)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: o\n", "experiment/own: its first line must be `# @package _global_`"),
        ("", "experiment/own: its first line must be `# @package _global_`"),
        ("# @package _global_\nprepare: {pairs: {name: a}}\n", "experiment/own: a list (items begin with -), a"),
        ("# @package _global_\ntraining: 5\n", "experiment/own: a list (items begin with -), a"),
        ("# @package _global_\nevaluate: {parts: test}\n", "evaluate.parts is not of the right type: it must be a"),
        ("# @package _global_\ndefaults: [nowhere]\n", "experiment/own: its defaults name experiment/nowhere, which"),
    ],
)
def test_what_is_wrong_in_an_experiment_file_is_said_in_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(text)
    message = complaint("experiment=own", "output_dir=o", f"hydra.searchpath=[file://{tmp_path}]")
    assert expected in message
    assert "\n" not in message


def test_missing_keys_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"^output_dir is missing; give output_dir=\.\.\. on"):
        composed()
    with pytest.raises(ConfigError, match=r"^prepare\.pairs\[0\]\.fixed and prepare\.pairs\[0\]\.moving are missing"):
        composed("output_dir=o", "prepare.pairs=[{name: a}]")


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.epochs=0 is out of range; it must be at least 1"):
        composed("output_dir=o", "training.epochs=0")
    with pytest.raises(ConfigError, match=r"prepare.split.rule='rows' is not known; choose one of blocks"):
        composed("output_dir=o", "prepare.split.rule=rows")
