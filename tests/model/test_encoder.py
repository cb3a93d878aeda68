"""The encoder against transformers' BERT, masked tokens, pseudo-perplexity, and unsupported operations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import outputs_of_batch, text_of, tiny_config, tiny_model
from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.data.examples.batches import collate
from wholegpt.data.examples.tasks import SPECIAL_TOKENS, encode_example
from wholegpt.data.text.masking import MASKED, RANDOM, SHARE, mask_tokens
from wholegpt.errors import ConfigError
from wholegpt.evaluation import TaskScore, pseudo_perplexity
from wholegpt.losses import IGNORED
from wholegpt.model import Encoder, parameter_count
from wholegpt.model.heads import TaskEncoder
from wholegpt.runs import api
from wholegpt.settings.choices import (
    Architecture,
    AttentionKernel,
    Bias,
    Documents,
    Dtype,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
    TaskKind,
)
from wholegpt.settings.schema import ModelConfig
from wholegpt.tokenizers import MASK, train_character

QUIET = Console(quiet=True)
BERT = tiny_model(
    architecture=Architecture.encoder,
    positions=Positions.learned,
    norm=Norm.layer_norm,
    norm_placement=NormPlacement.post,
    norm_epsilon=1e-12,
    query_key_norm=QueryKeyNorm.none,
    feed_forward=FeedForward.gelu,
    bias=Bias.all,
    n_kv_heads=0,
    segments=2,
)


def randomized(config: ModelConfig, kernel: AttentionKernel = AttentionKernel.plain) -> Encoder:
    generator = torch.Generator().manual_seed(1)
    model = Encoder(config, kernel).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator).mul_(0.3)
    return model


def as_bert(model: Encoder) -> dict[str, Tensor]:
    """Return the weights with the names of transformers."""
    ours = model.state_dict()
    theirs = {
        "bert.embeddings.word_embeddings.weight": ours["token_embedding.weight"],
        "bert.embeddings.position_embeddings.weight": ours["position_embedding.weight"],
        "bert.embeddings.token_type_embeddings.weight": ours["segment_embedding.weight"],
        "cls.predictions.decoder.weight": ours["unembedding.weight"],
        "cls.predictions.decoder.bias": ours["prediction_bias"],
        "cls.predictions.bias": ours["prediction_bias"],
    }
    for kind in ("weight", "bias"):
        theirs[f"bert.embeddings.LayerNorm.{kind}"] = ours[f"embedding_norm.{kind}"]
        theirs[f"cls.predictions.transform.dense.{kind}"] = ours[f"prediction.{kind}"]
        theirs[f"cls.predictions.transform.LayerNorm.{kind}"] = ours[f"prediction_norm.{kind}"]
        for layer in range(model.config.n_layers):
            block, there = f"blocks.{layer}", f"bert.encoder.layer.{layer}"
            parts = ours[f"{block}.attention.query_key_value.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{there}.attention.self.{name}.{kind}"] = part
            for here, name in (
                ("attention.output", "attention.output.dense"),
                ("attention_norm", "attention.output.LayerNorm"),
                ("feed_forward.expand", "intermediate.dense"),
                ("feed_forward.output", "output.dense"),
                ("feed_forward_norm", "output.LayerNorm"),
            ):
                theirs[f"{there}.{name}.{kind}"] = ours[f"{block}.{here}.{kind}"]
    return theirs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kernel", [AttentionKernel.plain, AttentionKernel.blocked])
def test_logits_equal_bert(kernel: AttentionKernel) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
    model = randomized(BERT, kernel)
    config = transformers.BertConfig(
        vocab_size=37,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=12,
        hidden_act="gelu",
    )
    theirs = transformers.BertForMaskedLM(config).double().eval()
    missing = theirs.load_state_dict(as_bert(model), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"bert.embeddings.position_ids"}
    token_ids = torch.randint(37, (3, 12))
    segments = (torch.arange(12) > 6).long().expand(3, -1)
    real = torch.arange(12) < torch.tensor([12, 9, 5])[:, None]
    with torch.no_grad():
        expected = theirs(token_ids, token_type_ids=segments, attention_mask=real.long())
        hidden = model.hidden_states(token_ids, documents=(~real).long(), segments=segments)
        ours = model.logits_of(hidden)
    assert (ours - expected.logits)[real].abs().max() <= 1e-10
    assert ours.abs().max() > 0.1
    with torch.no_grad():
        whole = theirs(token_ids).logits
    torch.testing.assert_close(model(token_ids), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [BERT, tiny_model(architecture=Architecture.encoder)])
def test_predicted_parameters(config: ModelConfig) -> None:
    assert parameter_count(config).total == Encoder(config).parameter_count


def test_masked_tokens() -> None:
    """15% are targets, of which 80% are masked, 10% replaced and 10% kept; special tokens are never targets."""
    tokenizer = train_character([text_of(2_000)]).with_special_tokens([MASK])
    special = sorted(tokenizer.special_ids)
    generator = np.random.default_rng(0)
    token_ids = torch.from_numpy(generator.integers(0, tokenizer.vocab_size, (200, 500)))
    seen, targets = mask_tokens(token_ids, tokenizer, 3)
    asked = targets != IGNORED
    assert not asked[torch.isin(token_ids, torch.tensor(special))].any()
    ordinary = ~torch.isin(token_ids, torch.tensor(special))
    assert asked[ordinary].float().mean().item() == pytest.approx(SHARE, abs=0.005)
    assert torch.equal(targets[asked], token_ids[asked]) and torch.equal(seen[~asked], token_ids[~asked])
    assert (seen[asked] == tokenizer.id_of(MASK)).float().mean().item() == pytest.approx(MASKED, abs=0.01)
    kept = (seen[asked] == token_ids[asked]).float().mean().item()
    others = 1 / (tokenizer.vocab_size - len(special))
    assert kept == pytest.approx(1 - MASKED - RANDOM + RANDOM * others, abs=0.01)
    assert torch.equal(mask_tokens(token_ids, tokenizer, 3)[0], seen)
    assert not torch.equal(mask_tokens(token_ids, tokenizer, 4)[0], seen)


def test_pseudo_perplexity_of_separate_documents() -> None:
    """Each document is scored alone; the separator is not scored and starts the second document."""
    tokenizer = train_character([text_of(500)]).with_special_tokens([MASK])
    end, mask_id = tokenizer.end_of_text_id, tokenizer.id_of(MASK)
    words = tokenizer.encode(text_of(100))
    first, second = words[:5], [end, *words[5:11]]
    model = randomized(tiny_model(architecture=Architecture.encoder, vocab_size=tokenizer.vocab_size))
    nats: list[float] = []
    for document in (first, second):
        for position, token_id in enumerate(document):
            if token_id != end:
                masked = torch.tensor([[*document[:position], mask_id, *document[position + 1 :]]])
                nats.append(-torch.log_softmax(model(masked)[0, position], 0)[token_id].item())
    tokens = TokenShards([np.array([*first, *second])])
    found = pseudo_perplexity(model, tokens, tokenizer, Dtype.float32, QUIET, documents=Documents.separate)
    assert found.tokens == 11
    assert found.pseudo_nats_per_token == pytest.approx(np.mean(nats), rel=1e-6)
    joined = pseudo_perplexity(model, tokens, tokenizer, Dtype.float32, QUIET)
    assert joined.tokens == 11 and joined.pseudo_nats_per_token != pytest.approx(np.mean(nats), rel=1e-3)


def test_experts_are_trained_with_router_losses(text_file: Path, tmp_path: Path) -> None:
    """The weight of the balance loss changes what is trained, and the load of the experts is logged."""
    losses: list[float] = []
    for balance in (0.0, 5.0):
        config = tiny_config(
            text_file,
            model={"architecture": "encoder", "context_length": 24, "n_experts": 4},
            training={"steps": 2, "balance_loss": balance},
        )
        run = api.train(config=config, out=tmp_path / f"run-{balance}", console=QUIET)
        last = [line for line in run.metrics if line["kind"] == "train"][-1]
        assert 0 <= last["load_entropy"] <= 1
        losses.append(last["nats_per_masked_token"])
    assert losses[0] != losses[1]


def test_pretraining_and_fine_tuning_of_an_encoder(text_file: Path, tmp_path: Path) -> None:
    config = tiny_config(text_file, model={"architecture": "encoder", "context_length": 24})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert isinstance(run.validation, TaskScore)
    lm = run.load()
    assert run.validation.metrics["nats_per_masked_token"].value < math.log(lm.tokenizer.vocab_size)
    (tmp_path / "other.txt").write_text(text_of(300, seed=4))
    pseudo = lm.pseudo_perplexity(tmp_path / "other.txt", console=QUIET)
    ids = lm.tokenizer.encode(text_of(300, seed=4))
    mask_id, nats = lm.tokenizer.id_of(MASK), list[float]()
    for start in range(0, len(ids), 24):
        window = ids[start : start + 24]
        for position, token_id in enumerate(window):
            masked = [*window[:position], mask_id, *window[position + 1 :]]
            logits = lm.model(torch.tensor([masked]))[0, position]
            nats.append(-torch.log_softmax(logits, 0)[token_id].item())
    assert pseudo.tokens == len(ids)
    assert pseudo.pseudo_nats_per_token == pytest.approx(np.mean(nats), rel=1e-5)
    for context in (-1, 25):
        with pytest.raises(ConfigError, match=f"context is {context}; expected 1 to 24"):
            lm.pseudo_perplexity(tmp_path / "other.txt", context=context, console=QUIET)
    with pytest.raises(ConfigError, match="has no perplexity"):
        lm.evaluate(tmp_path / "other.txt", console=QUIET)
    assert pseudo.low < pseudo.pseudo_nats_per_token < pseudo.high
    lines = text_of(2_000, seed=5).splitlines()
    rows = [f"{line[:20]},{'ab'[number % 2]}" for number, line in enumerate(lines)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    from wholegpt.settings.presets import configure, recipe

    settings = {"training": {"steps": 3, "epochs": 0}, "runtime": {"device": "cpu"}}
    tuning = configure(settings, base=recipe("finetune"))
    with pytest.raises(ConfigError, match="does not predict the next token"):
        api.finetune(run.path, tmp_path / "data.csv", task="classification", config=tuning, console=QUIET)
    tuning = configure({"finetuning": {"language_modeling": 0.0}}, base=tuning)
    tuned = api.finetune(
        run.path,
        tmp_path / "data.csv",
        task="classification",
        config=tuning,
        out=tmp_path / "task",
        console=QUIET,
    )
    (one,) = tuned.load().predict("the of and")
    both = tuned.load().predict("the of and", "to in is the of and the of")
    assert one.probabilities["a"] == pytest.approx(both[0].probabilities["a"], abs=1e-6)
    with pytest.raises(ConfigError, match="an encoder is bidirectional and cannot generate text"):
        run.load().generate("the", console=QUIET)
    with pytest.raises(ConfigError, match="is of architecture encoder; `finetune --task"):
        api.finetune(run.path, tmp_path / "data.csv", task="instruct", console=QUIET)


def test_segments_distinguish_the_two_texts_of_a_task() -> None:
    tokenizer = train_character(["abc"]).with_special_tokens(SPECIAL_TOKENS)
    pair, single = (encode_example([parts], tokenizer, 12) for parts in (("aab", "bc"), ("aab",)))
    assert [tokenizer.decode([pair.sequences[0][position]]) for position in range(pair.second[0], 7)] == [
        "b",
        "c",
    ]
    assert single.second == (len(single.sequences[0]),)
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "segments": 2, "architecture": Architecture.encoder}
    model = TaskEncoder(tiny_model(**sizes), 2).double().eval()
    batch = collate([pair, single], [0, 1])
    with torch.inference_mode():
        _, outputs = outputs_of_batch(model, batch, TaskKind.classification)
        for example, output in zip((pair, single), outputs, strict=True):
            ids = torch.tensor(example.sequences)
            segments = (torch.arange(ids.shape[1]) >= example.second[0]).long()[None]
            last = model.hidden_states(ids, segments=segments)[0, -1]
            torch.testing.assert_close(output, model.head(last))
        unlike = model.head(model.hidden_states(torch.tensor(pair.sequences))[0, -1])
    assert (unlike - outputs[0]).abs().max() > 1e-4
