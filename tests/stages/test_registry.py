"""The table of training stages."""

from dataclasses import fields

import pytest

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.presets import configure, recipe_names
from wholegpt.settings.schema import AlignmentConfig, FinetuningConfig
from wholegpt.settings.sections.tasks import TASKS
from wholegpt.stages.registry import STAGES, default_recipe, stage_of


def test_every_task_and_architecture_has_one_stage() -> None:
    assert {task for stage in STAGES for task in stage.tasks} == {*TaskKind}
    trained = [one for stage in STAGES for one in stage.architectures]
    assert sorted(trained) == sorted(Architecture)
    started = [(task, one) for stage in STAGES for task in stage.tasks for one in stage.parents]
    assert len(started) == len({*started})


def test_stages_name_settings_and_recipes_that_exist() -> None:
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert {*TASKS} == {*TaskKind}
    for names, section in (("finetuning", FinetuningConfig), ("alignment", AlignmentConfig)):
        used = {name for task in TASKS.values() for name in getattr(task, names)}
        assert used <= {one.name for one in fields(section)}
    assert {default_recipe(task) for task in TaskKind} <= {*recipe_names()}


def test_unsupported_parent_architecture_is_rejected() -> None:
    config = configure({"finetuning": {"task": "instruct", "model": "runs/words"}})
    assert stage_of(config, Architecture.transformer).name == "instruction"
    with pytest.raises(ConfigError, match="is of architecture ngram; `finetune --task instruct` starts from"):
        stage_of(config, Architecture.ngram)
