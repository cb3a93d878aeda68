"""``generate``: generate text with a model."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from wholegpt.cli.mistakes import check_models_first, check_vocabulary
from wholegpt.cli.options import Common, CommonOptions
from wholegpt.cli.texts import text_or_input
from wholegpt.console import write_output, write_styled
from wholegpt.errors import ConfigError, Interrupted
from wholegpt.settings.choices import Architecture, Execution, WeightFormat
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.settings.validation import MOST_BEAMS, MOST_CHARACTERS

if TYPE_CHECKING:
    from wholegpt.generation import Completion, Hypothesis
    from wholegpt.language_model import LanguageModel

SHOWN_ALTERNATIVES = 5
MOST_TEXTS = 10_000
"""Maximum number of completions of one command."""
BETWEEN_TEXTS = "\n---\n"
SURPRISAL_STYLES = ((1.0, "green"), (4.0, "yellow"), (8.0, "red"), (float("inf"), "bold magenta"))
"""Upper limits of the surprisal in bits, and the style of such tokens."""


@dataclass(frozen=True)
class GenerationOptions(GenerationConfig):
    """How text is generated. The seed is the common option --seed."""

    json_schema: str = ""
    """Constrained decoding: a JSON schema, as JSON text or a file, that the completion satisfies."""
    seed: Annotated[int, Parameter(parse=False)] = GenerationConfig.seed


GenerationParameters = Annotated[
    GenerationOptions, Parameter(name="*", group=Group("Generation", sort_key=1))
]


def generate(
    run: str,
    prompt: str | None = None,
    *,
    template: str = "",
    control: tuple[str, ...] = (),
    guidance: float = 1.0,
    allow_special: Annotated[bool, Parameter(negative="")] = False,
    completions: int = 1,
    beams: int = 0,
    length_penalty: float = 1.0,
    show_probabilities: Annotated[bool, Parameter(negative="")] = False,
    draft: str = "",
    weights: WeightFormat = WeightFormat.automatic,
    execution: Execution = Execution.eager,
    settings: GenerationParameters = GenerationOptions(),
    checkpoint: str = "best",
    common: CommonOptions = Common(),
) -> None:
    """Generate text with a model.

    Parameters
    ----------
    run
        Run or model folder.
    prompt
        Text to continue. Default: standard input, if piped; otherwise the model starts a new document.
    template
        Prompt template: story, technical, conversation or creative; or a text with {prompt} in it, or a file with such
        a text.
    control
        Control code as FIELD=VALUE, for models trained with data.control. Can be repeated.
    guidance
        Scale of classifier-free guidance towards --control. 1: off. Above 1: stronger (2 is strong), at twice the time.
    allow_special
        Encode special tokens in the prompt, such as <|endoftext|>, as special tokens instead of plain text.
    completions
        Number of completions, each with its own seed. With --beams: the best ones found.
    beams
        Number of beams of beam search. 0: sampling instead of beam search.
    length_penalty
        Beam search: texts are ranked by log-probability / length ** penalty.
    show_probabilities
        Color each token by its surprisal, and list the most likely alternatives.
    draft
        Speculative decoding, which gives the same text in less time: prompt (prompt lookup), or the run or folder of a
        smaller draft model with the same vocabulary.
    weights
        Data type of the weights: float32, bfloat16, int8 or int4, each smaller and faster than the previous one.
        automatic: bfloat16 if the processor supports it.
    execution
        eager, or compiled by torch.compile: 0.5 to 0.9 times the time per token, after 30 to 120 s of compilation (less
        the next time). Needs a C++ compiler.
    checkpoint
        Checkpoint to use: best, last, or a step.

    Examples
    --------
    wholegpt generate runs/mine "Once upon a time" --max-tokens 100
    wholegpt generate runs/mine < prompt.txt

    """
    check_models_first("generate", run, prompt)
    check_vocabulary(run)
    from wholegpt.generation.templates import fill_template
    from wholegpt.runs.load import load

    _check_counts(completions, beams, length_penalty)
    if settings.alternatives > 0 and not (common.json or show_probabilities or beams):
        raise ConfigError("--alternatives needs --show-probabilities or --json; add one")
    takes_input = prompt is None and settings.json_schema == "-"
    prompt = "" if takes_input else text_or_input(prompt)
    asked = {
        "template": template,
        "control": _control(control),
        "guidance": guidance,
        "allow_special": allow_special,
    }
    shown = fill_template(template, prompt)[0] if template else prompt
    chosen = {**to_mapping(settings), "json_schema": _schema_text(settings.json_schema)}
    if common.seed is not None:
        chosen["seed"] = common.seed
    if show_probabilities:
        chosen["alternatives"] = settings.alternatives or SHOWN_ALTERNATIVES
    opening = {"weights": weights, "execution": execution, "console": common.console, **common.placement()}
    lm = load(run, checkpoint=checkpoint, **opening)
    if lm.model.config.architecture is Architecture.encoder_decoder:
        shown = ""  # the completion does not continue the source
    if beams:
        if show_probabilities or draft:
            raise ConfigError("--show-probabilities and --draft do not apply to beam search; leave them out")
        _search(lm, prompt, shown, completions, beams, length_penalty, common, {**asked, **chosen})
        return
    drafter = draft if draft in ("", "prompt") else load(draft, **opening)
    _draw(
        lm, [prompt] * completions, shown, show_probabilities, common, {**asked, **chosen, "draft": drafter}
    )


def _check_counts(completions: int, beams: int, length_penalty: float) -> None:
    if not 1 <= completions <= MOST_TEXTS:
        raise ConfigError(f"--completions is {completions}; expected 1 to {MOST_TEXTS:,}")
    if beams < 0:
        raise ConfigError(f"--beams is {beams}; expected at least 0")
    if beams > MOST_BEAMS:
        raise ConfigError(f"--beams is {beams}; expected at most {MOST_BEAMS}; try fewer beams")
    if length_penalty != 1 and not beams:
        raise ConfigError("--length-penalty is for beam search; give --beams too, or neither")
    if beams and completions > beams:
        raise ConfigError(f"--completions is {completions}; expected at most --beams, {beams}")


def _draw(
    lm: "LanguageModel",
    prompts: list[str],
    shown: str,
    show_probabilities: bool,
    common: Common,
    settings: dict[str, Any],
) -> None:
    """Sample texts. A single one is shown as it is generated."""
    emitted: list[str] = []

    def emit(_: int, text: str) -> None:
        # The prompt is written with the first text, so that an error leaves standard output empty.
        write_output(text if emitted else shown + text, end="")
        emitted.append(text)

    started = time.perf_counter()
    stream = not (common.json or show_probabilities or len(prompts) > 1)
    try:
        texts = lm.generate_all(prompts, emit=emit if stream else None, console=common.console, **settings)
    except KeyboardInterrupt as interruption:
        texts = _kept(interruption)
        started += _compiling_seconds(lm)
        if common.json or any(one.text for one in texts):
            _show(shown, texts, bool(emitted), show_probabilities, started, common)
        raise Interrupted("interrupted") from None
    started += _compiling_seconds(lm)
    _show(shown, texts, bool(emitted), show_probabilities, started, common)


def _compiling_seconds(lm: "LanguageModel") -> float:
    """Return the seconds of compilation during generation."""
    from wholegpt.model import CompiledTransformer

    return lm.generator.compiling_seconds if isinstance(lm.generator, CompiledTransformer) else 0.0


def _show(
    shown: str,
    texts: "list[Completion]",
    written: bool,
    show_probabilities: bool,
    started: float,
    common: Common,
) -> None:
    """Show the texts. If one was already shown while it was generated (``written``), show only its end."""
    if show_probabilities and not common.json:
        for number, one in enumerate(texts):
            if number:
                write_output(BETWEEN_TEXTS, end="")
            _show_probabilities(shown, one)
        return
    empty = sum(not one.text and one.finish_reason == "end_of_text" for one in texts)
    if empty:
        common.console.note(
            f"{empty:,} of {len(texts):,} texts are empty: the first generated token was end-of-text"
        )
    rate = sum(len(one.token_ids) for one in texts) / (time.perf_counter() - started)
    result = {"completions": [_completion_json(one) for one in texts], "tokens_per_second": rate}
    common.show(result, "" if written else BETWEEN_TEXTS.join(shown + one.text for one in texts))


def _search(
    lm: "LanguageModel",
    prompt: str,
    shown: str,
    completions: int,
    beams: int,
    length_penalty: float,
    common: Common,
    settings: dict[str, Any],
) -> None:
    def show(found: "list[Hypothesis]") -> None:
        kept = found[:completions]
        result = {"completions": [dataclasses.asdict(one) for one in kept], "tokens_per_second": None}
        common.show(result, BETWEEN_TEXTS.join(shown + one.text for one in kept))

    try:
        found = lm.beam_search(
            prompt, beams=beams, length_penalty=length_penalty, console=common.console, **settings
        )
    except KeyboardInterrupt as interruption:
        if (kept := _kept(interruption)) or common.json:
            show(kept)
        raise Interrupted("interrupted") from None
    show(found)


def _kept(interruption: KeyboardInterrupt) -> list[Any]:
    """Return the completions up to the interruption."""
    from wholegpt.generation import InterruptedGeneration

    return interruption.completions if isinstance(interruption, InterruptedGeneration) else []


def _completion_json(one: "Completion") -> dict[str, Any]:
    fields = {name: getattr(one, name) for name in ("text", "token_ids", "finish_reason")}
    if one.choices:
        fields["tokens"] = [dataclasses.asdict(choice) for choice in one.choices]
    return fields


def _show_probabilities(prompt: str, completion: "Completion") -> None:
    """Show the text in colors, then one line per token. A stop text is not part of the text, and not in color."""
    text, lines = [(prompt, "dim")], list[tuple[str, str]]()
    left = len(completion.text)
    for choice in completion.choices:
        style = next(style for bits, style in SURPRISAL_STYLES if choice.surprisal_bits <= bits)
        text += [(choice.text[:left], style), (choice.text[left:], "dim")]
        left = max(0, left - len(choice.text))
        others = "  ".join(
            f"{other!r} {100 * probability:.3g}%" for other, probability in choice.alternatives
        )
        bits, token = f"{choice.surprisal_bits:6.2f} bits  ", f"{choice.text!r:<16}"
        lines += [(bits, ""), (token, style), (f"  {others}\n", "")]
    write_styled([*text, ("\n\n", ""), *lines], end="")


def _schema_text(given: str) -> str:
    """Return the schema itself, or the content of the file with that name."""
    if not given or given.lstrip().startswith("{"):
        return given
    path = "/dev/stdin" if given == "-" else given
    try:
        with Path(path).open(encoding="utf-8") as file:
            # One character more than is accepted, so that a longer schema is refused.
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError):
        text = ""
    if not text.strip():
        raise ConfigError(f"json_schema: {given[:100]}: neither a JSON object nor a file with one")
    return text


def _control(given: tuple[str, ...]) -> dict[str, str]:
    """Parse each ``FIELD=VALUE``. Return the values by field."""
    values: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name in values:
            problem = "repeats a field" if equals else "has no ="
            raise ConfigError(f"--control '{one}' {problem}; expected FIELD=VALUE, each field once")
        values[name] = value
    return values
