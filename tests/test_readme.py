from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
    kc = names["kc"]
    assert kc.shape == (100, 100)
    assert torch.allclose(kc.diagonal(), torch.ones(100).double())
    assert names["nearest"].shape == (100, 5)


def test_every_command_is_described() -> None:
    for name in COMMANDS:
        assert f"| `{name}` |" in README


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "outputs/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_example_settings_are_yaml_and_name_real_keys(tmp_path: Path, regnet: Any) -> None:
    text = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    assert yaml.safe_load(text)["output_dir"] == "outputs/mine"
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    shown = regnet("run", "experiment=mine", "--config-dir", "my_conf", "--cfg", "job", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "layer: buildings" in shown.stdout
