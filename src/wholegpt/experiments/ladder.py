"""The ladder of baselines: every kind of model is trained on the same text, for the same time and at the same size.

Each baseline gets the same search before it is trained: short trials of each width with each learning rate, each with
the same share of the time. At equal size, each learning rate is tried once more. For n-grams, several orders are tried.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import torch

from wholegpt.analysis.ladder_page import write_ladder_page
from wholegpt.console import QUIET, Console
from wholegpt.data import Corpus, PreparedData
from wholegpt.errors import ConfigError, Interrupted, NumericsError, RunError
from wholegpt.evaluation import evaluate_tokens
from wholegpt.experiments.baselines import BASELINES, Baseline, width_of_size
from wholegpt.experiments.results import Choice, Ladder, Result
from wholegpt.files import lock_folder, read_json, write_json_atomic
from wholegpt.interrupts import interruptible
from wholegpt.model import flops_per_token
from wholegpt.model.baselines import NGram
from wholegpt.planning import Budget
from wholegpt.planning.trial import run_trial
from wholegpt.runs import api
from wholegpt.runs.folder import with_absolute_paths
from wholegpt.runs.train import Run
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture
from wholegpt.settings.schema import Config, ModelConfig
from wholegpt.settings.serialization import to_mapping
from wholegpt.stages.text_source import open_text, prepared_text
from wholegpt.training.resolution import resolve

TRIAL_SHARE = 1 / 8
"""Duration of a trial as a share of the training time of a baseline."""
PACE_STEPS = 6
"""Steps that measure the time per step."""
LEARNING_RATES = (0.003, 0.01)
WIDTHS = (128, 256)
TRIAL_TOKENS = 20_000
"""Validation tokens on which trials are compared."""
PACE_TOKENS = 2_000
"""Validation tokens for measuring the speed of evaluation."""
EVALUATIONS = 3
"""How often each training evaluates the whole validation text, about."""
RUN_SECONDS = 3.0
"""Time to create a run, and to write its checkpoints, samples and report."""
CHOICE, SETTINGS, TIME = "choice.json", "settings.json", "time.json"
DECIDED = ("optimizer.learning_rate", "training.steps", "training.epochs")
"""Settings that the ladder decides, in addition to those of the model except its context length."""


@dataclass(frozen=True)
class Conditions:
    """What all baselines have in common."""

    base: Config
    data: PreparedData
    seconds: float
    """Training time of each network."""
    folder: Path
    console: Console


def compare_baselines(
    *sources: str | Path,
    minutes: float,
    config: Config | None = None,
    out: str | Path | None = None,
    baselines: Sequence[str] = (),
    console: Console | None = None,
) -> Ladder:
    """Train every baseline (or the named ``baselines``) for the same time, then each at the size of the last one.

    The whole comparison takes about ``minutes``; ``_measured_seconds`` divides them. ``config`` holds the common
    settings; the default is the recipe ``ladder``. All results are kept in ``out`` (default ``runs/ladder-NAME``), and
    a second call with the same arguments continues there.

    Raises ``ConfigError`` if ``minutes`` is not a positive finite number or too little, for an unknown baseline, for
    settings that the ladder decides itself, and for a folder with results of other settings. Raises ``NumericsError``
    if all trials of a baseline diverge.
    """
    console, budget = console or Console(), Budget(minutes)
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes is {minutes:g}; expected a finite time above 0")
    chosen = _chosen(baselines)
    base = config or presets.recipe("ladder")
    if sources:
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, source=tuple(map(str, sources))))
    _refuse_decided(base)
    base, corpus = open_text(base, console)
    name = corpus.name if corpus else Path(base.data.source[0]).name
    folder = Path(out) if out else Path("runs") / f"ladder-{name}"
    with lock_folder(folder, "ladder"):
        try:
            data, base = _prepared(with_absolute_paths(base), corpus, folder, console)
            seconds = _training_seconds(chosen, base, data, budget, folder, console)
            done = _compared(chosen, Conditions(base, data, seconds, folder, console))
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(
                f"interrupted; finished results are kept in {folder}, and the same command continues"
            ) from None
        ladder = Ladder(data.manifest.corpus, str(folder), minutes, seconds, done)
        write_json_atomic(folder / "ladder.json", ladder.to_json())
        write_ladder_page(folder / "ladder.html", ladder.to_json())
        return ladder


def _chosen(names: Sequence[str]) -> list[Baseline]:
    """Return the named baselines in the order of the ladder; all if ``names`` is empty."""
    known = {baseline.key for baseline in BASELINES}
    for name in names:
        if name.lower() not in known:
            hint = presets.nearest(name, [baseline.name for baseline in BASELINES])
            raise ConfigError(f"unknown baseline {name!r}; {hint}")
    asked = [name.lower() for name in names]
    return [baseline for baseline in BASELINES if not asked or baseline.key in asked]


def _compared(chosen: Sequence[Baseline], conditions: Conditions) -> list[dict[str, Any]]:
    """Search for and train every baseline, then train each at the size of the last one."""
    folder, base, console = conditions.folder, conditions.base, conditions.console
    done: list[dict[str, Any]] = []
    for baseline in chosen:
        console.note(f"{baseline.name}: {baseline.description}")
        sizes = baseline.orders if baseline.of_width is None else WIDTHS
        choice, result = _searched_and_trained(baseline, sizes, conditions, folder / baseline.key)
        named = {"name": baseline.name, "description": baseline.description}
        done.append({**named, "tried": choice.tried, "result": asdict(result)})
    parameters, vocab_size = done[-1]["result"]["parameters"], conditions.data.tokenizer.vocab_size
    for baseline, one in zip(chosen, done, strict=True):
        if baseline.of_width is None:
            continue
        width = width_of_size(baseline.of_width, parameters, vocab_size, base.model.context_length)
        if width == one["result"]["size"]:
            one["equal"] = one["result"]
            continue
        console.note(f"{baseline.name} with about as many parameters as {chosen[-1].name}: width {width}")
        run = folder / f"{baseline.key}-equal-{width}"
        one["equal"] = asdict(_searched_and_trained(baseline, [width], conditions, run)[1])
    return done


def _searched_and_trained(
    baseline: Baseline, sizes: Sequence[int], conditions: Conditions, folder: Path
) -> tuple[Choice, Result]:
    choice = _search(baseline, sizes, conditions, folder)
    return choice, _train(baseline, choice, conditions, folder)


def _refuse_decided(config: Config) -> None:
    """Raise ``ConfigError`` for settings that the ladder would override."""
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
        raise ConfigError(f"the ladder decides {', '.join(decided)} itself; remove this setting")


def _flat(config: Config) -> list[str]:
    """Return each setting as ``SECTION.FIELD: value``."""
    return [
        f"{section}.{name}: {value}"
        for section, fields in to_mapping(config).items()
        for name, value in fields.items()
    ]


def _training_seconds(
    chosen: Sequence[Baseline],
    base: Config,
    data: PreparedData,
    budget: Budget,
    folder: Path,
    console: Console,
) -> float:
    """Return the training time of each network, which is kept so that an interrupted ladder continues with it."""
    kept = folder / TIME
    if kept.exists():
        recorded = read_json(kept)
        _refuse_other(folder, f"minutes: {recorded['minutes']:g}", f"minutes: {budget.minutes:g}")
        return recorded["seconds"]
    seconds = _measured_seconds(chosen, base, data, budget, console)
    write_json_atomic(kept, {"minutes": budget.minutes, "seconds": seconds})
    return seconds


def _measured_seconds(
    chosen: Sequence[Baseline], base: Config, data: PreparedData, budget: Budget, console: Console
) -> float:
    """Divide the rest of the budget by the networks: return the seconds of one training of each.

    A network gets a trial of ``TRIAL_SHARE`` of this time for each width and learning rate, the training, a trial for
    each learning rate at equal size, and a second training. Before each of these, its pace is measured, and each
    training ends with evaluations. The speed of all this is measured here, for the largest width. Raises
    ``ConfigError`` if a trial would have fewer than ``PACE_STEPS`` steps.
    """
    networks = [baseline for baseline in chosen if baseline.of_width is not None]
    at_equal_size = len(LEARNING_RATES)
    trials = len(WIDTHS) * len(LEARNING_RATES) + at_equal_size
    other = shortest = 0.0
    for baseline in networks:
        config = _sized(baseline, WIDTHS[-1], LEARNING_RATES[0], base, data)
        with console.progress(f"measuring the speed of {baseline.name}", PACE_STEPS) as progress:
            rates = run_trial(config, data, progress, sample=PACE_TOKENS).rates
        pace = PACE_STEPS * rates.step_seconds
        scored = TRIAL_TOKENS * trials + 2 * EVALUATIONS * len(data.validation)
        other += (trials + 2) * pace + scored / rates.validation_tokens_per_second + 2 * RUN_SECONDS
        shortest = max(shortest, pace / TRIAL_SHARE)
    if not networks:
        return 60 * budget.minutes
    trainings = len(networks) * (2 + trials * TRIAL_SHARE)
    seconds = (60 * budget.minutes - budget.spent() - other) / trainings
    if seconds < shortest:
        least = (budget.spent() + other + shortest * trainings) / 60
        raise ConfigError(
            f"--minutes is {budget.minutes:g}; the comparison of {len(networks)} networks takes at least "
            f"{math.ceil(10 * least + 1) / 10:.1f} minutes on this text and machine; give more time, or compare fewer "
            "of them by --baseline"
        )
    console.note(
        f"{len(networks)} networks, {seconds:.1f} s for each training, {budget.minutes:g} min in all"
    )
    return seconds


def _refuse_other(folder: Path, recorded: str, asked: str) -> None:
    """Raise ``ConfigError`` if a setting differs from the one that the ladder in ``folder`` was created with."""
    if recorded != asked:
        raise ConfigError(
            f"{folder}: was created with {recorded}, not {asked}; use the same settings, or another --out"
        )


def _prepared(
    config: Config, corpus: Corpus | None, folder: Path, console: Console
) -> tuple[PreparedData, Config]:
    """Prepare the text once for all baselines. Raises ``ConfigError`` if ``folder`` belongs to other settings."""
    data, settings = folder / "data", _flat(config)
    for recorded, asked in zip_longest(_recorded_settings(folder) or settings, settings, fillvalue="nothing"):
        _refuse_other(folder, recorded, asked)
    if not PreparedData.exists(data):
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / SETTINGS, settings)
        prepared_text(config, corpus, data, console)
    source = dataclasses.replace(config.data, source=(str(data.resolve()),))
    return PreparedData.open(data), dataclasses.replace(config, data=source)


def _recorded_settings(folder: Path) -> list[str] | None:
    """Return the settings of the ladder in ``folder``, or ``None`` if it is new. Raises ``RunError`` otherwise."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return msgspec.convert(read_json(folder / SETTINGS), list[str])
    except (OSError, ValueError):
        raise RunError(f"{folder}: exists and is not a ladder; name another --out") from None


