"""Likelihoods of continuations: the batched computation against one forward pass per request."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny_models
from tests.interop.models import random_model
from wholegpt.console import Console
from wholegpt.evaluation.likelihood import Likelihood, Request, score_continuations
from wholegpt.model import Transformer
from wholegpt.settings.choices import Dtype
from wholegpt.tokenizers import character_tokenizer, train_bpe, train_character

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


@torch.inference_mode()
def one_by_one(model: Transformer, requests: list[Request]) -> list[Likelihood]:
    """Compute equation E8 for each request separately."""
    results: list[Likelihood] = []
    for request in requests:
        whole = [*request.context_ids, *request.continuation_ids]
        kept = whole[-(model.context_length + 1) :]
        scored = min(len(request.continuation_ids), len(kept) - 1)
        probabilities = torch.softmax(model(torch.tensor([kept[:-1]]))[0], dim=-1)
        chosen = [float(probabilities[i, kept[i + 1]].log()) for i in range(len(kept) - 1)][-scored:]
        likeliest = [int(probabilities[i].argmax()) == kept[i + 1] for i in range(len(kept) - 1)][-scored:]
        results.append(Likelihood(-sum(chosen), scored, all(likeliest), len(kept) < len(whole)))
    return results


def requests_of(seed: int, context_length: int) -> list[Request]:
    """Return contexts of all lengths, many with a shared prefix, some too long, with several continuations each."""
    generator = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(37) for _ in range(generator.randint(low, high)))

    shots, requests = some(20, 20), []
    for _ in range(12):
        story = (shots if generator.random() < 0.7 else ()) + some(1, 2 * context_length)
        for _ in range(generator.randint(1, 3)):
            question = story + some(0, 4)
            requests += [Request(question, some(1, 5)) for _ in range(generator.randint(1, 4))]
    generator.shuffle(requests)
    return requests


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", tiny_models())
def test_fast_way_equals_one_by_one(kind: str, seed: int) -> None:
    from dataclasses import replace

    model = random_model(replace(tiny_models()[kind], context_length=48)).double()
    requests = requests_of(seed, model.context_length)
    fast = score_continuations(model, requests, CPU, Dtype.float32, QUIET)
    for ours, plain in zip(fast, one_by_one(model, requests), strict=True):
        assert ours.nats == pytest.approx(plain.nats, abs=1e-9)
        assert (ours.tokens, ours.greedy, ours.truncated) == (plain.tokens, plain.greedy, plain.truncated)


def test_batch_limits_do_not_change_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from wholegpt.evaluation import likelihood

    model = random_model(replace(tiny_models()["modern"], context_length=48)).double()
    requests = requests_of(9, 48)
    whole = score_continuations(model, requests, CPU, Dtype.float32, QUIET)
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(likelihood, "CACHED_AT_ONCE", 90)
    for one, other in zip(
        whole, score_continuations(model, requests, CPU, Dtype.float32, QUIET), strict=True
    ):
        assert one.nats == pytest.approx(other.nats, abs=1e-9)


def test_shared_prefixes_are_processed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    model = random_model(replace(tiny_models()["gpt2"], context_length=200))
    processed = 0
    hidden_states = model.hidden_states

    def counted(token_ids: Tensor, cache: Any = None) -> Tensor:
        nonlocal processed
        processed += token_ids.numel()
        return hidden_states(token_ids, cache)

    monkeypatch.setattr(model, "hidden_states", counted)
    story = tuple(range(30)) * 5
    requests = [Request((*story, question), (answer, answer)) for question in range(4) for answer in range(4)]
    score_continuations(model, requests, CPU, Dtype.float32, QUIET)
    assert processed == 150 + 16 * 2  # without sharing it would be 16 × 152


def test_request_from_texts() -> None:
    characters = train_character(["abc def"])
    assert Request.of(characters, "abc", " def") == Request.of(characters, "abc ", "def")
    request = Request.of(characters, "ab ", "c")
    assert characters.decode(request.context_ids) == "ab"
    assert characters.decode(request.continuation_ids) == " c"
    empty = Request.of(characters, "", "abc")
    assert empty.context_ids == (characters.end_of_text_id,)
    bare = character_tokenizer(["abc"])
    assert Request.of(bare, "", "abc") == Request(tuple(bare.encode("a")), tuple(bare.encode("bc")))


def test_token_across_the_boundary_belongs_to_the_continuation() -> None:
    tokenizer = train_bpe(["the cat sat on the mat. " * 50], 300)
    request = Request.of(tokenizer, "the ca", "t sat")
    assert list(request.context_ids + request.continuation_ids) == tokenizer.encode("the cat sat")
