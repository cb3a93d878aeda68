"""The command line: ``wholegpt VERB THING [options]``.

Importing this module imports neither torch nor other slow packages. Each command imports what it needs when it runs.
"""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cyclopts

from wholegpt.cli import chat, conversion, data, finetuning, generation, info, tokenizer, training, use
from wholegpt.cli.options import LONE_HYPHEN, ChosenSettings, Help, SettingsHelp, program_name
from wholegpt.console import Console, discard_output, open_standard_streams, write_error, write_output
from wholegpt.errors import ConfigError, RenamedSettingWarning, WholeGPTError, shortened
from wholegpt.interrupts import end_process
from wholegpt.settings.choices import underscored
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import RENAMED, to_mapping
from wholegpt.version import __version__

USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130
NOTHING_SAVED = "interrupted; nothing was saved; run the same command to start again"
LONGEST_MESSAGE = 1000
"""Characters of an error message. Longer ones are shortened in the middle."""
EXTRAS = {
    "datasets": "datasets",
    "ftfy": "ftfy",
    "gguf": "gguf",
    "llguidance": "llguidance",
    "lxml": "lxml",
    "pyarrow": "pyarrow",
    "rensa": "rensa",
    "rouge_score": "rouge-score",
    "sacrebleu": "sacrebleu",
    "scipy": "scipy",
    "zstandard": "zstandard",
}
"""Optional modules, and the packages that install them."""
FEWEST_COLUMNS = 20
HELP_ALL = "--help-all"
OPTION = re.compile(r"--([a-z]+\.[\w-]+)")
"""An option that is a setting."""
SHORT_OPTION = re.compile(r"Unknown option: --([a-z][\w-]*)(?![\w-]|\.\w)")
"""An unknown option without a section."""
WITH_SETTINGS = ("train", "plan", "ladder", "finetune")
"""Commands with an option for each setting."""
SETTINGS = to_mapping(Config())
SYNONYMS = {
    "lr": "learning_rate",
    "layers": "n_layers",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "heads": "n_heads",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "n_embd": "d_model",
    "width": "d_model",
    "hidden_size": "d_model",
    "block_size": "context_length",
    "context": "context_length",
    "seq_len": "context_length",
    "max_iters": "steps",
    "max_steps": "steps",
    "iterations": "steps",
    "num_epochs": "epochs",
    "batch": "batch_size",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "grad_clip": "gradient_clip",
    "eval_interval": "every",
}
"""Names of settings in other programs, and their fields here."""
LONGEST_NAME = 200
"""Characters of a path in an error of the operating system."""


def make_app() -> cyclopts.App:
    """Return the application with all commands."""
    app = cyclopts.App(
        name="wholegpt",
        help="Train, evaluate and use GPT models on your own text.",
        version=__version__,
        config=[ChosenSettings.remember],
        help_format="plaintext",
        help_formatter=Help(),
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(
            negative_iterable=(), name_transform=lambda name: name.replace("_", "-")
        ),
    )
    app.command(training.train, sort_key=1)
    app.command(generation.generate, sort_key=2)
    app.command(chat.chat, sort_key=2)
    app.command(use.evaluate, sort_key=3)
    app.command(use.compare, sort_key=3)
    app.command(info.info, sort_key=4)
    app.command(info.list_recipes, name="recipes", sort_key=4)
    app.command(info.list_presets, name="presets", sort_key=4)
    app.command(training.plan, sort_key=4)
    app.command(training.ladder, sort_key=4)
    app.command(finetuning.finetune, sort_key=5)
    app.command(finetuning.predict, sort_key=5)
    app.command(conversion.export, sort_key=6)
    app.command(conversion.import_, name="import", sort_key=6)
    app.command(tokenizer.app)
    app.command(data.app)

    def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
        """Print the script that completes commands and options in a shell.

        For bash: `wholegpt completion bash > ~/.local/share/bash-completion/completions/wholegpt`. For zsh:
        `wholegpt completion zsh > ~/.zfunc/_wholegpt`, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc. For fish:
        `wholegpt completion fish > ~/.config/fish/completions/wholegpt.fish`.

        Parameters
        ----------
        shell
            bash, zsh or fish.

        """
        write_output(app.generate_completion(shell=shell))

    app.command(completion, sort_key=7)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code: 0 success, 2 user error, 130 interrupted, 1 a bug."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    open_standard_streams()
    _ignore_narrow_columns()
    try:
        _check_working_directory()
        if any("\0" in token for token in tokens):
            raise ConfigError(
                "an argument contains a NUL character, which is not allowed in paths and settings"
            )
        options = tokens.index("--") if "--" in tokens else len(tokens)
        SettingsHelp.everything = HELP_ALL in tokens[:options]
        parsed = [LONE_HYPHEN if token == "-" else token for token in tokens]
        parsed[:options] = ["--help" if token == HELP_ALL else token for token in parsed[:options]]
        with _renamed_settings_shown():
            make_app()(parsed, exit_on_error=False, print_error=False, result_action="return_value")
        write_output("", end="")  # flush, so that a full disk is reported
    except cyclopts.CycloptsError as error:
        return _complain(tokens, error, USER_ERROR, _usage_message(error, "--" in tokens))
    except WholeGPTError as error:
        return _complain(tokens, error, error.exit_code)
    except KeyboardInterrupt as error:
        return _complain(tokens, error, INTERRUPTED, NOTHING_SAVED)
    except BrokenPipeError:
        discard_output()  # the reader closed the pipe, as `head` does
    except OSError as error:
        discard_output()
        where = shortened(str(error.filename or "the disk"), LONGEST_NAME)
        return _complain(tokens, error, USER_ERROR, f"{where}: {error.strerror or error}")
    except Exception as error:  # the last resort
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            missing = f"{error.name} is not installed; pip install {EXTRAS[error.name]}"
            return _complain(tokens, error, USER_ERROR, missing)
        return _complain(
            tokens,
            error,
            OUR_ERROR,
            f"this is a bug in wholegpt: {type(error).__name__}: {error}; --debug shows where",
        )
    return 0


