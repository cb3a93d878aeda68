"""``generate``: text from a model."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

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
"""Of one command."""
BETWEEN_TEXTS = "\n---\n"
SURPRISAL_STYLES = ((1.0, "green"), (4.0, "yellow"), (8.0, "red"), (float("inf"), "bold magenta"))
"""Bits up to which a token is shown so."""


@dataclass(frozen=True)
class GenerationOptions(GenerationConfig):
    """How text is drawn; the seed is that of everywhere."""

    json_schema: str = ""
    """A JSON schema, as JSON text or a file that holds it; the text is JSON that it allows."""
    seed: Annotated[int, Parameter(parse=False)] = GenerationConfig.seed


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
    settings: Annotated[GenerationOptions, Parameter(name="*", group="Drawing text")] = GenerationOptions(),
    checkpoint: str = "best",
    common: CommonOptions = Common(),
) -> None:
    """Let a model write.

    Parameters
    ----------
    run
        A run or model folder.
    prompt
        Text to continue; unless given what is piped in, and without either the model starts a document.
    template
        What stands around the prompt: story, technical, conversation or creative; or a text with {prompt} in it, or a
        file that holds one.
    control
        A value of a field that stood before the training texts (data.control), as FIELD=VALUE; may be given several
        times.
    guidance
        Above 1, texts are more of what --control asks for than the training texts were (2 is much), in twice the time.
    allow_special
        Take what looks like a special token in the prompt, such as <|endoftext|>, for one.
    completions
        So many texts, each with a seed of its own; with --beams the best of those found.
    beams
        Search for the likeliest texts with so many beams, instead of drawing one. 0: no search.
    length_penalty
        Of beam search: texts are ranked by their log-probability over their length to this power.
    show_probabilities
        Colour each token by its surprisal, and list what else could have stood there.
    draft
        Guess ahead, for the same text in less time: prompt looks for the last words further up; or the run or folder
        of a smaller model of the same vocabulary.
    weights
        How the weights are held: float32, bfloat16, int8 or int4, each smaller and faster than the one before;
        automatic is bfloat16 where the machine multiplies in it.
    execution
        eager, or compiled: a token then takes half to nine tenths of the time, but the first waits for PyTorch's
        compiler (half a minute to two, less the next time), which needs a C++ compiler.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    from wholegpt.generation.templates import fill_template
    from wholegpt.runs.load import load

    _check_counts(completions, beams, length_penalty)
    if settings.alternatives > 0 and not (common.json or show_probabilities or beams):
        raise ConfigError("--alternatives are shown by --show-probabilities or --json; add one")
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
        shown = ""  # the text does not go on from its source
    if beams:
        if show_probabilities or draft:
            raise ConfigError("--show-probabilities and --draft mean nothing for beam search; leave them out")
        _search(lm, prompt, shown, completions, beams, length_penalty, common, {**asked, **chosen})
        return
    guesser = draft if draft in ("", "prompt") else load(draft, **opening)
    _draw(
        lm, [prompt] * completions, shown, show_probabilities, common, {**asked, **chosen, "draft": guesser}
    )


def _check_counts(completions: int, beams: int, length_penalty: float) -> None:
    if not 1 <= completions <= MOST_TEXTS:
        raise ConfigError(f"--completions is {completions}; expected 1 to {MOST_TEXTS:,}")
    if beams < 0:
        raise ConfigError(f"--beams is {beams}; expected at least 0")
    if beams > MOST_BEAMS:
        raise ConfigError(f"--beams is {beams}; expected at most {MOST_BEAMS}; try fewer beams")
    if length_penalty != 1 and not beams:
        raise ConfigError("--length-penalty ranks what --beams finds; give both or neither")
    if beams and completions > beams:
        raise ConfigError(f"--completions is {completions}; {beams} beams find so many texts at most")


def _draw(
    lm: "LanguageModel",
    prompts: list[str],
    shown: str,
    show_probabilities: bool,
    common: Common,
    settings: dict[str, Any],
) -> None:
    """Texts that are drawn; a single one is shown as it comes."""
    begun: list[str] = []

    def emit(_: int, text: str) -> None:
        # The prompt waits for the first text, so that a refused setting leaves standard output empty.
        write_output(text if begun else shown + text, end="")
        begun.append(text)

    started = time.perf_counter()
    stream = not (common.json or show_probabilities or len(prompts) > 1)
    try:
        texts = lm.generate_all(prompts, emit=emit if stream else None, console=common.console, **settings)
    except KeyboardInterrupt as interruption:
        texts = _kept(interruption)
        started += _compiling_seconds(lm)
        if common.json or any(one.text for one in texts):
            _show(shown, texts, bool(begun), show_probabilities, started, common)
        raise Interrupted("interrupted") from None
    started += _compiling_seconds(lm)
    _show(shown, texts, bool(begun), show_probabilities, started, common)


def _compiling_seconds(lm: "LanguageModel") -> float:
    """Of the time of writing, what PyTorch's compiler took."""
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
    """The texts, or the end of the one that was ``written`` as it came."""
    if show_probabilities and not common.json:
        for number, one in enumerate(texts):
            if number:
                write_output(BETWEEN_TEXTS, end="")
            _show_probabilities(shown, one)
        return
    empty = sum(not one.text and one.finish_reason == "end_of_text" for one in texts)
    if empty:
        common.console.note(f"{empty:,} of {len(texts):,} texts are empty: the model ended them at once")
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
    """What had been written."""
    from wholegpt.generation import InterruptedGeneration

    return interruption.completions if isinstance(interruption, InterruptedGeneration) else []


def _completion_json(one: "Completion") -> dict[str, Any]:
    fields = {name: getattr(one, name) for name in ("text", "token_ids", "finish_reason")}
    if one.choices:
        fields["tokens"] = [dataclasses.asdict(choice) for choice in one.choices]
    return fields


def _show_probabilities(prompt: str, completion: "Completion") -> None:
    """The text in colours, then one line for each token; a stop text is none of it, and is not in colour."""
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
    """A schema as it stands, or what the file of that name holds."""
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
        raise ConfigError(f"json_schema: {given[:100]}: neither a JSON object nor a file that holds one")
    return text


def _control(given: tuple[str, ...]) -> dict[str, str]:
    """Values by field, from ``FIELD=VALUE`` each."""
    asked: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name in asked:
            problem = "names a field that another one names too" if equals else "has no ="
            raise ConfigError(f"--control '{one}' {problem}; expected FIELD=VALUE, each field once")
        asked[name] = value
    return asked
