"""Fine-tuning and LoRA: their settings, and the checks of each by itself."""

import math
from dataclasses import dataclass

from wholegpt.settings.choices import ClassWeights, Initialization, TaskKind
from wholegpt.settings.sections.ranges import at_least, below_one, require


@dataclass(frozen=True)
class FinetuningConfig:
    """Adaptation of a trained model (Radford et al. 2018, section 3.2)."""

    task: TaskKind = TaskKind.pretraining
    """What the model learns: pretraining (language modeling), or a fine-tuning task."""
    model: str = ""
    """Run, model folder or preset to start from. Empty: a new model with random weights."""
    initialization: Initialization = Initialization.trained
    """Start from the weights of that model (trained), or from random ones as a control experiment (random)."""
    data: str = ""
    """Training examples: a table (.csv, .tsv, .jsonl, .json or .parquet), compressed or not."""
    validation: str = ""
    """Validation examples. Empty: data.validation_fraction of the training examples, stratified by label."""
    text_columns: tuple[str, ...] = ()
    """Columns of the text, or of the two texts; for choice the context and the question. Empty: detected
    automatically."""
    answer_columns: tuple[str, ...] = ()
    """For choice: the column with lists of answers, or one column per answer. Empty: detected automatically."""
    label_column: str = ""
    """Column of the label, the score, or the right answer. Empty: detected automatically."""
    chat_template: str = ""
    """For instruct: file with the Jinja chat template. Empty: the built-in template."""
    language_modeling: float = 0.5
    """Weight of the auxiliary language-modeling loss (λ of E11). At least 0."""
    head_learning_rate: float = 0.0
    """Peak learning rate of the new head. 0: the same as for the other parameters."""
    unfreeze_every: int = 0
    """Gradual unfreezing: train the head first, then one more block, from the last, every so many steps. 0: train
    all from the start."""
    class_weights: ClassWeights = ClassWeights.equal
    """Weights of the classes in the loss: equal for every example, or balanced by class frequency."""
    reference_kl: bool = False
    """Keep the initial model as a frozen reference, and log the KL divergence from it in nats per token (pretraining
    and instruct). A step takes about 1.5 times as long."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (LoRA): frozen weights plus a trained update of low rank."""

    rank: int = 0
    """Rank of the update of each layer (R). 0: no LoRA; all weights are trained."""
    alpha: float = 16.0
    """Scale: the update is multiplied by alpha / rank. Above 0."""
    dropout: float = 0.0
    """Dropout probability of the input of the update."""
    targets: tuple[str, ...] = ("blocks.*",)
    """Names of the linear layers to adapt, with * as a wildcard, as in blocks.*.attention.*"""


def check_finetuning(settings: FinetuningConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    for name in ("language_modeling", "head_learning_rate", "unfreeze_every"):
        value = getattr(settings, name)
        require(f"finetuning.{name}", value, 0 <= value < math.inf, "of at least 0, and finite")


def check_lora(lora: LoraConfig) -> None:
    """Raise ``ConfigError``, naming the setting, if a value is out of range."""
    at_least("lora.rank", lora.rank, 0)
    require("lora.alpha", lora.alpha, 0 < lora.alpha < math.inf, "above 0, and finite")
    below_one("lora.dropout", lora.dropout)
