"""The data card: a description of prepared data, for programs (``card.json``) and for people (``card.md``)."""

import hashlib
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wholegpt.console import command_line
from wholegpt.data.reading.corpora import Corpus
from wholegpt.data.text.documents import DocumentStore
from wholegpt.data.text.shards import CARD, Manifest, SplitManifest
from wholegpt.data.text.statistics import TextStatistics
from wholegpt.files import write_json_atomic, write_text_atomic
from wholegpt.settings.schema import DataConfig, TokenizerConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.version import __version__

FORMAT_VERSION = 1
SOURCES_LISTED = 50


def describe_text(corpus: Corpus, statistics: TextStatistics, store: DocumentStore) -> dict[str, Any]:
    """Return the statistics of the whole text before the split."""
    sources: list[dict[str, Any]] = []
    for number, source in enumerate(corpus.sources):
        report = source.report
        counted = statistics.of_source(number)
        files = {
            "files": report.files,
            "file_bytes": report.bytes,
            "files_sha256": report.sha256,
            "text_fields": report.fields,
        }
        sources.append(
            {
                "name": source.name,
                **(files if report.files else {}),
                "skipped": report.skipped,
                "documents": counted.documents,
                "characters": counted.characters,
                "bytes": counted.bytes,
                "text_sha256": counted.digest.hexdigest(),
            }
        )
    characters = np.add.reduceat(store.pieces["characters"], store.document_starts, dtype=np.int64)
    quantiles = np.quantile(characters, (0, 0.25, 0.5, 0.75, 1), method="lower").tolist()
    return {
        "sources": sources,
        "text": {
            **{
                unit: sum(source[unit] for source in sources) for unit in ("documents", "characters", "bytes")
            },
            "characters_of_documents": dict(
                zip(("least", "quarter", "median", "three_quarters", "most"), quantiles, strict=True)
            ),
            "different_characters": statistics.different_characters,
            "identical_documents": statistics.identical_documents,
        },
        "unicode_scripts": statistics.script_shares(),
    }


def write_card(
    folder: Path,
    corpus: Corpus,
    described: dict[str, Any],
    manifest: Manifest,
    data: DataConfig,
    tokenizer: TokenizerConfig,
) -> None:
    """Write both forms of the card into ``folder``. ``described`` are statistics, duplicates and
    contamination.
    """
    card = {
        "format_version": FORMAT_VERSION,
        "corpus": manifest.corpus,
        "license": data.license,
        **described,
        "control": manifest.control,
        "split": manifest.split,
        **{side: _side(getattr(manifest, side)) for side in ("train", "validation")},
        "origin": {
            "sources": [source.provenance for source in corpus.sources],
            "command": command_line(),
            "wholegpt": __version__,
            "settings": {"data": to_mapping(data), "tokenizer": to_mapping(tokenizer)},
        },
    }
    card = {"sha256": data_sha256(card), **card}
    write_json_atomic(folder / CARD, card)
    write_text_atomic(folder / "card.md", card_page(card))


def data_sha256(card: dict[str, Any]) -> str:
    """Return the SHA-256 that identifies data: its text, split, vocabulary and tokens, however it was made."""
    identity = {
        "text": [source["text_sha256"] for source in card["sources"]],
        "tokenizer": card["tokenizer"]["sha256"],
        **{name: card[name] for name in ("split", "train", "validation")},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _side(side: SplitManifest) -> dict[str, Any]:
    counted = {unit: getattr(side, unit) for unit in ("documents", "characters", "bytes", "tokens")}
    return {
        **counted,
        "bytes_per_token": side.bytes / max(side.tokens, 1),
        "source_tokens": list(side.source_tokens),
        "shards_sha256": [shard.sha256 for shard in side.shards],
    }


def card_page(card: dict[str, Any]) -> str:
    """Render a card as Markdown."""
    import jinja2

    template = resources.files("wholegpt.data.text").joinpath("card.md.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    sides = [card[side]["source_tokens"] for side in ("train", "validation")]
    shares = [held / max(held + kept, 1) for kept, held in zip(*sides, strict=True)]
    return page.from_string(template).render(
        card,
        n=lambda count: f"{count:,}",
        held_out=lambda number: f"{shares[number]:.1%}",
        listed=SOURCES_LISTED,
        command=shlex.join(card["origin"]["command"]),
    )
