"""``align``: an instruction-tuned model learns from preferences or rewards."""

from typing import Annotated

from cyclopts import Parameter

from wholegpt.cli.finetuning import show_finetuned
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    TuningSettings,
    section,
)
from wholegpt.settings import presets
from wholegpt.settings.choices import AlignmentMethod, TaskKind
from wholegpt.settings.models import check_model_exists
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check, check_max_seconds

Flag = Parameter(negative="")


def align(
    run: str,
    *,
    method: AlignmentMethod,
    data: str,
    reward: Annotated[list[str] | None, Parameter(negative="")] = None,
    validation: str | None = None,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    out: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    config: TuningSettings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Train an instruction-tuned model on preferences or rewards. `train --resume RUN` continues an interrupted run.

    Parameters
    ----------
    run
        Run or model folder to start from, made by `finetune --task instruct`. It is also the reference.
    method
        reward (a model that scores answers), dpo (direct preference optimization and its relatives), ppo or grpo
        (reinforcement learning of a --reward).
    data
        reward, dpo: a table with the columns prompt, chosen and rejected. ppo, grpo: a table with the columns prompt
        and (for some rewards) answer, or a built-in task (`data list`). Texts can also be lists of messages.
    reward
        What completions are rewarded for: exact, contains:TEXT, regex:PATTERN, json-schema:FILE, length:WORDS,
        model:RUN, classifier:RUN=LABEL, or function:MODULE:NAME. With a weight: 0.5*exact. Can be repeated.
    validation
        Validation data. Default: a share of the data.
    recipe
        Recipe name, or a YAML file such as the config.yaml of a run. Other options override it. Default: that
        of the method.
    out
        Folder of the new run. Default: runs/NAME-METHOD.
    overwrite
        Replace an existing run in the --out folder.
    max_seconds
        Stop training after this many seconds. Reading the data and the final evaluation are not counted.
        `train --resume` continues the run.

    Examples
    --------
    wholegpt align runs/chat --method dpo --data pairs.json
    wholegpt align runs/chat --method reward --data pairs.json
    wholegpt align runs/chat --method grpo --data addition --reward exact

    """
    check_model_exists(run)
    check_max_seconds("--max-seconds", max_seconds)
    changes = section(ChosenSettings.of(config), "runtime", seed=common.seed, **common.placement())
    changes = section(changes, "data", **reading.given())
    changes = section(changes, "finetuning", model=run, task=TaskKind(method))
    changes = section(changes, "alignment", rewards=tuple(reward) if reward else None)
    from wholegpt.stages.registry import default_recipe

    chosen = presets.configure(
        changes, presets.recipe(recipe or default_recipe(TaskKind(method))), where="command line"
    )
    check(chosen)
    from wholegpt.runs import api

    finished = api.align(
        run,
        data,
        method=method,
        validation=validation or "",
        config=chosen,
        out=out,
        overwrite=overwrite,
        max_seconds=max_seconds,
        console=common.console,
    )
    show_finetuned(finished, common)
