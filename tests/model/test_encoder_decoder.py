"""The encoder–decoder against torch.nn.Transformer, incremental decoding, and sequence-to-sequence runs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import tiny_config, tiny_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError, DataError
from wholegpt.evaluation import TaskScore
from wholegpt.generation import Engine
from wholegpt.model import EncoderDecoder, flops_per_token, parameter_count
from wholegpt.runs import api
from wholegpt.settings.choices import (
    Architecture,
    Bias,
    FeedForward,
    Norm,
    NormPlacement,
    Positions,
    QueryKeyNorm,
)
from wholegpt.settings.schema import GenerationConfig, ModelConfig
from wholegpt.tokenizers import character_tokenizer

QUIET = Console(quiet=True)
SEPARATOR = 36
MODERN = tiny_model(architecture=Architecture.encoder_decoder, separator=SEPARATOR)
CLASSIC = tiny_model(
    architecture=Architecture.encoder_decoder,
    separator=SEPARATOR,
    positions=Positions.none,
    norm=Norm.layer_norm,
    norm_epsilon=1e-5,
    query_key_norm=QueryKeyNorm.none,
    feed_forward=FeedForward.relu,
    bias=Bias.all,
    n_kv_heads=0,
)
TOKENIZER = character_tokenizer(["abcdefghijklmnopqrstuvwxyz0123456789"])


def randomized(config: ModelConfig) -> EncoderDecoder:
    generator = torch.Generator().manual_seed(1)
    model = EncoderDecoder(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator).mul_(0.4)
    return model


def copied(model: EncoderDecoder, theirs: nn.Transformer) -> None:
    """Copy our weights into PyTorch's layers."""
    ours, target = model.state_dict(), dict[str, Tensor]()
    for kind in ("weight", "bias"):
        if model.config.norm_placement is NormPlacement.pre:
            target[f"encoder.norm.{kind}"] = ours[f"encoder_norm.{kind}"]
            target[f"decoder.norm.{kind}"] = ours[f"decoder_norm.{kind}"]
        for layer in range(model.config.n_layers):
            for half in ("encoder", "decoder"):
                here, there = f"{half}.{layer}", f"{half}.layers.{layer}"
                target[f"{there}.self_attn.in_proj_{kind}"] = ours[f"{here}.attention.query_key_value.{kind}"]
                target[f"{there}.self_attn.out_proj.{kind}"] = ours[f"{here}.attention.output.{kind}"]
                target[f"{there}.linear1.{kind}"] = ours[f"{here}.feed_forward.expand.{kind}"]
                target[f"{there}.linear2.{kind}"] = ours[f"{here}.feed_forward.output.{kind}"]
                target[f"{there}.norm1.{kind}"] = ours[f"{here}.attention_norm.{kind}"]
                last = "norm3" if half == "decoder" else "norm2"
                target[f"{there}.{last}.{kind}"] = ours[f"{here}.feed_forward_norm.{kind}"]
            here, there = f"decoder.{layer}", f"decoder.layers.{layer}"
            parts = [ours[f"{here}.cross_attention.{name}.{kind}"] for name in ("query", "key_value")]
            target[f"{there}.multihead_attn.in_proj_{kind}"] = torch.cat(parts)
            target[f"{there}.multihead_attn.out_proj.{kind}"] = ours[f"{here}.cross_attention.output.{kind}"]
            target[f"{there}.norm2.{kind}"] = ours[f"{here}.cross_norm.{kind}"]
    theirs.load_state_dict(target)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("placement", list(NormPlacement))
def test_states_equal_those_of_torch(placement: NormPlacement) -> None:
    model = randomized(replace(CLASSIC, norm_placement=placement))
    pre = placement is NormPlacement.pre
    theirs = nn.Transformer(16, 4, 2, 2, 64, 0.0, "relu", batch_first=True, norm_first=pre).double().eval()
    if not pre:  # post-norm blocks already end in a norm
        theirs.encoder.norm = theirs.decoder.norm = None
    copied(model, theirs)
    source = torch.tensor([[3, 4, 5, 6, SEPARATOR], [9, 8, 7, 1, SEPARATOR]])
    target = torch.tensor([[1, 2, 3, 4], [5, 4, 3, 2]])
    both = torch.cat((source, target), dim=1)
    embedded = (model.token_embedding(part) for part in (source, both[:, 4:]))
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(*embedded, tgt_mask=mask)
        ours = model.hidden_states(both)[:, 4:]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("config", [MODERN, CLASSIC])
def test_incremental_decoding_equals_one_forward_pass(config: ModelConfig) -> None:
    """Sources and targets in pieces of any size; sources of different lengths."""
    model = randomized(config)
    rows = [[1, 2, SEPARATOR, 4, 5, 6], [1, 2, 3, 4, SEPARATOR, 6], [SEPARATOR, 1, 2, 3, 4, 5]]
    whole = model(torch.tensor(rows))
    for pieces in ([6], [1, 5], [2, 2, 2], [1] * 6):
        cache = model.new_cache(3)
        parts = [model(piece, cache) for piece in torch.tensor(rows).split(pieces, dim=1)]
        for row, token_ids in enumerate(rows):
            first = token_ids.index(SEPARATOR)
            incremental = torch.cat(parts, dim=1)[row, first:]
            torch.testing.assert_close(incremental, whole[row, first:], rtol=0, atol=1e-10)


