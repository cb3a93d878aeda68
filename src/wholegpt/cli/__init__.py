"""The command line: ``wholegpt VERB THING [options]``.

Importing this module imports neither torch nor other slow packages. Each command imports what it needs when it runs.
"""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cyclopts

from wholegpt.cli import (
    alignment,
    chat,
    conversion,
    data,
    finetuning,
    generation,
    info,
    tokenizer,
    training,
    use,
)
from wholegpt.cli.help import HELP_ALL, Help, add_help
from wholegpt.cli.mistakes import LONGEST_NAME, usage_message
from wholegpt.cli.options import LONE_HYPHEN, ChosenSettings, program_name
from wholegpt.console import Console, discard_output, open_standard_streams, write_error, write_output
from wholegpt.errors import ConfigError, RenamedSettingWarning, WholeGPTError, shortened
from wholegpt.interrupts import InterruptNoted, end_process
from wholegpt.version import __version__

USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130
NOTHING_SAVED = "interrupted; nothing was saved; run the same command to start again"
LONGEST_MESSAGE = 1000
"""Characters of an error message. Longer ones are shortened in the middle."""
EXTRAS = {
    "datasets": "data",
    "ftfy": "data",
    "gguf": "gguf",
    "huggingface_hub": "hub",
    "jsonschema": "constraints",
    "llguidance": "constraints",
    "lm_eval": "lm-eval",
    "lxml": "data",
    "pyarrow": "data",
    "pypdfium2": "documents",
    "rensa": "data",
    "rouge_score": "evaluation",
    "sacrebleu": "evaluation",
    "scipy": "evaluation",
    "zstandard": "data",
}
"""Optional modules, and the extras that install them."""
FEWEST_COLUMNS = 20
HELP = """Train, evaluate and use GPT models on your own text.

Examples
--------
wholegpt train my.txt --out runs/mine
wholegpt generate runs/mine "Once upon a time"
"""


def make_app() -> cyclopts.App:
    """Return the application with all commands."""
    app = cyclopts.App(
        name="wholegpt",
        help=HELP,
        version=__version__,
        config=[ChosenSettings.remember],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(
            negative_iterable=(), name_transform=lambda name: name.replace("_", "-")
        ),
    )
    # The order of the help: training, use, evaluation, data, exchange, lists. The two sub-apps have keys 12 and 13.
    app.command(training.train, sort_key=1, synonym=("fit", "pretrain", "resume"))
    app.command(training.plan, sort_key=2, synonym=("estimate",))
    app.command(finetuning.finetune, sort_key=3, synonym=("sft", "lora"))
    app.command(alignment.align, sort_key=4, synonym=("dpo", "rlhf", "preferences"))
    app.command(generation.generate, sort_key=5, synonym=("complete", "sample"))
    app.command(chat.chat, sort_key=6, synonym=("ask", "talk"))
    app.command(finetuning.predict, sort_key=7, synonym=("classify", "infer"))
    app.command(use.evaluate, sort_key=8, synonym=("test", "perplexity", "ppl", "score"))
    app.command(use.compare, sort_key=9, synonym=("diff",))
    app.command(training.ladder, sort_key=10, synonym=("baselines",))
    app.command(info.info, sort_key=11, synonym=("describe", "inspect", "show", "summary"))
    app.command(data.app)
    app.command(tokenizer.app)
    app.command(conversion.export, sort_key=14, synonym=("convert", "save"))
    app.command(conversion.import_, name="import", sort_key=15, synonym=("convert", "download"))
    app.command(info.list_recipes, name="recipes", sort_key=16)
    app.command(info.list_presets, name="presets", sort_key=17, synonym=("models",))

    def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
        """Print the script that completes commands and options in a shell.

        For zsh: `wholegpt completion zsh > ~/.zfunc/_wholegpt`, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc.

        Parameters
        ----------
        shell
            bash, zsh or fish.

        Examples
        --------
        wholegpt completion bash > ~/.local/share/bash-completion/completions/wholegpt
        wholegpt completion fish > ~/.config/fish/completions/wholegpt.fish

        """
        write_output(app.generate_completion(shell=shell))

    app.command(completion, sort_key=18)
    add_help(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code: 0 success, 2 user error, 130 interrupted, 1 a bug."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with InterruptNoted() as interrupt:
        return _main(tokens, interrupt)


def _main(tokens: list[str], interrupt: InterruptNoted) -> int:
    open_standard_streams()
    _ignore_narrow_columns()
    try:
        _check_working_directory()
        if any("\0" in token for token in tokens):
            raise ConfigError(
                "an argument contains a NUL character, which is not allowed in paths and settings"
            )
        options = tokens.index("--") if "--" in tokens else len(tokens)
        Help.everything = HELP_ALL in tokens[:options]
        parsed = [LONE_HYPHEN if token == "-" else token for token in tokens]
        parsed[:options] = ["--help" if token == HELP_ALL else token for token in parsed[:options]]
        with _renamed_settings_shown():
            make_app()(parsed, exit_on_error=False, print_error=False, result_action="return_value")
        write_output("", end="")  # flush, so that a full disk is reported
    except cyclopts.CycloptsError as error:
        return _complain(tokens, error, USER_ERROR, usage_message(error, tokens))
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
        if interrupt.came:
            return _complain(tokens, error, INTERRUPTED, NOTHING_SAVED)
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            missing = f"{error.name} is not installed; pip install 'wholegpt[{EXTRAS[error.name]}]'"
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


def _complain(tokens: list[str], error: BaseException, code: int, message: str = "") -> int:
    if "--debug" in tokens:
        traceback.print_exception(error)
    line = shortened(message or str(error), LONGEST_MESSAGE)
    write_error(f"wholegpt: {line.replace('`wholegpt ', f'`{program_name()} ')}")
    if code == INTERRUPTED:
        end_process(code)
    return code
