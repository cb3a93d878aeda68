"""Paths of text sources: standard input, files and folders, and folders that are not text."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from wholegpt.errors import ConfigError, DataError, shortened
from wholegpt.settings.serialization import nearest

STANDARD_INPUT = "-"
FEWEST_WORDS = 4
"""A source that does not exist and has this many words is taken for text."""
FINETUNE = "train it on text by `wholegpt finetune {} --task pretraining --data TEXT`"
FOLDERS = {
    ("lineage.json", "config.yaml"): "is a run, not text; `wholegpt train --resume {}` continues it, or "
    + FINETUNE,
    (
        "manifest.json",
        "tokenizer.json",
    ): "is prepared data, not text; train on it as the only source, or name the text it was made from",
    ("ladder.json", "ladder.html"): "is a ladder of runs, not text; name the text",
    ("examples.json", "train.jsonl"): "holds the examples of a run, not text; name the text",
    (
        "parity_reports.json",
        "config.json",
    ): "is an export of a model, not text; `wholegpt import {}` makes a model of it",
    ("parity_reports.json", "*.gguf"): "is an export of a model, not text; name the text",
    ("certificate.json", "*.gguf"): "is an export of a model, not text; name the text",
    ("config.json", "*.safetensors"): "is a model, not text; " + FINETUNE,
    (
        "config.json",
        "pytorch_model*.bin",
    ): "is a model, not text; `wholegpt import {}` converts it",
    ("adapter_config.json",): "is a LoRA adapter, not text; `wholegpt import {}` makes a model of it",
}
"""Folders identified by the files in them: what they are, and what to do if text is expected."""


def check_sources(sources: Iterable[object]) -> None:
    """Raise ``ConfigError`` for a source that is not a name or a path."""
    for source in sources:
        if not isinstance(source, str | Path):
            raise ConfigError(
                f"a source is a {type(source).__name__}; give each path or corpus name as an argument of its own; "
                "texts in memory are given as texts=[...]"
            )


def source_path(source: str | Path, corpora: Sequence[str] = ()) -> Path:
    """Return the path of a text source; ``-`` is standard input.

    Raises ``DataError`` for a path that does not exist (perhaps a misspelled name of the ``corpora``), for a text in
    place of a path, and for a folder with a model or other output of wholegpt.
    """
    if source == STANDARD_INPUT:
        return Path("/dev/stdin")
    name, path = str(source), Path(source)
    if not name.strip():  # an unset variable; ``Path("")`` is the current folder
        raise DataError("a source is empty; name a file, a folder ('.' for this one) or a corpus")
    try:
        found = path.exists()
    except PermissionError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError):  # too long for a name, or with invalid characters
        raise DataError(_is_text(name)) from None
    if found:
        if problem := without_text(path):
            raise DataError(f"{name}: {problem}")
        return path
    if "\n" in name or (len(name.split()) >= FEWEST_WORDS and os.sep not in name):
        raise DataError(_is_text(name))
    if "://" in name:
        raise DataError(f"{name}: is a web address; download it, and name the file")
    looks_like_path = path.suffix or os.sep in name or not corpora
    hint = "check the path" if looks_like_path else f"no file or corpus; {nearest(name, list(corpora))}"
    raise DataError(f"{name}: does not exist; {hint}")


def without_text(folder: Path) -> str:
    """Return a description of a folder with a model or other output of wholegpt; empty for any other path."""
    kinds = (problem for files, problem in FOLDERS.items() if all(any(folder.glob(name)) for name in files))
    return next(kinds, "").replace("{}", quote(str(folder)))


def _is_text(source: str) -> str:
    return (
        f"'{shortened(source)}' does not exist; a source is the path of a file or folder, or a corpus's name. Write "
        "text itself to a file, or in Python give it as texts=[...]"
    )
