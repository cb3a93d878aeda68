"""Train GPTs and n-gram models of different context lengths on Markov chains of known entropy."""

import argparse
from pathlib import Path

import numpy as np
import torch

import wholegpt as wg
from benchmarks.runs import finished
from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.charts import Series, line_chart
from wholegpt.console import Console
from wholegpt.files import write_text_atomic
from wholegpt.metrics import Estimate, bootstrap_ratio
from wholegpt.runs.folder import run_data

SYMBOLS = "abcdef"
CONCENTRATION = 0.3
"""Concentration of the Dirichlet distribution of the transition probabilities. Below 1 they are uneven."""
LENGTH = 400_000
ORDERS, CONTEXTS = (1, 2, 3), (1, 2, 3, 4, 8)
SCORED, PIECES = 39_000, 100
KINDS = {"gpt": "GPT", "ngram": "n-gram"}


def random_chain(order: int, seed: int) -> np.ndarray:
    """Return p(next | last ``order`` symbols), of shape (A, …, A, A)."""
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(len(SYMBOLS), CONCENTRATION), size=[len(SYMBOLS)] * order)


def stationary(chain: np.ndarray) -> np.ndarray:
    """Return the stationary distribution of the last ``order`` symbols, of shape (A, …, A)."""
    order, symbols = chain.ndim - 1, chain.shape[0]
    shares = np.full([symbols] * order, symbols**-order)
    for _ in range(5_000):
        following = (shares[..., None] * chain).sum(axis=0)
        if np.abs(following - shares).max() < 1e-14:
            break
        shares = following
    return shares


def conditional_entropy(chain: np.ndarray, context: int) -> float:
    """Return H(next | last ``context`` symbols) in nats: the entropy rate if ``context`` ≥ order."""
    joint = stationary(chain)[..., None] * chain
    order = chain.ndim - 1
    seen = joint.sum(axis=tuple(range(max(0, order - context))))
    given = seen.sum(axis=-1, keepdims=True)
    shares = np.divide(seen, given, out=np.ones_like(seen), where=given > 0)
    return float(-(seen * np.log(np.maximum(shares, 1e-300))).sum())


def text_of(chain: np.ndarray, length: int, seed: int) -> str:
    """Return a text sampled from the chain."""
    generator = np.random.default_rng(seed)
    order, cumulative = chain.ndim - 1, chain.cumsum(axis=-1)
    indices = [int(one) for one in generator.integers(0, len(SYMBOLS), order)]
    for draw in generator.random(length):
        at = tuple(indices[len(indices) - order :])
        indices.append(min(int(np.searchsorted(cumulative[at], draw)), len(SYMBOLS) - 1))
    return "".join(SYMBOLS[one] for one in indices[order:])


def conditional(chain: np.ndarray, context: int) -> np.ndarray:
    """Return p(next | last ``context`` symbols), of shape (A, …, A, A) with at most ``order`` context axes."""
    joint = stationary(chain)[..., None] * chain
    seen = joint.sum(axis=tuple(range(max(0, chain.ndim - 1 - context))))
    return seen / seen.sum(axis=-1, keepdims=True)


@torch.inference_mode()
def nats_above(run: Path, chain: np.ndarray, context: int) -> np.ndarray:
    """Return −ln p of held-out symbols by the model minus that by the chain, given exactly ``context`` symbols."""
    lm = wg.load(run, console=Console(quiet=True))
    text = run_data(run).validation
    ids = torch.from_numpy(text.read(0, min(len(text), SCORED + context)).astype(np.int64))
    windows = ids.unfold(0, context + 1, 1)
    found: list[np.ndarray] = []
    for chunk in windows.split(4096):
        logits = lm.model(chunk[:, :-1])[:, -1].float()
        found.append(torch.nn.functional.cross_entropy(logits, chunk[:, -1], reduction="none").numpy())
    symbol_of = np.array([SYMBOLS.find(lm.tokenizer.decode([i])) for i in range(lm.tokenizer.vocab_size)])
    symbols = symbol_of[windows.numpy()]
    exact = conditional(chain, context)
    least = -np.log(exact[tuple(symbols[:, -exact.ndim :].T)])
    return np.concatenate(found) - least


