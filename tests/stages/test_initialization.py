"""Steps and batches of fine-tuning from passes over few examples."""

import pytest

from wholegpt.settings.choices import TaskKind
from wholegpt.settings.presets import configure, recipe
from wholegpt.settings.schema import Config
from wholegpt.stages.initialization import with_steps
from wholegpt.stages.registry import default_recipe


@pytest.mark.parametrize("task", [TaskKind.instruct, TaskKind.classification])
@pytest.mark.parametrize("examples", [1, 2, 3, 31, 200, 5000])
def test_a_pass_reads_each_example_once_however_few_there_are(task: TaskKind, examples: int) -> None:
    asked: Config = recipe(default_recipe(task))
    training = with_steps(asked, examples).training
    assert training.batch_size == min(examples, asked.training.batch_size)
    read, wanted = training.steps * training.batch_size, asked.training.epochs * examples
    assert abs(read - wanted) <= training.batch_size / 2


def test_steps_that_are_given_keep_their_batch() -> None:
    asked = configure({"training": {"steps": 3, "batch_size": 16}})
    assert with_steps(asked, 2) == asked
