"""The report is self-contained, shows the measured values, and escapes generated text."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from wholegpt.analysis.report import LABELS, write_report
from wholegpt.evaluation import TextScore
from wholegpt.settings.presets import recipe
from wholegpt.stages.pretraining import Pretraining
from wholegpt.training.stage import Criterion

RESULT = {
    "run": "runs/x",
    "steps": 12,
    "planned_steps": 12,
    "stop_reason": "all steps are done",
    "parameters": 1234567,
    "tokens": 768,
    "train_seconds": 2.0,
    "other_seconds": 1.0,
    "validation": TextScore(2.5, 12.18, 3.6, 3.61, 599, 599, 600).to_json(),
    "best": None,
    "sample": "last",
}
VOID = {"meta", "br", "link", "input"}


class Balance(HTMLParser):
    """Checks that every opened tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return copy_of(trained_run, tmp_path / "run")


def page_of(run: Path, criterion: Criterion = Pretraining.criterion, *rest: Any, **result: Any) -> str:
    return write_report(run, {**RESULT, **result}, criterion, *rest).read_text(encoding="utf-8")


def write_log(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


def text_of_page(page: str) -> str:
    """Return the visible text without charts and their data."""
    shown = re.sub(r"<(script|style|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))


def test_one_self_contained_page(run: Path) -> None:
    page = page_of(run)
    parser = parsed(page)
    assert parser.tags.count("svg") == 5, "four figures, one of them with two charts"
    assert parser.links == [] and not re.search(r"https?:|@import|url\(", page)
    for figure in ("2.5000", "12.180", "3.6100", "1,234,567", "599 tokens", "384"):
        assert figure in page
    bound = math.log(recipe(str(run / "config.yaml")).model.vocab_size)
    assert page.count(f"uniform guess: {bound:.4f}") == 1


def test_only_the_pages_own_script_may_run(run: Path) -> None:
    page = page_of(run)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in page
    assert page.count("<script") == 1 + page.count('<script type="application/json">') == 5


def test_data_for_the_pointer_equals_that_of_the_charts(run: Path) -> None:
    page = page_of(run)
    found = [json.loads(one) for one in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    train = next(one for one in found[0] if one["name"] == "training")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    assert train["step"] == [line["step"] for line in logged] and train["x"] == [
        line["tokens"] for line in logged
    ]
    assert train["y"] == pytest.approx([line["nats_per_token"] for line in logged], rel=1e-4)


def test_generated_text_is_escaped(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "sample", "step": 13, "text": "<script>alert(1)</script>"}) + "\n")
        file.write(json.dumps({"kind": "train", "step": 13, "</script><b>": 1.0, "tokens": 900}) + "\n")
    page = page_of(run, stop_reason="<i>", steps=11)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<b>" not in page and "&lt;/script&gt;&lt;b&gt;" in page and "<i>" not in page
    parsed(page)


def test_prompt_of_a_sample_is_highlighted(run: Path) -> None:
    page = page_of(run)
    assert page.count("<pre><mark>the</mark>") == 2 and "The prompt is marked." in page


def test_report_of_an_interrupted_run(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    page = page_of(run, train_seconds=0.0)
    assert "None was due before the run stopped" in page and ">last</pre>" in page
    assert "There was no evaluation during training" in page
    assert parsed(page).tags.count("svg") == 0 and "<script" not in page


def test_same_run_gives_the_same_page(run: Path) -> None:
    assert page_of(run) == page_of(run)


def test_best_weights_come_first(run: Path) -> None:
    """The best weights with the metrics and size of their evaluation during training, then the last ones."""
    best = TextScore(2.0, 7.39, 2.88, 2.89, 100, 100, 101).to_json()
    last = TextScore(2.25, 9.49, 3.24, 3.25, 100, 100, 101).to_json()
    lines = [
        *(
            {"kind": "train", "step": step, "nats_per_token": 3 / step, "tokens": 64 * step}
            for step in range(1, 13)
        ),
        {"kind": "validation", "step": 6, **best},
        {"kind": "validation", "step": 12, **last},
    ]
    write_log(run, lines)
    text = text_of_page(page_of(run, best={"step": 6, **best}))
    assert (
        "Overfits after step 6; the best weights are from that step, and at the end the validation loss is 12.5%"
        in text
    )
    lead, rest = text.split("Weights of step 12, the last ones")
    assert "Result: weights of step 6, the best ones nats per token 2.0000" in lead
    assert (
        "Measured on 100 tokens, 100 characters, 101 bytes of held-out data, while training. Commands use these"
        in lead
    )
    assert "measured while training at the end nats per token 2.2500 2.5000" in rest
    assert "all held-out text: 599 tokens, 599 characters, 600 bytes" in rest
    for figure in ("2.0000", "2.2500", "2.5000", "7.390", "12.180"):
        assert text.count(figure) == 1, figure


def test_plan_is_shown_beside_the_result(run: Path) -> None:
    plan = {
        "bits_per_byte": {"expected": 3.5, "low": 3.4, "high": 3.7},
        "train_seconds": 2.5,
        "peak_memory_bytes": 600_000_000,
        "product_flops_per_second": 1e9,
    }
    write_log(
        run,
        [
            {
                "kind": "train",
                "step": 12,
                "nats_per_token": 3.0,
                "tokens": 768,
                "peak_memory_bytes": 512_000_000,
            }
        ],
    )
    text = text_of_page(page_of(run, plan=plan))
    assert "bits per byte 3.6100 planned: 3.5000 (3.4000 to 3.7000)" in text
    assert "training time 2.0 s planned: 2.5 s" in text
    assert "peak memory 0.51 GB of the process; planned: 0.60 GB" in text
    forward = int(re.findall(r"forward FLOPs per token ([\d,]+)", text)[0].replace(",", ""))
    rate = 3 * forward * RESULT["tokens"] / RESULT["train_seconds"]
    assert f"training FLOP/s {rate / 1e9:,.1f} GFLOP/s {rate / 1e9:.0%} of a matrix product" in text
    assert "of a matrix product" not in text_of_page(page_of(run))


def test_peak_memory_of_a_run_is_shown(run: Path) -> None:
    assert re.search(r"peak memory \d+\.\d\d GB of the process", text_of_page(page_of(run)))


def test_page_of_a_long_run_is_short(run: Path) -> None:
    """100,000 logged steps, 1,000 evaluations and samples, long texts."""
    steps = 100_000
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "kind": "train",
                "step": step,
                "nats_per_token": 2 + math.sin(step) + 10 / step,
                "learning_rate": 0.001 * step / steps,
                "gradient_norm": 1 + math.cos(step),
                "tokens": 8192 * step,
                "tokens_per_second": 1e5 + step % 977,
                "balance": math.sin(step / 7),
            }
        )
        if step % 100 == 0:
            score = TextScore(2.5 + math.sin(step), 12.18, 3.6, 3.61, 599, 599, 600).to_json()
            lines.append({"kind": "validation", "step": step, **score, "accuracy": 0.5 + math.cos(step) / 3})
            lines.append({"kind": "sample", "step": step, "text": "the " + "word " * 200})
    write_log(run, lines)
    page = page_of(run, steps=steps, planned_steps=steps, tokens=8192 * steps)
    assert len(page.encode()) < 300_000
    assert "Of 100,000 logged values" in page and "20 of 1,000 are shown." in page
    assert {"after step 100", "after step 100,000"} <= {*re.findall(r"after step [\d,]+", page)}
    parsed(page)


