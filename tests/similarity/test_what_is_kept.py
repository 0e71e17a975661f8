"""What the stage keeps on disk: it goes on from there, alone with the same settings, and leaves nothing else behind."""

import sys
from dataclasses import replace
from unittest.mock import Mock

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch

from regnet.errors import InputError, OutputError, StoreError
from regnet.similarity import backends, task
from regnet.similarity.checkpoints import Checkpoint
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.result import load_kernel
from regnet.similarity.stage import similarity_stage
from regnet.similarity.store import ShardStore, arrays_digest, model_digest
from regnet.similarity.tiles import read_batch
from tests.conftest import full_disk

OPTIONS = SimilarityOptions(max_tiles=24, max_query_tiles=4, batch=12, nearest=3, precision="float64")


def neighbours(folder):
    return gpd.read_parquet(folder / "neighbours.parquet")


def test_it_goes_on_where_it_was_killed(scene, trained, tmp_path, monkeypatch):
    options = replace(OPTIONS, backend="sketch")
    similarity_stage(scene, trained, options, tmp_path / "whole")
    calls, landmarks = [], []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_batch(*args)

    def landmark(*args):
        landmarks.append(args)
        return read_batch(*args)

    monkeypatch.setattr(task, "read_batch", killed)
    monkeypatch.setattr(backends, "read_batch", landmark)
    with pytest.raises(KeyboardInterrupt):
        similarity_stage(scene, trained, options, tmp_path / "cut")
    with pytest.raises(StoreError, match=r"cut short, \d+ of \d+ shards are missing"):
        ShardStore.open(tmp_path / "cut" / "sketch_model")
    (tmp_path / "cut" / "sketch_model" / ".partial-shard_00002").mkdir()
    similarity_stage(scene, trained, options, tmp_path / "cut")
    shards = -(-len(neighbours(tmp_path / "whole")) // OPTIONS.batch)
    assert len(calls) == 3 + shards - 2  # two shards were not computed again
    assert len(landmarks) == 2  # nor the landmarks, 24 tiles by 12
    pd.testing.assert_frame_equal(neighbours(tmp_path / "cut"), neighbours(tmp_path / "whole"))


def differentiated(monkeypatch, stop=None):
    """Names of the networks whose Jacobians are taken from now on, a batch each; `stop` is the one that is killed."""
    names, honest = [], Checkpoint.jacobians

    def spy(self, batch):
        names.append(self.name)
        if self.name == stop:
            raise KeyboardInterrupt
        return honest(self, batch)

    monkeypatch.setattr(Checkpoint, "jacobians", spy)
    return names


@pytest.mark.parametrize("backend", ["exact", "sketch"])
def test_finished_checkpoints_outlive_a_kill(scene, trained, tmp_path, monkeypatch, backend):
    options = replace(OPTIONS, backend=backend, checkpoints="mean")
    similarity_stage(scene, trained, options, tmp_path / "whole")
    with monkeypatch.context() as patch:
        differentiated(patch, stop="epoch_001")
        with pytest.raises(KeyboardInterrupt):
            similarity_stage(scene, trained, options, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("gradients_epoch_000"))  # only its kernel, which is small
    names = differentiated(monkeypatch)
    similarity_stage(scene, trained, options, tmp_path / "cut")
    assert set(names) == {"epoch_001"}
    pd.testing.assert_frame_equal(neighbours(tmp_path / "cut"), neighbours(tmp_path / "whole"))
    for folder in ("whole", "cut"):
        assert not [path for kind in task.KINDS for path in (tmp_path / folder).glob(f"{kind}_*")]


def test_kept_gradients_are_used_again_and_those_of_other_settings_go(scene, trained, tmp_path, monkeypatch):
    options = replace(OPTIONS, keep_gradients=True)
    similarity_stage(scene, trained, options, tmp_path)
    first = neighbours(tmp_path)
    names = differentiated(monkeypatch)
    similarity_stage(scene, trained, replace(options, precision="float32"), tmp_path)
    assert names == []
    retrained = trained.parent / "checkpoints" / "epoch_000.safetensors"
    for model, other in (
        (trained, {"max_tiles": 20}),
        (trained, {"metric": "adam"}),
        (retrained, {"backend": "sketch"}),
    ):
        similarity_stage(scene, model, replace(options, **other), tmp_path)
        assert len(names) >= 3
        names.clear()
    assert [path.name for path in tmp_path.glob("*_*")] == ["sketch_epoch_000"]
    similarity_stage(scene, trained, options, tmp_path)
    pd.testing.assert_frame_equal(neighbours(tmp_path), first)
    similarity_stage(scene, trained, replace(options, backend="linear"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "nearest.npz",
        "neighbours.parquet",
        "regions.csv",
        "summary.json",
    ]


def test_a_killed_stage_does_not_block_other_settings(scene, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "all", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            similarity_stage(scene, trained, OPTIONS, tmp_path)
    assert (tmp_path / "gradients_model").is_dir()
    similarity_stage(scene, trained, replace(OPTIONS, metric="adam"), tmp_path)
    similarity_stage(scene, trained, replace(OPTIONS, metric="adam"), tmp_path / "alone")
    pd.testing.assert_frame_equal(neighbours(tmp_path), neighbours(tmp_path / "alone"))


def test_a_missing_faiss_is_told_before_any_gradient(scene, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    names = differentiated(monkeypatch)
    with pytest.raises(InputError, match=r"pip install 'regnet\[knn\]'"):
        similarity_stage(scene, trained, replace(OPTIONS, backend="sketch", search="faiss"), tmp_path)
    assert names == []


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    store = ShardStore(tmp_path / "store", {"a": 1}, 4, 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.open_group", full)
    with pytest.raises(OutputError, match="shard_00001: cannot be written"):
        store.write(1, {"x": np.zeros((2, 3))})
    assert store.missing() == [0, 1]


def test_the_store_keeps_rows_and_refuses_others(tmp_path):
    values = np.arange(30.0).reshape(10, 3)
    store = ShardStore(tmp_path / "store", {"model": "abc"}, 10, 4)
    for index in store.missing():
        store.write(index, {"x": values[store.span(index)]})
    again = ShardStore.open(tmp_path / "store")
    np.testing.assert_array_equal(again.all("x"), values)
    for part in (slice(0, 10), slice(3, 5), slice(4, 8), slice(9, 10)):
        np.testing.assert_array_equal(again.rows("x", part), values[part])
    with pytest.raises(StoreError, match="made with model='abc', but now model='def'"):
        ShardStore(tmp_path / "store", {"model": "def"}, 10, 4)
    with pytest.raises(StoreError, match="damaged"):
        again.read(0, "y")
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"without manifest\.json"):
        ShardStore(tmp_path / "store", {"model": "abc"}, 10, 4)
    with pytest.raises(StoreError, match="there is no similarity store"):
        ShardStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="there is no kernel"):
        load_kernel(tmp_path / "kernel.zarr")


def test_digests_see_every_weight_and_shape():
    model = torch.nn.Linear(2, 2)
    before = model_digest(model)
    assert before == model_digest(model)
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert before != model_digest(model)
    assert arrays_digest([np.zeros((2, 3))]) != arrays_digest([np.zeros((3, 2))])


@pytest.mark.parametrize("full", ["shard", "sketcher"])
def test_a_full_disk_in_the_stage_leaves_what_was_whole(scene, trained, tmp_path, full):
    """With room for less than a shard (or a sketcher) the stage names the file, and goes on when there is room."""
    options = replace(OPTIONS, backend="exact" if full == "shard" else "sketch")
    with full_disk(20_000), pytest.raises(OutputError, match=f"{full}.*: cannot be written"):
        similarity_stage(scene, trained, options, tmp_path)
    assert not list(tmp_path.rglob(".partial-*"))
    similarity_stage(scene, trained, options, tmp_path)
    assert len(neighbours(tmp_path)) > 24
