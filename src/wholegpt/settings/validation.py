"""Checks of the whole configuration: every section, and the settings that depend on each other.

The checks of single sections are beside their settings, in ``settings.sections``.
"""

import dataclasses

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    Documents,
    Execution,
    TaskKind,
)
from wholegpt.settings.schema import Config, DataConfig, FinetuningConfig, LoraConfig
from wholegpt.settings.sections.alignment import check_alignment, check_method
from wholegpt.settings.sections.data import check_data, check_tokenizer, check_windows
from wholegpt.settings.sections.finetuning import check_finetuning, check_lora
from wholegpt.settings.sections.generation import (
    MOST_BEAMS,
    MOST_CHARACTERS,
    MOST_PROMPT_TOKENS,
    MOST_WAITING,
    check_generation,
)
from wholegpt.settings.sections.model import (
    BLOCKWISE,
    MOST_ORDER,
    RECURRENT,
    ROTARY_SCALING_FIELDS,
    TRANSFORMERS,
    USED,
    WINDOWED,
    check_model,
    check_separable,
    complete_model,
    derive_sizes,
)
from wholegpt.settings.sections.run import check_max_seconds, check_run, check_seed, refuse_planned
from wholegpt.settings.sections.tasks import SEQUENCE_TO_SEQUENCE, TASKS, TaskSettings
from wholegpt.settings.sections.training import (
    check_evaluation,
    check_optimizer,
    check_schedule,
    check_training,
    complete_optimizer,
    complete_schedule,
)

__all__ = [
    "BLOCKWISE",
    "MOST_BEAMS",
    "MOST_CHARACTERS",
    "MOST_ORDER",
    "MOST_PROMPT_TOKENS",
    "MOST_WAITING",
    "RECURRENT",
    "ROTARY_SCALING_FIELDS",
    "TRANSFORMERS",
    "USED",
    "WINDOWED",
    "check",
    "check_generation",
    "check_lora",
    "check_max_seconds",
    "check_model",
    "check_seed",
    "check_separable",
    "complete_model",
    "complete_optimizer",
    "complete_schedule",
    "derive_sizes",
    "refuse_planned",
]


def check(config: Config) -> None:
    """Raise ``ConfigError``, naming the setting, if a setting is invalid or contradicts another one."""
    check_model(config.model)
    check_data(config.data)
    check_tokenizer(config.tokenizer)
    if not config.finetuning.model:  # otherwise the context is that of the parent
        check_windows(config.windows, config.model.context_length)
    _check_support(config)
    check_finetuning(config.finetuning)
    check_alignment(config.alignment)
    check_lora(config.lora)
    _check_adaptation(config)
    _check_unused(config)
    _check_examples(config)
    check_training(config.training)
    check_optimizer(config.optimizer)
    check_schedule(config.schedule)
    check_evaluation(config.evaluation)
    check_run(config.runtime, config.checkpointing, config.logging)


def _check_support(config: Config) -> None:
    """Refuse execution and windows that the architecture does not support."""
    if config.windows.documents is Documents.separate:
        check_separable(config.model, "windows.documents separate")
    if config.windows.truncation:
        check_separable(config.model, "windows.truncation")
    if config.model.architecture in BLOCKWISE:
        return
    for name, value, default in (
        ("precision.execution", config.precision.execution, Execution.eager),
        (
            "training.activation_checkpointing",
            config.training.activation_checkpointing,
            ActivationCheckpointing.none,
        ),
    ):
        if value is not default:
            raise ConfigError(
                f"{name} is {value}, which only a transformer or an encoder supports, not {config.model.architecture}; "
                f"leave it {default}"
            )


USED_BY_ALL = ("task", "model", "initialization")
"""The settings of ``finetuning`` that every task uses."""


def _used(config: Config) -> TaskSettings:
    """Return which settings the task uses."""
    return SEQUENCE_TO_SEQUENCE if _is_sequence_to_sequence(config) else TASKS[config.finetuning.task]


def _is_sequence_to_sequence(config: Config) -> bool:
    return config.model.architecture is Architecture.encoder_decoder


def _check_adaptation(config: Config) -> None:
    """Refuse combinations of LoRA, unfreezing and the reference that contradict each other."""
    settings, lora = config.finetuning, config.lora
    if lora.rank and settings.unfreeze_every:
        raise ConfigError(
            "finetuning.unfreeze_every cannot be combined with lora.rank: LoRA keeps the blocks frozen"
        )
    if lora.rank and not settings.model:
        raise ConfigError(
            "lora.rank adapts a trained model; use `wholegpt finetune MODEL`, or leave lora.rank 0"
        )
    if not lora.rank and lora != LoraConfig():
        raise ConfigError(
            "lora.rank is 0, but other settings of lora are set; set lora.rank, or none of them"
        )
    if settings.reference_kl and not settings.model:
        raise ConfigError(
            "finetuning.reference_kl compares with the model that training starts from, and there is none; "
            "leave it out"
        )


def _check_unused(config: Config) -> None:
    """Refuse settings that the task does not use."""
    task, used, default = config.finetuning.task, _used(config), FinetuningConfig()
    for field in dataclasses.fields(default):
        if field.name in (*USED_BY_ALL, *used.finetuning):
            continue
        if getattr(config.finetuning, field.name) != getattr(default, field.name):
            raise ConfigError(f"finetuning.{field.name} does not apply to {task}; leave it out")
    if config.windows.length and not used.windows:
        raise ConfigError(
            f"windows.length does not apply to {task}, whose examples are not packed; leave it out"
        )
    check_method(config.alignment, task)
    if used.rollouts:
        for name, value in (("model.dropout", config.model.dropout), ("lora.dropout", config.lora.dropout)):
            if value:
                raise ConfigError(
                    f"{name} is {value:g}, and {task} compares the model with that of the rollout; leave it 0"
                )


def _check_examples(config: Config) -> None:
    """Check the settings of training on examples; training on text passes."""
    settings, task = config.finetuning, config.finetuning.task
    pairs = _is_sequence_to_sequence(config)
    if task is TaskKind.pretraining and not pairs:
        return
    names = ["text_field", "control", "clean", "deduplicate", "split"]
    names += ["validation_fraction"] if settings.validation else []
    for name in names:
        if getattr(config.data, name) != getattr(DataConfig(), name):
            why = "validation examples are given" if name == "validation_fraction" else "it is for text"
            examples = "pairs of a source and a target" if pairs else f"examples of {task}"
            raise ConfigError(f"data.{name} does not apply to {examples}: {why}; leave it out")
    if not settings.model and not pairs:
        raise ConfigError(f"finetuning.task is {task}; set finetuning.model to the model to start from")
    if config.training.batch_growth_steps:
        raise ConfigError("training.batch_growth_steps does not apply to examples; leave it 0")
