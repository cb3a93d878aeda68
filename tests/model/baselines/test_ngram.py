"""The n-gram model against NLTK, against counts by hand, and through training, evaluation and generation."""

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import text_of, tiny_config
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError, DataError
from wholegpt.generation import Engine
from wholegpt.model.baselines import NGram
from wholegpt.model.baselines.ngram import count_ngrams, estimated_discount
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.choices import Architecture
from wholegpt.settings.schema import GenerationConfig, ModelConfig
from wholegpt.tokenizers import train_character

QUIET, CPU = Console(quiet=True), torch.device("cpu")


def ngram_config(vocab_size: int, order: int, discount: float = 0.0) -> ModelConfig:
    return ModelConfig(
        architecture=Architecture.ngram,
        vocab_size=vocab_size,
        context_length=32,
        ngram_order=order,
        ngram_discount=discount,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_probabilities_equal_nltk(order: int) -> None:
    """On 20 kB of letters.

    The text starts with its own end, so that every n-gram has a predecessor, as NLTK assumes.
    """
    lm = pytest.importorskip("nltk.lm", reason="nltk is a test-only dependency")
    text = text_of(20_000, seed=3)
    text = text[-10:] + text
    letters = sorted(set(text))
    ids = np.array([letters.index(letter) for letter in text])
    ours = NGram.counted(ids, ngram_config(len(letters), order, 0.75))
    theirs = lm.KneserNeyInterpolated(order, discount=0.75) if order > 1 else lm.MLE(1)
    ngrams = [tuple(text[i : i + size]) for size in range(1, order + 1) for i in range(len(text) - size + 1)]
    theirs.fit([ngrams], vocabulary_text=letters)
    generator = random.Random(0)
    for _ in range(30):
        at = generator.randrange(len(text) - order)
        context = text[at : at + order - 1]
        if generator.random() < 0.3:  # a context that the text may not contain
            context = "".join(generator.choices(letters, k=order - 1))
        token_ids = torch.tensor([[letters.index(letter) for letter in context]], dtype=torch.long)
        cache = ours.new_cache(1)
        found = ours(token_ids, cache)[0, -1].exp() if order > 1 else ours.base
        assert found.sum().item() == pytest.approx(1, abs=1e-5)
        for letter in generator.sample(letters, 5):
            expected = theirs.score(letter, tuple(context))
            assert found[letters.index(letter)].item() == pytest.approx(expected, abs=1e-6)


def test_counts_by_hand() -> None:
    """a b a b a c: unigrams, bigrams, and the number of distinct predecessors of each."""
    levels = count_ngrams(np.array([0, 1, 0, 1, 0, 2]), 2, vocab_size=3)
    assert levels[0].keys.tolist() == [0, 1, 2]
    assert levels[0].counts.tolist() == [3, 2, 1]
    assert levels[0].continuations.tolist() == [1, 1, 1]
    assert levels[1].keys.tolist() == [0 * 3 + 1, 0 * 3 + 2, 1 * 3 + 0]
    assert levels[1].counts.tolist() == [2, 1, 2]
    assert estimated_discount(np.array([1, 1, 2, 5])) == 2 / (2 + 2)
    assert estimated_discount(np.array([1, 1])) == 0.5


@pytest.mark.parametrize("order", [0, 1, 2, 4, 7])
def test_every_distribution_sums_to_one(order: int) -> None:
    """Including unseen tokens, unseen contexts, and contexts shorter than the order."""
    generator = np.random.default_rng(0)
    model = NGram.counted(generator.integers(0, 40, 3_000), ngram_config(50, order))
    logits = model(torch.from_numpy(generator.integers(0, 50, (8, 30))))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(8, 30), rtol=0, atol=1e-5)
    if order == 0:
        torch.testing.assert_close(logits, torch.full_like(logits, -np.log(50)))


def test_chunked_prefill_equals_one_forward_pass() -> None:
    generator = np.random.default_rng(1)
    model = NGram.counted(generator.integers(0, 6, 5_000), ngram_config(6, 4))
    ids = torch.from_numpy(generator.integers(0, 6, (3, 50)))
    whole, cache = model(ids), model.new_cache(3, 8)
    pieces = [model(piece, cache) for piece in ids.split([1, 2, 13, 7, 27], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_parameter_count() -> None:
    """The text contains three of four tokens and seven distinct bigrams."""
    ids = np.array([0, 1, 2, 0, 2, 1, 0, 0])
    learned = [NGram.counted(ids, ngram_config(4, order)).parameter_count for order in range(3)]
    assert learned == [0, 4, 4 + 7 + 3]


def test_too_little_text() -> None:
    with pytest.raises(DataError, match="3 tokens are too few for n-grams of order 5"):
        NGram.counted(np.array([1, 2, 3]), ngram_config(5, 5))


def test_ngram_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training, resuming, evaluation, loading and generation work as for every other model."""
    (tmp_path / "text.txt").write_text(text_of(20_000))
    wrong = tiny_config(tmp_path / "text.txt", model={"architecture": "ngram"})
    with pytest.raises(ConfigError, match=r"model.n_layers does not apply to ngram"):
        api.train(config=wrong, out=tmp_path / "run")
    kind = ngram_config(0, 4)
    config = dataclasses.replace(tiny_config(tmp_path / "text.txt"), model=kind)
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert run.state.step == 1 and run.parameters > 1_000
    assert run.validation.nats_per_token < math.log(run.load().tokenizer.vocab_size) / 2
    assert (tmp_path / "run" / "report.html").exists()
    again = api.resume(tmp_path / "run", console=QUIET)
    assert again.validation == run.validation
    assert main(["info", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == run.parameters
    lm = load(tmp_path / "run")
    assert lm.model.parameter_count == run.parameters
    text = lm.generate("the ", max_tokens=20, seed=1, console=QUIET).text
    assert len(text) == 20
    assert lm.generate("the ", max_tokens=20, seed=1, draft="prompt", console=QUIET).text == text


def test_batched_equals_alone() -> None:
    text = text_of(5_000)
    tokenizer = train_character([text])
    ids = np.array(tokenizer.encode(text))
    model = NGram.counted(ids, ngram_config(tokenizer.vocab_size, 4))
    prompts = [tokenizer.encode(prompt) for prompt in ("the of", "to", "is you that it he was")]
    config = GenerationConfig(30, 1.0)

    def generated(slots: int) -> list[list[int]]:
        engine = Engine(model, tokenizer, CPU, slots=slots)
        requests = [engine.submit(prompt, config) for prompt in prompts]
        engine.run()
        return [request.token_ids for request in requests]

    assert generated(3) == generated(1)