def _search(baseline: Baseline, sizes: Sequence[int], conditions: Conditions, folder: Path) -> Choice:
    """Return the best of the ``sizes`` and learning rates. The choice is kept beside ``folder``."""
    kept = folder.with_suffix(f".{CHOICE}")
    if kept.exists():
        return msgspec.convert(read_json(kept), Choice)
    rates = (0.0,) if baseline.of_width is None else LEARNING_RATES
    candidates = [(size, rate) for size in sizes for rate in rates]
    nats: dict[tuple[int, float], float] = {}
    seconds = conditions.seconds * TRIAL_SHARE
    for size, rate in candidates if len(candidates) > 1 else []:
        config = _config(baseline, size, rate, conditions, seconds)
        try:
            nats[size, rate] = _trial_nats(config, conditions.data, conditions.console)
        except NumericsError as error:
            conditions.console.note(f"{baseline.name}, size {size}, learning rate {rate:g}: {error}")
    if len(candidates) > 1 and not nats:
        raise NumericsError(f"{baseline.name}: all trials diverged; try another text, or more minutes")
    size, rate = min(nats, key=lambda one: nats[one]) if nats else candidates[0]
    tried = [[*one, nats.get(one)] for one in candidates] if nats else []
    choice = Choice(size, rate, tried)
    write_json_atomic(kept, asdict(choice))
    return choice


