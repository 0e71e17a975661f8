from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout, with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Console script of a fresh environment that holds the wheel, and borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # Borrowed by path alone: the .pth files there, the editable checkout's among them, do not count.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "regnet"


def call(script: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([str(script), *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_wheel_holds_settings_template_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    settings = {f"regnet/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(settings) > 5
    assert settings | {"regnet/report/templates/report.html", "regnet/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "outputs/", "benchmarks/"))]


def test_installed_wheel_helps_from_anywhere(installed: Path, tmp_path: Path) -> None:
    shown = call(installed, "run", "--help", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "experiment={cadaster_banepa,demo,denoising_validation,noise_sweep,optical_sar," in shown.stdout
    where = subprocess.run(
        [str(installed.with_name("python")), "-c", "import regnet; print(regnet.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(installed.parents[1]) in where.stdout


def test_installed_wheel_composes_an_experiment_and_refuses_a_typo(installed: Path, tmp_path: Path) -> None:
    whole = call(installed, "run", "experiment=optical_sar", "--cfg", "job", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "moving_transform: log" in whole.stdout
    typo = call(installed, "train", "experiment=demo", "training.epoch=3", folder=tmp_path)
    assert typo.returncode == 2
    assert typo.stderr == "regnet: training.epoch is not a key; did you mean training.epochs?\n"
    assert list(tmp_path.iterdir()) == []
