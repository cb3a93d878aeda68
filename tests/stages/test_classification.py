"""Task heads and losses against plain implementations; predictions are independent of padding and other examples."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import outputs_of_batch, tiny_config, tiny_models
from wholegpt.data.examples.batches import TaskBatch, TaskLoader, collate
from wholegpt.data.examples.tasks import EncodedExample
from wholegpt.losses import balanced_weights, linear_cross_entropy, negative_log_likelihood
from wholegpt.model.heads import TaskTransformer, extend_vocabulary
from wholegpt.settings.choices import TaskKind
from wholegpt.stages.classification import ACCURACY
from wholegpt.stages.task_objective import TaskObjective, next_tokens
from wholegpt.training.loop import accumulate_gradients

KINDS = st.sampled_from(sorted(tiny_models()))
SEQUENCES = st.lists(st.integers(0, 36), min_size=2, max_size=12).map(tuple)


def fresh(kind: str, outputs: int = 3, seed: int = 0) -> TaskTransformer:
    torch.manual_seed(seed)
    model = TaskTransformer(tiny_models()[kind], outputs).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


MODELS = {kind: fresh(kind) for kind in tiny_models()}
SINGLE = {kind: fresh(kind, outputs=1) for kind in tiny_models()}


def encoded(*sequences: tuple[int, ...]) -> EncodedExample:
    return EncodedExample(sequences, 0, tuple(map(len, sequences)))


@given(KINDS, st.lists(SEQUENCES, min_size=1, max_size=4))
def test_the_head_reads_the_last_real_token(kind: str, sequences: list[tuple[int, ...]]) -> None:
    """By hand: each sequence alone, its last hidden state times the head."""
    model = MODELS[kind]
    batch = collate([encoded(one) for one in sequences], [0] * len(sequences))
    with torch.inference_mode():
        _, outputs = outputs_of_batch(model, batch, TaskKind.classification)
        for sequence, found in zip(sequences, outputs, strict=True):
            last = model.hidden_states(torch.tensor([sequence]))[0, -1]
            torch.testing.assert_close(found, model.head.weight @ last + model.head.bias)


@given(KINDS, st.lists(st.tuples(SEQUENCES, SEQUENCES), min_size=1, max_size=3))
def test_similarity_is_the_sum_of_both_orders(kind: str, pairs: list[tuple[tuple[int, ...], ...]]) -> None:
    model = MODELS[kind]
    batch = collate([encoded(*pair) for pair in pairs], [0] * len(pairs))
    turned = collate([encoded(*pair[::-1]) for pair in pairs], [0] * len(pairs))
    with torch.inference_mode():
        _, outputs = outputs_of_batch(model, batch, TaskKind.similarity)
        _, again = outputs_of_batch(model, turned, TaskKind.similarity)
        for pair, found in zip(pairs, outputs, strict=True):
            summed = sum(model.hidden_states(torch.tensor([one]))[0, -1] for one in pair)
            torch.testing.assert_close(found, model.head.weight @ summed + model.head.bias)
    torch.testing.assert_close(again, outputs)


@given(KINDS, st.lists(SEQUENCES, min_size=2, max_size=5))
def test_choice_probabilities_are_a_softmax_over_the_answers(
    kind: str, answers: list[tuple[int, ...]]
) -> None:
    model = SINGLE[kind]
    with torch.inference_mode():
        _, outputs = outputs_of_batch(model, collate([encoded(*answers)], [1]), TaskKind.choice)
        alone = [model.head(model.hidden_states(torch.tensor([one]))[0, -1])[0] for one in answers]
        torch.testing.assert_close(outputs[0], torch.stack(alone))
        objective = TaskObjective(TaskKind.choice, 0.0)
        loss = objective(model, collate([encoded(*answers)], [1])).total
        torch.testing.assert_close(loss, -torch.log_softmax(torch.stack(alone), dim=0)[1])


@given(KINDS, st.lists(SEQUENCES, min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_prediction_does_not_depend_on_padding_or_other_examples(
    kind: str, sequences: list[tuple[int, ...]], padding: int, data: st.DataObject
) -> None:
    """Neither other sequences in the batch nor the content, length or side of the padding change it."""
    model, task = MODELS[kind], TaskKind.classification
    batch = collate([encoded(one) for one in sequences], [0] * len(sequences))
    length, most = batch.token_ids.shape[2], model.context_length
    with torch.inference_mode():
        _, together = outputs_of_batch(model, batch, task)
        for row, sequence in enumerate(sequences):
            _, alone = outputs_of_batch(model, collate([encoded(sequence)], [0]), task)
            torch.testing.assert_close(alone[0], together[row])
        filled = data.draw(st.integers(0, 36))
        longer = F.pad(batch.token_ids, (0, min(padding, most - length)), value=filled)
        _, padded = outputs_of_batch(model, TaskBatch(longer, batch.last, batch.second, batch.targets), task)
        torch.testing.assert_close(padded, together)
        left = torch.full((1, min(padding, most - len(sequences[0]))), filled)
        on_the_left = torch.cat([left, torch.tensor([sequences[0]])], dim=1)
        documents = (torch.arange(on_the_left.shape[1]) >= left.shape[1]).long()[None]
        hidden = model.hidden_states(on_the_left, documents=documents)
        torch.testing.assert_close(model.head(hidden[0, -1]), together[0])


@given(
    KINDS,
    st.lists(st.tuples(SEQUENCES, SEQUENCES, st.integers(0, 2)), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
)
def test_the_mixed_loss(
    kind: str, examples: list[tuple[tuple[int, ...], tuple[int, ...], int]], weight: float, balanced: bool
) -> None:
    """Equation E11 by hand: the task loss and the language-modeling loss, each a mean over the examples."""
    model = MODELS[kind]
    batch = collate([encoded(a, b) for a, b, _ in examples], [label for *_, label in examples])
    weights = balanced_weights(torch.tensor([5, 2, 3])).double() if balanced else None
    objective = TaskObjective(TaskKind.similarity, weight, class_weights=weights)
    total = objective(model, batch).total / objective.count(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for first, second, label in examples:
        states = [model.hidden_states(torch.tensor([one])) for one in (first, second)]
        logits = model.head(states[0][0, -1] + states[1][0, -1])
        of_task = -torch.log_softmax(logits, dim=0)[label] * (1 if weights is None else weights[label])
        nats = [
            negative_log_likelihood(model.unembedding(state[:, :-1]), torch.tensor([one[1:]])).mean()
            for state, one in zip(states, (first, second), strict=True)
        ]
        expected = expected + of_task + weight * (nats[0] + nats[1]) / 2
    torch.testing.assert_close(total, expected / len(examples))


def test_score_loss_is_the_squared_error() -> None:
    model = SINGLE["modern"]
    batch = collate([encoded((1, 2), (2, 1)), encoded((3, 4, 5), (5, 4, 3))], [0.5, -1.0])
    objective = TaskObjective(TaskKind.similarity, 0.0, scores=True)
    _, outputs = outputs_of_batch(model, batch, TaskKind.similarity)
    expected = (outputs[0, 0] - 0.5) ** 2 + (outputs[1, 0] + 1) ** 2
    torch.testing.assert_close(objective(model, batch).total, expected, check_dtype=False)


def test_balanced_weights() -> None:
    """All classes have equal total weight, and the mean over the examples is 1."""
    counts = torch.tensor([90, 9, 1])
    weights = balanced_weights(counts)
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    examples = [encoded(tuple(range(1, 3 + i)), tuple(range(2, 5 + i))) for i in range(7)]
    batch = collate(examples, [i % 3 for i in range(7)])
    objective = TaskObjective(TaskKind.similarity, 0.5)
    gradients: list[list[torch.Tensor]] = []
    for micro in (0, 1, 3):
        model = fresh("gpt2")
        config = tiny_config("none", training={"micro_batch_size": micro}, precision={"dtype": "float32"})
        accumulate_gradients(model, objective, batch, config, 0)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for others in gradients[1:]:
        for found, expected in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(found, expected)


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31))
def test_importance_multiplies_each_target(batch: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 9, (batch, length), generator=generator)
    targets[targets < 0] = -100
    counts = torch.rand(batch, length, generator=generator, dtype=torch.float64)
    total = linear_cross_entropy(hidden, weight, targets, counts)
    found = torch.autograd.grad(total, [hidden, weight])
    plain = (negative_log_likelihood(hidden @ weight.t(), targets) * counts).sum()
    torch.testing.assert_close(total, plain)
    for ours, theirs in zip(found, torch.autograd.grad(plain, [hidden, weight]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_language_modeling_targets_of_examples() -> None:
    """Each real token except the first is a target; each example has a total weight of 1."""
    targets, importance = next_tokens(collate([encoded((5, 6, 7), (8, 9)), encoded((1, 2), (3, 4))], [0, 1]))
    assert targets.tolist() == [[6, 7, -100], [9, -100, -100], [2, -100, -100], [4, -100, -100]]
    assert importance.view(2, -1).sum(1).tolist() == [1.0, 1.0]
    assert importance[0].tolist() == [0.25, 0.25, 0.0]


def test_every_example_occurs_once_per_epoch() -> None:
    examples = [encoded((i,)) for i in range(7)]
    loader = TaskLoader(examples, list(range(7)), 4, seed=3)
    seen = [int(target) for step in range(14) for target in loader.batch(step).targets]
    for epoch in range(8):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    again = TaskLoader(examples, list(range(7)), 4, seed=3)
    assert torch.equal(again.batch(9).token_ids, loader.batch(9).token_ids)
    assert torch.equal(loader.batch(0).token_ids[:, 0, 0], loader.batch(0).targets)


def test_equal_accuracies_are_ranked_by_loss() -> None:
    best = {"accuracy": 0.9, "nats_per_example": 0.5}
    for accuracy, nats, better in ((0.9, 0.4, True), (0.9, 0.6, False), (0.91, 0.9, True), (0.8, 0.1, False)):
        assert ACCURACY.better({"accuracy": accuracy, "nats_per_example": nats}, best) is better


def test_batches_group_examples_of_similar_length() -> None:
    """Every epoch still contains each example once, and the order of the batches does not follow the lengths."""
    lengths = [1 + 37 * i % 64 for i in range(64)]
    loader = TaskLoader([encoded(tuple(range(n))) for n in lengths], list(range(64)), 4, seed=3)
    for epoch in range(3):
        batches = [loader.batch(16 * epoch + step) for step in range(16)]
        assert sorted(int(target) for batch in batches for target in batch.targets) == list(range(64))
        assert all(int(batch.last.min()) > int(batch.last.max()) / 1.6 - 4 for batch in batches)
        batch_lengths = [batch.token_ids.shape[2] for batch in batches]
        assert batch_lengths != sorted(batch_lengths) and sum(batch_lengths) * 4 < 1.3 * sum(lengths)


@pytest.mark.parametrize("kind", tiny_models())
def test_new_tokens_do_not_change_the_outputs_of_old_ones(kind: str) -> None:
    model = MODELS[kind]
    tensors = extend_vocabulary(model, model.vocab_size + 3)
    config = dataclasses.replace(model.config, vocab_size=model.vocab_size + 3)
    larger = TaskTransformer(config, 3).double().eval()
    larger.load_state_dict(tensors)
    token_ids: Any = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(larger(token_ids)[..., : model.vocab_size], model(token_ids))
    assert larger.token_embedding.weight[model.vocab_size :].std().item() == pytest.approx(0.02, rel=0.5)
