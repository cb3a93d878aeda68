"""A source whose entropy is known: random Markov chains, learned by GPTs and n-grams of shorter and longer contexts."""

import argparse
from pathlib import Path

import numpy as np
import torch

import wholegpt as wg
from benchmarks.tables import machine_line, publish
from wholegpt.analysis.report import BLUE, GREY, ORANGE, svg_of
from wholegpt.console import Console
from wholegpt.files import write_text_atomic
from wholegpt.run_folder import run_data

SYMBOLS = "abcdef"
CONCENTRATION = 0.3
"""Of the Dirichlet distribution that the next symbol's probabilities are drawn from; below 1 they are uneven."""
LENGTH = 400_000
ORDERS, CONTEXTS = (1, 2, 3), (1, 2, 3, 4, 8)
SCORED = 40_000


def random_chain(order: int, seed: int) -> np.ndarray:
    """p(next | last ``order`` symbols), of shape (A, …, A, A)."""
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(len(SYMBOLS), CONCENTRATION), size=[len(SYMBOLS)] * order)


def stationary(chain: np.ndarray) -> np.ndarray:
    """How often each run of ``order`` symbols stands at a place, of shape (A, …, A): the chain's fixed point."""
    order, symbols = chain.ndim - 1, chain.shape[0]
    shares = np.full([symbols] * order, symbols**-order)
    for _ in range(5_000):
        following = (shares[..., None] * chain).sum(axis=0)
        if np.abs(following - shares).max() < 1e-14:
            break
        shares = following
    return shares


def conditional_entropy(chain: np.ndarray, context: int) -> float:
    """H(next | last ``context`` symbols) in nats: the entropy rate where ``context`` is the order or more."""
    joint = stationary(chain)[..., None] * chain
    order = chain.ndim - 1
    seen = joint.sum(axis=tuple(range(max(0, order - context))))
    given = seen.sum(axis=-1, keepdims=True)
    shares = np.divide(seen, given, out=np.ones_like(seen), where=given > 0)
    return float(-(seen * np.log(np.maximum(shares, 1e-300))).sum())


def text_of(chain: np.ndarray, length: int, seed: int) -> str:
    """A text that the chain writes."""
    generator = np.random.default_rng(seed)
    order, cumulative = chain.ndim - 1, chain.cumsum(axis=-1)
    places = [int(one) for one in generator.integers(0, len(SYMBOLS), order)]
    for draw in generator.random(length):
        at = tuple(places[len(places) - order :])
        places.append(min(int(np.searchsorted(cumulative[at], draw)), len(SYMBOLS) - 1))
    return "".join(SYMBOLS[one] for one in places[order:])


@torch.inference_mode()
def nats_in_full_context(run: Path, context: int) -> float:
    """Nats per token of the held-out text, each token after exactly ``context`` others."""
    model = wg.load(run, console=Console(quiet=True)).model
    text = run_data(run).validation
    ids = torch.from_numpy(text.read(0, min(len(text), SCORED + context)).astype(np.int64))
    windows = ids.unfold(0, context + 1, 1)
    total = 0.0
    for chunk in windows.split(4096):
        logits = model(chunk[:, :-1])[:, -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, chunk[:, -1], reduction="sum"))
    return total / len(windows)


def learned(text: Path, context: int, kind: str, out: Path, steps: int, console: Console) -> Path:
    """A model with so much context, trained if it is not there."""
    if (out / "report.html").exists():
        return out
    model: dict[str, object] = {"context_length": max(context, 2)}
    if kind == "ngram":
        model |= {"architecture": "ngram", "ngram_order": context + 1}
    else:
        model |= {"context_length": context, "n_layers": 2, "d_model": 64, "n_heads": 4}
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
    return wg.train(text, config=wg.configure(settings), out=out, overwrite=True, console=console).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/markov"))
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    console, out = Console(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[int, str, int], float] = {}
    rows: list[str] = []
    for order in ORDERS:
        chain = random_chain(order, seed=order)
        text = out / f"order-{order}.txt"
        if not text.exists():
            write_text_atomic(text, text_of(chain, LENGTH, seed=100 + order))
        for context in CONTEXTS:
            bound = conditional_entropy(chain, context)
            cells: list[str] = []
            for kind in ("gpt", "ngram"):
                run = learned(
                    text, context, kind, out / f"{kind}-{order}-{context}", arguments.steps, console
                )
                found[order, kind, context] = nats_in_full_context(run, context)
                cells.append(
                    f"{found[order, kind, context]:.4f} ({found[order, kind, context] - bound:+.4f})"
                )
            rows.append(f"| {order} | {context} | {bound:.4f} | {' | '.join(cells)} |")
    header = [
        "| order k | context τ | the least possible, nats | GPT (above it) | n-gram of order τ + 1 (above it) |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    what = (
        f"Chains over {len(SYMBOLS)} symbols, {LENGTH:,} of text; every scored symbol has τ before it. The least "
        "possible is H(next | last τ), computed from the chain: its entropy rate where τ is k or more.\n\n"
        "![nats per symbol over the context](markov.svg)"
    )
    publish("A source of known entropy", "\n".join([machine_line(), "", what, "", *header, *rows]))
    draw(found)


def draw(found: dict[tuple[int, str, int], float]) -> None:
    """The losses over the context, a panel of lines for each order."""

    def lines(axes: object) -> None:
        for order, color in zip(ORDERS, (BLUE, ORANGE, GREY), strict=True):
            chain = random_chain(order, seed=order)
            bounds = [conditional_entropy(chain, context) for context in CONTEXTS]
            plot = axes.plot  # type: ignore[attr-defined]
            plot(CONTEXTS, bounds, color=color, linewidth=1, label=f"order {order}: least possible")
            for kind, marker in (("gpt", "o"), ("ngram", "x")):
                values = [found[order, kind, context] for context in CONTEXTS]
                plot(CONTEXTS, values, color=color, marker=marker, linestyle="", label=f"{kind}")
        axes.set_ylabel("nats per symbol")  # type: ignore[attr-defined]
        axes.legend(frameon=False, fontsize=8, ncols=3)  # type: ignore[attr-defined]

    write_text_atomic(Path("docs/markov.svg"), svg_of("markov", lines, "context τ"))


if __name__ == "__main__":
    main()
