"""The ladder that led to GPT: each kind of model trained on the same text for the same time, and at the same size.

Every rung is searched for in the same way before: short trainings of each width and learning rate, each a share of the
time that it gets, and of each rate again at the size that all have; of n-grams as many orders.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import torch

from wholegpt.analysis.ladder_page import write_ladder_page
from wholegpt.console import Console
from wholegpt.data import Corpus, PreparedData
from wholegpt.errors import ConfigError, Interrupted, NumericsError, RunError
from wholegpt.evaluation import evaluate_tokens
from wholegpt.files import lock_folder, read_json, write_json_atomic
from wholegpt.interrupts import interruptible
from wholegpt.model import flops_per_token, parameter_count
from wholegpt.model.baselines import NGram
from wholegpt.planning.trial import run_trial
from wholegpt.runs import api
from wholegpt.runs.folder import with_absolute_paths
from wholegpt.runs.train import Run
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, Attention, Positions
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.settings.validation import complete_model
from wholegpt.stages.text_source import open_text, prepared_text
from wholegpt.training.resolution import resolve

TRIAL_SHARE = 1 / 8
"""Of the time of a rung that each trial takes."""
PACE_STEPS = 6
LEARNING_RATES = (0.003, 0.01)
WIDTHS = (128, 256)
NARROWEST, STEP, WIDEST = 32, 8, 2048
"""Widths among which the one with as many parameters as another model is looked for."""
ORDERS = (2, 3, 4, 6)
TRIAL_TOKENS = 20_000
"""Held-out tokens that a trial is measured on."""
CHOICE, SETTINGS = "choice.json", "settings.json"
DECIDED = ("optimizer.learning_rate", "training.steps", "training.epochs")
"""Settings that the ladder decides itself, besides all of the model's but its context."""


@dataclass(frozen=True)
class Rung:
    """One kind of model."""

    name: str
    words: str
    """What it does, in a line."""
    of_width: Callable[[int], ModelConfig] | None = None
    """The model of a width, but for vocabulary and context."""
    orders: Sequence[int] = ()
    """Of n-grams, those that are tried."""


