"""Training windows: each one once per epoch, independent of ranks and workers, with separated documents."""

import dataclasses
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import text_of, tiny_models
from wholegpt.console import Console
from wholegpt.data import (
    Batch,
    PreparedData,
    TokenShards,
    WindowLoader,
    make_loader,
    open_corpus,
    prepare,
    write_documents,
)
from wholegpt.data.permutation import interleave
from wholegpt.data.reading.decoding import Piece
from wholegpt.data.text.splitting import plan_split
from wholegpt.errors import ConfigError, DataError
from wholegpt.evaluation import evaluate_tokens
from wholegpt.model import Transformer
from wholegpt.settings.choices import AttentionKernel, Documents, Dtype, Split, TokenizerKind
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import (
    DataConfig,
    ModelConfig,
    TokenizerConfig,
    TrainingConfig,
    WindowsConfig,
)
from wholegpt.tokenizers import byte_tokenizer
from wholegpt.training.loop import accumulate_gradients
from wholegpt.training.objectives import LanguageModeling

QUIET, CPU, END = Console(quiet=True), torch.device("cpu"), 256
SEPARATE = WindowsConfig(documents=Documents.separate)


def loader(
    n_tokens: int, context: int, batch: int, seed: int, windows: WindowsConfig = WindowsConfig()
) -> WindowLoader:
    tokens = TokenShards([np.arange(n_tokens)])
    return WindowLoader(tokens, context, TrainingConfig(batch_size=batch), seed, windows)


# --- Order -----------------------------------------------------------------------------------------


@given(st.integers(40, 400), st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 2))
def test_every_window_once_per_epoch_for_any_stride(
    n_tokens: int, context: int, stride: int, seed: int, epoch: int
) -> None:
    windows = loader(n_tokens, context, 1, seed, WindowsConfig(stride=stride))
    n = windows.windows_per_epoch
    starts = windows.window_starts(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.diff(np.sort(starts)), np.full(n - 1, stride))
    assert starts.min() >= 0 and starts.max() + context + 1 <= n_tokens
    assert n_tokens - (n * stride) <= context + 2 * stride


SETTINGS = st.fixed_dictionaries(
    {
        "documents": st.sampled_from(Documents),
        "stride": st.sampled_from([0, 3, 11]),
        "truncation": st.sampled_from([0.0, 0.5, 1.0]),
        "min_length": st.sampled_from([0, 2]),
    }
)


@given(SETTINGS, st.integers(1, 9), st.integers(0, 1000), st.integers(0, 50))
def test_ranks_and_workers_make_the_same_batches(
    settings: dict[str, Any], batch_size: int, seed: int, step: int
) -> None:
    """The concatenated rows of all ranks equal the batch of one rank; threads in any order give the same batches."""
    windows = WindowsConfig(**settings)
    whole = loader(1000, 8, batch_size, seed, windows)
    expected = [whole.batch(step + i) for i in range(3)]
    for ranks in (1, 2, 4):
        fresh = loader(1000, 8, batch_size, seed, windows)
        parts = [fresh.batch(step, rank, ranks) for rank in range(ranks)]
        assert torch.equal(torch.cat([part.token_ids for part in parts]), expected[0].token_ids)
        assert torch.equal(torch.cat([part.targets for part in parts]), expected[0].targets)
        numbers = [part.documents for part in parts if part.documents is not None]
        assert (expected[0].documents is None) == (not numbers)
        if expected[0].documents is not None:
            assert torch.equal(torch.cat(numbers), expected[0].documents)
    for workers in (1, 2, 4):
        fresh = loader(1000, 8, batch_size, seed, windows)
        with ThreadPoolExecutor(workers) as pool:
            made = list(pool.map(fresh.batch, (step + 2, step + 1, step)))[::-1]
        for found, wanted in zip(made, expected, strict=True):
            assert torch.equal(found.token_ids, wanted.token_ids)


