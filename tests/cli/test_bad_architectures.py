"""Invalid combinations of architecture settings are rejected with one line before training."""

from pathlib import Path

import pytest

from tests.helpers import Fails, text_of
from wholegpt.cli import main

WRONG = {
    "a window larger than the context": (
        [
            "--model.attention",
            "sliding_window",
            "--model.attention-window",
            "999",
            "--model.context-length",
            "64",
        ],
        "model.attention_window is 999; expected a value from 2 to model.context_length, 64",
    ),
    "a window of zero": (
        ["--model.attention", "strided"],
        "model.attention_window is 0; expected a value from 2 to model.context_length",
    ),
    "a window without windowed attention": (
        ["--model.attention-window", "8"],
        "model.attention_window is 8, but full attention has no window",
    ),
    "a window of one position": (
        ["--model.attention", "sliding_window", "--model.attention-window", "1"],
        "model.attention_window is 1; expected a value from 2",
    ),
    "experts of shared layers": (
        ["--model.n-experts", "2", "--model.distinct-layers", "1"],
        "model.n_experts cannot be combined with shared layers; leave model.distinct_layers 0",
    ),
    "shared layers of an encoder–decoder": (
        ["--model.architecture", "encoder_decoder", "--model.distinct-layers", "1"],
        "model.distinct_layers does not apply to encoder_decoder",
    ),
    "experts of an encoder–decoder": (
        ["--model.architecture", "encoder_decoder", "--model.n-experts", "2"],
        "model.n_experts does not apply to encoder_decoder",
    ),
    "a negative number of segments": (
        ["--model.architecture", "encoder", "--model.segments", "-1"],
        "model.segments is -1; expected a value of 0 or 2",
    ),
    "a compiled recurrent network": (
        ["--model.architecture", "lstm", "--precision.execution", "compiled"],
        "precision.execution is compiled, which only a transformer or an encoder supports, not lstm",
    ),
    "activation checkpointing of a recurrent network": (
        ["--model.architecture", "lstm", "--training.activation-checkpointing", "blocks"],
        "training.activation_checkpointing is blocks, which only a transformer or an encoder supports, not lstm",
    ),
    "linear attention with rotary positions": (
        ["--model.attention", "linear"],
        "model.positions is rotary, which linear attention does not support; try none",
    ),
    "scaled positions that are learned": (
        ["--model.positions", "learned", "--model.rotary-scaling", "linear"],
        "model.rotary_scaling is linear, but model.positions is learned; leave it none, or set model.positions",
    ),
    "a rotary factor without scaling": (
        ["--model.rotary-factor", "4"],
        "model.rotary_factor is set, but model.rotary_scaling is none; leave it out, or set model.rotary_scaling to",
    ),
    "separate documents of linear attention": (
        ["--model.attention", "linear", "--model.positions", "none", "--windows.documents", "separate"],
        "which linear attention cannot do: its state sums all previous tokens",
    ),
    "truncated windows of a recurrent network": (
        ["--model.architecture", "gru", "--windows.truncation", "0.5"],
        "which gru cannot do: its state sums all previous tokens",
    ),
    "more experts per token than experts": (
        ["--model.n-experts", "4", "--model.experts-per-token", "5"],
        "model.experts_per_token is 5; expected a value from 1 to model.n_experts, 4",
    ),
    "a capacity of zero": (
        ["--model.n-experts", "4", "--model.capacity-factor", "0"],
        "model.capacity_factor is 0.0; expected a value above 0, and finite",
    ),
    "expert settings without experts": (
        ["--model.experts-per-token", "2"],
        "model.experts_per_token is set, but model.n_experts is 0",
    ),
    "layers that cannot be shared": (
        ["--model.n-layers", "6", "--model.distinct-layers", "4"],
        "model.distinct_layers is 4; expected 0 or a divisor of model.n_layers, 6",
    ),
    "attention of an LSTM": (
        ["--model.architecture", "lstm", "--model.n-kv-heads", "2"],
        "model.n_kv_heads does not apply to lstm; leave it out",
    ),
    "segments of a decoder": (["--model.segments", "2"], "model.segments does not apply to transformer"),
    "n-grams of a transformer": (
        ["--model.ngram-order", "3"],
        "model.ngram_order does not apply to transformer",
    ),
    "n-grams of excessive order": (
        ["--model.architecture", "ngram", "--model.ngram-order", "99"],
        "model.ngram_order is 99; expected a value from 0 to 20",
    ),
    "an encoder with sliding-window attention": (
        [
            "--model.architecture",
            "encoder",
            "--model.attention",
            "sliding_window",
            "--model.attention-window",
            "4",
        ],
        "model.attention is sliding_window, which is causal; encoder needs full attention",
    ),
    "text for an encoder–decoder": (
        ["--model.architecture", "encoder_decoder"],
        "is not a table; expected a name ending in .csv",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_architecture_settings_are_rejected(case: str, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(text_of(5_000))
    options, message = WRONG[case]
    assert message in fails("train", tmp_path / "text.txt", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_encoder_needs_the_mask_token_in_prepared_data(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "text.txt").write_text(text_of(5_000))
    options = ["--tokenizer.kind", "character", "--quiet"]
    assert (
        main(["data", "prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "data"), *options]) == 0
    )
    encoder = ["--model.architecture", "encoder", "--quiet"]
    message = fails("train", tmp_path / "data", *encoder, "--out", tmp_path / "run")
    assert "was prepared without the token <|mask|>, by which an encoder learns" in message


def test_models_that_cannot_be_exported(
    tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user is warned before training, and the export is an error."""
    (tmp_path / "text.txt").write_text(text_of(5_000))
    options = ["--model.attention", "linear", "--model.positions", "none", "--model.context-length", "32"]
    small = [
        "--model.n-layers",
        "1",
        "--model.d-model",
        "16",
        "--training.steps",
        "2",
        "--tokenizer.kind",
        "byte",
    ]
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "text.txt"), "--out", str(run), *options, *small]) == 0
    assert "this model will not open in other programs" in capsys.readouterr().err
    message = fails("export", run, "--to", "huggingface")
    assert "does not have model.positions = none" in message and "model.attention = linear" in message
    assert "a cache that can be rewound" in fails("generate", run, "the", "--draft", "prompt")
    ngram = ["--model.architecture", "ngram", "--tokenizer.kind", "byte"]
    assert main(["train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "counted"), *ngram]) == 0
    assert "this model will not open in other programs" in capsys.readouterr().err
