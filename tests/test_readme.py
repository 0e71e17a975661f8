from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from regnet.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_similarity_example_runs_as_it_stands() -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code[0], names)
    similarity = names["kc"](names["jacobians"])
    assert torch.allclose(similarity.diagonal(), torch.ones(100), atol=1e-5)
    np.testing.assert_allclose(names["found"].n_soft, similarity.sum(1), rtol=1e-4)
    assert names["found"].nearest.shape == (100, 5)
    assert names["kc"](names["others"], names["jacobians"]).shape == (10, 100)


def test_every_command_is_described() -> None:
    for name in COMMANDS:
        assert f"| `{name}` |" in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "outputs/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_example_settings_are_yaml_and_name_real_keys(tmp_path: Path, here: Any) -> None:
    text = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    assert yaml.safe_load(text)["output_dir"] == "outputs/mine"
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    shown = here("run", "experiment=mine", "--config-dir", "my_conf", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "layer: buildings" in shown.stdout
