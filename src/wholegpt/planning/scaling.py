"""Scaling law of the loss with model size and training, fitted to this project's own sweep.

The data of the sweep are in ``benchmarks/scaling.jsonl``; ``python -m benchmarks.scaling --fit`` computes
``LAW``.
"""

import math
from dataclasses import dataclass

from wholegpt.metrics.information import uniform_nats
from wholegpt.model import parameter_count
from wholegpt.settings.schema import Config

PILOT_WIDTH, PILOT_STEPS, PILOT_TOKENS = 64, 200, 200 * 16 * 256
"""Size of the pilot, a short training that measures how hard a text is."""
EARLY_SHARE = 8
"""The pilot is also evaluated after this fraction of its steps: how fast its loss falls distinguishes texts."""


@dataclass(frozen=True)
class Expectation:
    """An expected value with its interval."""

    expected: float
    low: float
    high: float

    def times(self, factor: float) -> "Expectation":
        """Return the same in another unit."""
        return Expectation(self.expected * factor, self.low * factor, self.high * factor)


SHORT_PILOTS = {25: (0.04, 1.55), 50: (0.42, 0.79), 100: (0.76, 0.35), 200: (1.0, 0.0)}
"""Extrapolation of a shorter pilot, by its steps: with f = early / last of the shorter pilot, the early loss of a pilot
of 200 steps is last·f^b and its last loss is last·f^−c. Pairs (b, c), medians of six texts (docs/decisions.md).
"""
SHORT_PILOT_WIDTH = 0.018
"""What each halving of the pilot's steps adds to the half width of the interval, as a share of the expected loss."""


@dataclass(frozen=True)
class Difficulty:
    """The pilot's loss on a text, in nats per token of its validation split."""

    early: float
    """After an eighth of its steps."""
    last: float
    uncertainty: float = 0.0
    """Half width that is added to the interval, as a share of the expected loss."""

    @classmethod
    def of_pilot(cls, early: float, last: float, steps: int) -> "Difficulty":
        """Return the losses of a pilot of 200 steps, extrapolated from one of 25 to 200 ``steps``.

        The factors of ``SHORT_PILOTS`` are interpolated linearly in the logarithm of the steps.
        """
        known = sorted(SHORT_PILOTS)
        above = next((one for one in known if one >= steps), known[-1])
        below = max((one for one in known if one <= steps), default=known[0])
        part = math.log(steps / below) / math.log(above / below) if above > below else 0.0
        to_early, to_last = (
            (1 - part) * low + part * high
            for low, high in zip(SHORT_PILOTS[below], SHORT_PILOTS[above], strict=True)
        )
        fall = max(1.0, early / last)
        uncertainty = SHORT_PILOT_WIDTH * max(0.0, math.log2(PILOT_STEPS / steps))
        return cls(last * fall**to_early, last * fall**-to_last, uncertainty)

    @property
    def fall(self) -> float:
        """Return ln(early / last), how fast the loss falls; 0 if it rose, as on a text that is far too small."""
        return max(0.0, math.log(self.early / self.last))


@dataclass(frozen=True)
class ScalingLaw:
    """ln(loss / pilot's loss) = (fall / 0.3)^κ · ln(g(N, D, U) / g of the pilot), with

    g = 1 + A·(N / 10⁶)^−α + B·(D_e / 10⁶)^−β and D_e = min(D, U)·(1 + R·(1 − exp(−(D/U − 1)/R))) for D > U:

    N parameters in the blocks, D training tokens, U of them distinct. The form of g is from Hoffmann et al.
    2022, section 3.3, with repeated tokens discounted as in Muennighoff et al. 2023, section 3.1. With κ, a
    text whose loss fell faster in the pilot continues to fall faster.
    """

    a: float
    alpha: float
    b: float
    beta: float
    repeats: float
    """R: how many epochs after the first add information."""
    kappa: float

    def level(self, blocks: float, tokens: float, unique_tokens: float) -> float:
        """Compute g(N, D, U)."""
        fresh = min(tokens, unique_tokens)
        again = max(tokens / unique_tokens - 1, 0.0)
        effective = fresh * (1 + self.repeats * (1 - math.exp(-again / self.repeats)))
        return 1 + self.a * (blocks / 1e6) ** -self.alpha + self.b * (effective / 1e6) ** -self.beta

    def loss(self, difficulty: Difficulty, ratio: float) -> float:
        """Compute nats per token if g is ``ratio`` times the pilot's."""
        return difficulty.last * ratio ** ((difficulty.fall / TYPICAL_FALL) ** self.kappa)


TYPICAL_FALL = 0.3
"""The fall for which the exponent (fall / 0.3)^κ is 1."""
LAW = ScalingLaw(a=0.08090, alpha=0.7169, b=1.0771, beta=0.30479, repeats=2.2178, kappa=1.8051)
HALF_WIDTH = 0.03
"""Half width of the interval as a share of the expected loss, within the range of the sweep;
docs/decisions.md explains it.
"""
COVERED_TOKENS, COVERED_BLOCKS, COVERED_EPOCHS = 10e6, 10e6, 20.0
COVERED_TEXT, SMALLEST_BLOCKS, COVERED_STEPS = 4e5, 3.3e5, 100
"""Range of the sweep.

Above the first three and below these two values, the interval widens by its own width for each factor of e:
training tokens, parameters in the blocks, epochs; distinct tokens of text, and again parameters in the blocks
(96 wide).
"""
ENGLISH = Difficulty(early=6.77, last=5.23)
"""English prose (reviews, news, speeches) with a vocabulary of 4,096."""


def expected_loss(config: Config, unique_tokens: float, pilot: Config, difficulty: Difficulty) -> Expectation:
    """Predict nats per token on held-out text after ``config``, given the loss of the ``pilot`` on the same text.

    Below ``COVERED_STEPS``, the interval extends to ln V, the loss of an untrained model.
    """
    blocks, tokens = _size(config)
    pilot_level = LAW.level(*_size(pilot), unique_tokens)
    expected = LAW.loss(difficulty, LAW.level(blocks, tokens, unique_tokens) / pilot_level)
    excesses = (
        tokens / COVERED_TOKENS,
        blocks / COVERED_BLOCKS,
        tokens / unique_tokens / COVERED_EPOCHS,
        COVERED_TEXT / unique_tokens,
        SMALLEST_BLOCKS / blocks,
    )
    outside = math.prod(max(1.0, excess) for excess in excesses)
    half = min(HALF_WIDTH * (1 + math.log(outside)) + difficulty.uncertainty, 0.5)
    high = expected * (1 + half)
    if config.training.steps < COVERED_STEPS:
        high = max(high, uniform_nats(config.model.vocab_size))
    return Expectation(expected, expected * (1 - half), high)


def _size(config: Config) -> tuple[int, int]:
    """Return the parameters in the blocks, and the training tokens."""
    return parameter_count(config.model).blocks, trained_tokens(config)


def trained_tokens(config: Config) -> int:
    """Return the tokens of all steps of a training with constant batch size."""
    return config.training.steps * config.training.batch_size * config.window_length
