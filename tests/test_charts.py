"""Charts as SVG."""

import math
import xml.etree.ElementTree

import numpy as np
import pytest

from vidgen.reporting import charts


def draw(values):
    labels = {"x_label": "step", "y_label": "loss", "title": "A <curve>"}
    return charts.loss_curve(range(len(values)), values, **labels)


def test_the_picture_is_valid_and_inside_its_frame():
    values = [*np.geomspace(10, 0.01, 3000), math.nan, math.inf, 0.0]
    root = xml.etree.ElementTree.fromstring(draw(values))
    width, height = map(float, root.get("viewBox").split()[2:])
    curves = {path.get("class"): path.get("d") for path in root if path.tag == "path"}
    for name in ("raw", "smooth"):
        points = np.array([p.split() for p in curves[name][1:].split("L")], float)
        assert 300 < len(points) <= 800
        assert (points >= 0).all() and (points <= [width, height]).all()
        assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) >= 0).all()  # falls
    texts = [text.text for text in root if text.tag == "text"]
    assert {"step", "loss", "0.1", "1", "2,000"} <= set(texts)
    assert root.get("aria-label") == "A <curve>"


def test_a_curve_needs_two_values():
    with pytest.raises(ValueError, match="1 positive values"):
        draw([1.0, math.nan])


def test_smoothing_keeps_a_constant_and_an_exponential():
    np.testing.assert_allclose(charts.smoothed(np.full(7, 3.0)), 3.0)
    values_N = np.exp(-np.arange(200) / 50)
    np.testing.assert_allclose(charts.smoothed(values_N)[20:-20], values_N[20:-20], rtol=1e-9)


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0.01, 10, [0.01, 0.1, 1, 10]),
        (0.025, 2, [0.03, 0.1, 0.3, 1]),
        (0.4, 2.4, [0.5, 1, 2]),
        (0.61, 0.69, [0.62, 0.64, 0.66, 0.68]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low, high, ticks):
    got = charts.log_ticks(math.log10(low) - 1e-9, math.log10(high) + 1e-9)
    np.testing.assert_allclose(got, ticks)


def test_ticks_of_a_linear_axis_are_few():
    assert charts.nice_ticks(1, 2500) == [500, 1000, 1500, 2000, 2500]
    for high in (1.5, 7, 33, 999, 123456):
        assert 2 <= len(charts.nice_ticks(0, high)) <= 6