@given(st.integers(0, 200), st.integers(1, 5))
def test_any_step_can_be_loaded_directly(step: int, batch_size: int) -> None:
    """A new loader gives the same batch as one that went through all earlier steps."""
    sequential = loader(500, 8, batch_size, 7)
    for earlier in range(step):
        sequential.batch(earlier)
    assert torch.equal(sequential.batch(step).token_ids, loader(500, 8, batch_size, 7).batch(step).token_ids)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda w: sum(w) > 0.01), st.integers(1, 300)
)
def test_mixture_keeps_the_order_and_weight_of_each_source(weights: list[float], n: int) -> None:
    source, within = interleave(np.arange(n), weights)
    for number, weight in enumerate(weights):
        assert within[source == number].tolist() == list(range((source == number).sum()))
        assert abs((source == number).sum() - n * weight / sum(weights)) <= number + 1 + n * 2**-18


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    """Each window is from one source; over many steps a quarter is from the first, regardless of their sizes."""
    for name, letter, size in (("small", "a", 2000), ("large", "b", 30_000)):
        (tmp_path / f"{name}.txt").write_text(letter * size)
    data = DataConfig(source=(str(tmp_path / "small.txt"), str(tmp_path / "large.txt")))
    prepared = prepare(open_corpus(data), data, TokenizerConfig(TokenizerKind.byte), tmp_path / "out", QUIET)
    # The end of each source is held out; the end-of-text between them counts for the second one.
    assert prepared.manifest.train.source_tokens == (1800, 27_001)
    assert prepared.manifest.validation.source_tokens == (200, 3001)
    assert prepared.manifest.split == "the last 10% of the characters of each source are held out"
    config = configure(
        {"model": {"context_length": 16}, "training": {"batch_size": 8}, "windows": {"weights": [1, 3]}}
    )
    mixed = make_loader(prepared, config)
    tokens = torch.cat([mixed.batch(step).token_ids for step in range(100)])
    assert all(len(set(row) - {END}) == 1 for row in tokens.tolist())
    assert (tokens[:, -1] == ord("a")).sum() == 200
    with pytest.raises(ConfigError, match=r"windows\.weights has 3 numbers; expected one for each source, 2"):
        make_loader(prepared, dataclasses.replace(config, windows=WindowsConfig(weights=(1, 1, 1))))
    long = dataclasses.replace(config, model=ModelConfig(context_length=4000))
    with pytest.raises(DataError, match=r"source 1 has 1,800 tokens, fewer than one window of 4,001"):
        make_loader(prepared, long)


def test_sequence_length_varies_from_step_to_step() -> None:
    """Windows are split into equal parts: no token is lost or repeated, and all lengths are about equally frequent."""
    plain, cut = (loader(5000, 32, 4, 1, WindowsConfig(min_length=shortest)) for shortest in (0, 8))
    lengths = [cut.batch(step).token_ids.shape[1] for step in range(300)]
    assert {lengths.count(n) > 70 for n in (32, 16, 8)} == {True} and set(lengths) == {32, 16, 8}
    for step in range(20):
        assert torch.equal(cut.batch(step).token_ids.reshape(4, 32), plain.batch(step).token_ids)
        assert torch.equal(cut.batch(step).targets.reshape(4, 32), plain.batch(step).targets)


def test_windows_are_split_at_random_positions() -> None:
    windows = loader(5000, 32, 8, 1, WindowsConfig(truncation=0.5))
    numbers = torch.cat(
        [batch.documents for batch in map(windows.batch, range(100)) if batch.documents is not None]
    )
    assert 330 < (numbers[:, -1] == 1).sum() < 470 and numbers.max() == 1 and (numbers[:, 0] == 0).all()
    positions = (numbers == 0).sum(dim=1)[numbers[:, -1] == 1]
    assert positions.min() >= 1 and positions.max() <= 31 and 13 < positions.double().mean() < 19


def test_invalid_window_settings_are_rejected() -> None:
    from wholegpt.settings.validation import check

    for changes, message in (
        ({"stride": -1}, r"windows\.stride is -1"),
        ({"truncation": 1.5}, r"windows\.truncation is 1\.5"),
        (
            {"min_length": 100},
            r"windows\.min_length is 100; expected 0, or the windows' length, 256, halved",
        ),
        ({"min_length": 96}, "halved"),
        ({"weights": [0, 0]}, r"windows\.weights"),
        ({"weights": [1, -1]}, r"windows\.weights"),
        ({"weights": [1, 1e-9]}, r"windows\.weights .* at least 1e-05 of the sum"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(configure({"windows": changes}))


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=4))
def test_whole_documents_are_shuffled_within_their_source(sources: list[list[int]]) -> None:
    """Every document occurs once with its pieces in order, and sources do not mix."""
    names = [
        (source, document, part, part == 0)
        for source, documents in enumerate(sources)
        for document, parts in enumerate(documents)
        for part in range(parts)
    ]
    if sum(map(len, sources)) < 2:
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        write_documents(Path(folder), (Piece(f"{s} {d} {p} ", b, s) for s, d, p, b in names)) as store,
    ):
        plan = plan_split(store, "x", Split.documents, DataConfig(validation_fraction=0.3))
        train, validation = (
            [tuple(map(int, text.split())) for text in plan.texts(store, side)]
            for side in ("train", "validation")
        )
    assert sorted(train + validation) == [name[:3] for name in names]
    assert [source for source, _, _ in train] == sorted(source for source, _, _ in train)
    for position, (source, document, part) in enumerate(train):
        assert part == 0 or train[position - 1] == (source, document, part - 1)