def learned(text: Path, context: int, kind: str, out: Path, steps: int, console: Console) -> Path:
    """Return the run of a model with the given context length. Train it if there is none."""
    model: dict[str, object] = {"context_length": max(context, 2)}
    if kind == "ngram":
        model |= {"architecture": "ngram", "ngram_order": context + 1}
    else:
        model |= {
            "context_length": context,
            "n_layers": 2,
            "d_model": 64,
            "n_heads": 4,
            "positions": "learned",  # windows are only a few positions long, and only the order of symbols matters
        }
    settings = {
        "model": model,
        "tokenizer": {"kind": "character"},
        "training": {"steps": steps, "batch_size": max(8, 1024 // context)},
        "schedule": {
            "kind": "warmup_stable_decay",
            "warmup_steps": 20,
            "decay_fraction": 0.8,
            "final_fraction": 0.0,
        },
        "evaluation": {"every": steps},
        "logging": {"sample_every": 0, "sample_prompt": SYMBOLS[0]},
    }
    config = wg.configure(settings)
    return finished(out, lambda: wg.train(text, config=config, out=out, console=console), console)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/markov"))
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    console, out = Console(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[int, str, int], Estimate] = {}
    rows: list[str] = []
    for order in ORDERS:
        chain = random_chain(order, seed=order)
        text = out / f"order-{order}.txt"
        if not text.exists():
            write_text_atomic(text, text_of(chain, LENGTH, seed=100 + order))
        for context in CONTEXTS:
            bound = conditional_entropy(chain, context)
            cells: list[str] = []
            for kind in KINDS:
                run = learned(
                    text,
                    context,
                    kind,
                    out / f"{kind}-{order}-{context}-{arguments.steps}",
                    arguments.steps,
                    console,
                )
                above = nats_above(run, chain, context)
                pieces = np.array_split(above, PIECES)  # neighboring positions share their context
                gap = bootstrap_ratio(np.array([one.sum() for one in pieces]), np.array([*map(len, pieces)]))
                found[order, kind, context] = gap
                cells.append(f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
            rows.append(f"| {order} | {context} | {bound:.4f} | {' | '.join(cells)} |")
    header = [
        "| Order k | Context τ | Lower bound, nats | Excess of GPT, nats | Excess of the n-gram of order τ + 1, nats |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    what = [
        f"The text is {LENGTH:,} symbols of a Markov chain of order k over {len(SYMBOLS)} symbols. The GPTs have 2 "
        f"layers, width 64 and learned positions, and are trained for {arguments.steps:,} steps. {SCORED:,} "
        "held-out symbols are scored, each with a context of exactly τ symbols.",
        "",
        "- **Lower bound.** No model can be better than H(next | last τ), which is computed from the chain. If τ ≥ k, "
        "this is the entropy rate of the chain. If τ < k, it is larger by H(next | last τ) − H(next | last k).",
        "- **Excess.** The mean −ln p of a model minus that of the chain given the same τ symbols, with its 95% "
        f"interval (bootstrap over {PIECES} pieces).",
        "",
        "![Nats per symbol as a function of the context](markov.svg)",
    ]
    publish("Markov chains of known entropy", "\n".join([machine_line(), "", *what, "", *header, *rows]))
    draw(found)


def draw(found: dict[tuple[int, str, int], Estimate]) -> None:
    """Draw the losses as a function of the context, for each order."""
    contexts, series = np.array(CONTEXTS, dtype=float), list[Series]()
    for color, order in enumerate(ORDERS):
        chain = random_chain(order, seed=order)
        bounds = np.array([conditional_entropy(chain, context) for context in CONTEXTS])
        series.append(Series(f"order {order}: lower bound", contexts, bounds, color))
        for kind, marker in zip(KINDS, ("circle", "cross"), strict=True):
            excess = np.array([found[order, kind, context].value for context in CONTEXTS])
            last = order == ORDERS[-1]
            name = KINDS[kind] if last else f"{KINDS[kind]}, order {order}"
            series.append(
                Series(name, contexts, bounds + excess, color, marker, has_line=False, in_legend=last)
            )
    chart = line_chart(series, x_label="context τ", y_label="nats per symbol", whole_x=True)
    chart.save(DOCUMENT.with_name("markov.svg"))


if __name__ == "__main__":
    main()
