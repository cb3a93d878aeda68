"""The weighted sum of several rewards, and what their values say about training."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from wholegpt.data.chat.template import Conversation
from wholegpt.errors import DataError, counted
from wholegpt.stages.alignment.rewards.interface import Reward, Sample

LONG_SECONDS = 60.0
"""Rewards that take longer than this per rollout cause a warning."""


@dataclass(frozen=True)
class Rewarded:
    """The rewards of some samples."""

    total: list[float]
    """The weighted sum of each sample."""
    values: dict[str, list[float]]
    """The value of each sample before weighting, by the name of the reward."""
    seconds: dict[str, float]
    """How long each reward took."""

    def advice(self) -> list[str]:
        """Return a line for each reward that is constant or slow, which says what to do."""
        constant = [
            constant_advice(name, values[0])
            for name, values in self.values.items()
            if len(values) > 1 and min(values) == max(values)
        ]
        slow = [
            f"the reward {name} took {seconds:,.0f} s for {counted(len(self.total), 'completions')}; generate fewer "
            "(--alignment.rollout-size), or make it faster"
            for name, seconds in self.seconds.items()
            if seconds > LONG_SECONDS
        ]
        return [*constant, *slow]


class WeightedRewards:
    """Σ weight · reward over several rewards."""

    def __init__(self, rewards: Sequence[tuple[float, Reward]]) -> None:
        """Give each reward a name of its own: a repeated one gets a number."""
        self.rewards: dict[str, tuple[float, Reward]] = {}
        for weight, reward in rewards:
            plain = re.sub(r"\W+", "_", reward.name)
            name, number = plain, 1
            while name in self.rewards:
                number += 1
                name = f"{plain}_{number}"
            self.rewards[name] = weight, reward

    def __call__(self, samples: Sequence[Sample]) -> Rewarded:
        """Return the rewards of each sample. Raises ``DataError`` for a value that is not finite."""
        total = [0.0] * len(samples)
        values: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        for name, (weight, reward) in self.rewards.items():
            started = time.perf_counter()
            values[name] = reward(samples)
            seconds[name] = time.perf_counter() - started
            for index, (sample, value) in enumerate(zip(samples, values[name], strict=True)):
                if not math.isfinite(value):
                    raise DataError(
                        f"the reward {name} is {value} for {sample.shown()}; expected a finite number"
                    )
                total[index] += weight * value
        return Rewarded(total, values, seconds)

    def check_prompts(self, prompts: Sequence[Conversation]) -> None:
        """Raise ``DataError`` for a prompt whose completions a reward cannot judge."""
        for _, reward in self.rewards.values():
            reward.check_prompts(prompts)

    def check_answers(self, answers: Sequence[str], where: str) -> None:
        """Raise ``DataError`` if a reward needs right answers, and one of the prompts in ``where`` has none."""
        missing = sum(not answer.strip() for answer in answers)
        for name, (_, reward) in self.rewards.items():
            if reward.needs_answers and missing:
                raise DataError(
                    f"{where}: {missing:,} of {len(answers):,} prompts have no right answer, which the reward {name} "
                    "needs; give a column of answers (answer, solution, ...), or another reward"
                )


def constant_advice(name: str, value: float) -> str:
    """Return what to do about a reward that is the same for all completions, from which nothing can be learned."""
    return (
        f"the reward {name} is {value:g} for all completions, so nothing can be learned from it; first teach the model "
        "the form of the answers by a few examples (`wholegpt finetune --task instruct`), raise "
        "--alignment.temperature, or choose a reward that distinguishes the completions"
    )
