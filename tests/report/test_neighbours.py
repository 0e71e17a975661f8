import numpy as np

from regnet.report.neighbours import side_by_side_figure


def test_every_row_shows_the_query_and_its_nearest_in_order():
    images = np.arange(6, dtype=np.float32)[:, None, None, None] / 6 + np.random.default_rng(0).normal(
        0, 0.1, (6, 3, 16, 16)
    ).astype(np.float32)
    nearest = {"gradient": np.array([[1, 2]] * 6), "perceptual": np.array([[4, 3]] * 6)}
    outputs = [f"{place} px" for place in range(6)]
    figure = side_by_side_figure(images, nearest, [0, 5], titles=dict.fromkeys(nearest, outputs))
    rows = [[axes.get_title() for axes in figure.axes[start : start + 3]] for start in range(0, 12, 3)]
    assert rows == [[own, *others] for own in ("0 px", "5 px") for others in (["1 px", "2 px"], ["4 px", "3 px"])]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["gradient", "perceptual"] * 2
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(drawn[1], drawn[7])
    assert not np.array_equal(drawn[0], drawn[6])
    plain = side_by_side_figure(images, nearest, [2])
    assert not any(axes.get_title() for axes in plain.axes)
