"""Every setting of a run, as frozen dataclasses.

The same ``Config`` is created from YAML, from Python and from the command line. The docstring of a field is its help
text. A 0 that stands for a derived value is replaced before the first step, so that the ``config.yaml`` of a run holds
the values that were used and repeats the run exactly.
"""

from dataclasses import dataclass, field

from wholegpt.settings.sections.alignment import AlignmentConfig
from wholegpt.settings.sections.data import DataConfig, TokenizerConfig, WindowsConfig
from wholegpt.settings.sections.finetuning import FinetuningConfig, LoraConfig
from wholegpt.settings.sections.generation import GenerationConfig
from wholegpt.settings.sections.model import ModelConfig
from wholegpt.settings.sections.run import CheckpointingConfig, LoggingConfig, PrecisionConfig, RuntimeConfig
from wholegpt.settings.sections.training import (
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "AlignmentConfig",
    "CheckpointingConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "FinetuningConfig",
    "GenerationConfig",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "WindowsConfig",
]


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def window_length(self) -> int:
        """Number of tokens in a training window: ``windows.length``, or the model's context length."""
        return self.windows.length or self.model.context_length
