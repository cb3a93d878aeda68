"""Rewards as they are written in settings: KIND or KIND:ARGUMENT, optionally after a weight, as in ``0.5*exact``.

===========================  ======================================================================================
reward                       value
===========================  ======================================================================================
``exact``                    1 if the completion equals the right answer, else 0
``contains:TEXT``            1 if the text occurs in it, else 0
``regex:PATTERN``            1 if all of it matches the expression, else 0
``json-schema:FILE``         1 if it is JSON that satisfies the schema, else 0
``length:WORDS``             closeness to a number of words, from −1 to 0
``classifier:RUN=LABEL``     probability of a label by a classification run
``model:RUN``                reward by a reward model
``function:MODULE:NAME``     what a Python function returns
===========================  ======================================================================================
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from wholegpt.checkpoint import ModelFolder
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Choice, Dtype
from wholegpt.settings.serialization import nearest
from wholegpt.stages.alignment.rewards.functions import UserFunction
from wholegpt.stages.alignment.rewards.interface import Reward
from wholegpt.stages.alignment.rewards.models import Classifier, ModelReward, load_model_of
from wholegpt.stages.alignment.rewards.rules import Contains, Exact, JsonSchema, Length, Regex
from wholegpt.stages.alignment.rewards.weighted import WeightedRewards

WEIGHT = re.compile(r"([0-9.]+)\*")


class RewardKind(Choice):
    """Where a reward comes from."""

    exact = "exact"
    contains = "contains"
    regex = "regex"
    json_schema = "json_schema"
    length = "length"
    classifier = "classifier"
    model = "model"
    function = "function"


ARGUMENTS = {
    RewardKind.exact: "",
    RewardKind.contains: "TEXT",
    RewardKind.regex: "PATTERN",
    RewardKind.json_schema: "FILE",
    RewardKind.length: "WORDS",
    RewardKind.classifier: "RUN=LABEL",
    RewardKind.model: "RUN",
    RewardKind.function: "MODULE:NAME",
}
"""What follows the colon after each kind."""
RULES: dict[RewardKind, Callable[[str], Reward]] = {
    RewardKind.exact: lambda _: Exact(),
    RewardKind.contains: Contains,
    RewardKind.regex: Regex.of,
    RewardKind.json_schema: JsonSchema.of,
    RewardKind.length: Length.of,
    RewardKind.function: UserFunction.of,
}
"""The kinds that need no model."""


@dataclass(frozen=True)
class RewardSpecification:
    """A reward in the settings."""

    text: str
    """As it was given."""
    weight: float
    kind: RewardKind
    argument: str

    @property
    def run(self) -> str:
        """Return the run or model folder that it needs; empty if it needs none."""
        if self.kind is RewardKind.classifier:
            return self.argument.rpartition("=")[0]
        return self.argument if self.kind is RewardKind.model else ""

    @property
    def label(self) -> str:
        """Return the label of a classifier."""
        return self.argument.rpartition("=")[2]

    def with_path(self, path: Callable[[str], str]) -> str:
        """Return the text with ``path`` of its file, run or model folder instead, if it has one."""
        old = self.argument if self.kind is RewardKind.json_schema else self.run
        return self.text.replace(f":{old}", f":{path(old)}", 1) if old else self.text


def parse_reward(text: str) -> RewardSpecification:
    """Parse a reward. Raises ``ConfigError`` naming what was expected."""
    found = WEIGHT.match(text)
    rest = text[found.end() :] if found else text
    weight = _weight(found[1], text) if found else 1.0
    name, colon, argument = rest.partition(":")
    try:
        kind = RewardKind(name)
    except ValueError:
        if "*" in name:
            raise ConfigError(
                f"reward '{text}': expected a weight above 0 before *, as in 0.5*exact"
            ) from None
        hint = nearest(name, [_shown(one) for one in RewardKind])
        raise ConfigError(f"reward '{text}': no reward is called '{name}'; {hint}") from None
    expected = ARGUMENTS[kind]
    if expected and not argument:
        raise ConfigError(f"reward '{text}': expected {_shown(kind)}:{expected}")
    if colon and not expected:
        raise ConfigError(f"reward '{text}': nothing may follow {kind}; right answers come from the data")
    if kind is RewardKind.classifier and not all(argument.rpartition("=")[::2]):
        raise ConfigError(f"reward '{text}': expected {kind}:{expected}, a run and one of its labels")
    return RewardSpecification(text, weight, kind, argument)


def load_reward_models(texts: Sequence[str], console: Console) -> dict[str, ModelFolder]:
    """Load the models that some rewards need, by their roles among a run's companions.

    Raises ``ConfigError`` for a reward that is not valid, ``CheckpointError`` for a run without a model.
    """
    needed = {role: one.run for role, one in _by_role(texts).items() if one.run}
    return {role: load_model_of(run, console) for role, run in needed.items()}


def open_rewards(
    texts: Sequence[str], models: Mapping[str, ModelFolder], device: torch.device, dtype: Dtype
) -> WeightedRewards:
    """Return the weighted sum of rewards, whose ``models`` were loaded by ``load_reward_models``.

    ``dtype`` is that of the models' matrix products. Raises ``ConfigError`` for a reward that is not valid, and for a
    model that does not fit its reward; ``ModuleNotFoundError`` for a JSON schema without jsonschema.
    """
    if not texts:
        raise ConfigError(f"no reward is given; give --reward, one of {', '.join(map(_shown, RewardKind))}")
    opened: list[tuple[float, Reward]] = []
    for role, one in _by_role(texts).items():
        try:
            opened.append((one.weight, _opened(one, models.get(role), device, dtype)))
        except ConfigError as error:
            raise ConfigError(f"reward '{one.text}': {error}") from error
    return WeightedRewards(opened)


def _by_role(texts: Sequence[str]) -> dict[str, RewardSpecification]:
    return {f"reward-{number}": parse_reward(text) for number, text in enumerate(texts, 1)}


def _opened(
    one: RewardSpecification, loaded: ModelFolder | None, device: torch.device, dtype: Dtype
) -> Reward:
    if one.kind in RULES:
        return RULES[one.kind](one.argument)
    assert loaded is not None, "load_reward_models loads it"
    if one.kind is RewardKind.classifier:
        return Classifier(loaded, one.label, device, dtype)
    return ModelReward(loaded, device, dtype)


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"reward '{where}': the weight is '{text}'; expected a number above 0, as in 0.5*exact"
        )
    return weight


def _shown(kind: RewardKind) -> str:
    return kind.replace("_", "-")
