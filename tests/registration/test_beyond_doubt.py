"""A similarity that the images' own doubt explains is not applied."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from regnet.registration import register as module
from regnet.registration.common_shift import CommonShift
from regnet.registration.options import WindowOptions
from regnet.registration.overall import Overall


@pytest.mark.parametrize(("doubt_px", "believed"), [(0.0, True), (1.5, True), (2.0, False), (4.0, False)])
def test_a_similarity_is_believed_from_three_times_the_doubt_on(doubt_px, believed, monkeypatch):
    monkeypatch.setattr(module, "find_common_shift", lambda *parts: CommonShift((0.0, 0.0), doubt_px))
    found = Overall(np.array([[1, 0, 3.0], [0, 1, 4.0]]), True, "moving is off by up to 5 px", error_px=0.4)
    reader = SimpleNamespace(shape=(100, 200), pulled=lambda affine: SimpleNamespace(read_images=None))
    decided = module._beyond_doubt(found, None, reader, WindowOptions())
    assert decided.found == believed
    if believed:
        assert decided == replace(found, doubt_px=doubt_px)
    else:
        assert np.array_equal(decided.matrix, np.eye(2, 3))
        assert f"by 5.0 px; images like these seem {doubt_px} px off" in decided.reason
        assert replace(decided, matrix=found.matrix, found=True, reason=found.reason) == found
