"""Perplexity: every token is scored once for any stride, and scores equal closed forms and direct computations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import LogitsOnly
from tests.parity.test_plain import randomized
from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.errors import ConfigError, DataError, NumericsError
from wholegpt.evaluation import evaluate_text, evaluate_tokens, score_tokens
from wholegpt.evaluation.perplexity import scoring_windows
from wholegpt.metrics import bits_per_unit, nats_to_bits, perplexity, uniform_nats
from wholegpt.settings.choices import Dtype
from wholegpt.tokenizers import byte_tokenizer

QUIET, CPU = Console(quiet=True), torch.device("cpu")


class Uniform(LogitsOnly):
    """Predicts a uniform distribution: every logit is 0."""

    def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return torch.zeros(*token_ids.shape, self.vocab_size)


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_token_after_the_first_is_scored_once(n: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored: list[int] = []
    for window in scoring_windows(n, context, stride):
        assert window.end - window.start <= context
        assert window.start <= window.first_scored < window.end
        if window.first_scored:
            assert window.first_scored + 1 - window.start >= context - stride
        scored += range(window.first_scored + 1, window.end + 1)
    assert scored == list(range(1, n))


def test_a_uniform_model_has_the_closed_form() -> None:
    text = "naïve café 🙂" * 9
    tokenizer = byte_tokenizer()
    tokens = TokenShards([np.array(tokenizer.encode(text))])
    score = evaluate_tokens(Uniform(257, 16), tokens, tokenizer, CPU, Dtype.float32, QUIET)
    assert score.nats_per_token == pytest.approx(math.log(257), rel=1e-6)
    assert score.perplexity == pytest.approx(257, rel=1e-5)
    assert score.tokens == score.bytes == len(text.encode()) - 1
    assert score.characters == len(text) - 1
    assert score.bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)
    assert score.bits_per_character == pytest.approx(
        math.log2(257) * score.bytes / score.characters, rel=1e-6
    )


def test_end_of_text_counts_as_a_token_without_bytes() -> None:
    tokenizer = byte_tokenizer()
    tokens = TokenShards([np.array([97, 98, tokenizer.end_of_text_id, 99])])
    score = evaluate_tokens(Uniform(257, 16), tokens, tokenizer, CPU, Dtype.float32, QUIET)
    assert (score.tokens, score.bytes, score.characters) == (3, 2, 2)


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_scores_equal_a_direct_computation(stride: int) -> None:
    """Token by token, in the window that should score it."""
    model = randomized("modern")
    ids = np.random.default_rng(0).integers(0, 37, 40)
    windows = list(scoring_windows(40, 12, stride))
    ours = score_tokens(model, TokenShards([ids]), windows, CPU, Dtype.float32, QUIET)
    direct: list[float] = []
    for position in range(1, 40):
        windows_before = [w for w in windows if w.first_scored < position <= w.end]
        start = windows_before[0].start
        with torch.no_grad():
            logits = model(torch.from_numpy(ids[start:position])[None])[0, -1]
        direct.append(-torch.log_softmax(logits, -1)[ids[position]].item())
    np.testing.assert_allclose(ours, direct, atol=1e-12)


def test_smaller_stride_gives_more_context() -> None:
    windows = list(scoring_windows(100, 10, 4))
    assert [(w.start, w.first_scored, w.end) for w in windows[:3]] == [(0, 0, 9), (4, 9, 13), (8, 13, 17)]


def test_sample_scores_about_the_requested_number_of_tokens() -> None:
    tokens = TokenShards([np.zeros(10_000, dtype=np.int64)])
    score = evaluate_tokens(
        Uniform(257, 16), tokens, byte_tokenizer(), CPU, Dtype.float32, QUIET, sample=1000
    )
    assert 950 <= score.tokens <= 1050


def test_invalid_strides_and_texts_are_rejected() -> None:
    tokens = TokenShards([np.zeros(10, dtype=np.int64)])
    with pytest.raises(ConfigError, match="stride is 17; expected 1 to 16"):
        evaluate_tokens(Uniform(257, 16), tokens, byte_tokenizer(), CPU, Dtype.float32, QUIET, stride=17)
    with pytest.raises(DataError, match="at least 2 are needed"):
        one = TokenShards([np.zeros(1, dtype=np.int64)])
        evaluate_tokens(Uniform(257, 16), one, byte_tokenizer(), CPU, Dtype.float32, QUIET)


def test_units() -> None:
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert 2 ** nats_to_bits(1.3) == pytest.approx(perplexity(1.3))
    assert perplexity(1e6) == math.inf
    assert bits_per_unit(math.log(2) * 10, 5) == pytest.approx(2)
    assert math.isnan(bits_per_unit(1.0, 0))
    assert uniform_nats(66) == pytest.approx(4.1897, abs=1e-4)


def test_nan_logits_are_an_error() -> None:
    """Even if only the logits after one particular token are NaN."""

    class Damaged(LogitsOnly):
        def forward(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            logits = torch.zeros(*token_ids.shape, self.vocab_size)
            logits[token_ids == ord("z")] = math.nan
            return logits

    tokenizer = byte_tokenizer()
    model = Damaged(tokenizer.vocab_size, 8)
    for text, damaged in (("a text about nothing", 0), ("a lazy text", 1)):
        tokens = TokenShards([np.array(tokenizer.encode(text))])

        def evaluate(tokens: TokenShards = tokens) -> float:
            return evaluate_text(model, tokens, tokenizer, CPU, Dtype.float32, QUIET).nats_per_token

        if damaged:
            with pytest.raises(NumericsError, match=r"produces NaN for 1 of 10 tokens"):
                evaluate()
        else:
            assert evaluate() == pytest.approx(math.log(tokenizer.vocab_size))
