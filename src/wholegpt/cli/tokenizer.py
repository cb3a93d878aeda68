"""``wholegpt tokenizer train|encode|decode``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from wholegpt.checks import check
from wholegpt.cli.options import Common, CommonOptions, Reading, ReadingOptions, table
from wholegpt.config import Config, DataConfig, TokenizerConfig
from wholegpt.errors import RunError, TokenizerError

if TYPE_CHECKING:
    from wholegpt.tokenizers import Tokenizer

app = App(name="tokenizer", help="Turn text into token ids and back.", sort_key=5)


@app.command
def train(
    *source: str,
    out: str,
    config: Annotated[TokenizerConfig, Parameter(name="*", group="Vocabulary")] = TokenizerConfig(),
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Train a tokenizer on text.

    Parameters
    ----------
    source
        Text files, folders, JSON-lines files or corpus names.
    out
        The tokenizer.json to write.
    overwrite
        Replace a file that is already there.

    """
    from wholegpt.data import make_tokenizer, open_corpus

    if Path(out).exists() and not overwrite:
        raise RunError(f"{out}: already exists; name another --out, or add --overwrite to replace it")
    corpus = open_corpus(dataclasses.replace(DataConfig(source=source), **reading.given()))
    check(Config(tokenizer=config))
    with common.console.working(f"learning a vocabulary from {corpus.name}"):
        made = make_tokenizer(config, corpus)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    made.save(out)
    result = {"tokenizer": out, "vocab_size": made.vocab_size, "sha256": made.sha256}
    common.show(result, table([(name, str(value)) for name, value in result.items()]))


@app.command
def encode(
    tokenizer: str,
    text: str,
    *,
    allow_special: Annotated[bool, Parameter(negative="")] = False,
    common: CommonOptions = Common(),
) -> None:
    """Show the token ids of a text.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a folder (run, model, GPT-2's two published files) that holds one.
    text
        What to encode.
    allow_special
        Read special tokens such as <|endoftext|> in the text as such, not as plain text.

    """
    opened = _open(tokenizer)
    token_ids = opened.encode(text, allow_special)
    result = {"token_ids": token_ids, "tokens": [opened.decode([token_id]) for token_id in token_ids]}
    common.show(result, " ".join(map(str, token_ids)))


@app.command
def decode(tokenizer: str, *token_ids: int, common: CommonOptions = Common()) -> None:
    """Show the text of token ids.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a folder that holds one.
    token_ids
        What to decode.

    """
    opened = _open(tokenizer)
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < opened.vocab_size]
    if wrong:
        raise TokenizerError(f"token id {wrong[0]} does not exist; ids go from 0 to {opened.vocab_size - 1}")
    text = opened.decode(token_ids)
    common.show({"text": text}, text)


def _open(path: str) -> "Tokenizer":
    from wholegpt.tokenizers import open_tokenizer

    return open_tokenizer(path)
