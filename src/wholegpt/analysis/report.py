"""``report.html``: a run on one self-contained page, created from the files in its folder only."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from wholegpt.analysis.curves import PER_TOKEN, Log, figures_of
from wholegpt.analysis.headline import headline, number, training_figures
from wholegpt.analysis.outcome import Course, describe_course
from wholegpt.analysis.pages import read, render_page
from wholegpt.console import sample_for_people
from wholegpt.data import PreparedData
from wholegpt.data.text.shards import MANIFEST
from wholegpt.files import read_json, write_text_atomic
from wholegpt.metrics import uniform_nats
from wholegpt.settings import presets
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.settings.validation import complete_model
from wholegpt.stages.answer_training import ANSWER_MARK
from wholegpt.training.callbacks import MetricsLog
from wholegpt.training.stage import Criterion

MISTAKES = ANSWERS = SAMPLES = 20
"""How many are shown."""
LABELS = 40
"""Largest number of labels in the confusion matrix."""
TEXT_CHARACTERS, SAMPLE_CHARACTERS, SETTINGS_CHARACTERS = 500, 2_000, 10_000
"""Characters of a text that are shown. With them, and with the points of the charts, the page stays below 300 kB."""


def write_report(
    run: Path,
    result: dict[str, Any],
    criterion: Criterion,
    records: Sequence[dict[str, Any]] = (),
    masks: Sequence[Sequence[tuple[str, bool]]] = (),
) -> Path:
    """Write ``report.html`` into the run's folder: result, curves, mistakes, samples, data, settings.

    ``result`` is the output of ``wholegpt train --json``; ``criterion`` says which weights are the best; ``records``
    are the results of each validation example, ``masks`` the tokens of training examples and whether each is in the
    loss.
    """
    config, lineage = presets.run_config(run), read_json(run / "lineage.json")
    log = Log(MetricsLog(run / "metrics.jsonl").read(), (result["steps"], result["tokens"]))
    bound = uniform_nats(complete_model(config.model).vocab_size)
    lead, others = headline(result, log, bound)
    samples = _samples(log, config)
    script = read("report.js")
    html = render_page(
        "report.html.jinja",
        result=result,
        lineage=lineage,
        course=describe_course(_course(result, log, criterion)),
        lead=lead,
        others=others,
        other_names=list(dict.fromkeys(name for one in others for name in one.figures)),
        training=training_figures(result, log, config),
        figures=figures_of(log, bound if log.loss_name() in PER_TOKEN else None),
        confusion=_confusion(records),
        mistakes=_mistakes(records),
        answers=[one for one in records if "reference" in one][:ANSWERS],
        completions=[one for one in records if "reference_completion" in one][:ANSWERS],
        with_rewards=any("reference_reward" in one for one in records),
        masks=[_merged(mask) for mask in masks],
        samples=samples,
        samples_note=_samples_note(samples, len(log.by_kind["sample"])),
        last_sample=_sample(result["steps"], result["sample"], config) if result["sample"] else None,
        data=_data_rows(run, config.data.source),
        settings=truncated((run / "config.yaml").read_text(encoding="utf-8"), SETTINGS_CHARACTERS),
        machine=truncated(_machine(lineage), SETTINGS_CHARACTERS),
        number=number,
        truncated=truncated,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = run / "report.html"
    write_text_atomic(path, html)
    return path


def truncated(text: str, most: int = TEXT_CHARACTERS) -> str:
    """Return ``text``, or its first ``most`` characters and a note."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def _course(result: dict[str, Any], log: Log, criterion: Criterion) -> Course:
    """Return what the log says about the course of the run."""

    def pairs(kind: str, name: str) -> list[tuple[int, float]]:
        steps, values = log.column(kind, name)
        return list(zip(steps.astype(int).tolist(), values.tolist(), strict=True))

    loss, best = log.loss_name(), result["best"]
    return Course(
        pairs("train", loss) if loss else [],
        pairs("validation", criterion.metric),
        criterion,
        best["step"] if best else None,
        result["steps"],
        result["planned_steps"],
        result["stop_reason"],
        result["validation"].get("examples"),
    )


def _machine(lineage: dict[str, Any]) -> str:
    """Return the machine, the versions and the command of a run."""
    named = {**lineage["machine"], **lineage["versions"]}
    return "\n".join(
        [*(f"{name}: {value}" for name, value in named.items()), "command: " + " ".join(lineage["command"])]
    )


