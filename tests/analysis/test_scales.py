"""Scales and ticks of axes against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegpt.analysis.scales import Scale, linear_ticks, log_ticks, padded_range, tick_labels


def test_linear_scale() -> None:
    assert Scale(2, 4, 100, 200)(np.array([2.0, 2.5, 3, 4])).tolist() == [100, 125, 150, 200]
    assert Scale(0, 1, 50, 10)(np.array([0.25])).tolist() == [40], "y grows upwards, coordinates downwards"


def test_logarithmic_scale_maps_equal_ratios_to_equal_lengths() -> None:
    scale = Scale(1, 1000, 0, 300, logarithmic=True)
    assert scale(np.array([1.0, 10, 100, 1000])).tolist() == pytest.approx([0, 100, 200, 300])
    assert scale(np.array([math.sqrt(10)])).tolist() == pytest.approx([50])


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"), [(1, 1, False), (2, 1, False), (0, 1, True), (math.nan, 1, False)]
)
def test_invalid_ranges_are_rejected(low: float, high: float, logarithmic: bool) -> None:
    with pytest.raises(ValueError, match="not the range of a scale"):
        Scale(low, high, 0, 1, logarithmic)


def test_linear_ticks() -> None:
    assert linear_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert linear_ticks(1.9, 4.3, 6) == [2, 2.5, 3, 3.5, 4]
    assert linear_ticks(-1, 1, 4) == [-1, -0.5, 0, 0.5, 1]
    assert linear_ticks(0, 153_600, 6) == [0, 50_000, 100_000, 150_000]
    assert linear_ticks(0, 0.0006, 6) == pytest.approx([n * 1e-4 for n in range(7)])
    assert linear_ticks(0, 2, 6) == [0, 0.5, 1, 1.5, 2] and linear_ticks(0, 2, 6, whole=True) == [0, 1, 2]


@given(low=st.floats(-1e9, 1e9), size=st.floats(1e-3, 1e9), most=st.integers(2, 10))
def test_linear_ticks_are_evenly_spaced_within_the_range(low: float, size: float, most: int) -> None:
    ticks = linear_ticks(low, low + size, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[:1], atol=1e-12 * abs(low))


def test_log_ticks() -> None:
    assert log_ticks(0.9, 30, 6) == [1, 2, 5, 10, 20]
    assert log_ticks(1e-3, 1e3, 6) == [0.001, 0.01, 0.1, 1, 10, 100, 1000][::2]
    assert log_ticks(1, 1e5, 6) == [1, 10, 100, 1e3, 1e4, 1e5]
    assert log_ticks(1.9, 4.3, 6) == linear_ticks(1.9, 4.3, 6), "a short range has too few of 1, 2, 5"


def test_labels() -> None:
    assert tick_labels([0, 0.5, 1]) == ["0", "0.5", "1"]
    assert tick_labels([0, 50_000, 100_000]) == ["0", "50k", "100k"]
    assert tick_labels([0, 500_000, 1_000_000]) == ["0", "0.5M", "1M"]
    assert tick_labels([9_000, 9_500]) == ["9000", "9500"]
    assert tick_labels([-0.5, 2e9, 4e9]) == ["−5e−10G", "2G", "4G"]
    assert tick_labels([]) == []


def test_ranges() -> None:
    assert padded_range(np.array([0.0, 100.0])) == (-4, 104)
    assert padded_range(np.array([5.0, math.nan, 100.0, math.inf]), from_zero=True) == (0, 104)
    assert padded_range(np.array([2.0, 2.0])) == pytest.approx((1.8, 2.2))
    assert padded_range(np.array([0.0])) == (-1, 1) and padded_range(np.array([0.0]), from_zero=True) == (
        0,
        1,
    )
    assert padded_range(np.array([1.0, 100.0]), logarithmic=True) == pytest.approx((100**-0.04, 100**1.04))
    assert padded_range(np.array([])) == (0, 1) and padded_range(np.array([3.0]), True) == pytest.approx(
        (3 / 1.1, 3.3)
    )