def _config(baseline: Baseline, size: int, rate: float, conditions: Conditions, seconds: float) -> Config:
    """Return the settings of a training of about ``seconds``. The time per step is measured first."""
    data, console = conditions.data, conditions.console
    config = _sized(baseline, size, rate, conditions.base, data)
    if baseline.of_width is None:
        return config
    with console.progress("measuring the time per step", PACE_STEPS) as progress:
        pace = run_trial(config, data, progress, sample=1).rates.step_seconds
    steps = max(PACE_STEPS, round(seconds / pace))
    if steps * pace > 2 * seconds:
        console.warn(
            f"{baseline.name}: the minimum of {steps} steps takes {steps * pace:.1f} s instead of {seconds:.1f} s"
        )
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def _sized(baseline: Baseline, size: int, rate: float, base: Config, data: PreparedData) -> Config:
    """Return the settings of a baseline of this size; those of a network have ``PACE_STEPS`` steps."""
    length = base.model.context_length
    if baseline.of_width is None:
        model = ModelConfig(architecture=Architecture.ngram, ngram_order=size, context_length=length)
        return resolve(dataclasses.replace(base, model=model), data)
    model = dataclasses.replace(baseline.of_width(size), vocab_size=0, context_length=length)
    optimizer = dataclasses.replace(base.optimizer, learning_rate=rate)
    training = dataclasses.replace(base.training, steps=PACE_STEPS, epochs=0.0)
    return resolve(dataclasses.replace(base, model=model, optimizer=optimizer, training=training), data)


