"""``finetune`` and ``predict``: adapt a trained model, and use it."""

import csv
import io
import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from wholegpt.cli.mistakes import check_models_first, is_model
from wholegpt.cli.options import (
    TEXT_METRICS,
    ChosenSettings,
    Common,
    CommonOptions,
    Reading,
    ReadingOptions,
    TuningSettings,
    check_new_file,
    next_commands,
    program_name,
    score_table,
    section,
    table,
    task_table,
)
from wholegpt.cli.texts import check_no_file, piped_text
from wholegpt.errors import ConfigError, DataError, counted, shortened
from wholegpt.settings import presets
from wholegpt.settings.choices import (
    AlignmentMethod,
    Dtype,
    OnBadLine,
    OnBadText,
    TaskKind,
)
from wholegpt.settings.models import check_model_exists
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check, check_max_seconds

if TYPE_CHECKING:
    from wholegpt.runs.train import Run
    from wholegpt.stages.prediction import Prediction

Flag = Parameter(negative="")


def finetune(
    run: str,
    *,
    task: Annotated[
        TaskKind, Parameter(show_choices=False)
    ],  # the text lists those without methods of `align`
    data: str,
    validation: str | None = None,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    out: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    config: TuningSettings = Config(),
    reading: ReadingOptions = Reading(),
    common: CommonOptions = Common(),
) -> None:
    """Fine-tune a trained model for a task. `train --resume RUN` continues an interrupted run.

    Parameters
    ----------
    run
        Run or model folder to start from.
    task
        classification (one of several labels for a text), entailment (premise and hypothesis), similarity (two texts in
        either order: a label or a score), choice (multiple choice), instruct (instruction tuning, also prompt and
        completion), or pretraining (continued pretraining).
    data
        Training examples: a .csv, .tsv, .jsonl, .json or .parquet table. Columns are detected automatically, or named
        by --finetuning.*-column(s). For pretraining: text, as for `train`.
    validation
        Validation examples. Default: a share of the training examples.
    recipe
        Recipe name, or a YAML file such as the config.yaml of a run. Other options override it. Default: finetune or
        instruct.
    out
        Folder of the new run. Default: runs/NAME-TASK.
    overwrite
        Replace an existing run in the --out folder.
    max_seconds
        Stop training after this many seconds. Reading the data and the final evaluation are not counted.
        `train --resume` continues the run.

    Examples
    --------
    wholegpt finetune runs/mine --task classification --data labeled.csv
    wholegpt finetune runs/mine --task instruct --data answers.jsonl --lora.rank 8

    """
    if is_model(data) and not is_model(run):
        right = f"finetune {quote(data)} --task {task} --data {quote(run)}"
        raise ConfigError(f"the model comes first, and --data is the text or table: `wholegpt {right}`")
    check_model_exists(run)
    if task in list(AlignmentMethod):
        raise ConfigError(f"--task is {task}, which is a method of `wholegpt align`; use that command")
    check_max_seconds("--max-seconds", max_seconds)
    changes = section(ChosenSettings.of(config), "runtime", seed=common.seed, **common.placement())
    changes = section(changes, "data", **reading.given())
    changes = section(changes, "finetuning", model=run, task=task)
    from wholegpt.stages.registry import default_recipe

    chosen = presets.configure(changes, presets.recipe(recipe or default_recipe(task)), where="command line")
    check(chosen)
    from wholegpt.runs import api

    finished = api.finetune(
        run,
        data,
        task=task,
        validation=validation or "",
        config=chosen,
        out=out,
        overwrite=overwrite,
        max_seconds=max_seconds,
        console=common.console,
    )
    show_finetuned(finished, common)


