"""Compare the speed of multiple-choice scoring with one forward pass per choice, on MCTest."""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.tables import conditions, publish, spread
from wholegpt import runtime
from wholegpt.console import Console
from wholegpt.evaluation import Request, score_continuations
from wholegpt.model import Transformer
from wholegpt.settings import presets
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import PrecisionConfig
from wholegpt.tokenizers import gpt2_tokenizer

CPU = torch.device("cpu")


def mctest(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Yield the pairs of context (story) and choice (statement) of each question."""
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        story = cells[2].replace("\\newline", "\n")
        for question in range(4):
            statements = cells[4 + 5 * question : 8 + 5 * question]
            yield [(story, " " + statement) for statement in statements]


@torch.inference_mode()
def naive(model: Transformer, requests: list[Request], dtype: Dtype) -> list[float]:
    """Return −ln p of each continuation, with one forward pass each."""
    nats: list[float] = []
    for request in requests:
        whole = [*request.context_ids, *request.continuation_ids][-(model.context_length + 1) :]
        with runtime.compute_in(dtype, CPU):
            logits = model(torch.tensor([whole[:-1]]))[0, -len(request.continuation_ids) :].float()
        targets = torch.tensor(request.continuation_ids)
        nats.append(-float(torch.log_softmax(logits.double(), dim=-1).gather(1, targets[:, None]).sum()))
    return nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="gpt2-small", help="an architecture with GPT-2's vocabulary")
    parser.add_argument("--stories", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = Path(os.environ["WHOLEGPT_DATA"])
    tokenizer = gpt2_tokenizer(data / "gpt2")
    pairs = [pair for question in mctest(data / "mctest" / "test.statements.tsv") for pair in question]
    requests = [Request.of(tokenizer, *pair) for pair in pairs[: 16 * arguments.stories]]
    torch.manual_seed(1)
    precision = runtime.decide_precision(PrecisionConfig(), CPU)
    lines = [
        f"{conditions(arguments.rounds)} {arguments.preset} with random weights, {arguments.stories} stories of "
        f"MCTest's test split, {len(requests)} choices, {precision.dtype} products on both sides.",
        "",
        "| Method | Choices per second | Ratio |",
        "| --- | ---: | ---: |",
    ]
    model = Transformer(presets.preset(arguments.preset), precision.attention).eval()
    rates: dict[str, list[float]] = {"one forward pass per choice": [], "wholegpt": []}
    largest = 0.0
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        plain = naive(model, requests, precision.dtype)
        between = time.perf_counter()
        ours = score_continuations(model, requests, CPU, precision.dtype, Console(quiet=True))
        ended = time.perf_counter()
        rates["one forward pass per choice"].append(len(requests) / (between - started))
        rates["wholegpt"].append(len(requests) / (ended - between))
        largest = max(largest, *(abs(a - b.nats) / a for a, b in zip(plain, ours, strict=True)))
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    for name, values in rates.items():
        ratio = spread(ratios, "{:.2f}") if name == "wholegpt" else "1"
        lines.append(f"| {name} | {spread(values, '{:.1f}')} | {ratio} |")
    lines += ["", f"The nats of the two methods differ by at most {100 * largest:.2g}%."]
    publish("Evaluation, multiple choice", "\n".join(lines))


if __name__ == "__main__":
    main()