def test_documents_are_shuffled(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"{i} x"}) + "\n" for i in range(300)))
    data = DataConfig(source=(str(tmp_path / "t.jsonl"),))
    prepared = prepare(open_corpus(data), data, TokenizerConfig(TokenizerKind.byte), tmp_path / "out", QUIET)
    ids = prepared.train.read(0, len(prepared.train))
    documents = "".join(chr(i) if i < END else "|" for i in ids).split("|")
    order = [int(document.split()[0]) for document in documents]
    assert len(set(order)) == len(order) and abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2


# --- Separate documents ----------------------------------------------------------------------------

MODELS = {
    name: dataclasses.replace(model, context_length=24, vocab_size=257)
    for name, model in tiny_models().items()
}
KERNELS = list(AttentionKernel)[1:]


def packed() -> Batch:
    """Return two windows with several documents, one of a single token, from the loader."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 256, 200)
    ids[[5, 16, 17, 40, 60, 61, 90, 101, 140, 170]] = END
    windows = WindowLoader(TokenShards([ids]), 24, TrainingConfig(batch_size=3), 1, SEPARATE, END)
    return windows.batch(0)


def document_spans(documents: torch.Tensor) -> list[tuple[int, int, int]]:
    """Return (row, start, end) of each document."""
    found: list[tuple[int, int, int]] = []
    for row, numbers in enumerate(documents.tolist()):
        for number in dict.fromkeys(numbers):
            first = numbers.index(number)
            found.append((row, first, first + numbers.count(number)))
    return found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_documents_are_isolated_in_logits_and_gradients(name: str, kernel: AttentionKernel) -> None:
    """Each document's logits equal those of the document alone; its loss has no gradient at the inputs of others."""
    torch.manual_seed(0)
    model = Transformer(MODELS[name], kernel).double().eval()
    batch = packed()
    assert batch.documents is not None and len(document_spans(batch.documents)) > 5
    embedded: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = model.token_embedding.register_forward_hook(keep)
    logits = model.unembedding(model.hidden_states(batch.token_ids, documents=batch.documents))
    handle.remove()
    for row, first, after in document_spans(batch.documents):
        alone = model(batch.token_ids[row : row + 1, first:after])[0]
        torch.testing.assert_close(logits[row, first:after], alone, rtol=0, atol=1e-12)
        embedded[0].grad = None
        logits[row, first:after].square().sum().backward(retain_graph=True)
        gradient = embedded[0].grad
        assert gradient is not None
        inside = torch.zeros_like(gradient, dtype=torch.bool)
        inside[row, first:after] = True
        assert (gradient[~inside] == 0).all() and (gradient[inside] != 0).any()


def test_changing_a_document_does_not_affect_others() -> None:
    torch.manual_seed(0)
    model = Transformer(MODELS["modern"], AttentionKernel.blocked).eval()
    batch = packed()
    assert batch.documents is not None
    row, first, after = max(document_spans(batch.documents), key=lambda s: s[2] - s[1])
    changed = batch.token_ids.clone()
    changed[row, first:after] = 7
    before, then = (model.hidden_states(ids, documents=batch.documents) for ids in (batch.token_ids, changed))
    same = (before == then).all(dim=-1)
    assert same[batch.token_ids == changed].all() and not same[row, first + 1 : after].any()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
