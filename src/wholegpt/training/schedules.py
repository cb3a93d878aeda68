"""Learning-rate schedules (E10): pure functions of the step."""

import math

from wholegpt.settings.choices import ScheduleKind
from wholegpt.settings.schema import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return η of optimizer step ``step`` (from 0) out of ``steps``.

    A linear rise to the peak over the warm-up, η_peak·(step + 1)/w; after it the shape that
    ``schedule.kind`` names.
    """
    peak, warmup = optimizer.learning_rate, schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    final = peak * schedule.final_fraction
    match schedule.kind:
        case ScheduleKind.cosine:
            return cosine(step - warmup, max(steps - warmup, 1), peak, final)
        case ScheduleKind.inverse_square_root:
            return inverse_square_root(step + 1, max(warmup, 1), peak)
        case ScheduleKind.warmup_stable_decay:
            return stable_decay(step, steps, peak, final, decay_steps(steps, warmup, schedule.decay_fraction))
        case ScheduleKind.constant:
            return peak


def cosine(step: int, steps: int, peak: float, final: float) -> float:
    """Return final + (peak − final)·(1 + cos(π·step/steps))/2 (Loshchilov and Hutter 2017, equation 5)."""
    return final + (peak - final) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2


def inverse_square_root(t: int, warmup: int, peak: float) -> float:
    """Return η_peak·min(t/w, √(w/t)) (E10; Vaswani et al. 2017, section 5.3, scaled so that its peak is η_peak)."""
    return peak * min(t / warmup, math.sqrt(warmup / t))


def decay_steps(steps: int, warmup: int, decay_fraction: float) -> int:
    """Return the number of steps in which warmup_stable_decay decays: at least two, and none of the warm-up."""
    if not decay_fraction:
        return 0
    return min(max(2, round(steps * decay_fraction)), max(0, steps - max(warmup, 1) + 1))


def stable_decay(step: int, steps: int, peak: float, final: float, decay_steps: int) -> float:
    """Return the peak, and over the last ``decay_steps`` a linear decay to ``final`` at step ``steps``."""
    left = steps - step
    if left >= decay_steps:
        return peak
    return final + (peak - final) * left / decay_steps
