"""``report.html``: a run on one self-contained page, created from the files in its folder only."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholegpt.console import sample_for_people
from wholegpt.data import PreparedData
from wholegpt.data.text.shards import MANIFEST
from wholegpt.files import read_json, write_text_atomic
from wholegpt.metrics import uniform_nats
from wholegpt.model import flops_per_token
from wholegpt.settings import presets
from wholegpt.settings.validation import complete_model
from wholegpt.training.callbacks import MetricsLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2563a8", "#c2571a", "#6b7280"
MISTAKES = ANSWERS = 20
"""How many are shown."""
LOGGED = ("kind", "step", "train_seconds")
"""Fields of each log line that are not metrics."""


def write_report(
    run: Path,
    result: dict[str, Any],
    records: Sequence[dict[str, Any]] = (),
    masks: Sequence[Sequence[tuple[str, bool]]] = (),
) -> Path:
    """Write ``report.html`` into the run's folder: metrics, curves, samples, mistakes, data, settings.

    ``result`` is the output of ``wholegpt train --json``; ``records`` are the results of each validation
    example, ``masks`` the tokens of training examples and whether each is in the loss.
    """
    import jinja2

    config = presets.run_config(run)
    lineage = read_json(run / "lineage.json")
    lines = MetricsLog(run / "metrics.jsonl").read()
    by_kind = {kind: [r for r in lines if r["kind"] == kind] for kind in ("train", "validation", "sample")}
    bound = uniform_nats(complete_model(config.model).vocab_size)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        resources.files("wholegpt.analysis").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    html = page.render(
        result=result,
        number=lambda value, digits: "–" if value is None else f"{value:.{digits}f}",
        lineage=lineage,
        bound=bound,
        flops_per_token=flops_per_token(config.model),
        charts=_charts(by_kind, bound),
        confusion=_confusion(records),
        mistakes=_mistakes(records),
        answers=[one for one in records if "reference" in one][:ANSWERS],
        masks=masks,
        samples=by_kind["sample"],
        sample_for_people=sample_for_people,
        settings=(run / "config.yaml").read_text(encoding="utf-8"),
        data=_data_rows(run, config.data.source),
    )
    path = run / "report.html"
    write_text_atomic(path, html)
    return path


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
    """Return the confusion matrix; ``None`` if every example has labels of its own."""
    if not records or not isinstance(records[0].get("probabilities"), dict):
        return None
    labels = list(records[0]["probabilities"])
    pairs = Counter((record["label"], record["chosen"]) for record in records)
    return {"labels": labels, "rows": [(one, [pairs[one, other] for other in labels]) for one in labels]}


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


def _charts(records: dict[str, list[dict[str, Any]]], bound: float) -> list[dict[str, str]]:
    train, validation = records["train"], records["validation"]
    if train and "gradient_norm" not in train[0]:
        return []  # an n-gram model takes no steps
    unit = next(
        (name for name in ("nats_per_token", "nats_per_masked_token") if train and name in train[0]), "loss"
    )
    on_text = unit == "nats_per_token"

    def loss(axes: "Axes") -> None:
        if on_text:
            axes.axhline(bound, color=GREY, linestyle=":", label=f"uniform guess, ln V = {bound:.2f}")
            nats = [r["nats_per_token"] for r in validation]
            axes.plot(_x(validation), nats, color=ORANGE, marker="o", markersize=4, label="validation")
        axes.plot(_x(train), [r[unit] for r in train], color=BLUE, linewidth=1, label="train")
        axes.set_ylabel("loss of the task and of its texts" if unit == "loss" else unit.replace("_", " "))
        axes.legend(frameon=False)

    def figure_of(name: str) -> Any:
        def draw(axes: "Axes") -> None:
            values = [r[name] for r in validation]
            axes.plot(_x(validation), values, color=ORANGE, marker="o", markersize=4)
            axes.set_ylabel(name.replace("_", " "))

        return draw

    def rate(axes: "Axes") -> None:
        axes.plot(_x(train), [r["learning_rate"] for r in train], color=BLUE)
        axes.set_ylabel("learning rate")

    def throughput(axes: "Axes") -> None:
        axes.plot(_x(train), [r["tokens_per_second"] for r in train], color=BLUE)
        axes.set_ylabel("tokens per second")
        axes.set_ylim(bottom=0)

    def gradient(axes: "Axes") -> None:
        axes.plot(_x(train), [r["gradient_norm"] for r in train], color=BLUE)
        axes.set_ylabel("gradient norm, before clipping")
        axes.set_ylim(bottom=0)

    of_task = [] if on_text or not validation else [n for n in validation[0] if n not in LOGGED]
    drawn = {f"Validation, {name.replace('_', ' ')}": figure_of(name) for name in of_task}
    drawn |= {"Loss": loss, "Learning rate": rate, "Throughput": throughput, "Gradient": gradient}
    return [{"title": title, "svg": svg_of(title, draw, "optimizer step")} for title, draw in drawn.items()]


def _x(records: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records]


def svg_of(title: str, draw: Callable[["Axes"], None], along: str) -> str:
    """Return an inline SVG of the axes that ``draw`` fills, with x label ``along``; equal inputs give equal
    bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(along)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb")
        axes.set_axisbelow(True)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
