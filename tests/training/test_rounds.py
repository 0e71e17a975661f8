"""Training in rounds: labels are corrected where the network can be trusted, kept elsewhere, and rounds settle."""

from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from regnet.files import read_json
from regnet.models import ModelOptions, build_model, load_checkpoint
from regnet.training import rounds
from regnet.training.held_out import held_out_errors
from regnet.training.options import TrainingOptions
from regnet.training.rounds import correct, train_rounds, under_shifts

SMALL = ModelOptions(descriptor="mind+learned", width=8, levels=2, descriptor_channels=4)
BRIEF = TrainingOptions(
    epochs=1, steps=2, batch=2, checkpoints=1, peak_px=2.0, shift_px=1.0, learning_rate=1e-4, familiarity_tiles=2
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(SMALL, 3, 1).eval()


def test_known_shifts_come_off_again(store, model):
    tile = store.tile(int(store.tiles("train")[0]))
    shifts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]])
    with torch.no_grad():
        predicted = under_shifts(tile, model, shifts)[..., 16:-16, 16:-16]
    assert float((predicted[1:] - predicted[:1]).norm(dim=1).mean()) < 0.5


def test_trusted_labels_become_predictions_and_the_others_stay(store, model, tmp_path):
    before = np.stack([store.tile(position).label_offset for position in range(len(store))])
    train = store.tiles("train")
    found = correct(store, model, replace(BRIEF, trust_px=1e3), tmp_path / "all.zarr", {})
    after = np.asarray(zarr.open_array(tmp_path / "all.zarr", mode="r"))
    assert found["trusted_share"] == 1
    assert found["corrected_epe_median_px"] < 0.5 * found["labels_epe_median_px"]
    others = np.setdiff1d(np.arange(len(store)), train)
    np.testing.assert_array_equal(after[others], before[others])
    assert found["moved_px"] == pytest.approx(np.linalg.norm(after[train] - before[train], axis=1).mean(), rel=1e-4)
    none = correct(store, model, replace(BRIEF, trust_px=0), tmp_path / "none.zarr", {})
    assert (none["trusted_share"], none["moved_px"]) == (0, 0)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "none.zarr", mode="r")[:], before)
    np.testing.assert_array_equal(
        store.with_labels(tmp_path / "all.zarr").tile(int(train[0])).label_offset, after[train[0]]
    )
    np.testing.assert_array_equal(store.tile(int(train[0])).label_offset, before[train[0]])


def test_held_out_ground_of_unknown_truth_gives_way_to_that_of_validation(store, model):
    def errors(**change):
        changed = copy(store)
        changed.index = store.index.copy()
        for column, value in change.items():
            changed.index.loc[store.tiles("test"), column] = value
        return held_out_errors(changed, model, BRIEF)

    expected = errors(part="shifted")  # so that validation is all there is
    assert len(expected)
    np.testing.assert_array_equal(errors(true_dx_px=np.nan), expected)
    changed = copy(store)
    changed.index = store.index.assign(true_dx_px=np.nan)
    assert held_out_errors(changed, model, BRIEF).shape == (0, 2)


def test_a_pair_keeps_the_shift_that_its_labels_have_in_common(store, model, tmp_path):
    options, shift = replace(BRIEF, trust_px=1e3), {store.pairs[0]: [2.0, -1.0]}
    for name, shifts in (("plain", {}), ("shifted", shift)):
        correct(store, model, options, tmp_path / name, shifts)
    plain, shifted = (np.asarray(zarr.open_array(tmp_path / name, mode="r")) for name in ("plain", "shifted"))
    train = store.tiles("train")
    off = np.broadcast_to(np.array([2.0, -1.0])[:, None, None], plain[train].shape)
    np.testing.assert_allclose(plain[train] - shifted[train], off, atol=1e-4)


def test_every_round_is_kept_and_a_second_run_repeats_none(store, tmp_path, monkeypatch):
    options = replace(BRIEF, rounds=2, settled_px=0.0)
    train_rounds(store, SMALL, options, tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    assert summary["rounds"][1]["labels_epe_mean_px"] == pytest.approx(summary["rounds"][0]["corrected_epe_mean_px"])
    assert summary["rounds"][1]["moved_px"] < summary["rounds"][0]["moved_px"]
    table = pd.read_csv(tmp_path / "rounds.csv")
    assert table.to_dict("records") == [pytest.approx(row) for row in summary["rounds"]]
    last, copied = (load_checkpoint(path / "model.safetensors") for path in (tmp_path / "round_2", tmp_path))
    assert all(torch.equal(one, two) for one, two in zip(last.parameters(), copied.parameters(), strict=True))
    assert (tmp_path / "checkpoints" / "trail.json").is_file()
    kept = [path / "familiarity.safetensors" for path in (tmp_path / "round_2", tmp_path)]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert 0 < summary["rounds"][1]["model_epe_median_px"] < summary["rounds"][1]["model_epe_mean_px"]
    monkeypatch.setattr(rounds, "Fit", None)
    train_rounds(store, SMALL, options, tmp_path)
    assert read_json(tmp_path / "summary.json") == summary
    train_rounds(store, SMALL, replace(options, rounds=1 + 4, settled_px=1e3), tmp_path)
    assert read_json(tmp_path / "summary.json")["rounds"] == summary["rounds"][:1]


def test_rounds_end_when_the_labels_no_longer_move(store, tmp_path):
    train_rounds(store, SMALL, replace(BRIEF, rounds=5, settled_px=1e3), tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("round_*"))] == ["round_1"]
    train_rounds(store, SMALL, BRIEF, tmp_path)
    assert not list(tmp_path.glob("round_*"))
