import numpy as np
import pytest

from regnet.metrics import epe, summarise


def test_epe_is_the_length_of_the_difference():
    predicted = np.array([[3.0, 0.0], [4.0, 1.0]])
    assert epe(predicted, np.zeros((2, 2))).tolist() == [5.0, 1.0]


def test_summary_of_known_errors():
    summary = summarise(np.arange(1, 101) / 10)
    assert summary["epe_mean_px"] == pytest.approx(5.05)
    assert summary["epe_median_px"] == pytest.approx(5.05)
    assert summary["epe_p95_px"] == pytest.approx(9.505)
    assert summary["ce90_px"] == pytest.approx(9.01)
    assert (summary["pck_1px"], summary["pck_3px"], summary["pck_5px"]) == (0.1, 0.3, 0.5)


def test_nan_is_left_out_and_nothing_gives_nan():
    assert summarise(np.array([1.0, np.nan]))["count"] == 1
    empty = summarise(np.array([np.nan]))
    assert empty["count"] == 0
    assert np.isnan(empty["epe_mean_px"])
