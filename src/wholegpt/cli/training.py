"""``train``, ``plan`` and ``ladder``: pretraining, its cost, and the comparison of all baselines."""

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from wholegpt.cli.finetuning import next_steps, show_finetuned
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    Settings,
    grid,
    score_table,
    section,
)
from wholegpt.console import sample_for_people
from wholegpt.errors import ConfigError
from wholegpt.settings import presets
from wholegpt.settings.schema import Config
from wholegpt.settings.serialization import to_mapping, to_yaml
from wholegpt.settings.validation import (
    check,
    check_max_seconds,
    complete_optimizer,
    complete_schedule,
    derive_sizes,
    refuse_planned,
)

if TYPE_CHECKING:
    from wholegpt.runs.train import Run

Flag = Parameter(negative="")


def train(
    *source: str,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    preset: str | None = None,
    out: str | None = None,
    minutes: float | None = None,
    resume: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    allow_different_numerics: Annotated[bool, Flag] = False,
    print_config: Annotated[bool, Flag] = False,
    config: Settings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Train a model on text.

    Parameters
    ----------
    source
        Text files, folders, tables, corpus names (`wholegpt data list`), or a folder made by `data prepare`.
    recipe
        Recipe name, or a YAML file such as the config.yaml of a run. Other options override it.
    preset
        Published architecture: gpt1, gpt2-small, modern-tiny, ... Settings of the model override it.
    out
        Folder of the run. Default: runs/NAME.
    minutes
        Choose model and training so that everything finishes in this time. `wholegpt plan` shows the plan.
    resume
        Continue the run in this folder. The result is bit for bit that of an uninterrupted run. With --training.steps
        or --minutes, a finished run is trained longer.
    overwrite
        Replace an existing run in the --out folder.
    max_seconds
        Stop training after this many seconds. Reading the text and the final evaluation are not counted.
        --resume continues the run.
    allow_different_numerics
        Resume on a machine that cannot reproduce the run bit for bit.
    print_config
        Print the resolved settings and exit.

    Examples
    --------
    wholegpt train my.txt --out runs/mine
    wholegpt train notes/ --minutes 10 --out runs/ten

    """
    started = time.monotonic()  # --minutes includes the time to load PyTorch
    check_max_seconds("--max-seconds", max_seconds)
    if resume:
        changes = ChosenSettings.of(config)
        steps = changes.pop("training")["steps"] if [*changes.get("training", {})] == ["steps"] else None
        settings = source or recipe or preset or out or overwrite or reading.given() or common.placement()
        if settings or changes or common.seed is not None:
            raise ConfigError(
                f"--resume continues with the settings in {resume}/config.yaml; it accepts no text, and no options "
                "except --training.steps, --minutes, --max-seconds and --allow-different-numerics"
            )
        if print_config:
            _show_config(presets.recipe(str(Path(resume) / "config.yaml")), common)
            return
        from wholegpt.runs import api

        resumed = api.resume(
            resume,
            steps=steps,
            minutes=minutes,
            max_seconds=max_seconds,
            allow_different_numerics=allow_different_numerics,
            console=common.console,
        )
        _show(resumed, common)
        return
    changes = section(_changes(source, config, reading, common), "model", preset=preset)
    if minutes is not None:
        _refuse_planned(minutes, changes, recipe, print_config)
    base = presets.recipe(recipe) if recipe else Config()
    chosen = presets.configure(changes, base, where="command line")
    check(chosen)
    if print_config:
        from wholegpt import runtime

        chosen = dataclasses.replace(
            chosen,
            model=derive_sizes(chosen.model),
            optimizer=complete_optimizer(chosen.optimizer),
            schedule=complete_schedule(chosen.schedule, chosen.training.steps)
            if chosen.training.steps
            else chosen.schedule,
        )
        _show_config(runtime.decide(chosen), common)
        return
    from wholegpt.runs import api

    run = api.train(
        config=chosen,
        out=out,
        overwrite=overwrite,
        max_seconds=max_seconds,
        minutes=minutes,
        started=started,
        console=common.console,
    )
    _show(run, common)


def plan(
    *source: str,
    minutes: float,
    memory: float | None = None,
    flops: float | None = None,
    bandwidth: float | None = None,
    config: Settings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Show the plan of `train --minutes`: model, training time, memory and expected loss.

    Parameters
    ----------
    source
        Text sources, as for `train`. With --flops, the default is an unlimited amount of English text.
    minutes
        Time for everything, in minutes.
    memory
        Memory limit in gigabytes. Default: the free memory of this machine.
    flops
        Plan for another machine: its FLOP/s for large matrix products in 16 bits, or in float32 with --precision.dtype
        float32. Needs --bandwidth and --memory. The machine is a GPU unless --device is cpu.
    bandwidth
        Plan for another machine: its memory bandwidth in bytes per second.

    Examples
    --------
    wholegpt plan my.txt --minutes 60
    wholegpt plan --minutes 60 --flops 4e14 --bandwidth 3e12 --memory 80

    """
    started = time.monotonic()
    changes = _changes(source, config, reading, common)
    _refuse_planned(minutes, changes, None, False)
    for name, value in (("memory", memory), ("flops", flops), ("bandwidth", bandwidth)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} is {value:g}; expected a number above 0")
    described = flops is not None or bandwidth is not None
    if described and (flops is None or bandwidth is None or memory is None):
        raise ConfigError(
            "--flops and --bandwidth describe another machine; give all of --flops, --bandwidth and --memory"
        )
    chosen = presets.configure(changes, where="command line")
    check(chosen)
    from wholegpt.planning import Machine
    from wholegpt.runs import api

    machine = Machine(flops, bandwidth, 1e9 * memory) if flops and bandwidth and memory else None
    limit = 1e9 * memory if memory and not machine else math.inf
    planned = api.plan(
        minutes=minutes,
        config=chosen,
        memory=limit,
        machine=machine,
        started=started,
        console=common.console,
    )
    common.show(planned.to_json(), planned.describe())


def ladder(
    *source: str,
    minutes: float,
    out: str | None = None,
    baseline: tuple[str, ...] = (),
    recipe: Annotated[str, Parameter(name=["--recipe", "--config"])] = "ladder",
    config: Settings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Compare all baselines, from n-grams to GPT, on one text: each is trained for the same time.

    The time is divided evenly among the networks. For each network, four short trials choose its width and learning
    rate (for n-grams, four orders are tried). Then it is trained, and once more, after two trials, with as many
    parameters as the last model. Finished results are kept; the same command continues an interrupted comparison.

    Parameters
    ----------
    source
        Text sources, as for `train`.
    minutes
        Time for everything, in minutes.
    out
        Folder for table, chart and runs. Default: runs/ladder-NAME.
    baseline
        Compare only this model: uniform, unigram, n-gram, average, Elman, GRU, LSTM, GPT-1, GPT-2 or modern. Can be
        repeated.
    recipe
        Common settings of all models.

    Examples
    --------
    wholegpt ladder my.txt --minutes 40
    wholegpt ladder my.txt --minutes 6 --baseline n-gram --baseline GPT-2

    """
    chosen = presets.configure(
        _changes(source, config, reading, common), presets.recipe(recipe), where="command line"
    )
    from wholegpt.experiments.ladder import compare_baselines
    from wholegpt.experiments.results import table_rows

    compared = compare_baselines(
        minutes=minutes, config=chosen, out=out, baselines=baseline, console=common.console
    ).to_json()
    common.show(compared, grid(table_rows(compared)), [f"Page: {compared['folder']}/ladder.html"])


def _changes(source: tuple[str, ...], config: Config, reading: Reading, common: Common) -> dict[str, Any]:
    """Return the settings given on the command line."""
    changes = section(ChosenSettings.of(config), "data", **reading.given())
    changes = section(changes, "runtime", seed=common.seed, **common.placement())
    return section(changes, "data", source=list(source), card="") if source else changes


def _refuse_planned(minutes: float, changes: dict[str, Any], recipe: str | None, print_config: bool) -> None:
    unfit = {
        "--recipe": recipe,
        "--print-config": print_config,
        "--preset": "preset" in changes.get("model", {}),
    }
    for option in filter(unfit.get, unfit):
        raise ConfigError(
            f"--minutes cannot be combined with {option}, because it plans the whole training; leave one out"
        )
    named = [f"{section}.{name}" for section, fields in changes.items() for name in fields]
    refuse_planned(minutes, named)


def _show_config(config: Config, common: Common) -> None:
    common.show(to_mapping(config), to_yaml(config).rstrip())


def _show(run: "Run[Any]", common: Common) -> None:
    result = run.to_json()
    if run.config.finetuning.model or "kind" in result["validation"]:
        show_finetuned(run, common)
        return
    sample = ["Sample:", "", sample_for_people(run.sample), ""] if run.config.logging.sample_tokens else []
    lines = [*sample, "Validation on all held-out text:", score_table(result["validation"])]
    best = result["best"]
    if best and best["step"] != result["steps"]:
        lines += [
            f"best during training: {best['nats_per_token']:.4f} on {best['tokens']:,} tokens, "
            f"at step {best['step']:,}; the commands below use that checkpoint"
        ]
    planned = result.get("plan")
    if planned:
        from wholegpt.planning.adjustment import announced

        loss, came = planned["bits_per_byte"], result["validation"]["bits_per_byte"]
        whole = result["steps"] == result["planned_steps"]
        outside = whole and not loss["low"] <= came <= loss["high"]
        plans = {"plan": announced(planned)}
        if adjustment := planned.get("adjustment"):
            plans[f"adjusted after step {adjustment['step']:,}"] = planned
        lines += [
            f"{name}: {one['train_seconds']:.1f} s of training, {one['bits_per_byte']['expected']:.4f} bits per byte "
            f"({one['bits_per_byte']['low']:.4f} to {one['bits_per_byte']['high']:.4f})"
            for name, one in plans.items()
        ]
        if outside:
            lines[-1] += "; the result is outside this range"
    lines += [
        f"after {result['steps']:,} of {result['planned_steps']:,} steps ({result['stop_reason']}); "
        f"{result['train_seconds']:.1f} s of training, "
        f"{result['other_seconds']:.1f} s of evaluation, samples and saving between the steps",
    ]
    common.show(result, "\n".join(lines), next_steps(run))