def _trial_nats(config: Config, data: PreparedData, console: Console) -> float:
    """Return the nats per token of the validation text after a short training (n-grams: after counting)."""
    if config.model.architecture is Architecture.ngram:
        model = interruptible(lambda: NGram.counted(data.train.read(0, len(data.train)), config.model))
        dtype, device = config.precision.dtype, torch.device("cpu")
        tokens = data.validation
        score = evaluate_tokens(model, tokens, data.tokenizer, device, dtype, QUIET, sample=TRIAL_TOKENS)
        return score.nats_per_token
    with console.progress("searching", config.training.steps) as progress:
        trial = run_trial(config, data, progress, sample=TRIAL_TOKENS)
    return min(trial.validation_nats.values())


def _train(baseline: Baseline, choice: Choice, conditions: Conditions, folder: Path) -> Result:
    """Train the baseline, or return the result of an earlier call. An interrupted run is resumed."""
    kept, console = folder / "result.json", conditions.console
    if not kept.exists():
        if (folder / "config.yaml").exists():
            run: Run[Any] = api.resume(folder, console=console)
        else:
            config = _config(baseline, choice.size, choice.learning_rate, conditions, conditions.seconds)
            run = api.train(config=config, out=folder, console=console)
        write_json_atomic(kept, asdict(_result(run, choice, conditions.data, console)))
    return msgspec.convert(read_json(kept), Result)


def _result(run: Run[Any], choice: Choice, data: PreparedData, console: Console) -> Result:
    """Measure a finished run on the whole validation text."""
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
