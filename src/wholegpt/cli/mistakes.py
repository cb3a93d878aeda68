"""Command lines that cannot be run: what was probably meant."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import cyclopts

from wholegpt.errors import ConfigError, TokenizerError, shortened
from wholegpt.files import exists, is_file
from wholegpt.settings import presets
from wholegpt.settings.choices import underscored
from wholegpt.settings.models import check_model_exists, holds_model, how_to_get
from wholegpt.settings.serialization import RENAMED, SYNONYMS

OPTION = re.compile(r"--?([A-Za-z][\w.-]*)")
WITH_TEXT = (("generate",), ("tokenizer", "encode"), ("tokenizer", "show"))
"""Commands whose last argument is one text."""
OPTION_SYNONYMS = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "length": "max_tokens",
    "num_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "do_sample": "temperature",
    "t": "temperature",
    "num_samples": "completions",
    "num_return_sequences": "completions",
    "n": "completions",
    "num_beams": "beams",
    "o": "out",
    "output": "out",
    "output_dir": "out",
    "output_file": "out",
    "out_dir": "out",
    "name": "out",
    "f": "overwrite",
    "force": "overwrite",
    "file": "data",
    "input": "data",
    "dataset": "data",
    "config_file": "config",
    "time": "minutes",
    "cpu": "device",
    "gpu": "device",
    "cuda": "device",
    "format": "to",
    "q": "quiet",
    "silent": "quiet",
    "v": "debug",
    "verbose": "debug",
}
"""Names of options in other programs, and their names here."""
OF_OTHER_COMMANDS = {
    "train --validation": "`train` holds out a part of the text (--data.validation-fraction), and `wholegpt evaluate "
    "RUN FILE` evaluates on another one",
    "train --init-from": "`wholegpt finetune MODEL` starts from a trained model",
    "train --task": "`wholegpt finetune MODEL --task TASK --data FILE` trains a model for a task",
}
"""Options that people expect of a command, and what does it here."""
LONGEST_NAME = 200
"""Characters of a path or an argument in a message."""


def usage_message(error: cyclopts.CycloptsError, tokens: Sequence[str]) -> str:
    """Return the problem of a command line and a suggestion; like all messages, it begins with a lowercase letter."""
    message = _usage_message(error, tokens)
    return message[:1].lower() + message[1:] if message[1:2].islower() else message


def _usage_message(error: cyclopts.CycloptsError, tokens: Sequence[str]) -> str:
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return _too_many(error, tokens)
    if isinstance(error, cyclopts.UnknownCommandError):
        meant = get_close_matches(tokens[0].lstrip("-"), ("help", "version"), 1)
        if meant and (tokens[0].startswith("-") or tokens[0] == meant[0]):
            what = "option" if tokens[0].startswith("-") else "command"
            return f"unknown {what} {tokens[0]}; did you mean `wholegpt --{meant[0]}`?"
    missing = isinstance(error, cyclopts.MissingArgumentError)
    if missing and error.argument and error.keyword is None and not error.argument.tokens:
        command = " ".join(error.command_chain or ())
        name = error.argument.name
        if error.argument.field_info.is_positional:
            name = name.removeprefix("--").upper()
        return f"{name} is missing; see `wholegpt {command} --help`"
    unknown = isinstance(error, cyclopts.UnknownOptionError)
    if unknown and "--" in tokens:  # the suggestions may contain the separator
        return f"{str(error).partition('.')[0]}; put options before --"
    if unknown and (known := _known_option(error)):
        return known
    if not (unknown and "Did you mean" not in str(error)) and not missing:
        return str(error)
    given = (error.token.keyword or error.token.value or "") if unknown else ""
    if given.startswith("--") and OPTION.fullmatch(given.partition("=")[0]):
        return f"{error} `wholegpt {' '.join(error.command_chain or ())} --help-all` lists all options"
    return (
        f"{error} Put a text or path that starts with a hyphen after all options and --, "
        "and the value of an option after =, as in --out=-x"
    )


def _known_option(error: cyclopts.UnknownOptionError) -> str:
    """Return a message with wholegpt's name for an option that has another name in other programs or had one earlier.

    A setting may have been given without its section.
    """
    given = OPTION.fullmatch((error.token.keyword or error.token.value or "").partition("=")[0])
    if not given:
        return ""
    name = underscored(given[1])
    if present := RENAMED.get(name):
        return f"{given[0]} is now --{present.replace('_', '-')}"
    if advice := OF_OTHER_COMMANDS.get(f"{' '.join(error.command_chain or ())} --{name.replace('_', '-')}"):
        return f"unknown option {given[0]}; {advice}"
    options = [option for argument in error.argument_collection for option in argument.names]
    field = SYNONYMS.get(name, name).replace("_", "-")
    if settings := [option for option in options if option.endswith(f".{field}")]:
        return f"unknown option {given[0]}; the setting is {' or '.join(settings)}"
    option = f"--{OPTION_SYNONYMS.get(name, '')}".replace("_", "-")
    return f"unknown option {given[0]}; the option is {option}" if option in options else ""


def _too_many(error: cyclopts.UnusedCliTokensError, tokens: Sequence[str]) -> str:
    """Return a message about superfluous arguments, which may be the words of a text without quotation marks."""
    rest, command = list(error.unused_tokens or ()), tuple(error.command_chain or ())
    message = f"too many arguments, starting at '{shortened(' '.join(rest), LONGEST_NAME)}'; "
    if command not in WITH_TEXT:
        return f"{message}see `wholegpt {' '.join(command)} --help`"
    message += "put a text of several words in quotation marks"
    start = next((i for i in range(len(tokens)) if [*tokens[i : i + len(rest)]] == rest), 0)
    if start < len(command) + 2 or tokens[start - 2].startswith(
        "-"
    ):  # the first word may be far from the others
        return message
    text = " ".join(tokens[start - 1 : start + len(rest)])
    whole = shlex.join([*tokens[: start - 1], text, *tokens[start + len(rest) :]])
    return f"{message}: `wholegpt {shortened(whole, LONGEST_NAME)}`"


def check_models_first(command: str, *arguments: str | None, models: int = 1) -> None:
    """Raise ``ConfigError`` if a later argument is a model and one of the first ``models`` arguments is none.

    Also raises ``CheckpointError`` for a model that does not exist, before PyTorch is imported.
    """
    given = [one for one in arguments if one is not None]
    found = [one for one in given if is_model(one)]
    if len(found) < models or all(map(is_model, given[:models])):
        for one in given[:models]:
            check_model_exists(one)
        if superfluous := next((one for one in given[models:] if presets.is_run(Path(one))), ""):
            number = "one model" if models == 1 else f"{models} models"
            raise ConfigError(f"{superfluous}: is a run; `wholegpt {command}` takes {number}, then texts")
        return
    right = shlex.join([*found, *(one for one in given if one not in found)])
    what = "the model comes" if models == 1 else f"the {models} models come"
    raise ConfigError(f"{what} first: `wholegpt {command} {shortened(right, LONGEST_NAME)}`")


def is_model(name: str) -> bool:
    """Return whether ``name`` is a preset, or a folder that looks like a run or a model."""
    return presets.is_preset(name) or holds_model(Path(name))


def check_vocabulary(run: str) -> None:
    """Raise ``TokenizerError`` for a preset of a published vocabulary, which is not part of wholegpt."""
    if presets.is_preset(run) and presets.preset(run).vocab_size:
        raise TokenizerError(
            f"{run}: is a preset, an architecture without weights and without a vocabulary; `wholegpt train TEXT "
            f"--preset {run}` trains one{how_to_get(run)}"
        )


def check_tokenizer_first(command: str, tokenizer: str, text: str | None) -> None:
    """Raise ``ConfigError`` if ``text`` is a tokenizer and ``tokenizer`` is none."""
    if (
        text
        and not exists(tokenizer)
        and (is_file(f"{text}/tokenizer.json") or Path(text).name == "tokenizer.json")
    ):
        right = shlex.join([text, tokenizer])
        raise ConfigError(f"the tokenizer comes first: `wholegpt {command} {shortened(right, LONGEST_NAME)}`")
