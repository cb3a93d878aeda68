"""Training on preference pairs: what reward models and direct preference optimization share.

Shapes: B pairs, N pairs of a split.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from wholegpt.data.examples.columns import TaskColumns
from wholegpt.data.examples.preferences import PreferencePair
from wholegpt.errors import ConfigError, counted
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Record, means_of
from wholegpt.settings.schema import Config
from wholegpt.stages.definition import ParentModel
from wholegpt.training.objectives import Metrics
from wholegpt.training.stage import QuickScore

LOSS = "preference_loss"
PAIR_MEANS = {
    LOSS: "loss",
    "reward_accuracy": "prefers_chosen",
    "reward_margin": "margin",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
}
"""Metrics, and the field of the records that each is the mean of."""
Values = Mapping[str, Float[Tensor, " N"] | Bool[Tensor, " N"]]
"""The field of each metric, for each pair."""


def check_answers(parent: ParentModel) -> None:
    """Raise ``ConfigError`` for a model that is not instruction-tuned."""
    if not parent.loaded.metadata.chat_template:
        raise ConfigError(
            f"{parent.name}: has no chat template, because it is not instruction-tuned; first tune it with "
            "`wholegpt finetune --task instruct`"
        )


def rewards_of_pairs(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]
) -> dict[str, Float[Tensor, " N"] | Bool[Tensor, " N"]]:
    """Return the metrics of the two rewards of each pair. Equal rewards do not prefer the chosen answer."""
    return {
        "prefers_chosen": chosen > rejected,
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }


def metrics_of(values: Values, means: Mapping[str, str]) -> Metrics:
    """Return the sum and the number of each metric, for the log of a step."""
    return {
        name: (values[column].detach().float().sum(), len(values[column])) for name, column in means.items()
    }


def quick_score(values: Values, means: Mapping[str, str]) -> QuickScore:
    """Return the mean of each metric."""
    figures = {name: float(np.mean(values[column].numpy())) for name, column in means.items()}
    return QuickScore(figures, len(next(iter(values.values()))))


def score_pairs(
    kind: str, pairs: Sequence[PreferencePair], values: Values, means: Mapping[str, str], cut: int
) -> TaskScore:
    """Return the mean of each metric with its interval, and a record of each pair; ``cut`` pairs are truncated.

    The interval of the accuracy is exact, the others are those of a bootstrap.
    """
    records: list[Record] = [
        {
            "line": number,
            "prompt": one.prompt[-1].content,
            "chosen_answer": one.chosen,
            "rejected_answer": one.rejected,
            **{name: value[number - 1].item() for name, value in values.items()},
        }
        for number, one in enumerate(pairs, 1)
    ]
    metrics = means_of(records, means)
    return TaskScore(kind, len(records), 0, metrics, means, cut, records, "the ends of answers")


def describe_pairs(
    train: int, validation: int, cut: int, length: int, columns: TaskColumns, config: Config
) -> str:
    """Return the number of pairs, their columns, the number of epochs, and how many pairs are cut at ``length``."""
    epochs = config.training.steps * config.training.batch_size / train
    names = [*columns.texts, *columns.answers, *([columns.target] if columns.target else [])]
    left = f"; {cut:,} ({cut / train:.1%}) are cut at {length:,} tokens" if cut else ""
    return f"{counted(train, 'pairs')} ({epochs:.1f} epochs), {validation:,} held out; columns {', '.join(names)}{left}"
