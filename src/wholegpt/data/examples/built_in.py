"""Built-in tasks: prompts whose right answer is known, generated from a seed.

Whether a prompt is held out is decided by a hash of its parts (operands, digits, letters) in sorted order, and not by
the seed or by the number of examples. The held-out prompts of a task are therefore always the same, and no run on it,
be it fine-tuning or reinforcement learning, is trained on them or on the same parts in another order.
"""

import hashlib
import itertools
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wholegpt.data.permutation import permute
from wholegpt.data.reading.files import check_options
from wholegpt.errors import ConfigError, DataError
from wholegpt.files import exists
from wholegpt.seeds import mix_seed
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import nearest

HELD_OUT_SHARE = 0.1
"""Share of the prompts that no run is trained on."""
MOST_HELD_OUT = 500
"""Held-out prompts that a model is evaluated on."""
DEFAULT_EXAMPLES = 5_000
"""Training examples, if the name has no number."""
CHUNK = 4096
SORTED_DIGITS, COPIED_LETTERS = 5, 5


@dataclass(frozen=True)
class Exercise:
    """A prompt and its right answer."""

    prompt: str
    answer: str
    parts: tuple[str, ...]
    """The sorted operands, digits or letters of the prompt: equal for prompts that differ only in their order."""

    @property
    def held_out(self) -> bool:
        """Return whether the hash of the parts is among the lowest ``HELD_OUT_SHARE``."""
        digest = hashlib.sha256(" ".join(self.parts).encode()).digest()
        return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


@dataclass(frozen=True)
class BuiltInTask:
    """A finite set of exercises."""

    description: str
    size: int
    """Number of exercises."""
    exercise: Callable[[int], Exercise]
    """Return the exercise of an index, from 0 to ``size`` − 1; different ones for different indices."""

    def train(self, count: int, seed: int) -> list[Exercise]:
        """Draw ``count`` different exercises by ``seed``, or all if there are fewer; none of them is held out.

        A smaller ``count`` gives the first exercises of a larger one.
        """
        return list(
            itertools.islice(self._shuffled(mix_seed(seed, 0, 8), held_out=False), min(count, self.size))
        )

    def validation(self) -> list[Exercise]:
        """Return at most ``MOST_HELD_OUT`` held-out exercises, always the same."""
        return list(itertools.islice(self._shuffled(mix_seed(0, 0, 9), held_out=True), MOST_HELD_OUT))

    def _shuffled(self, key: int, held_out: bool) -> Iterator[Exercise]:
        for start in range(0, self.size, CHUNK):
            indices = np.arange(start, min(start + CHUNK, self.size))
            for index in permute(indices, self.size, key).tolist():
                one = self.exercise(index)
                if one.held_out is held_out:
                    yield one


def _addition(index: int) -> Exercise:
    a, b = index // 90 + 10, index % 90 + 10
    return Exercise(f"{a}+{b}", str(a + b), (str(min(a, b)), str(max(a, b))))


def _sorting(index: int) -> Exercise:
    digits = f"{index:0{SORTED_DIGITS}}"
    return Exercise(f"sort {digits}", "".join(sorted(digits)), tuple(sorted(digits)))


def _copying(index: int) -> Exercise:
    letters = ""
    for _ in range(COPIED_LETTERS):
        index, letter = divmod(index, 26)
        letters += string.ascii_lowercase[letter]
    return Exercise(f"copy {letters}", letters, tuple(sorted(letters)))


TASKS = {
    "addition": BuiltInTask("sums of two numbers of two digits: 12+34 → 46", 90**2, _addition),
    "copying": BuiltInTask(
        f"strings of {COPIED_LETTERS} letters: copy kqzva → kqzva", 26**COPIED_LETTERS, _copying
    ),
    "sorting": BuiltInTask(
        f"{SORTED_DIGITS} digits in ascending order: sort 52914 → 12459", 10**SORTED_DIGITS, _sorting
    ),
}


def is_built_in(source: str) -> bool:
    """Return whether ``source`` is NAME or NAME:EXAMPLES of a built-in task. Any other source is a path.

    The name takes precedence over a file or folder of the same name, because the names of tables have a suffix.
    """
    return source.partition(":")[0] in TASKS


def built_in_exercises(config: Config) -> tuple[list[Exercise], list[Exercise]] | None:
    """Return the training and the held-out exercises of the task that ``finetuning.data`` names; None for a path.

    Raises ``ConfigError`` for a number of examples that the task does not have, and for settings that do not apply to
    it; ``DataError`` for a name that is neither a task nor a path.
    """
    source = config.finetuning.data
    if not is_built_in(source):
        name = source.partition(":")[0]
        if name and not Path(name).suffix and len(Path(name).parts) == 1 and not exists(source):
            raise DataError(f"{source}: no table or built-in task; {nearest(name, [*TASKS])}")
        return None
    name, _, count = source.partition(":")
    _check_settings(config, name)
    if ":" in source and not (count.isascii() and count.isdigit() and len(count) < 10 and int(count)):
        raise ConfigError(f"{source}: expected a number of examples after the colon, as in {name}:500")
    wanted = int(count or DEFAULT_EXAMPLES)
    if wanted > TASKS[name].size:
        raise ConfigError(
            f"{source}: {name} has only {TASKS[name].size:,} examples, a tenth of them held out"
        )
    train = TASKS[name].train(wanted, config.runtime.seed)
    if len(train) < wanted:
        raise ConfigError(f"{source}: {name} has only {len(train):,} examples to train on")
    return train, TASKS[name].validation()


def refuse_built_in(source: str, expected: str) -> None:
    """Raise ``DataError`` for the name of a built-in task in place of a table of what is ``expected``."""
    if is_built_in(source):
        raise DataError(
            f"{source}: a built-in task of prompts and answers, for `finetune --task instruct` and `align` by a "
            f"reward; expected a table of {expected}"
        )


def _check_settings(config: Config, name: str) -> None:
    """Raise ``ConfigError`` for a setting that has no effect on a built-in task."""
    given, default = config.finetuning, type(config.finetuning)()
    for field in ("validation", "text_columns", "label_column"):
        if getattr(given, field) != getattr(default, field):
            raise ConfigError(f"finetuning.{field} does not apply to {name}, which is built in; leave it out")
    if config.data.validation_fraction != type(config.data)().validation_fraction:
        raise ConfigError(
            f"data.validation_fraction does not apply to {name}, whose held-out prompts are fixed; leave it out"
        )
    check_options(config.data, set, name)
