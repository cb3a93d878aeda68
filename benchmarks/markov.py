"""A source whose entropy is known: random Markov chains, learned by GPTs and n-grams of shorter and longer contexts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import wholegpt as wg
from benchmarks.runs import finished
from benchmarks.tables import DOCUMENT, machine_line, publish
from wholegpt.analysis.report import BLUE, GREY, ORANGE, svg_of
from wholegpt.console import Console
from wholegpt.files import write_text_atomic
from wholegpt.metrics import Estimate, bootstrap_ratio
from wholegpt.runs.folder import run_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYMBOLS = "abcdef"
CONCENTRATION = 0.3
"""Of the Dirichlet distribution that the next symbol's probabilities are drawn from; below 1 they are uneven."""
LENGTH = 400_000
ORDERS, CONTEXTS = (1, 2, 3), (1, 2, 3, 4, 8)
SCORED, PIECES = 39_000, 100
KINDS = {"gpt": "GPT", "ngram": "n-gram"}


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


def conditional(chain: np.ndarray, context: int) -> np.ndarray:
    """p(next | last ``context`` symbols), of shape (A, …, A, A) with at most ``order`` symbols before the next."""
    joint = stationary(chain)[..., None] * chain
    seen = joint.sum(axis=tuple(range(max(0, chain.ndim - 1 - context))))
    return seen / seen.sum(axis=-1, keepdims=True)


@torch.inference_mode()
def nats_above(run: Path, chain: np.ndarray, context: int) -> np.ndarray:
    """−ln p of held-out symbols by a model less that by the chain itself, each after exactly ``context`` symbols."""
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
    """A model with so much context, trained if it is not there."""
    model: dict[str, object] = {"context_length": max(context, 2)}
    if kind == "ngram":
        model |= {"architecture": "ngram", "ngram_order": context + 1}
    else:
        model |= {
            "context_length": context,
            "n_layers": 2,
            "d_model": 64,
            "n_heads": 4,
            "positions": "learned",  # the windows are a few positions long, and their order is all that there is
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
                pieces = np.array_split(above, PIECES)  # places near each other share what they see
                gap = bootstrap_ratio(np.array([one.sum() for one in pieces]), np.array([*map(len, pieces)]))
                found[order, kind, context] = gap
                cells.append(f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
            rows.append(f"| {order} | {context} | {bound:.4f} | {' | '.join(cells)} |")
    header = [
        "| order k | context τ | the least possible, nats | GPT, above it | n-gram of order τ + 1, above it |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    what = (
        f"Chains over {len(SYMBOLS)} symbols, {LENGTH:,} of text; GPTs of 2 layers, 64 wide, with learned positions, "
        f"{arguments.steps:,} steps. Each of the {SCORED:,} held-out symbols that are scored has exactly τ before it. "
        "The least possible is H(next | last τ), computed from the chain: its entropy "
        "rate where τ is k or more, and above that by H(next | last τ) − H(next | last k) where it is less. What a "
        "model is above it is the mean of its −ln p less that of the chain given the same τ symbols, with its 95% "
        f"interval, a bootstrap over {PIECES} pieces.\n\n![nats per symbol over the context](markov.svg)"
    )
    publish("A source of known entropy", "\n".join([machine_line(), "", what, "", *header, *rows]))
    draw(found)


def draw(found: dict[tuple[int, str, int], Estimate]) -> None:
    """The losses over the context, a panel of lines for each order."""

    def lines(axes: "Axes") -> None:
        for order, color in zip(ORDERS, (BLUE, ORANGE, GREY), strict=True):
            chain = random_chain(order, seed=order)
            bounds = [conditional_entropy(chain, context) for context in CONTEXTS]
            plot = axes.plot
            plot(CONTEXTS, bounds, color=color, linewidth=1, label=f"order {order}: least possible")
            for kind, marker in zip(KINDS, "ox", strict=True):
                values = [
                    bound + found[order, kind, context].value
                    for bound, context in zip(bounds, CONTEXTS, strict=True)
                ]
                label = KINDS[kind] if order == ORDERS[-1] else None
                plot(CONTEXTS, values, color=color, marker=marker, linestyle="", label=label)
        axes.set_ylabel("nats per symbol")
        axes.legend(frameon=False, fontsize=8, ncols=3)

    write_text_atomic(DOCUMENT.with_name("markov.svg"), svg_of("markov", lines, "context τ"))


if __name__ == "__main__":
    main()
