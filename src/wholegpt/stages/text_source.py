"""The text of a run: a corpus that is tokenized for it, or data prepared before."""

import dataclasses
from pathlib import Path
from typing import Any

from wholegpt.console import Console
from wholegpt.data import Corpus, PreparedData, Texts, in_memory, open_corpus, prepare
from wholegpt.data.reading.files import READING_OPTIONS
from wholegpt.errors import ConfigError
from wholegpt.files import exists, recover_unlocked
from wholegpt.settings.choices import Architecture
from wholegpt.settings.schema import Config, DataConfig, TokenizerConfig
from wholegpt.tokenizers import MASK


def open_text(config: Config, console: Console, texts: Texts | None = None) -> tuple[Config, Corpus | None]:
    """Open the corpus that ``config`` names, or that of the ``texts``.

    If it names a prepared folder instead, return no corpus, and ``config`` with the folder's tokenizer. Raises
    ``ConfigError`` for settings that have no effect on prepared data.
    """
    if texts is not None:
        return config, in_memory(texts, config.data)
    folder = Path(config.data.source[0]) if len(config.data.source) == 1 and config.data.source[0] else None
    if folder and not exists(folder):
        recover_unlocked(folder)
    if folder is None or not PreparedData.exists(folder):
        return config, open_corpus(config.data)
    for name in (*READING_OPTIONS, "clean", "deduplicate"):
        if getattr(config.data, name) != getattr(DataConfig(), name):
            raise ConfigError(
                f"data.{name} changes nothing here: {folder} is prepared data, which is read already; leave it out"
            )
    # Absolute, so that the run can be resumed from any folder.
    console.note(f"{folder} is prepared data: its own tokenizer and split are used")
    data = dataclasses.replace(config.data, source=(str(folder.resolve()),))
    has_mask_token = PreparedData.open(folder).tokenizer.id_of(MASK) is not None
    if config.model.architecture is Architecture.encoder and not has_mask_token:
        raise ConfigError(
            f"{folder}: was prepared without the token {MASK}, by which an encoder learns; name the text itself, or "
            f"prepare it with --tokenizer.special-tokens '{MASK}'"
        )
    return dataclasses.replace(config, data=data, tokenizer=TokenizerConfig(path=str(folder.resolve()))), None


def prepared_text(config: Config, corpus: Corpus | None, folder: Path, console: Console) -> PreparedData:
    """Tokenize ``corpus`` into ``folder``; without a corpus, open the prepared data that ``config`` names."""
    if corpus is None:
        folder = Path(config.data.source[0])
        data, asked = PreparedData.open(folder), list(config.data.control)
        if asked and asked != list(data.manifest.control):
            raise ConfigError(
                f"data.control is {asked}, and {folder} was prepared with {list(data.manifest.control)}; prepare the "
                "text anew, or leave it out"
            )
        return data
    return prepare(corpus, config.data, config.tokenizer, folder, console)


def name_of_text(config: Config, corpus: Corpus | None) -> str:
    """Return the name of a corpus, or of the folder of prepared data."""
    return corpus.name if corpus else Path(config.data.source[0]).name


def source_of(data: PreparedData) -> dict[str, Any]:
    """Return the entries of ``lineage.json`` about a text."""
    return {
        "corpus": data.manifest.corpus,
        "provenance": data.manifest.provenance,
        "data": data.fingerprint,
        "data_card": data.card["sha256"],
    }
