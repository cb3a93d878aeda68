"""``finetune``, ``predict`` and ``chat``: adapt a trained model, and ask it."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from wholegpt.cli.generation import GenerationOptions
from wholegpt.cli.options import (
    ChosenSettings,
    Common,
    CommonOptions,
    Settings,
    check_new_file,
    program_name,
    score_table,
    section,
    table,
    task_table,
)
from wholegpt.cli.texts import check_no_file, piped_text
from wholegpt.console import write_output
from wholegpt.errors import ConfigError, DataError, TokenizerError, shortened
from wholegpt.settings import presets
from wholegpt.settings.choices import (
    Dtype,
    Execution,
    OnBadLine,
    OnBadText,
    TaskKind,
    WeightFormat,
)
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import check, check_max_seconds

if TYPE_CHECKING:
    from wholegpt.runs.train import Run
    from wholegpt.stages.prediction import Prediction

Flag = Parameter(negative="")


def finetune(
    run: str,
    *,
    task: TaskKind,
    data: str,
    validation: str | None = None,
    recipe: Annotated[str | None, Parameter(name=["--recipe", "--config"])] = None,
    out: str | None = None,
    overwrite: Annotated[bool, Flag] = False,
    max_seconds: float | None = None,
    config: Settings = Config(),
    common: CommonOptions = Common(),
) -> None:
    """Adapt a trained model to a task; `train --resume RUN` continues a run that was stopped.

    Parameters
    ----------
    run
        The run or model folder to begin from.
    task
        classification (a text has one of several labels), entailment (a premise and a hypothesis), similarity (two
        texts in either order: a label or a score), choice (which answer is right), instruct (to answer, or to write one
        text after another), or pretraining (continued pretraining on text).
    data
        Training examples, a .csv, .tsv, .jsonl, .json or .parquet table whose columns are detected unless
        --finetuning.*-column names them; for pretraining a text as `train` takes.
    validation
        Held-out examples; a share of the training ones unless given.
    recipe
        A named recipe (finetune, or instruct, unless given), or a YAML file such as a run's config.yaml; settings given
        here override it.
    out
        Folder of the new run; runs/NAME-TASK unless given.
    overwrite
        Replace a run that is already in the --out folder.
    max_seconds
        Stop early, resumably, after this many seconds of wall clock.

    """
    check_max_seconds("--max-seconds", max_seconds)
    changes = section(ChosenSettings.of(config), "runtime", seed=common.seed, **common.placement())
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
    """Ask a fine-tuned model.

    Parameters
    ----------
    run
        A run or model folder that `finetune` made.
    texts
        What to answer: for classification any number of texts; else the texts of one example (two, or a context and
        the answers to choose from). Unless given, or -, what is piped in is one text.
    data
        Examples instead: a .csv, .tsv, .jsonl, .json or .parquet table with the columns of the training examples.
    out
        Write the answers there: a table (.csv), or JSON lines with all probabilities (.jsonl).
    encoding
        Character encoding of --data; utf-8 unless given.
    on_bad_text
        What becomes of bytes of --data that are no text; stop unless given.
    on_bad_line
        What becomes of broken lines of --data and rows without text; stop unless given.
    dtype
        Format of the large products; automatic is the run's own, or what training would choose here.
    checkpoint
        best, last, or the step of a checkpoint.

    """
    for text in texts:
        check_no_file(text, "--data")
    if texts == ("-",) or not (texts or data):
        texts = tuple(filter(None, [piped_text()])) or texts
    if bool(texts) == bool(data):
        raise DataError("name either texts to answer, or a table of them by --data FILE")
    given = {"encoding": encoding, "on_bad_text": on_bad_text, "on_bad_line": on_bad_line}
    reading: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if texts and reading:
        raise ConfigError(f"--{next(iter(reading)).replace('_', '-')} is for a table (--data); leave it out")
    check_new_file(out, "--out")
    if out and Path(out).suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    from wholegpt.runs.load import load

    lm = load(run, checkpoint=checkpoint, console=common.console, **common.placement())
    if data:
        answers = lm.predict_table(data, dtype=dtype, console=common.console, **reading)
    elif lm.task and lm.task.kind is TaskKind.classification:
        answers = lm.predict(*texts, dtype=dtype, console=common.console)
    else:
        answers = lm.predict(texts, dtype=dtype, console=common.console)
    if out:
        _write(Path(out), answers)
        common.show({"out": out, "predictions": len(answers)}, f"{len(answers):,} answers in {out}")
        return
    result = {"predictions": [answer.to_json() for answer in answers]}
    common.show(result, "\n".join(_line(answer) for answer in answers))


def _write(path: Path, answers: "list[Prediction]") -> None:
    from wholegpt.files import write_text_atomic

    if path.suffix.lower() != ".csv":
        lines = (json.dumps(answer.to_json(), ensure_ascii=False) for answer in answers)
        write_text_atomic(path, "".join(f"{line}\n" for line in lines))
        return
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    longest = max(len(answer.texts) for answer in answers)
    texts = ["text"] if longest == 1 else [f"text{number}" for number in range(1, longest + 1)]
    scores = isinstance(answers[0].label, float)
    writer.writerow([*texts, "score" if scores else "label", *([] if scores else ["probability"])])
    for answer in answers:
        sure = [answer.probabilities[answer.label]] if isinstance(answer.label, str) else []
        writer.writerow([*answer.texts, answer.label, *sure])
    write_text_atomic(path, content.getvalue())


def _line(answer: "Prediction") -> str:
    """An answer for people: the label with the probabilities of all, and the beginning of what was read."""
    text = " | ".join(shortened(text) for text in answer.texts)
    if not answer.probabilities:
        return f"{answer.label:.3f}  {text}"
    shares = ", ".join(
        f"{shortened(name)} {share:.1%}"
        for name, share in sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:5]
    )
    return f"{shortened(str(answer.label))} ({shares})  {text}"


def show_finetuned(run: "Run[Any]", common: Common) -> None:
    """The result of a run that began from another model."""
    result, best = run.to_json(), run.state.best
    by_examples = "kind" in result["validation"]
    shown = task_table(result["validation"]) if by_examples else score_table(result["validation"])
    lines = ["Validation, the last weights:", shown]
    if best and best.step < result["steps"]:
        figures = [(name, f"{x:.4f}") for name, x in best.validation.items() if isinstance(x, float)]
        none = "; no step made the model better than it was" if best.step == 0 else ""
        lines = [
            f"Validation, the best weights, of step {best.step:,}{none}; the commands below use these:",
            table(figures),
            *lines,
        ]
    if forgetting := result.get("forgetting"):
        old, new = (forgetting[name]["bits_per_byte"] for name in ("before", "after"))
        lines += [
            f"forgetting: {old:.4f} → {new:.4f} bits per byte on the held-out text of {run.config.finetuning.model}, "
            f"{forgetting['nats_per_token']:+.4f} nats per token"
        ]
    lines += [
        f"after {result['steps']:,} of {result['planned_steps']:,} steps ({result['stop_reason']}); "
        f"{result['train_seconds']:.1f} s of training, {result['other_seconds']:.1f} s of evaluation and saving",
        "",
        *next_steps(run),
        f"Report: {run.path / 'report.html'}",
    ]
    common.show(result, "\n".join(lines))


def next_steps(run: "Run[Any]") -> list[str]:
    """Return lines with the commands that make use of a run."""
    from wholegpt.stages.registry import stage_of

    names = {"program": program_name(), "run": quote(str(run.path))}
    steps = [
        (step.command.format(**names), step.purpose) for step in stage_of(run.config).next_steps(run.config)
    ]
    if run.state.step < run.config.training.steps:
        steps.insert(0, ("{program} train --resume {run}".format(**names), "continue to the last step"))
    return ["Next:", *(f"  {command}    # {purpose}" for command, purpose in steps)]


def chat(
    run: str,
    *,
    system: str | None = None,
    checkpoint: str = "best",
    weights: WeightFormat = WeightFormat.float32,
    execution: Execution = Execution.eager,
    generation: Annotated[GenerationOptions, Parameter(name="*", group="Drawing text")] = GenerationOptions(),
    common: CommonOptions = Common(),
) -> None:
    """Talk to a model that `finetune --task instruct` taught to answer.

    An empty line, /quit or the end of the input ends it, /new begins anew; Ctrl-C stops an answer, and without one the
    program. With --json each answer is a line: role, content, finish_reason.

    Parameters
    ----------
    run
        A run or model folder.
    system
        What the model is told before the first question.
    checkpoint
        best, last, or the step of a checkpoint.
    weights
        How the weights are held: float32, or laid out in bfloat16, int8 or int4.
    execution
        eager, or compiled: a token then takes half to nine tenths of the time, but the first waits for PyTorch's
        compiler (half a minute to two, less the next time), which needs a C++ compiler.

    """
    from wholegpt.data.chat.template import Message
    from wholegpt.generation import InterruptedGeneration
    from wholegpt.runs.load import load
    from wholegpt.settings.serialization import to_mapping

    settings = to_mapping(generation)
    if common.seed is not None:
        settings["seed"] = common.seed
    opening = {"weights": weights, "execution": execution, "console": common.console, **common.placement()}
    lm = load(run, checkpoint=checkpoint, **opening)
    lm.answering_template()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # what is no text is then refused, not the end of the talk
    begun = [Message("system", system)] if system else []
    said = list(begun)
    while line := _question(common):
        if line == "/quit":
            break
        if line == "/new":
            said = list(begun)
            continue
        said.append(Message("user", line))
        try:
            answer = lm.chat(said, emit=_emit(common), console=common.console, **settings)
        except InterruptedGeneration as interrupted:
            answer = interrupted.completions[0]
        except (DataError, TokenizerError) as error:  # the conversation goes on without such a question
            said.pop()
            common.console.warn(str(error))
            continue
        shown = {"role": "assistant", "content": answer.text, "finish_reason": answer.finish_reason}
        common.show(shown, "")
        if answer.text.strip():
            said.append(Message("assistant", answer.text))
        else:  # nothing was said, so there is nothing to go on from
            said.pop()
            common.console.warn("no answer; the question is left out of what the model remembers")
        settings["seed"] += 1


def _question(common: Common) -> str:
    """What the user says; empty at the end."""
    if sys.stdin.isatty():
        common.console.note("you (an empty line ends):")
    try:
        return input().strip()
    except EOFError:
        return ""


def _emit(common: Common) -> "Callable[[str], None]":
    """Shows an answer as it comes."""
    return (lambda text: None) if common.json else (lambda text: write_output(text, end=""))
