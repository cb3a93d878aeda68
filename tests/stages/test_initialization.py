"""Steps and batch sizes of fine-tuning from epochs over few examples."""

import pytest

from wholegpt.settings.choices import TaskKind
from wholegpt.settings.presets import configure, recipe
from wholegpt.settings.schema import Config
from wholegpt.stages.initialization import with_steps
from wholegpt.stages.registry import default_recipe


@pytest.mark.parametrize("task", [TaskKind.instruct, TaskKind.classification])
@pytest.mark.parametrize("examples", [1, 2, 3, 31, 200, 5000])
def test_an_epoch_uses_each_example_once_for_any_number_of_examples(task: TaskKind, examples: int) -> None:
    asked: Config = recipe(default_recipe(task))
    training = with_steps(asked, examples).training
    assert training.batch_size == min(examples, asked.training.batch_size)
    seen, wanted = training.steps * training.batch_size, asked.training.epochs * examples
    assert abs(seen - wanted) <= training.batch_size / 2


def test_explicit_steps_keep_the_batch_size() -> None:
    asked = configure({"training": {"steps": 3, "batch_size": 16}})
    assert with_steps(asked, 2) == asked
