"""``align``: an instruction-tuned model learns from preferences."""

from typing import Annotated

from cyclopts import Parameter

from wholegpt.cli.finetuning import show_finetuned
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    Settings,
    section,
)
from wholegpt.settings import presets
from wholegpt.settings.choices import AlignmentMethod, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check, check_max_seconds

Flag = Parameter(negative="")


def align(
    run: str,
    *,
    method: AlignmentMethod,
    data: str,
    validation: str | None = None,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    out: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    config: Settings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Train an instruction-tuned model on preference pairs. `train --resume RUN` continues an interrupted run.

    Parameters
    ----------
    run
        Run or model folder to start from, made by `finetune --task instruct`. It is also the reference.
    method
        reward: a reward model, which scores answers. dpo: direct preference optimization, and its relatives
        (--alignment.loss).
    data
        Pairs of a chosen and a rejected answer: a .csv, .tsv, .jsonl, .json or .parquet table with the columns prompt
        (or instruction and input), chosen and rejected. They hold texts or lists of messages. For a reward model also
        margin, a number.
    validation
        Validation pairs. Default: a share of the pairs, with prompts of their own.
    recipe
        Recipe name, or a YAML file such as the config.yaml of a run. Other options override it. Default: that
        of the method.
    out
        Folder of the new run. Default: runs/NAME-METHOD.
    overwrite
        Replace an existing run in the --out folder.
    max_seconds
        Stop after this many seconds. `train --resume` continues the run.

    Examples
    --------
    wholegpt align runs/chat --method dpo --data pairs.json
    wholegpt align runs/chat --method dpo --data pairs.json --lora.rank 8
    wholegpt align runs/chat --method reward --data pairs.json

    """
    check_max_seconds("--max-seconds", max_seconds)
    changes = section(ChosenSettings.of(config), "runtime", seed=common.seed, **common.placement())
    changes = section(changes, "data", **reading.given())
    changes = section(changes, "finetuning", model=run, task=TaskKind(method))
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