def test_blocked_attention_with_documents_equals_the_plain_kernel(
    dtype: Dtype, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the gradients of micro-batches with the plain kernel's, with small blocks or with dropout.

    A single block draws the dropout mask of all weights at once, like the plain kernel, so both masks are
    equal.
    """
    if not dropout:
        monkeypatch.setattr("wholegpt.model.layers.blocked_attention.SHORTEST_BLOCK", 8)
        monkeypatch.setattr("wholegpt.model.layers.blocked_attention.SCORES_AT_ONCE", 100)
    gradients: list[torch.Tensor] = []
    for kernel in (AttentionKernel.plain, AttentionKernel.blocked):
        torch.manual_seed(0)
        model = Transformer(dataclasses.replace(MODELS["modern"], dropout=dropout), kernel)
        changes = {"context_length": 24}, {"micro_batch_size": 2}, {"dtype": dtype.value}
        config = configure(dict(zip(("model", "training", "precision"), changes, strict=True)))
        accumulate_gradients(model, LanguageModeling(), packed(), config, step=0)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    tolerance = 1e-5 if dtype is Dtype.float32 else 3e-2
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[0].norm()


def test_evaluation_of_separate_documents_equals_the_packed_loss() -> None:
    """Evaluation windows that start at each document give the loss of a packed batch."""
    torch.manual_seed(0)
    model = Transformer(MODELS["modern"], AttentionKernel.plain).eval()
    generator = np.random.default_rng(0)
    ids = generator.integers(97, 122, 24)
    ids[[5, 11, 12, 20]] = END
    stream = TokenShards([np.append(ids, 100)])
    score = evaluate_tokens(
        model, stream, byte_tokenizer(), CPU, Dtype.float32, QUIET, documents=Documents.separate
    )
    windows = WindowLoader(stream, 24, TrainingConfig(batch_size=1), 1, SEPARATE, END)
    objective, batch = LanguageModeling(), windows.batch(0)
    with torch.no_grad():
        packed_loss = float(objective(model, batch).total) / objective.count(batch)
    assert score.tokens == 24 == objective.count(batch)
    assert score.nats_per_token == pytest.approx(packed_loss, abs=1e-6)
    joined = evaluate_tokens(model, stream, byte_tokenizer(), CPU, Dtype.float32, QUIET)
    assert joined.nats_per_token != pytest.approx(packed_loss, abs=1e-6)


def prepared_documents(folder: Path) -> PreparedData:
    (folder / "t.jsonl").write_text(
        "".join(json.dumps({"text": text_of(60 + 7 * i, i)}) + "\n" for i in range(60))
    )
    data = DataConfig(source=(str(folder / "t.jsonl"),))
    return prepare(open_corpus(data), data, TokenizerConfig(TokenizerKind.byte), folder / "data", QUIET)


def test_run_on_separate_documents_is_evaluated_on_separate_documents(tmp_path: Path) -> None:
    """Training, its evaluation and ``evaluate`` agree, and so does each document evaluated alone."""
    import wholegpt as wg

    prepared_documents(tmp_path)
    config = configure(
        {
            "model": {"context_length": 64, "n_layers": 1, "d_model": 32, "n_heads": 2},
            "training": {"steps": 8, "batch_size": 4},
            "windows": {"documents": "separate", "truncation": 0.2, "min_length": 16},
            "precision": {"dtype": "float32"},
        }
    )
    run = wg.train(tmp_path / "data", config=config, out=tmp_path / "run", console=QUIET)
    lm = run.load("last")
    data = PreparedData.open(tmp_path / "data")
    again = lm.evaluate_tokens(data.validation, 0, Dtype.float32, QUIET)
    assert again.nats_per_token == pytest.approx(run.validation.nats_per_token, abs=1e-6)
    checkpoint = wg.load(run.path / "checkpoints" / "step-00000008")  # a model folder inside its run
    assert checkpoint.documents is lm.documents is Documents.separate
    ids = data.validation.read(0, len(data.validation))
    documents = np.split(ids, np.flatnonzero(ids == END))
    nats = 0.0
    for number, document in enumerate(documents):
        following = [END] if number + 1 < len(documents) else []
        stream = np.append(document, following)
        score = evaluate_tokens(lm.model, TokenShards([stream]), lm.tokenizer, CPU, Dtype.float32, QUIET)
        nats += score.nats_per_token * score.tokens
    assert nats / (len(ids) - 1) == pytest.approx(run.validation.nats_per_token, abs=1e-6)
