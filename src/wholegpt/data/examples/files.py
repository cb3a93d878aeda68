"""Storage of a run's examples: two files of JSON lines, and a third that describes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from wholegpt.errors import DataError
from wholegpt.files import sha256_file, write_json_atomic, write_text_atomic

ABOUT, SIDES = "examples.json", ("train.jsonl", "validation.jsonl")
EXAMPLE_FILES = (ABOUT, *SIDES)


def save_examples(folder: Path, about: Any, train: Sequence[Any], validation: Sequence[Any]) -> str:
    """Write examples and a description ``about`` them into a new ``folder``; return the hash of all."""
    folder.mkdir()
    for name, examples in zip(SIDES, (train, validation), strict=True):
        lines = (json.dumps(msgspec.to_builtins(example), ensure_ascii=False) for example in examples)
        write_text_atomic(folder / name, "".join(f"{line}\n" for line in lines))
    checksums = {name: sha256_file(folder / name) for name in SIDES}
    content = {"format_version": 1, "about": msgspec.to_builtins(about), "sha256": checksums}
    write_json_atomic(folder / ABOUT, content)
    return examples_hash(folder)


def open_examples(folder: Path, example: Any) -> tuple[Any, list[Any], list[Any]]:
    """Load what ``save_examples`` wrote: the description and both splits, as objects of the type ``example``.

    Raises ``DataError`` if a file is missing or has changed.
    """
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        sides: list[list[Any]] = []
        for name in SIDES:
            if sha256_file(folder / name) != content["sha256"][name]:
                raise DataError(f"{folder / name}: not the examples that the run started with")
            lines = (folder / name).read_bytes().splitlines()
            sides.append([msgspec.json.decode(line, type=example) for line in lines])
        return content["about"], sides[0], sides[1]
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise DataError(f"{folder}: holds no examples of a run: {error}") from None


def examples_hash(folder: Path) -> str:
    """Return the SHA-256 of the examples in ``folder``."""
    return sha256_file(folder / ABOUT)
