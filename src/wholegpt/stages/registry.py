"""The table of all stages."""

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.stages import (
    classification,
    counting,
    instruction,
    masked,
    pretraining,
    sequence_to_sequence,
)
from wholegpt.stages.alignment import policy, preference, reward_model
from wholegpt.stages.definition import StageDefinition

STAGES: tuple[StageDefinition, ...] = (
    pretraining.STAGE,
    masked.STAGE,
    counting.STAGE,
    sequence_to_sequence.STAGE,
    classification.STAGE,
    instruction.STAGE,
    reward_model.STAGE,
    preference.STAGE,
    policy.PPO,
    policy.GRPO,
)


def stage_of(config: Config, parent: Architecture | None = None) -> StageDefinition:
    """Return the stage that ``config`` selects, for a model from random weights or from a ``parent``'s.

    Raises ``ConfigError`` if there is none.
    """
    task, architecture = config.finetuning.task, parent or config.model.architecture
    of_task = [stage for stage in STAGES if task in stage.tasks]
    for stage in of_task:
        if architecture in (stage.parents if config.finetuning.model else stage.architectures):
            return stage
    if not config.finetuning.model:
        raise ConfigError(
            f"finetuning.task is {task}; name the trained model that it starts from, finetuning.model"
        )
    possible = sorted({one for stage in of_task for one in stage.parents})
    raise ConfigError(
        f"{config.finetuning.model}: is of architecture {architecture}; `finetune --task {task}` starts from "
        f"{' or '.join(possible)}"
    )


def default_recipe(task: TaskKind) -> str:
    """Return the recipe that `finetune` starts from if none is named."""
    return next(filter(None, (stage.recipe for stage in STAGES if task in stage.tasks)), "finetune")
