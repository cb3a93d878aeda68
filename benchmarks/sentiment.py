"""PPO and GRPO with a classifier of sentiment as the reward, judged by a separate classifier of scikit-learn.

All runs are kept in the folder ``--work``, and resumed after an interruption.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

import wholegpt as wg
from benchmarks.preferences import cell, shown
from benchmarks.runs import finished
from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.charts import Series, line_chart
from wholegpt.console import Console
from wholegpt.data.examples.prompts import PromptData
from wholegpt.evaluation import TaskScore
from wholegpt.files import write_text_atomic
from wholegpt.metrics import Estimate, bootstrap
from wholegpt.runs.train import open_stage
from wholegpt.settings.presets import configure

SECTION = "Sentiment by reinforcement learning"
BEGINNING = 3
"""Words of a sentence in its prompt; the model writes the rest."""
MOST_KL = 15.0
"""Nats per completion."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"alignment": {"kl": 0.02, "rollout_size": 128}, "training": {"steps": 400, "batch_size": 64}},
    "grpo": {"alignment": {"kl": 0.02, "rollout_size": 128}, "training": {"steps": 100, "batch_size": 128}},
}
"""Steps of both methods have about the same number of completions in all."""


def sentences(path: Path) -> list[tuple[str, int]]:
    """Return the sentences of a file with their labels, 1 for positive."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(text, int(label)) for text, label in rows if label in ("0", "1")]


def examples(data: Path, work: Path) -> dict[str, Path]:
    """Write the sentences as conversations, and the prompts of the development set, which no model is tuned on."""
    files: dict[str, Path] = {}
    for name in ("train", "dev"):
        rows = [text.split(" ") for text, _ in sentences(data / "sst2" / f"{name}.tsv")]
        long = [row for row in rows if len(row) > 2 * BEGINNING]
        content = [
            {"prompt": f"Go on: {' '.join(row[:BEGINNING])}", "response": " ".join(row[BEGINNING:])}
            for row in long
        ]
        files[name] = path = work / f"sentences-{name}.json"
        write_text_atomic(path, json.dumps(content, ensure_ascii=False))
        files[f"{name} prompts"] = prompts = work / f"prompts-{name}.json"
        write_text_atomic(
            prompts, json.dumps([{"prompt": one["prompt"]} for one in content], ensure_ascii=False)
        )
    return files


def judge(data: Path) -> Pipeline:
    """Return a logistic regression on words and pairs of words, which no model is trained with."""
    texts, labels = zip(*sentences(data / "sst2" / "train.tsv"), strict=True)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, max_iter=1000)
    )
    return model.fit(texts, labels)


def positive(texts: list[str], model: Pipeline) -> Estimate:
    """Return the share of texts that the judge finds positive."""
    found = np.array(model.predict(texts), dtype=float)
    return bootstrap(len(found), lambda chosen: float(found[chosen].mean()))


def runs(data: Path, base: Path, work: Path, console: Console) -> dict[str, Path]:
    """Return the folders of the classifier, of the model that goes on with sentences, and of both aligned ones."""
    files = examples(data, work)
    options: Any = {"console": console}
    table = work / "sst2.tsv"
    rows = [f"{text}\t{label}" for text, label in sentences(data / "sst2" / "train.tsv")]
    write_text_atomic(table, "\n".join(["text\tlabel", *rows]))
    found = {
        "classifier": finished(
            work / "classifier",
            lambda: wg.finetune(base, table, task="classification", out=work / "classifier", **options),
            console,
        ),
        "writer": finished(
            work / "writer",
            lambda: wg.finetune(base, files["train"], task="instruct", out=work / "writer", **options),
            console,
        ),
    }
    for method, settings in SETTINGS.items():
        alignment = {
            **settings["alignment"],
            "rewards": (f"classifier:{found['classifier']}=1",),
            "completion_tokens": 32,
            "kl_limit": MOST_KL,
        }
        config = configure({**settings, "alignment": alignment}, wg.recipe(method))
        given = {"validation": files["dev prompts"], "config": config, "out": work / method}
        found[method] = finished(
            work / method,
            lambda method=method, given=given: wg.align(
                found["writer"], files["train prompts"], method=method, **given, **options
            ),
            console,
        )
    return found


def course(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return KL divergence and reward of the evaluations of a run, in the order of its steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [line for line in lines if line["kind"] == "validation"]
    return np.array([one["kl"] for one in seen]), np.array([one["reward"] for one in seen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/")
    parser.add_argument(
        "--base", type=Path, required=True, help="base model, such as that of benchmarks.preferences"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    arguments = parser.parse_args()
    work, console = arguments.work, Console()
    work.mkdir(parents=True, exist_ok=True)
    data: Path = arguments.data.resolve()
    found, critic = runs(data, arguments.base, work, console), judge(data)
    dev, labels = zip(*sentences(data / "sst2" / "dev.tsv"), strict=True)
    accuracy = float((critic.predict(dev) == np.array(labels)).mean())
    rows, samples, series = list[str](), list[str](), list[Series]()
    for color, method in enumerate(SETTINGS):
        model = wg.load(found[method], console=console).model
        score = open_stage(found[method]).evaluate(model, model.device, whole=True)
        assert isinstance(score, TaskScore)
        before, after = (
            [one[name] for one in score.records] for name in ("reference_completion", "completion")
        )
        metrics = score.metrics
        rows.append(
            f"| {method.upper()} | {shown(positive(before, critic), share=True)} "
            f"| {shown(positive(after, critic), share=True)} | {shown(metrics['reference_reward'])} "
            f"| {shown(metrics['reward'])} | {shown(metrics['kl'])} |"
        )
        samples += [
            f"| {method.upper()} | {cell(one['prompt'])} | {cell(one['reference_completion'])} "
            f"| {cell(one['completion'])} |"
            for one in score.records[:3]
        ]
        series.append(Series(method.upper(), *course(found[method]), color, "circle"))
    n_prompts = len(PromptData.open(found["ppo"] / "data").validation)
    what = (
        f"{machine_line()} A model that goes on with sentences of film reviews (trained on SST-2) is trained with the "
        "probability that a classifier, fine-tuned on the same sentences, calls its completions positive. The judge is "
        f"another classifier, a logistic regression on words, whose accuracy on the development set is {accuracy:.1%}. "
        f"Completions are sampled at temperature 1 for {n_prompts:,} prompts of the development set. The KL divergence "
        "is in nats per completion. Intervals are 95%."
    )
    header = [
        "| Method | Judged positive before | After | Reward before | After | KL divergence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shown_samples = ["| Method | Prompt | Before | After |", "| --- | --- | --- | --- |", *samples]
    picture = "![Mean reward as a function of the KL divergence](sentiment.svg)"
    publish(SECTION, "\n".join([what, "", *header, *rows, "", *shown_samples, "", picture]))
    chart = line_chart(series, x_label="KL divergence, nats per completion", y_label="mean reward")
    chart.save(DOCUMENT.with_name("sentiment.svg"))


if __name__ == "__main__":
    main()