def _samples(log: Log, config: Config) -> list[dict[str, Any]]:
    """Return the samples of the log, or ``SAMPLES`` of them at equal distances, with the first and the last."""
    logged = [one for one in log.by_kind["sample"] if isinstance(one.get("text"), str)]
    chosen = np.unique(np.linspace(0, len(logged) - 1, min(SAMPLES, len(logged))).round().astype(int))
    return [_sample(logged[i]["step"], logged[i]["text"], config) for i in chosen]


def _samples_note(samples: Sequence[dict[str, Any]], logged: int) -> str:
    prompt = "The prompt is marked." if any(one["prompt"] for one in samples) else ""
    left_out = f"{len(samples)} of {logged:,} are shown." if len(samples) < logged else ""
    return " ".join(filter(None, (prompt, left_out)))


def _sample(step: int, text: str, config: Config) -> dict[str, Any]:
    """Return a sample, divided into its prompt and its completion."""
    answers = config.finetuning.task is not TaskKind.pretraining
    if answers or config.model.architecture is Architecture.encoder_decoder:
        prompt, mark, _ = text.partition(ANSWER_MARK)
        prompt = prompt if mark else ""
    else:
        prompt = config.logging.sample_prompt
    if not (prompt and text.startswith(prompt)):
        return {
            "step": step,
            "prompt": "",
            "completion": truncated(sample_for_people(text), SAMPLE_CHARACTERS),
        }
    completion = truncated(text.removeprefix(prompt), SAMPLE_CHARACTERS)
    return {"step": step, "prompt": truncated(prompt, SAMPLE_CHARACTERS), "completion": completion}


def _merged(mask: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return a mask with adjacent tokens of the same kind as one text."""
    parts = [
        ("".join(text for text, _ in group), counts) for counts, group in groupby(mask, lambda one: one[1])
    ]
    return [(truncated(text, SAMPLE_CHARACTERS), counts) for text, counts in parts]


def _data_rows(run: Path, source: tuple[str, ...]) -> list[dict[str, Any]]:
    folders = [run / "data", *map(Path, source[:1])]
    data = next((folder for folder in folders if PreparedData.exists(folder)), None)
    if data is None:
        return []  # examples, which have no such sizes
    manifest = read_json(data / MANIFEST)
    return [
        {"side": side, **{k: manifest[side][k] for k in ("documents", "characters", "bytes", "tokens")}}
        for side in ("train", "validation")
    ]


def _confusion(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the confusion matrix of the most frequent labels; ``None`` if every example has labels of its own."""
    if not records or not isinstance(records[0].get("probabilities"), dict):
        return None
    labels = list(records[0]["probabilities"])
    pairs = Counter((record["label"], record["chosen"]) for record in records)
    totals = Counter(record["label"] for record in records)
    frequent = {name for name, _ in totals.most_common(LABELS)}
    shown = labels if len(labels) <= LABELS else [name for name in labels if name in frequent]
    note = "" if shown is labels else f"The {len(shown)} most frequent of {len(labels):,} labels are shown."
    rows = []
    for one in shown:
        counts = [pairs[one, other] for other in shown]
        rows.append((one, counts, [count / (totals[one] or 1) for count in counts]))
    return {"labels": shown, "rows": rows, "note": note}


def _mistakes(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the wrong predictions with the highest confidence, or the scores with the largest error."""
    if records and "squared_error" in records[0]:
        rows = [_row(one, one["score"], f"{one['expected']:.3f}", one["squared_error"]) for one in records]
        title, by = "Furthest off", "squared error"
    else:
        wrong = [one for one in records if "chosen" in one and not one["correct"]]
        rows = [_row(one, one["label"], one["chosen"], _certainty(one)) for one in wrong]
        title, by = "Most confident mistakes", "probability"
    worst = sorted(rows, key=lambda row: -row["by"])[:MISTAKES]
    return {"title": title, "by": by, "rows": worst} if worst else None


def _row(record: dict[str, Any], truth: Any, answer: str, by: float) -> dict[str, Any]:
    return {"texts": record["texts"], "truth": truth, "answer": answer, "by": by}


def _certainty(record: dict[str, Any]) -> float:
    """Return the probability of the prediction."""
    shares = record["probabilities"]
    return max(shares.values() if isinstance(shares, dict) else shares)