def test_packed_sequences_are_isolated() -> None:
    model = randomized(MODERN)
    first, second = [1, 2, SEPARATOR, 4], [7, SEPARATOR, 8, 9]
    documents = torch.tensor([[0] * 4 + [1] * 4])
    packed = model.logits_of(model.hidden_states(torch.tensor([first + second]), documents=documents))
    alone = [model(torch.tensor([one]))[0] for one in (first, second)]
    torch.testing.assert_close(packed[0, 2:4], alone[0][2:], rtol=0, atol=1e-10)
    torch.testing.assert_close(packed[0, 5:], alone[1][1:], rtol=0, atol=1e-10)


def test_source_is_bidirectional_and_target_is_causal() -> None:
    model = randomized(MODERN)
    before = model(torch.tensor([[1, 2, SEPARATOR, 4, 5]]))
    changed_source = model(torch.tensor([[1, 3, SEPARATOR, 4, 5]]))
    changed_target = model(torch.tensor([[1, 2, SEPARATOR, 4, 6]]))
    assert not torch.allclose(before[0, 2:], changed_source[0, 2:])
    assert torch.equal(before[0, 2:4], changed_target[0, 2:4])


@pytest.mark.parametrize("config", [MODERN, CLASSIC])
def test_predicted_sizes(config: ModelConfig) -> None:
    model = EncoderDecoder(config).double()
    assert parameter_count(config).total == model.parameter_count
    token_ids = torch.full((3, 12), SEPARATOR)
    with FlopCounterMode(display=False) as counter:
        model(token_ids).sum().backward()
    assert counter.get_total_flops() == 3 * flops_per_token(config) * token_ids.numel()


def test_batched_equals_alone() -> None:
    model = randomized(MODERN)
    prompts = [[1, 2, SEPARATOR], [5, 6, 7, 8, SEPARATOR], [1, 2, 9, SEPARATOR], [SEPARATOR]]

    def generated(slots: int) -> list[list[int]]:
        engine = Engine(model, TOKENIZER, torch.device("cpu"), slots=slots)
        requests = [engine.submit(prompt, GenerationConfig(5, 1.0, min_tokens=5)) for prompt in prompts]
        engine.run()
        return [request.token_ids for request in requests]

    alone = generated(1)
    assert generated(2) == alone and generated(4) == alone
    assert len({tuple(one) for one in alone}) > 2


@pytest.mark.slow
def test_sequence_to_sequence_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model learns to reverse words; training, resuming, evaluation and generation use the usual commands."""
    letters = "abcdefghijkl"
    rows = [f"{a}{b}\t{b}{a}" for a in letters for b in letters]
    (tmp_path / "pairs.tsv").write_text("\n".join(["source\ttarget", *rows]))
    config = tiny_config(
        tmp_path / "pairs.tsv",
        model={"architecture": "encoder_decoder", "d_model": 32},
        training={"steps": 250, "batch_size": 8},
        optimizer={"learning_rate": 0.003},
        runtime={
            "device": "cpu",
            "seed": 0,
        },  # few pairs are held out: depending on the seed, the loss ends at 0.01 or 0.9 nats
        evaluation={"every": 200},
        checkpointing={"every": 0},
    )
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    assert isinstance(run.validation, TaskScore)
    # Without the source, two of a target's three tokens are a uniform guess among twelve letters.
    without_source = 2 * math.log(len(letters)) / 3
    assert run.validation.metrics["nats_per_token"].value < without_source / 2
    assert run.validation.metrics["stopped"].value == 1
    lm = run.load()
    sources = [row.split("\t")[0] for row in rows]
    found = [one.text for one in lm.generate_all(sources, temperature=0, console=QUIET)]
    right = sum(text == source[::-1] for text, source in zip(found, sources, strict=True))
    assert right > len(rows) / 2, "without the source, one in 144 is correct"
    generated = lm.generate("ab", temperature=0, console=QUIET).text
    long = "ab" * (lm.model.context_length // 2 - 2)
    settings = {"temperature": 0, "max_tokens": 8, "min_tokens": 8, "console": QUIET}
    alone, beside = lm.generate("ab", **settings), lm.generate_all(["ab", long], **settings)
    assert beside[0].token_ids == alone.token_ids and len(alone.token_ids) == 8
    assert len(beside[1].token_ids) < 8  # the remaining context depends on each source
    with pytest.raises(DataError, match="which must hold the target, too; shorten it"):
        lm.generate(long + "abab", console=QUIET)
    with pytest.raises(DataError, match="the source is empty"):
        lm.generate(" ", console=QUIET)
    with pytest.raises(ConfigError, match="a text alone has no perplexity"):
        lm.score("ab")
    capsys.readouterr()
    assert main(["generate", str(run.path), "ab", "--temperature", "0", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == generated
    score = lm.evaluate_task(tmp_path / "pairs.tsv", console=QUIET)
    assert score.examples == 144 and score.metrics["nats_per_token"].value < without_source / 4
    with pytest.raises(ConfigError, match="is trained on one table, of sources and targets"):
        api.train(tmp_path / "pairs.tsv", tmp_path / "other.tsv", config=config, console=QUIET)
