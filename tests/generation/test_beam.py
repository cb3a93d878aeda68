"""Beam search against exhaustive search and against transformers."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import generate_one, tiny_model, tiny_models
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation import InterruptedGeneration
from wholegpt.generation.beam import beam_search
from wholegpt.interop.conversion import export_model
from wholegpt.model import Transformer
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import END_OF_TEXT, Tokenizer, train_character

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TOKENIZER = train_character(["abc"])


def sharp_model(seed: int, vocab_size: int = TOKENIZER.vocab_size, context_length: int = 12) -> Transformer:
    """Return a model whose logits differ by more than rounding errors."""
    torch.manual_seed(seed)
    config = tiny_model(vocab_size=vocab_size, context_length=context_length)
    model = Transformer(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def all_texts(
    model: Transformer, prompt: list[int], length: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Return every sequence that ends within ``length`` tokens and every one of exactly ``length``, with its score."""
    scored: list[tuple[float, list[int]]] = []
    end, vocabulary = TOKENIZER.end_of_text_id, range(TOKENIZER.vocab_size)
    texts = torch.tensor([*itertools.product(vocabulary, repeat=length)])
    with torch.no_grad():
        logits = model(torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], dim=1))
    steps = torch.log_softmax(logits, dim=-1)[:, len(prompt) - 1 : -1].gather(2, texts[:, :, None])[:, :, 0]
    for tokens, log_probabilities in zip(texts.tolist(), steps, strict=True):
        whole = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        total = float(log_probabilities[: len(whole)].sum())
        scored.append((total / len(whole) ** penalty, [token for token in whole if token != end]))
    unique = {tuple(ids): score for score, ids in scored}
    return sorted(((score, list(ids)) for ids, score in unique.items()), reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(3))
def test_wide_beam_search_equals_exhaustive_search(seed: int, penalty: float) -> None:
    """No candidate is lost with as many beams as there are sequences one token shorter."""
    model, length = sharp_model(seed), 4
    assert TOKENIZER.vocab_size == 4
    expected = all_texts(model, [0, 1], length, penalty)
    config = GenerationConfig(max_tokens=length)
    found = beam_search(model, TOKENIZER, [0, 1], config, 4 ** (length - 1), penalty, CPU, QUIET)
    assert [one.token_ids for one in found[:10]] == [ids for _, ids in expected[:10]]
    assert [one.score for one in found[:10]] == pytest.approx([score for score, _ in expected[:10]], abs=1e-9)


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 9))
def test_scores_equal_the_log_probabilities_of_the_sequences(seed: int, beams: int, length: int) -> None:
    model = sharp_model(seed)
    config = GenerationConfig(max_tokens=length)
    found = beam_search(model, TOKENIZER, [0, 1], config, beams, 0.0, CPU, QUIET)
    assert 1 <= len(found) <= beams
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        ended = [TOKENIZER.end_of_text_id] * (one.finish_reason == "end_of_text")
        whole = [0, 1, *one.token_ids, *ended]
        with torch.no_grad():
            steps = torch.log_softmax(model(torch.tensor([whole]))[0], dim=-1)[1:-1]
        total = float(steps.gather(1, torch.tensor(whole[2:])[:, None]).sum())
        assert total == pytest.approx(one.log_probability, abs=1e-9) == pytest.approx(one.score, abs=1e-9)


def test_one_beam_equals_greedy_decoding() -> None:
    model = sharp_model(1)
    config = GenerationConfig(max_tokens=8, temperature=0)
    greedy = generate_one(model, TOKENIZER, [0, 1], config)
    (found,) = beam_search(model, TOKENIZER, [0, 1], config, 1, 0.0, CPU, QUIET)
    assert (found.token_ids, found.finish_reason) == (greedy.token_ids, greedy.finish_reason)


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_models())
@pytest.mark.parametrize(("beams", "penalty"), [(3, 0.6), (4, 2.0)])
def test_beams_equal_those_of_transformers(kind: str, beams: int, penalty: float, tmp_path: Path) -> None:
    """200 tokens, with and without an end-of-text token; transformers runs with ``early_stopping="never"``."""
    tokenizer = train_character(["abcdefghij"])
    torch.manual_seed(beams)
    config = replace(tiny_models()[kind], vocab_size=tokenizer.vocab_size, context_length=256)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, model, tokenizer)
    export = export_model(folder, "huggingface", tmp_path / "export", console=Console(quiet=True)).path
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(export).eval().double()
    model.double()
    for end in (None, tokenizer.end_of_text_id):
        reference = theirs.generate(
            torch.tensor([[1, 2, 3]]),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            early_stopping="never",
            max_new_tokens=200,
            eos_token_id=end,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        bare = tokenizer if end is not None else without_end(tokenizer)
        found = beam_search(model, bare, [1, 2, 3], GenerationConfig(200), beams, penalty, CPU, QUIET)
        expected = [row[3:].tolist() for row in reference.sequences]
        if end is not None:
            expected = [row[: row.index(end)] if end in row else row for row in expected]
        assert [one.token_ids for one in found] == expected
        scores = reference.sequences_scores.tolist()
        assert [one.score for one in found] == pytest.approx(scores, rel=1e-5)  # transformers sums in float32


def without_end(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the same vocabulary but no end-of-text token."""
    return Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.to_json().replace(END_OF_TEXT, "<|nothing|>")))


def test_interruption_returns_the_beams_found_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = sharp_model(0), GenerationConfig(max_tokens=8)
    forward, calls = model.forward, 0

    def interrupted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", interrupted)
    with pytest.raises(InterruptedGeneration) as caught:
        beam_search(model, without_end(TOKENIZER), [0, 1], config, 3, 1.0, CPU, QUIET)
    monkeypatch.undo()
    shorter = beam_search(model, without_end(TOKENIZER), [0, 1], GenerationConfig(3), 3, 1.0, CPU, QUIET)
    assert [one.token_ids for one in caught.value.completions] == [one.token_ids for one in shorter]
    assert {one.finish_reason for one in caught.value.completions} == {"interrupted"}


def test_stop_strings_end_a_beam() -> None:
    model = sharp_model(2)
    config = GenerationConfig(max_tokens=8, stop=("ab",))
    for one in beam_search(model, TOKENIZER, [0, 1], config, 4, 1.0, CPU, QUIET):
        text = TOKENIZER.decode(one.token_ids)
        assert ("ab" in text) == (one.finish_reason == "stop")


def test_invalid_settings_are_rejected() -> None:
    model = sharp_model(0)
    with pytest.raises(ConfigError, match="top_k has no effect in beam search"):
        beam_search(model, TOKENIZER, [0], GenerationConfig(max_tokens=4, top_k=3), 2, 1.0, CPU, QUIET)
    with pytest.raises(ConfigError, match="needs room for both in the 12 that the model sees"):
        beam_search(model, TOKENIZER, [0], GenerationConfig(max_tokens=12), 2, 1.0, CPU, QUIET)
    with pytest.raises(ConfigError, match="beams is 0"):
        beam_search(model, TOKENIZER, [0], GenerationConfig(max_tokens=2), 0, 1.0, CPU, QUIET)
