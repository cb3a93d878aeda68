"""Scales of chart axes: coordinates of values, and ticks at round values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
ABBREVIATED = 10_000
"""Ticks from here on are labeled with a unit prefix."""
FEWEST_LOG_TICKS = 3


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of the values ``low`` to ``high`` to the coordinates ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.logarithmic and self.low <= 0):
            raise ValueError(f"not the range of a scale: {self.low} to {self.high}")

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        return float(self(np.array([value], dtype=float))[0])

    def __call__(self, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return the coordinates of ``values``."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log(low), math.log(high), np.log(values)
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int, whole: bool = False) -> list[float]:
        """Return at most about ``most`` round values in the range; only integers if ``whole``."""
        if self.logarithmic:
            return log_ticks(self.low, self.high, most)
        return linear_ticks(self.low, self.high, most, whole)


def padded_range(
    values: Float[np.ndarray, " N"], logarithmic: bool = False, from_zero: bool = False
) -> tuple[float, float]:
    """Return the range of an axis: that of the finite ``values``, and 4% more at each end that is not zero.

    A range of one value v is widened by a tenth of |v|. Returns 0 to 1 (logarithmic: 0.1 to 1) if no value is finite.
    Raises ``ValueError`` if the axis is logarithmic and a value is not above 0.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (0.1, 1.0) if logarithmic else (0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if logarithmic and low <= 0:
        raise ValueError(f"a logarithmic axis has no {low:g}")
    if logarithmic:
        margin = (high / low) ** 0.04 if high > low else 1.1
        return low / margin, high * margin
    if from_zero and low >= 0:
        return 0.0, 1.04 * high or 1.0
    margin = 0.04 * (high - low) or 0.1 * abs(low) or 1.0
    return low - margin, high + margin


def linear_ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Return the multiples in [low, high] of the smallest step of 1, 2 or 5 · 10ⁿ that gives at most ``most`` + 1."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
    decimals = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, decimals) + 0.0 for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return 1, 2 and 5 · 10ⁿ in [low, high], or powers of ten only, or ``linear_ticks`` in a short range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def within(factors: Sequence[int]) -> list[float]:
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        return [tick for tick in found if low <= tick <= high]

    fine, decades = within((1, 2, 5)), within((1,))
    if len(fine) < FEWEST_LOG_TICKS:
        return linear_ticks(low, high, most)
    return fine if len(fine) <= most + 1 else decades[:: math.ceil(len(decades) / most)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return the labels of an axis: plain numbers, with the prefix of the largest (k, M, G, T) from 10,000 on."""
    largest = max(map(abs, ticks), default=0.0)
    size, prefix = next((unit for unit in UNITS if largest >= max(unit[0], ABBREVIATED)), (1.0, ""))
    return [f"{tick / size:g}{prefix if tick else ''}".replace("-", "−") for tick in ticks]
