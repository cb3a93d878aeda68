"""The command line: ``wholegpt VERB THING [options]``, one verb per stage.

Importing this imports neither torch nor anything else that is slow; a command imports what it needs
when it runs.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence

import cyclopts

from wholegpt import __version__
from wholegpt.cli import conversion, data, finetuning, generation, tokenizer, training, use
from wholegpt.cli.options import ChosenSettings, program_name
from wholegpt.errors import WholeGPTError

STANDARD_INPUT = "/dev/stdin"
USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130
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
"""Modules that are installed only when asked for, and what to ask for."""


def make_app() -> cyclopts.App:
    """The whole grammar."""
    app = cyclopts.App(
        name="wholegpt",
        help="Text in, a GPT of your own out: train, generate, evaluate.",
        version=__version__,
        config=[ChosenSettings.remember],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(negative_iterable=()),
    )
    app.command(training.train, sort_key=1)
    app.command(generation.generate, sort_key=2)
    app.command(finetuning.chat, sort_key=2)
    app.command(use.evaluate, sort_key=3)
    app.command(use.compare, sort_key=3)
    app.command(use.info, sort_key=4)
    app.command(training.plan, sort_key=4)
    app.command(training.ladder, sort_key=4)
    app.command(finetuning.finetune, sort_key=5)
    app.command(finetuning.predict, sort_key=5)
    app.command(conversion.export, sort_key=6)
    app.command(conversion.import_, name="import", sort_key=6)
    app.command(tokenizer.app)
    app.command(data.app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 2 the user's error, 130 interrupted, 1 a bug."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if tokens[:1] != ["generate"]:  # whose prompt may be a hyphen
        tokens = [STANDARD_INPUT if token == "-" else token for token in tokens]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal that lacks a character shows its number
    try:
        make_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        return _complain(tokens, error, USER_ERROR)
    except WholeGPTError as error:
        return _complain(tokens, error, error.exit_code)
    except KeyboardInterrupt as error:
        return _complain(tokens, error, INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # The reader went away, as `head` does; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _complain(
            tokens, error, USER_ERROR, f"{error.filename or 'the disk'}: {error.strerror or error}"
        )
    except Exception as error:  # the last resort of the program
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


def _complain(tokens: list[str], error: BaseException, code: int, message: str = "") -> int:
    if "--debug" in tokens:
        traceback.print_exception(error)
    line = message or " ".join(str(error).split())
    print(f"wholegpt: {line.replace('`wholegpt ', f'`{program_name()} ')}", file=sys.stderr)
    return code
