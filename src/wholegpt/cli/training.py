"""``wholegpt train``: text in, a trained model out."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from wholegpt import presets
from wholegpt.checks import check, derive_sizes
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Settings,
    program_name,
    score_table,
    section,
)
from wholegpt.config import Config, to_yaml
from wholegpt.errors import ConfigError

if TYPE_CHECKING:
    from wholegpt.api import Run

Flag = Parameter(negative="")


def train(
    *source: str,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    preset: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    encoding: str | None = None,
    allow_different_numerics: Annotated[bool, Flag] = False,
    print_config: Annotated[bool, Flag] = False,
    config: Settings = Config(),
    common: CommonOptions = Common(),
) -> None:
    """Train a model on text.

    Parameters
    ----------
    source
        Text files, folders, JSON-lines files, corpus names (`wholegpt data list`), or a prepared folder.
    recipe
        A named recipe, or a YAML file such as a run's config.yaml; settings given here override it.
    preset
        A published architecture to start the model section from: gpt1, gpt2-small, modern-tiny, ...
    out
        Folder of the run; runs/NAME unless given.
    resume
        Go on with the run in this folder, to the same bits as if it had never stopped.
    overwrite
        Replace a run that is already in the --out folder.
    max_seconds
        Stop early, resumably, after this many seconds of wall clock.
    encoding
        Character encoding of the text files; utf-8 unless given.
    allow_different_numerics
        Resume although this machine cannot repeat the recorded choices bit for bit.
    print_config
        Print the whole resolved configuration and stop.

    """
    if max_seconds is not None and max_seconds <= 0:
        raise ConfigError(f"--max-seconds is {max_seconds:g}; expected a value above 0")
    if resume:
        _resume(
            resume, source, recipe or preset or out, max_seconds, allow_different_numerics, config, common
        )
        return
    changes = section(ChosenSettings.of(config), "data", encoding=encoding)
    changes = section(changes, "model", preset=preset)
    changes = section(changes, "runtime", seed=common.seed, **common.placement())
    if source:
        changes = section(changes, "data", source=list(source))
    base = presets.recipe(recipe) if recipe else Config()
    chosen = presets.configure(changes, base, where="command line")
    check(chosen)
    if print_config:
        from wholegpt import runtime

        chosen = dataclasses.replace(chosen, model=derive_sizes(chosen.model))
        sys.stdout.write(to_yaml(runtime.decide(chosen)))
        return
    from wholegpt import api

    run = api.train(
        config=chosen, out=out, overwrite=overwrite, max_seconds=max_seconds, console=common.console
    )
    _show(run, common)


def _resume(
    run: str,
    source: tuple[str, ...],
    other: str | None,
    max_seconds: float | None,
    allow_different_numerics: bool,
    config: Config,
    common: Common,
) -> None:
    if source or other or ChosenSettings.of(config) or common.placement() or common.seed is not None:
        raise ConfigError(
            f"--resume goes on with what {run}/config.yaml says and takes no text and no settings but "
            "--max-seconds and --allow-different-numerics"
        )
    from wholegpt import api

    resumed = api.resume(
        run,
        max_seconds=max_seconds,
        allow_different_numerics=allow_different_numerics,
        console=common.console,
    )
    _show(resumed, common)


def _show(run: "Run", common: Common) -> None:
    result = run.to_json()
    lines = ["Sample:", "", run.sample, "", "Validation:", score_table(result["validation"])]
    best = result["best"]
    if best and best["step"] != result["steps"]:
        lines += [
            f"best while training: {best['nats_per_token']:.4f} on {best['tokens']:,} tokens, "
            f"at step {best['step']:,}; the commands below use that checkpoint"
        ]
    lines += [
        f"after {result['steps']:,} of {result['planned_steps']:,} steps ({result['stop_reason']}); "
        f"{result['train_seconds']:.1f} s of training, "
        f"{result['other_seconds']:.1f} s of evaluation, samples and saving",
        "",
    ]
    program = program_name()
    lines += ["Next:"]
    if result["steps"] < result["planned_steps"]:
        lines += [f"  {program} train --resume {run.path}    # go on to the last step"]
    lines += [
        f'  {program} generate {run.path} "The"    # let it write',
        f"  {program} evaluate {run.path} YOUR.txt    # how well it knows another text",
        f"  {program} train YOUR.txt    # a model of your own text",
        f"Report: {run.path / 'report.html'}",
    ]
    common.show(result, "\n".join(lines))