def predict(
    run: str,
    *texts: str,
    data: str | None = None,
    out: str | None = None,
    encoding: str | None = None,
    on_bad_text: OnBadText | None = None,
    on_bad_line: OnBadLine | None = None,
    dtype: Dtype = Dtype.automatic,
    checkpoint: str = "best",
    common: CommonOptions = Common(),
) -> None:
    """Predict labels, scores or answers with a fine-tuned model.

    Parameters
    ----------
    run
        Run or model folder made by `finetune`.
    texts
        For classification: any number of texts. Otherwise: the texts of one example (two texts, or a context and the
        possible answers). Default, and -: standard input, one text per line.
    data
        Table of examples (.csv, .tsv, .jsonl, .json or .parquet) with the columns of the training examples.
    out
        Output file: a table (.csv), or JSON lines with all probabilities (.jsonl).
    encoding
        Character encoding of --data. Default: utf-8.
    on_bad_text
        What to do with bytes of --data that are not valid text. Default: stop.
    on_bad_line
        What to do with malformed lines of --data and rows without text. Default: stop.
    dtype
        Data type of matrix products. automatic: that of the run, or the default of training on this machine.
    checkpoint
        Checkpoint to use: best, last, or a step.

    Examples
    --------
    wholegpt predict runs/mine-classification "A wonderful film."
    wholegpt predict runs/mine-classification < texts.txt
    wholegpt predict runs/mine-classification --data new.csv --out labels.csv

    """
    for text in texts:
        check_no_file(text, "--data")
    if texts == ("-",) or not (texts or data):
        lines = piped_text().split("\n")
        texts = tuple(line.removesuffix("\r") for line in lines if line.strip()) or texts
        if texts != ("-",) and texts and len(texts) < len(lines):
            common.console.warn(
                f"{counted(len(lines) - len(texts), 'empty lines')} of the input were left out"
            )
    if bool(texts) == bool(data):
        raise DataError("give either texts, or a table of examples by --data FILE")
    given = {"encoding": encoding, "on_bad_text": on_bad_text, "on_bad_line": on_bad_line}
    reading: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if texts and reading:
        raise ConfigError(f"--{next(iter(reading)).replace('_', '-')} is for a table (--data); leave it out")
    check_new_file(out, "--out")
    if out and Path(out).suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    check_models_first("predict", run, *texts)
    from wholegpt.runs.load import load

    lm = load(run, checkpoint=checkpoint, console=common.console, **common.placement())
    if data:
        predictions = lm.predict_table(data, dtype=dtype, console=common.console, **reading)
    elif lm.task and lm.task.kind is TaskKind.classification:
        predictions = lm.predict(*texts, dtype=dtype, console=common.console)
    else:
        predictions = lm.predict(texts, dtype=dtype, console=common.console)
    if out:
        _write(Path(out), predictions)
        common.show(
            {"out": out, "predictions": len(predictions)}, f"{len(predictions):,} predictions in {out}"
        )
        return
    result = {"predictions": [one.to_json() for one in predictions]}
    common.show(result, "\n".join(_line(one) for one in predictions))


def _write(path: Path, predictions: "list[Prediction]") -> None:
    from wholegpt.files import write_text_atomic

    if path.suffix.lower() != ".csv":
        lines = (json.dumps(one.to_json(), ensure_ascii=False) for one in predictions)
        write_text_atomic(path, "".join(f"{line}\n" for line in lines))
        return
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    longest = max(len(one.texts) for one in predictions)
    texts = ["text"] if longest == 1 else [f"text{number}" for number in range(1, longest + 1)]
    scores = isinstance(predictions[0].label, float)
    writer.writerow([*texts, "score" if scores else "label", *([] if scores else ["probability"])])
    for one in predictions:
        probability = [one.probabilities[one.label]] if isinstance(one.label, str) else []
        writer.writerow([*one.texts, one.label, *probability])
    write_text_atomic(path, content.getvalue())


def _line(prediction: "Prediction") -> str:
    """Return a prediction for people: the label, the five highest probabilities, and the start of each text."""
    text = " | ".join(shortened(text) for text in prediction.texts)
    if not prediction.probabilities:
        return f"{prediction.label:.3f}  {text}"
    shares = ", ".join(
        f"{shortened(name)} {share:.1%}"
        for name, share in sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:5]
    )
    return f"{shortened(str(prediction.label))} ({shares})  {text}"


UNITS = ("examples", "tokens")
"""What an evaluation while training counts."""


def show_finetuned(run: "Run[Any]", common: Common) -> None:
    """Show the result of a run that started from another model."""
    result, best = run.to_json(), run.state.best
    by_examples = "kind" in result["validation"]
    shown = task_table(result["validation"]) if by_examples else score_table(result["validation"])
    lines = ["Validation with the last weights, on everything held out:", shown]
    if best and best.step < result["steps"]:
        figures = [
            (TEXT_METRICS.get(name, name.replace("_", " ")), f"{x:.4f}")
            for name, x in best.validation.items()
            if isinstance(x, float)
        ]
        none = "; no step improved the model" if best.step == 0 else ""
        over = next(
            (f", on {best.validation[one]:,} held-out {one}" for one in UNITS if one in best.validation), ""
        )
        lines = [
            f"Validation with the best weights (step {best.step:,}{none}){over}, which the commands below use:",
            table(figures),
            *lines,
        ]
    if forgetting := result.get("forgetting"):
        old, new = (forgetting[name]["bits_per_byte"] for name in ("before", "after"))
        lines += [
            f"catastrophic forgetting (last weights): {old:.4f} → {new:.4f} bits per byte on the validation text "
            f"of {run.config.finetuning.model}, {forgetting['nats_per_token']:+.4f} nats per token"
        ]
    lines += [
        f"after {result['steps']:,} of {result['planned_steps']:,} steps ({result['stop_reason']}); "
        f"{result['train_seconds']:.1f} s of training, {result['other_seconds']:.1f} s of evaluation and saving "
        "between the steps",
    ]
    common.show(result, "\n".join(lines), next_steps(run))


def next_steps(run: "Run[Any]") -> list[str]:
    """Return lines with commands that use the run, and the path of its report."""
    from wholegpt.stages.registry import stage_of

    names = {"program": program_name(), "run": quote(str(run.path))}
    steps = [
        (step.command.format(**names), step.purpose) for step in stage_of(run.config).next_steps(run.config)
    ]
    if run.state.step < run.config.training.steps:
        steps.insert(0, ("{program} train --resume {run}".format(**names), "continue to the last step"))
    return [*next_commands(*steps), f"Report: {run.path / 'report.html'}"]
