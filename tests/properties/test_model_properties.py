"""Model invariants: causality, independence of rows, cached = uncached, gradient accumulation = large batch."""

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_config, tiny_models
from tests.parity import test_plain
from tests.parity.test_plain import randomized
from wholegpt.data import Batch
from wholegpt.losses import IGNORED
from wholegpt.model import Transformer
from wholegpt.model.layers.attention import attention
from wholegpt.settings.schema import ModelConfig
from wholegpt.training.loop import accumulate_gradients
from wholegpt.training.objectives import LanguageModeling

MODELS = {name: randomized(name) for name in test_plain.MODELS}
KINDS = st.sampled_from(sorted(MODELS))
IDS = st.lists(st.integers(0, 36), min_size=2, max_size=12)


def run(kind: str, rows: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return MODELS[kind](torch.tensor(rows))


@given(KINDS, IDS, st.data())
def test_changing_a_token_does_not_affect_earlier_positions(
    kind: str, ids: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(st.integers(0, 36).filter(lambda i: i != ids[position]))
    changed = [*ids[:position], other, *ids[position + 1 :]]
    before, after = run(kind, [ids])[0], run(kind, [changed])[0]
    if MODELS[kind].config.n_experts:  # rounding depends on the number of tokens per expert
        torch.testing.assert_close(before[:position], after[:position], rtol=0, atol=1e-13)
    else:
        assert torch.equal(before[:position], after[:position])
    assert not torch.equal(before[position:], after[position:])


@given(KINDS, st.integers(2, 8), st.integers(2, 12), st.randoms(use_true_random=False))
def test_rows_of_a_batch_are_independent(kind: str, rows: int, length: int, random: Random) -> None:
    ids = [[random.randrange(37) for _ in range(length)] for _ in range(rows)]
    order = list(range(rows))
    random.shuffle(order)
    straight, permuted = run(kind, ids), run(kind, [ids[i] for i in order])
    torch.testing.assert_close(permuted, straight[order], rtol=0, atol=1e-12)


@given(st.integers(1, 10), st.integers(1, 4), st.integers(0, 2**31))
def test_causal_attention_equals_unmasked_attention_at_the_last_position(
    length: int, heads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, heads, length, 8, generator=generator, dtype=torch.float64).unbind(0)
    causal = attention(q, k, v, torch.ones(length, length, dtype=torch.bool).tril())
    unmasked = attention(q, k, v, torch.ones(length, length, dtype=torch.bool))
    torch.testing.assert_close(causal[:, :, -1], unmasked[:, :, -1], rtol=0, atol=1e-12)
    if length > 1:
        assert not torch.allclose(causal[:, :, 0], unmasked[:, :, 0])


@given(KINDS, IDS, st.integers(1, 11))
def test_chunked_prefill_with_a_cache_equals_one_forward_pass(kind: str, ids: list[int], piece: int) -> None:
    cache = MODELS[kind].new_cache(1)
    with torch.no_grad():
        parts = [MODELS[kind](torch.tensor([ids[i : i + piece]]), cache) for i in range(0, len(ids), piece)]
    torch.testing.assert_close(torch.cat(parts, dim=1), run(kind, [ids]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", tiny_models().values(), ids=list(tiny_models()))
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_accumulated_gradient_equals_the_big_batch(config: ModelConfig, rows: int) -> None:
    """Equation E8 to a relative error of 1e-6 in float32.

    Ignored targets are spread unevenly, so that a mean of means would be wrong.
    """
    torch.manual_seed(0)
    model = Transformer(config)
    ids = torch.randint(37, (6, 13))
    targets = ids[:, 1:].clone()
    targets[0, 2:] = IGNORED
    targets[3, :9] = IGNORED
    batch = Batch(ids[:, :-1], targets)

    def gradient(micro_batch_size: int) -> tuple[torch.Tensor, float]:
        model.zero_grad()
        settings = tiny_config(
            "unused",
            training={"micro_batch_size": micro_batch_size},
            precision={"dtype": "float32"},
        )
        metrics = accumulate_gradients(model, LanguageModeling(), batch, settings, step=0)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return gradients, metrics["nats_per_token"]

    whole, whole_loss = gradient(0)
    split, split_loss = gradient(rows)
    assert (split - whole).norm() <= 1e-6 * whole.norm()
    assert split_loss == pytest.approx(whole_loss, rel=1e-6)
    logits = model(batch.token_ids)
    direct = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert whole_loss == pytest.approx(direct.item(), rel=1e-6)
