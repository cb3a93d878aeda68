"""``wholegpt tokenizer train|encode|decode|show``."""

import dataclasses
import itertools
import tempfile
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter

from wholegpt.cli.mistakes import check_tokenizer_first
from wholegpt.cli.options import (
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    next_commands,
    program_name,
    table,
)
from wholegpt.cli.texts import piped_text, required_text
from wholegpt.console import write_styled
from wholegpt.errors import ConfigError, RunError, TokenizerError, shortened
from wholegpt.settings.choices import Normalization, TokenizerKind
from wholegpt.settings.schema import Config, DataConfig, TokenizerConfig
from wholegpt.settings.validation import check

if TYPE_CHECKING:
    from wholegpt.tokenizers import Tokenizer

COLORS = ("bright_blue", "bright_green", "bright_yellow", "bright_magenta", "bright_cyan")

LONGEST_ID = 20
"""Maximum digits of a token id."""

HELP = """Train and use tokenizers.

Examples
--------
wholegpt tokenizer train my.txt --out tokenizer.json
wholegpt tokenizer show tokenizer.json "Once upon a time"
"""

app = App(name="tokenizer", help=HELP, sort_key=13, synonym=("encode", "decode", "tokenize"))


@app.command
def train(
    *source: str,
    out: str,
    config: Annotated[
        TokenizerConfig, Parameter(name="*", group=Group("Vocabulary", sort_key=1))
    ] = TokenizerConfig(),
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    explain: int = 0,
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Train a tokenizer on text.

    Parameters
    ----------
    source
        Text files, folders, tables or corpus names.
    out
        Output file, such as tokenizer.json.
    overwrite
        Replace an existing tokenizer.
    explain
        Number of BPE merges to print, each with the count of its pair in the text.

    Examples
    --------
    wholegpt tokenizer train my.txt --out tokenizer.json
    wholegpt tokenizer train my.txt --out small.json --vocab-size 512 --explain 9

    """
    from wholegpt.data import open_corpus, plan_split, train_vocabulary, write_documents
    from wholegpt.files import lock_folder
    from wholegpt.tokenizers.plain import learn_merges

    if explain and (config.kind is not TokenizerKind.bpe or config.normalization is not Normalization.none):
        raise ConfigError("--explain supports only --kind bpe without normalization")
    _check_free(Path(out), overwrite)
    data = dataclasses.replace(DataConfig(source=source), **reading.given())
    corpus = open_corpus(data)
    check(Config(tokenizer=config))
    with (
        tempfile.TemporaryDirectory() as folder,
        write_documents(Path(folder), corpus.pieces()) as store,
    ):
        plan = plan_split(store, corpus.name, corpus.split, data)
        made, measured = train_vocabulary(config, store, plan, common.console)
        merges = list(learn_merges(plan.texts(store, "train"), explain)) if explain else []
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(Path(out), "tokenizer train"):
        _check_free(Path(out), overwrite)
        made.save(out)
    result = {
        "tokenizer": out,
        "vocab_size": made.vocab_size,
        "sha256": made.sha256,
        "held_out": dataclasses.asdict(measured),
        **({"merges": [dataclasses.asdict(merge) for merge in merges]} if explain else {}),
    }
    rows = [
        *((name, str(result[name])) for name in ("tokenizer", "vocab_size", "sha256")),
        ("bytes per token", f"{measured.bytes_per_token:.3f} on held-out text"),
        ("unknown", f"{measured.unknown_share:.2%} of its tokens"),
        ("unused", f"{measured.unused_share:.1%} of the entries do not occur in it"),
        *((f"merge {i}", f"{m.left} + {m.right}, {m.count:,} times") for i, m in enumerate(merges, 1)),
    ]
    program, file = program_name(), quote(out)
    steps = [
        (f'{program} tokenizer show {file} "Once upon a time"', "show the tokens of a text"),
        (f"{program} train {join(source)} --tokenizer.path {file}", "train a model with it"),
    ]
    common.show(result, table(rows), next_commands(*steps))


def _check_free(file: Path, overwrite: bool) -> None:
    """Raise ``RunError`` if ``file`` exists, unless it is a tokenizer that may be overwritten."""
    from wholegpt.files import read_json

    if not file.exists():
        return
    if not overwrite:
        raise RunError(f"{file}: already exists; name another --out, or add --overwrite to replace it")
    try:
        tokenizer = read_json(file)
    except (OSError, ValueError):
        tokenizer = None
    if not isinstance(tokenizer, dict) or not tokenizer.keys() >= {"model", "added_tokens"}:
        raise RunError(f"{file}: exists and is not a tokenizer; name another --out")


@app.command
def encode(
    tokenizer: str,
    text: str | None = None,
    *,
    allow_special: Annotated[bool, Parameter(negative="")] = False,
    common: CommonOptions = Common(),
) -> None:
    """Show the token ids of a text.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a folder with one (run, model folder, GPT-2's encoder.json and vocab.bpe).
    text
        Text to encode. Default: standard input.
    allow_special
        Encode special tokens in the text, such as <|endoftext|>, as special tokens instead of plain text.

    Examples
    --------
    wholegpt tokenizer encode runs/mine "Once upon a time"
    wholegpt tokenizer encode tokenizer.json < my.txt

    """
    check_tokenizer_first("tokenizer encode", tokenizer, text)
    text = required_text(text)
    opened = _open(tokenizer)
    token_ids = opened.encode(text, allow_special)
    result = {"token_ids": token_ids, "tokens": opened.texts_of(token_ids)}
    common.show(result, " ".join(map(str, token_ids)))


@app.command
def show(tokenizer: str, text: str | None = None, *, common: CommonOptions = Common()) -> None:
    """Show the tokens of a text, in color, and their ids.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a folder with one.
    text
        Text to encode. Default: standard input.

    Examples
    --------
    wholegpt tokenizer show runs/mine "Once upon a time"
    wholegpt tokenizer show tokenizer.json < my.txt

    """
    check_tokenizer_first("tokenizer show", tokenizer, text)
    text = required_text(text)
    opened = _open(tokenizer)
    token_ids = opened.encode(text)
    tokens = opened.texts_of(token_ids)
    if common.json:
        common.show({"token_ids": token_ids, "tokens": tokens}, "")
        return
    colors = [f"black on {color}" for color in COLORS]
    write_styled(list(zip(tokens, itertools.cycle(colors))), separator="|")
    write_styled([(" ".join(map(str, token_ids)), "dim")])


@app.command
def decode(tokenizer: str, *token_ids: int, common: CommonOptions = Common()) -> None:
    """Decode token ids to text.

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a folder with one.
    token_ids
        Token ids to decode. Default: standard input.

    Examples
    --------
    wholegpt tokenizer decode runs/mine 17 4 256
    wholegpt tokenizer decode runs/mine < token_ids.txt

    """
    token_ids = token_ids or tuple(map(_token_id, piped_text().split()))
    opened = _open(tokenizer)
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < opened.vocab_size]
    if wrong:
        raise TokenizerError(f"token id {wrong[0]} does not exist; ids go from 0 to {opened.vocab_size - 1}")
    text = opened.decode(token_ids)
    common.show({"text": text}, text)


def _token_id(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) < LONGEST_ID):
        raise TokenizerError(
            f"'{shortened(word)}' is not a token id; expected whole numbers, as shown by `encode`"
        )
    return int(word)


def _open(path: str) -> "Tokenizer":
    from wholegpt.tokenizers import open_tokenizer

    return open_tokenizer(path)
