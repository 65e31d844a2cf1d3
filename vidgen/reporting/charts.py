"""Charts as inline SVG, drawn with a few lines of NumPy; colours come from the page's classes."""

import html
import math
from collections.abc import Sequence

import numpy as np

_WIDTH, _HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 14, 44
_MOST_POINTS = 800  # of the raw curve: more would not show, and make the page heavy


def loss_curve(
    steps: Sequence[float], values: Sequence[float], *, x_label: str, y_label: str, title: str
) -> str:
    """Draws positive values over steps with a logarithmic axis: raw, and smoothed on top.

    Args:
        steps: Where the values are, ascending.
        values: What is not finite and positive is left out.
        x_label, y_label: Of the axes, with their units.
        title: What a screen reader says of the picture.

    Raises:
        ValueError: If there are no two values to draw.
    """
    pairs = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y) and y > 0]
    if len(pairs) < 2:
        raise ValueError(f"{title}: {len(pairs)} positive values, a curve needs two or more.")
    x_N, y_N = np.array(pairs, float).T
    smooth_N = smoothed(y_N)
    low, high = _log_range(y_N)
    across = lambda x: _LEFT + (x - x_N[0]) / (x_N[-1] - x_N[0]) * (_WIDTH - _LEFT - _RIGHT)
    down = lambda y: _TOP + (high - np.log10(y)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for y in log_ticks(low, high):
        at = down(y)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{y:g}", "end"))
    for x in nice_ticks(x_N[0], x_N[-1]):
        parts.append(_text(across(x), _HEIGHT - _BOTTOM + 18, f"{x:,.0f}", "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, x_label, "middle"))
    turned = f'transform="rotate(-90)" x="{-(_HEIGHT - _BOTTOM + _TOP) / 2}" y="12"'
    parts.append(f'<text {turned} text-anchor="middle">{html.escape(y_label)}</text>')
    every = -(-len(x_N) // _MOST_POINTS)
    for name, curve_N in (("raw", y_N), ("smooth", smooth_N)):
        line = _path(across(x_N[::every]), down(curve_N[::every]))
        parts.append(f'<path class="{name}" d="{line}"/>')
    return "\n".join([*parts, "</svg>"])


def smoothed(values_N: np.ndarray) -> np.ndarray:
    """Averages neighbours in the logarithm, with a Gaussian of a fiftieth of the length."""
    sigma = max(1.0, len(values_N) / 50)
    reach = int(3 * sigma)
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    # full and cut, not "same", which has the length of the longer one
    average = lambda x_N: np.convolve(x_N, weight)[reach : reach + len(values_N)]
    return np.exp(average(np.log(values_N)) / average(np.ones(len(values_N))))


def log_ticks(low: float, high: float) -> list[float]:
    """Three to eight round values between 10^low and 10^high, fit for a logarithmic axis."""
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 8)]
    return nice_ticks(10**low, 10**high)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round values between two numbers."""
    rough = max(high - low, 1e-9) / most
    decade = 10 ** math.floor(math.log10(rough))
    step = next(f * decade for f in (1, 2, 5, 10, 20) if (high - low) / (f * decade) <= most - 1)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_range(y_N: np.ndarray) -> tuple[float, float]:
    """Where the axis begins and ends; single outliers may leave the picture at the top."""
    low, high = np.log10(y_N.min()), np.log10(np.percentile(y_N, 99.8))
    room = max(0.04 * (high - low), 0.02)
    return low - room, high + room


def _path(x_N: np.ndarray, y_N: np.ndarray) -> str:
    y_N = np.maximum(y_N, 1)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(x_N, y_N, strict=True))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
