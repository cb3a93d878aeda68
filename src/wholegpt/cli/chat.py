"""``chat``: a conversation with a model in the terminal."""

import importlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.cli.generation import GenerationOptions, GenerationParameters
from wholegpt.cli.mistakes import check_vocabulary
from wholegpt.cli.options import Common, CommonOptions, check_new_file, table
from wholegpt.console import write_output
from wholegpt.errors import ConfigError, DataError, RunError, TokenizerError
from wholegpt.files import write_text_atomic
from wholegpt.settings.choices import Execution, WeightFormat
from wholegpt.settings.models import check_model_exists
from wholegpt.settings.serialization import from_mapping, to_mapping

if TYPE_CHECKING:
    from wholegpt.generation import Completion
    from wholegpt.language_model import LanguageModel

COMMANDS = {
    "/help": "list the commands",
    "/reset": "start a new conversation",
    "/system TEXT": "set the system message, and start a new conversation",
    "/temperature T": "set the sampling temperature; 0: always the most probable token",
    "/save FILE": "save the conversation as JSON, for finetune --task instruct",
    "/quit": "end the chat, as Ctrl-D does",
}
PROMPT = "> "


def chat(
    run: str,
    *,
    system: str | None = None,
    checkpoint: str = "best",
    weights: WeightFormat = WeightFormat.float32,
    execution: Execution = Execution.eager,
    generation: GenerationParameters = GenerationOptions(),
    common: CommonOptions = Common(),
) -> None:
    r"""Chat with a model.

    A model that is not instruction-tuned continues each text instead. A line that ends with \ continues on the next
    line. /help lists the commands, /quit ends the chat. Ctrl-C stops a response, or the program between responses. With
    --json, each response is a line with role, content and finish_reason.

    Parameters
    ----------
    run
        Run or model folder.
    system
        System message.
    checkpoint
        Checkpoint to use: best, last, or a step.
    weights
        Data type of the weights: float32, or quantized to bfloat16, int8 or int4.
    execution
        eager, or compiled by torch.compile: 0.5 to 0.9 times the time per token, after 30 to 120 s of compilation (less
        the next time). Needs a C++ compiler.

    Examples
    --------
    wholegpt chat runs/mine-instruct
    wholegpt chat runs/mine-instruct --system "Be brief." --temperature 0

    """
    check_model_exists(run)
    check_vocabulary(run)
    from wholegpt.runs.load import load

    settings = to_mapping(generation)
    if common.seed is not None:
        settings["seed"] = common.seed
    opening = {"weights": weights, "execution": execution, "console": common.console, **common.placement()}
    lm = load(run, checkpoint=checkpoint, **opening)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Invalid text is then an error of one message, not the end of the chat.
        sys.stdin.reconfigure(errors="surrogateescape")
    session = Session(lm, settings, system or "", common)
    session.introduce()
    while (text := read_text()) is not None and text != "/quit":
        try:
            session.answer(text)
        except (
            ConfigError,
            DataError,
            RunError,
            TokenizerError,
        ) as error:  # the conversation continues without it
            common.console.warn(str(error))


class Session:
    """A conversation, and the settings of its responses."""

    def __init__(self, lm: "LanguageModel", settings: dict[str, Any], system: str, common: Common) -> None:
        """Raise ``ConfigError`` for a reward model, and for a system message if the model is not instruction-tuned."""
        lm.check_language_model()
        self.lm, self.settings, self.common = lm, settings, common
        self.converses = lm.chat_template is not None
        self.system = ""
        self.messages: list[dict[str, str]] = []
        if system:
            self._set_system(system)

    def introduce(self) -> None:
        """Note what the model does with a text, and how to get help."""
        if not self.converses:
            self.common.console.note(
                "the model is not instruction-tuned (`wholegpt finetune --task instruct`), so it continues each text "
                "and does not answer it"
            )
        if sys.stdin.isatty():
            self.common.console.note(
                f"{self.lm.model.parameter_count:,} parameters; /help lists the commands"
            )

    def answer(self, text: str) -> None:
        """Carry out a command, or respond to a message. Raises an error for either that is invalid."""
        if text.startswith("/"):
            self._command(*text.partition(" ")[::2])
        elif text.strip():
            self._respond(text.strip() if self.converses else text)

    def _command(self, name: str, argument: str) -> None:
        match name, argument.strip():
            case "/help", _:
                self.common.console.note("commands:\n" + table(list(COMMANDS.items())))
            case "/reset", "":
                self.messages = []
                self.common.console.note("a new conversation starts")
            case "/system", system:
                self._set_system(system)
                words = "with" if system else "without"
                self.common.console.note(f"a new conversation starts, {words} a system message")
            case "/temperature", value:
                self._set_temperature(value)
            case "/save", path if path:
                check_new_file(path, "FILE")
                record = [{"messages": self._with_system()}]
                write_text_atomic(Path(path), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
                self.common.console.note(f"saved in {path}")
            case _:
                raise ConfigError(
                    f"{' '.join([name, argument]).strip()} is not a command; /help lists them. To send a text that "
                    "begins with a slash, put a space before it"
                )

    def _set_system(self, system: str) -> None:
        if not self.converses:
            raise ConfigError("the model is not instruction-tuned and takes no system message")
        self.system, self.messages = system, []

    def _set_temperature(self, value: str) -> None:
        from wholegpt.settings.schema import GenerationConfig
        from wholegpt.settings.validation import check_generation

        try:
            changed = {**self.settings, "temperature": float(value)}
        except ValueError:
            raise ConfigError(f"/temperature is '{value}'; expected a number of at least 0") from None
        check_generation(from_mapping(changed, GenerationConfig(), "/temperature"))
        self.settings = changed
        self.common.console.note(f"the temperature is now {changed['temperature']:g}")

    def _with_system(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def _respond(self, text: str) -> None:
        """Generate a response to a message, or the continuation of a text, and show it."""
        from wholegpt.generation import InterruptedGeneration

        question = {"role": "user", "content": text}
        try:
            completion = self._generated(question)
        except InterruptedGeneration as interrupted:
            completion = interrupted.completions[0]
        answer = {"role": "assistant", "content": completion.text}
        self.common.show({**answer, "finish_reason": completion.finish_reason}, "")
        self.settings["seed"] += 1
        if not completion.text.strip():
            kept = "; this message is removed from the conversation" if self.converses else ""
            self.common.console.warn(f"empty response{kept}")
        elif self.converses:
            self.messages += [question, answer]

    def _generated(self, question: dict[str, str]) -> "Completion":
        emit = (lambda text: None) if self.common.json else (lambda text: write_output(text, end=""))
        options = {"emit": emit, "console": self.common.console, **self.settings}
        if not self.converses:
            return self.lm.generate(question["content"], **options)
        return self.lm.chat([*self._with_system(), question], **options)


def read_text() -> str | None:
    r"""Read a message, with line editing and history in a terminal; None at the end of the input.

    A line that ends with ``\`` continues on the next line.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        importlib.import_module("readline")  # input() then edits lines and remembers them
    lines: list[str] = []
    while True:
        try:
            line = input("  " if lines else PROMPT) if terminal else input()
        except EOFError:
            return "\n".join(lines).rstrip() if lines else None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines).rstrip()