@contextlib.contextmanager
def _renamed_settings_shown() -> Iterator[None]:
    """Show each ``RenamedSettingWarning`` in the block once, as one line on standard error, also when quiet."""
    shown: set[str] = set()  # a command may read the same file several times
    with warnings.catch_warnings():
        warnings.simplefilter("always", RenamedSettingWarning)
        other = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            *rest: Any,
            **more: Any,
        ) -> None:
            if not issubclass(category, RenamedSettingWarning):
                other(message, category, filename, lineno, *rest, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                Console().warn(shortened(str(message), LONGEST_MESSAGE))

        warnings.showwarning = show
        yield


def _ignore_narrow_columns() -> None:
    """Ignore a terminal width that is too small for the help, such as 0 in some containers."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < FEWEST_COLUMNS:
        del os.environ["COLUMNS"]


def _check_working_directory() -> None:
    """Raise ``ConfigError`` if the working directory was deleted. PyTorch cannot be imported then."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working directory was deleted; change to one that exists") from None


def _usage_message(error: cyclopts.CycloptsError, has_separator: bool) -> str:
    """Return the problem of a command line and a suggestion. It may contain the separator ``--``."""
    if isinstance(error, cyclopts.UnusedCliTokensError):
        rest = shortened(" ".join(error.unused_tokens or ()), LONGEST_NAME)
        return f"too many arguments, starting at '{rest}'; put a text of several words in quotation marks"
    missing = isinstance(error, cyclopts.MissingArgumentError)
    if missing and error.argument and error.keyword is None and not error.argument.tokens:
        command = " ".join(error.command_chain or ())
        name = error.argument.name
        if error.argument.field_info.is_positional:
            name = name.removeprefix("--").upper()
        return f"{name} is missing; see `wholegpt {command} --help`"
    if isinstance(error, cyclopts.UnknownOptionError) and has_separator:
        return f"{str(error).partition('.')[0]}; put options before --"
    if isinstance(error, cyclopts.UnknownOptionError) and (present := _present_option(error)):
        return present
    if isinstance(error, cyclopts.UnknownOptionError) and (whole := _whole_option(error)):
        return whole
    unknown = isinstance(error, cyclopts.UnknownOptionError) and "Did you mean" not in str(error)
    if not unknown and not missing:
        return str(error)
    return (
        f"{error} Put a text or path that starts with a hyphen after all options and --, "
        "and the value of an option after =, as in --out=-x"
    )


def _present_option(error: cyclopts.UnknownOptionError) -> str:
    """Return a message with the present name of an option, if the given name is a former one."""
    given = OPTION.search(str(error))
    present = given and RENAMED.get(underscored(given[1]))
    return f"--{given[1]} is now --{present.replace('_', '-')}" if given and present else ""


def _whole_option(error: cyclopts.UnknownOptionError) -> str:
    """Return a message with the whole name of a setting that was given without its section, or as elsewhere."""
    given = SHORT_OPTION.search(str(error))
    if not given or not error.command_chain or error.command_chain[0] not in WITH_SETTINGS:
        return ""
    field = SYNONYMS.get(underscored(given[1]), underscored(given[1]))
    found = [
        f"--{section}.{field}".replace("_", "-") for section, fields in SETTINGS.items() if field in fields
    ]
    return f"unknown option --{given[1]}; the setting is {' or '.join(found)}" if found else ""


def _complain(tokens: list[str], error: BaseException, code: int, message: str = "") -> int:
    if "--debug" in tokens:
        traceback.print_exception(error)
    line = shortened(message or str(error), LONGEST_MESSAGE)
    write_error(f"wholegpt: {line.replace('`wholegpt ', f'`{program_name()} ')}")
    if code == INTERRUPTED:
        end_process(code)
    return code