def test_long_texts_are_truncated(run: Path) -> None:
    record = {"texts": ["x" * 10_000, "&" * 600], "label": "a", "chosen": "b", "correct": False}
    record |= {"probabilities": {"a": 0.2, "b": 0.8}}
    answer: dict[str, Any] = {"prompt": "q" * 9_000, "reference": "r", "generated": "g", "stopped": True}
    masks = [[("token ", index % 2 == 0) for index in range(40)], [("t" * 9_000, True)]]
    page = page_of(run, Pretraining.criterion, [record]) + page_of(
        run, Pretraining.criterion, [answer], masks
    )
    assert "x" * 500 + "… (9,500 more characters)" in page and "x" * 501 not in page
    assert "q" * 501 not in page and "t" * 2_001 not in page
    assert page.count("<mark>token </mark>token ") == 20


def test_adjacent_tokens_are_highlighted_together(run: Path) -> None:
    masks = [[("a", False), ("b", True), ("c", True), ("<", False)]]
    assert "<pre>a<mark>bc</mark>&lt;</pre>" in page_of(run, Pretraining.criterion, (), masks)


def test_only_the_most_frequent_labels_are_shown(run: Path) -> None:
    names = [f"label {i}" for i in range(LABELS + 10)]
    records = [
        {
            "label": name,
            "chosen": names[0],
            "correct": name == names[0],
            "texts": ["t"],
            "probabilities": dict.fromkeys(names, 0.02),
        }
        for i, name in enumerate(names)
        for _ in range(1 if i < 10 else 2)
    ]
    page = page_of(run, Pretraining.criterion, records)
    assert f"The {LABELS} most frequent of {LABELS + 10} labels are shown." in page
    assert "<th>label 10</th>" in page and "<th>label 9</th>" not in page
