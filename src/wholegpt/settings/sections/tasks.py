"""The settings that each task uses: one row of ``TASKS`` each."""

from dataclasses import dataclass

from wholegpt.settings.choices import TaskKind


@dataclass(frozen=True)
class TaskSettings:
    """The settings that a task uses, among those that not every task uses."""

    finetuning: tuple[str, ...] = ()
    """Names in the section ``finetuning``."""
    alignment: tuple[str, ...] = ()
    """Names in the section ``alignment``."""
    windows: bool = False
    """Whether training examples are cut at ``windows.length``."""
    rollouts: bool = False
    """Whether the model is trained on its own completions. It then needs rewards, and allows no dropout."""


_EXAMPLES = ("data", "validation")
_TABLE = (*_EXAMPLES, "text_columns", "label_column")
_HEAD = (*_TABLE, "head_learning_rate", "language_modeling", "unfreeze_every")
_LABELS = TaskSettings((*_HEAD, "class_weights"))
_POLICY = (
    "rewards",
    "rollout_size",
    "rollout_epochs",
    "completion_tokens",
    "temperature",
    "clip",
    "clip_higher",
    "kl",
    "kl_limit",
    "unfinished_penalty",
    "normalization",
)

TASKS: dict[TaskKind, TaskSettings] = {
    TaskKind.pretraining: TaskSettings(("reference_kl",), windows=True),
    TaskKind.classification: _LABELS,
    TaskKind.entailment: _LABELS,
    TaskKind.similarity: _LABELS,
    TaskKind.choice: TaskSettings((*_HEAD, "answer_columns")),
    TaskKind.instruct: TaskSettings((*_TABLE, "chat_template", "reference_kl"), windows=True),
    TaskKind.reward: TaskSettings((*_EXAMPLES, "head_learning_rate"), ("centering",)),
    TaskKind.dpo: TaskSettings(_EXAMPLES, ("loss", "beta", "margin"), windows=True),
    TaskKind.ppo: TaskSettings(
        (*_EXAMPLES, "head_learning_rate"),
        (*_POLICY, "kl_target", "discount", "trace", "value_clip", "value_weight"),
        rollouts=True,
    ),
    TaskKind.grpo: TaskSettings(_EXAMPLES, (*_POLICY, "group_size", "advantage_scale"), rollouts=True),
}

SEQUENCE_TO_SEQUENCE = TaskSettings(
    ("validation", "text_columns", "label_column", "reference_kl"), windows=True
)
"""Those of an encoder-decoder, which is trained on pairs; the table is ``data.source``."""
