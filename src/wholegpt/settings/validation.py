"""Checks of the whole configuration: every section, and the settings that depend on each other.

The checks of single sections are beside their settings, in ``settings.sections``.
"""

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    ClassWeights,
    Documents,
    Execution,
    TaskKind,
)
from wholegpt.settings.schema import Config, DataConfig, FinetuningConfig, LoraConfig
from wholegpt.settings.sections.alignment import POLICY, USED_BY, check_alignment, check_method
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
from wholegpt.settings.sections.run import check_max_seconds, check_run, check_seed
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
    if config.finetuning.task is TaskKind.instruct:
        check_separable(config.model, "finetuning.task instruct, which packs conversations,")
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


WITH_WINDOWS = (TaskKind.pretraining, TaskKind.instruct, TaskKind.dpo)
"""Tasks whose training examples are cut at the length of the windows."""


def _without_head(config: Config) -> bool:
    return config.finetuning.task in (TaskKind.pretraining, TaskKind.instruct, TaskKind.dpo, TaskKind.grpo)


def _is_alignment(config: Config) -> bool:
    return config.finetuning.task in USED_BY


def _is_sequence_to_sequence(config: Config) -> bool:
    return config.model.architecture is Architecture.encoder_decoder


def _check_adaptation(config: Config) -> None:
    """Refuse combinations of LoRA, unfreezing, class weights and the reference that contradict each other."""
    settings, lora, task = config.finetuning, config.lora, config.finetuning.task
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
    if settings.unfreeze_every and _is_alignment(config):
        raise ConfigError(f"finetuning.unfreeze_every does not apply to {task}; leave it 0")
    if settings.unfreeze_every and _without_head(config):
        raise ConfigError(
            f"finetuning.unfreeze_every starts with the head, but {task} has no head; leave it 0"
        )
    balanced = settings.class_weights is ClassWeights.balanced
    if balanced and (_without_head(config) or _is_alignment(config) or task is TaskKind.choice):
        raise ConfigError(f"finetuning.class_weights is for labels, but {task} has no labels; leave it equal")
    if settings.reference_kl and not (_without_head(config) and settings.model and not _is_alignment(config)):
        raise ConfigError(
            "finetuning.reference_kl compares with the model that training starts from, in continued pretraining and "
            "instruction tuning; leave it out"
        )


def _check_unused(config: Config) -> None:
    """Refuse settings that the task does not use."""
    task = config.finetuning.task
    of_text = task is TaskKind.pretraining and not _is_sequence_to_sequence(config)
    unused = [
        *(["answer_columns"] if task is not TaskKind.choice else []),
        *(["chat_template"] if task is not TaskKind.instruct else []),
        *(["head_learning_rate"] if _without_head(config) else []),
        *(["language_modeling"] if _without_head(config) or _is_alignment(config) else []),
        *(["data"] if task is TaskKind.pretraining else []),
        *(["validation"] if of_text else []),
        *(["text_columns", "label_column"] if of_text or _is_alignment(config) else []),
    ]
    default = FinetuningConfig()
    for name in unused:
        if getattr(config.finetuning, name) != getattr(default, name):
            raise ConfigError(f"finetuning.{name} does not apply to {task}; leave it out")
    if config.windows.length and task not in WITH_WINDOWS:
        raise ConfigError(
            f"windows.length does not apply to {task}, whose examples are not packed; leave it out"
        )
    check_method(config.alignment, task)
    if task in POLICY:
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