def _transformer(like: ModelConfig, **changes: Any) -> Callable[[int], ModelConfig]:
    """A transformer like a published one: a layer for each 64 of width, two at least; heads of 32."""

    def of_width(width: int) -> ModelConfig:
        sizes = {
            "d_model": width,
            "n_layers": max(2, round(width / 64)),
            "n_heads": max(1, width // 32),
            "d_head": 32,
        }
        return dataclasses.replace(like, **{**sizes, "n_kv_heads": 0, "d_ff": 0, "dropout": 0.0, **changes})

    return of_width


def _recurrent(kind: Architecture) -> Callable[[int], ModelConfig]:
    """Two layers of one kind."""
    return lambda width: ModelConfig(architecture=kind, d_model=width, n_layers=2)


RUNGS = (
    Rung("uniform", "every token as likely", orders=(0,)),
    Rung("unigram", "how often each token comes", orders=(1,)),
    Rung("n-gram", "what followed the last few tokens, with Kneser–Ney smoothing", orders=ORDERS),
    Rung(
        "average",
        "the mean of all that came before",
        _transformer(presets.gpt2(), attention=Attention.average, positions=Positions.learned),
    ),
    Rung("Elman", "a state made of the one before and the token", _recurrent(Architecture.elman)),
    Rung("GRU", "the same with gates", _recurrent(Architecture.gru)),
    Rung("LSTM", "the same with gates and a memory", _recurrent(Architecture.lstm)),
    Rung("GPT-1", "attention, norms after the sums", _transformer(presets.gpt1())),
    Rung("GPT-2", "norms before the layers", _transformer(presets.gpt2())),
    Rung("modern", "rotary positions, RMSNorm, SwiGLU", _transformer(presets.modern("tiny"))),
)


@dataclass(frozen=True)
class Choice:
    """What the search of a rung found."""

    size: int
    """The width, or the order of n-grams."""
    learning_rate: float
    tried: list[list[float | None]]
    """Size, learning rate and nats per token of each trial; none of one that diverged."""


@dataclass(frozen=True)
class Result:
    """A trained rung."""

    size: int
    learning_rate: float
    parameters: int
    bits_per_byte: float
    """Of the held-out text, by the last weights."""
    bytes: int
    """Of the held-out text, all of them scored but those of its first token."""
    intervals: dict[str, list[float]]
    """95%, of ``bits_per_byte`` and ``nats_per_token``: a bootstrap over pieces of the text, not over trainings."""
    nats_per_token: float
    train_flops: float
    """3 · forward FLOPs a token · tokens."""
    train_seconds: float
    tokens: int
    tokens_per_second: float
    sample: str


@dataclass(frozen=True)
class Ladder:
    """All rungs, on one text."""

    corpus: str
    folder: str
    """Where the page and the runs are."""
    minutes: float
    rungs: list[dict[str, Any]]
    """Of each its name, what it does, what was tried, its result, and that at the size of the last (``equal``)."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def climb(
    *sources: str | Path,
    minutes: float,
    config: Config | None = None,
    out: str | Path | None = None,
    rungs: Sequence[str] = (),
    console: Console | None = None,
) -> Ladder:
    """Train every rung (or those named) for so many ``minutes``, then each with as many parameters as the last one has.

    Settings that all share come from ``config``, or from the recipe ``ladder``. Everything is kept in ``out``
    (``runs/ladder-NAME`` unless given), and a second call goes on there. Raises ``ConfigError`` for a time that is
    none, for a rung that does not exist, for settings that the ladder decides itself, and for a folder where other
    ones were begun with; ``NumericsError`` where every trial of a rung diverges.
    """
    console = console or Console()
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes is {minutes:g}; expected a finite time above 0")
    named = {_name(rung): rung for rung in RUNGS}
    unknown = [name for name in rungs if name.lower() not in named]
    if unknown:
        raise ConfigError(
            f"there is no rung {unknown[0]!r}; {presets.nearest(unknown[0], [r.name for r in RUNGS])}"
        )
    asked = [name.lower() for name in rungs]
    chosen = [rung for name, rung in named.items() if not asked or name in asked]
    base = config or presets.recipe("ladder")
    if sources:
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, source=tuple(map(str, sources))))
    _refuse_decided(base)
    networks = sum(rung.of_width is not None for rung in chosen)
    console.note(
        f"{networks} networks, up to 2.75 × {minutes:g} min each: {networks * 2.75 * minutes:.3g} min"
    )
    base, corpus = open_text(base, console)
    name = corpus.name if corpus else Path(base.data.source[0]).name
    folder = Path(out) if out else Path("runs") / f"ladder-{name}"
    with lock_folder(folder, "ladder"):
        return _climb(chosen, base, corpus, minutes, folder, console)


def _climb(
    chosen: Sequence[Rung],
    base: Config,
    corpus: Corpus | None,
    minutes: float,
    folder: Path,
    console: Console,
) -> Ladder:
    """``climb`` in a folder that is locked."""
    try:
        data, base = _prepared(with_absolute_paths(base), corpus, minutes, folder, console)
        done = _climbed(chosen, base, data, minutes, folder, console)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"interrupted; what is done is kept in {folder}, and the same command goes on"
        ) from None
    ladder = Ladder(data.manifest.corpus, str(folder), minutes, done)
    write_json_atomic(folder / "ladder.json", ladder.to_json())
    write_ladder_page(folder / "ladder.html", ladder.to_json())
    return ladder


def _climbed(
    chosen: Sequence[Rung],
    base: Config,
    data: PreparedData,
    minutes: float,
    folder: Path,
    console: Console,
) -> list[dict[str, Any]]:
    """Every rung, searched for and trained, then each at the size of the last."""
    done: list[dict[str, Any]] = []
    for rung in chosen:
        console.note(f"{rung.name}: {rung.words}")
        sizes = rung.orders if rung.of_width is None else WIDTHS
        place = folder / _name(rung)
        choice = _search(rung, sizes, base, data, minutes, place, console)
        result = _train(rung, choice, base, data, minutes, place, console)
        done.append({"name": rung.name, "words": rung.words, "tried": choice.tried, "result": asdict(result)})
    parameters = done[-1]["result"]["parameters"]
    for rung, one in zip(chosen, done, strict=True):
        if rung.of_width is None:
            continue
        width = width_of_size(rung.of_width, parameters, data.tokenizer.vocab_size, base.model.context_length)
        if width == one["result"]["size"]:
            one["equal"] = one["result"]
            continue
        place = folder / f"{_name(rung)}-equal-{width}"
        console.note(f"{rung.name}, with about as many parameters as {chosen[-1].name}: {width} wide")
        choice = _search(rung, [width], base, data, minutes, place, console)
        one["equal"] = asdict(_train(rung, choice, base, data, minutes, place, console))
    return done


def _name(rung: Rung) -> str:
    return rung.name.lower()


def _refuse_decided(config: Config) -> None:
    """Raise ``ConfigError`` for settings that would change nothing."""
    given, usual = (
        dict(field.split(": ", 1) for field in _flat(one)) for one in (config, presets.recipe("ladder"))
    )
    decided = [
        name
        for name, value in given.items()
        if value != usual[name]
        and (name in DECIDED or (name.startswith("model.") and name != "model.context_length"))
    ]
    if decided:
        raise ConfigError(f"the ladder decides {', '.join(decided)} itself; leave it out")


def _flat(config: Config) -> list[str]:
    """Each setting as ``SECTION.FIELD: value``."""
    return [
        f"{section}.{name}: {value}"
        for section, fields in to_mapping(config).items()
        for name, value in fields.items()
    ]


def _prepared(
    config: Config, corpus: Corpus | None, minutes: float, folder: Path, console: Console
) -> tuple[PreparedData, Config]:
    """The text, prepared once for all rungs, in a folder that is of these settings alone."""
    data, settings = folder / "data", [f"minutes: {minutes:g}", *_flat(config)]
    kept = _begun_with(folder, settings)
    if kept != settings:
        pairs = zip_longest(kept, settings, fillvalue="nothing")
        old, new = next((a, b) for a, b in pairs if a != b)
        raise ConfigError(f"{folder}: was begun with {old}, not {new}; give the same, or another --out")
    if not PreparedData.exists(data):
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / SETTINGS, settings)
        prepared_text(config, corpus, data, console)
    source = dataclasses.replace(config.data, source=(str(data.resolve()),))
    return PreparedData.open(data), dataclasses.replace(config, data=source)


def _begun_with(folder: Path, settings: list[str]) -> list[str]:
    """The settings of the ladder in ``folder``; those given for a new one. Raises ``RunError`` for another folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return settings
    try:
        return msgspec.convert(read_json(folder / SETTINGS), list[str])
    except (OSError, ValueError):
        raise RunError(f"{folder}: exists and is not a ladder; name another --out") from None


def _search(
    rung: Rung,
    sizes: Sequence[int],
    base: Config,
    data: PreparedData,
    minutes: float,
    folder: Path,
    console: Console,
) -> Choice:
    """The best of some ``sizes``, each with every learning rate, or of orders."""
    kept = folder.with_suffix(f".{CHOICE}")
    if kept.exists():
        return msgspec.convert(read_json(kept), Choice)
    rates = (0.0,) if rung.of_width is None else LEARNING_RATES
    candidates = [(size, rate) for size in sizes for rate in rates]
    nats: dict[tuple[int, float], float] = {}
    for size, rate in candidates if len(candidates) > 1 else []:
        config = _config(rung, size, rate, base, data, 60 * minutes * TRIAL_SHARE, console)
        try:
            nats[size, rate] = _trial_nats(config, data, console)
        except NumericsError as error:
            console.note(f"{rung.name}, size {size}, learning rate {rate:g}: {error}")
    if len(candidates) > 1 and not nats:
        raise NumericsError(f"{rung.name}: every trial diverged; try another text, or a longer time")
    size, rate = min(nats, key=lambda one: nats[one]) if nats else candidates[0]
    tried = [[*one, nats.get(one)] for one in candidates] if nats else []
    choice = Choice(size, rate, tried)
    write_json_atomic(kept, asdict(choice))
    return choice


def _config(
    rung: Rung, size: int, rate: float, base: Config, data: PreparedData, seconds: float, console: Console
) -> Config:
    """What a training of so many ``seconds`` is: its pace is measured first."""
    length = base.model.context_length
    if rung.of_width is None:
        model = ModelConfig(architecture=Architecture.ngram, ngram_order=size, context_length=length)
        return resolve(dataclasses.replace(base, model=model), data)
    model = dataclasses.replace(rung.of_width(size), vocab_size=0, context_length=length)
    optimizer = dataclasses.replace(base.optimizer, learning_rate=rate)
    training = dataclasses.replace(base.training, steps=PACE_STEPS, epochs=0.0)
    config = resolve(dataclasses.replace(base, model=model, optimizer=optimizer, training=training), data)
    with console.progress("measuring its pace", PACE_STEPS) as progress:
        pace = run_trial(config, data, progress, sample=1).rates.step_seconds
    steps = max(PACE_STEPS, round(seconds / pace))
    if steps * pace > 2 * seconds:
        console.warn(f"{rung.name}: {steps} steps, the fewest, take {steps * pace:.1f} s, not {seconds:.1f}")
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def _trial_nats(config: Config, data: PreparedData, console: Console) -> float:
    """Nats per token of the held-out text after a short training, or counting."""
    if config.model.architecture is Architecture.ngram:
        model = interruptible(lambda: NGram.counted(data.train.read(0, len(data.train)), config.model))
        dtype, device = config.precision.dtype, torch.device("cpu")
        tokens, quiet = data.validation, Console(quiet=True)
        score = evaluate_tokens(model, tokens, data.tokenizer, device, dtype, quiet, sample=TRIAL_TOKENS)
        return score.nats_per_token
    with console.progress("searching", config.training.steps) as progress:
        trial = run_trial(config, data, progress, sample=TRIAL_TOKENS)
    return min(trial.validation_nats.values())


def _train(
    rung: Rung,
    choice: Choice,
    base: Config,
    data: PreparedData,
    minutes: float,
    folder: Path,
    console: Console,
) -> Result:
    """The rung trained for so many minutes, or what an earlier call made of it."""
    kept = folder / "result.json"
    if not kept.exists():
        if (folder / "config.yaml").exists():
            run: Run[Any] = api.resume(folder, console=console)
        else:
            config = _config(rung, choice.size, choice.learning_rate, base, data, 60 * minutes, console)
            run = api.train(config=config, out=folder, console=console)
        write_json_atomic(kept, asdict(_result(run, choice, data, console)))
    return msgspec.convert(read_json(kept), Result)


def _result(run: Run[Any], choice: Choice, data: PreparedData, console: Console) -> Result:
    state, lm = run.state, run.load(checkpoint="last")
    score = lm.evaluate_tokens(data.validation, 0, run.config.precision.dtype, console)
    intervals = {name: score.intervals[name] for name in ("bits_per_byte", "nats_per_token")}
    flops = 3 * flops_per_token(run.config.model) * state.tokens
    return Result(
        size=choice.size,
        learning_rate=choice.learning_rate,
        parameters=run.parameters,
        bits_per_byte=score.bits_per_byte,
        bytes=score.bytes,
        intervals={name: [one.low, one.high] for name, one in intervals.items()},
        nats_per_token=score.nats_per_token,
        train_flops=flops,
        train_seconds=state.train_seconds,
        tokens=state.tokens,
        tokens_per_second=state.tokens / max(state.train_seconds, 1e-9),
        sample=run.sample,
    )


def width_of_size(
    of_width: Callable[[int], ModelConfig], parameters: int, vocab_size: int, context_length: int
) -> int:
    """The width whose model has about as many ``parameters``, of which a wider one has more."""

    def parameters_of(width: int) -> int:
        config = dataclasses.replace(of_width(width), vocab_size=vocab_size, context_length=context_length)
        return parameter_count(complete_model(config)).total

    widths = range(NARROWEST, WIDEST, STEP)
    above = bisect.bisect_left(widths, parameters, key=parameters_of)
    nearest = widths[max(0, above - 1) : above + 1]
    return min(nearest, key=lambda width: abs(math.log(parameters_of(width) / parameters)))


def sure_bits(result: Mapping[str, Any]) -> str:
    """Bits per byte with their interval."""
    low, high = result["intervals"]["bits_per_byte"]
    return f"{result['bits_per_byte']:.4f} ({low:.4f} to {high:.4f})"


def table_rows(ladder: Mapping[str, Any]) -> list[list[str]]:
    """The table for people, its first row the names of the columns."""
    rows = [
        [
            "rung",
            "bits per byte (95%)",
            "parameters",
            "training FLOPs",
            "training seconds",
            "tokens/s",
            "width or order, rate",
            "equal parameters: bits per byte",
        ]
    ]
    for one in ladder["rungs"]:
        result, equal = one["result"], one.get("equal")
        rate = f", {result['learning_rate']:g}" if result["learning_rate"] else ""
        rows.append(
            [
                one["name"],
                sure_bits(result),
                f"{result['parameters']:,}",
                f"{result['train_flops']:.2e}" if result["train_flops"] else "–",
                f"{result['train_seconds']:.0f}",
                f"{result['tokens_per_second']:,.0f}",
                f"{result['size']}{rate}",
                f"{equal['bits_per_byte']:.4f} ({equal['parameters']:,})" if equal else "–",
            ]
        )
    return rows
