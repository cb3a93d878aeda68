"""``wholegpt generate``: completions, beams, probabilities, speculative decoding, weight dtypes, errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wholegpt as wg
from tests.helpers import NEEDS_BFLOAT16, Fails
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import TokenizerError
from wholegpt.settings.choices import Dtype

QUIET = Console(quiet=True)


@pytest.fixture
def generate_json(capsys: pytest.CaptureFixture[str], trained_run: Path) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str) -> dict[str, Any]:
        assert main(["generate", str(trained_run), *arguments, "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_completions_equal_those_of_their_seeds(
    generate_json: Callable[..., dict[str, Any]], trained_run: Path
) -> None:
    made = generate_json(
        "the ", "--completions", "3", "--max-tokens", "9", "--seed", "5", "--weights", "float32"
    )
    lm = wg.load(trained_run)
    alone = [lm.generate("the ", max_tokens=9, seed=seed, console=QUIET).text for seed in (5, 6, 7)]
    assert [one["text"] for one in made["completions"]] == alone
    assert len(set(alone)) > 1 and made["tokens_per_second"] > 0


def test_multiple_completions_are_printed_separately(
    capsys: pytest.CaptureFixture[str], trained_run: Path
) -> None:
    assert (
        main(["generate", str(trained_run), "the ", "--completions", "2", "--max-tokens", "3", "--quiet"])
        == 0
    )
    assert capsys.readouterr().out.count("the ") >= 2


def test_completion_of_zero_tokens_is_not_reported_as_empty(
    capsys: pytest.CaptureFixture[str], trained_run: Path
) -> None:
    assert main(["generate", str(trained_run), "the ", "--max-tokens", "0"]) == 0
    assert "empty" not in capsys.readouterr().err


def test_beams_equal_those_of_the_python_interface(
    generate_json: Callable[..., dict[str, Any]], trained_run: Path
) -> None:
    made = generate_json(
        "the ", "--beams", "3", "--completions", "2", "--max-tokens", "6", "--weights", "float32"
    )
    found = wg.load(trained_run).beam_search("the ", beams=3, max_tokens=6, console=QUIET)[:2]
    assert [one["text"] for one in made["completions"]] == [one.text for one in found]
    assert [one["score"] for one in made["completions"]] == pytest.approx([one.score for one in found])


def test_probabilities_equal_those_of_score(
    generate_json: Callable[..., dict[str, Any]], trained_run: Path
) -> None:
    """They do not depend on the sampling settings."""
    arguments = ("--show-probabilities", "--max-tokens", "8", "--top-k", "3", "--weights", "float32")
    (made,) = generate_json("the ", *arguments)["completions"]
    assert len(made["tokens"]) == len(made["token_ids"]) == 8
    lm = wg.load(trained_run)
    prompt = lm.tokenizer.encode("the ")
    ids = lm.tokenizer.encode("the " + made["text"])
    if ids == prompt + made["token_ids"] and len(ids) < lm.model.context_length:
        bits = lm.score("the " + made["text"]).surprisal_bits[len(prompt) :]
        assert [one["surprisal_bits"] for one in made["tokens"]] == pytest.approx(bits, abs=0.5)
    for token in made["tokens"]:
        shares = [share for _, share in token["alternatives"]]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
        assert token["surprisal_bits"] >= 0


def test_probabilities_are_printed(capsys: pytest.CaptureFixture[str], trained_run: Path) -> None:
    assert (
        main(["generate", str(trained_run), "the ", "--show-probabilities", "--max-tokens", "4", "--quiet"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("the ") and out.count(" bits  ") == 4 and "%" in out


WEIGHT_DTYPES = [pytest.param("bfloat16", True, marks=NEEDS_BFLOAT16), ("int8", True), ("int8", False)]
"""A dtype of weights, and whether the processor is reported to support bfloat16."""


@pytest.mark.parametrize(("weights", "bfloat16"), WEIGHT_DTYPES)
def test_generation_with_each_weight_dtype(
    generate_json: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    bfloat16: bool,
) -> None:
    monkeypatch.setattr("wholegpt.runtime.precision.has_bfloat16", lambda device: bfloat16)
    (made,) = generate_json("the ", "--max-tokens", "5", "--min-tokens", "5", "--weights", weights)[
        "completions"
    ]
    assert len(made["token_ids"]) == 5


@pytest.mark.parametrize("architecture", ["gru", "ngram", "encoder_decoder"])
def test_automatic_weight_dtype_is_supported_by_the_architecture(
    architecture: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = text_file
    if architecture == "encoder_decoder":
        source = tmp_path / "pairs.tsv"
        source.write_text(
            "source\ttarget\n" + "".join(f"{a}{b}\t{b}{a}\n" for a in "abcdefgh" for b in "abcdefgh")
        )
    model = {"architecture": architecture, "context_length": 16}
    sizes = {} if architecture == "ngram" else {"d_model": 16, "n_layers": 1}
    heads = {"n_heads": 2} if architecture == "encoder_decoder" else {}
    changes = {"model": {**model, **sizes, **heads}, "tokenizer": {"kind": "character"}}
    steps = {
        "precision": {"dtype": "float32"},
        **({} if architecture == "ngram" else {"training": {"steps": 2}}),
    }
    run = wg.train(source, config=wg.configure({**changes, **steps}), out=tmp_path / "run", console=QUIET)
    monkeypatch.setattr("wholegpt.runtime.precision.has_bfloat16", lambda device: True)
    settings: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "console": QUIET}
    found = wg.load(run.path, weights="automatic").generate("ab", **settings)
    assert found.token_ids == run.load().generate("ab", **settings).token_ids


def test_speculative_decoding_does_not_change_the_completion(
    generate_json: Callable[..., dict[str, Any]], trained_run: Path
) -> None:
    plain = generate_json("the of the of the ", "--max-tokens", "30", "--weights", "float32")
    for draft in ("prompt", str(trained_run)):
        drafted = generate_json(
            "the of the of the ", "--max-tokens", "30", "--weights", "float32", "--draft", draft
        )
        assert drafted["completions"] == plain["completions"]


def test_special_tokens_in_a_prompt_are_text_unless_allowed(trained_run: Path) -> None:
    lm = wg.load(trained_run)
    assert lm.tokenizer.encode("the<|endoftext|>", allow_special=True)[-1] == lm.tokenizer.end_of_text_id
    settings: dict[str, Any] = {"max_tokens": 10, "seed": 1, "console": QUIET}
    allowed = lm.generate("<|endoftext|>", allow_special=True, **settings).token_ids
    assert allowed == lm.generate("", **settings).token_ids
    with pytest.raises(TokenizerError, match="character '<'"):  # not in this vocabulary
        lm.generate("<|endoftext|>", **settings)


def test_invalid_options_are_rejected(fails: Fails, trained_run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--completions", "0"], "--completions is 0"),
        (["--completions", "1000000000"], "--completions is 1000000000; expected 1 to 10,000"),
        (["--beams", "2", "--completions", "3"], "expected at most --beams, 2"),
        (["--beams", "2", "--draft", "prompt"], "--draft do not apply to beam search"),
        (["--beams", "2", "--top-k", "3"], "top_k has no effect in beam search"),
        (["--beams", "2", "--temperature", "3"], "temperature has no effect in beam search"),
        (["--beams", "2", "--alternatives", "3"], "alternatives has no effect in beam search"),
        (["--weights", "nothing"], "nothing"),
        (["--alternatives", "3"], "needs --show-probabilities or --json"),
        (["--length-penalty", "2"], "give --beams too, or neither"),
        (["--beams", "2", "--max-tokens", "5000"], "beam search needs room"),
        (["--draft", "nothing"], "nothing: no such run"),
        (["--weights", "int4"], "groups of 32 do not divide"),
        (["--alternatives", "-1"], "alternatives is -1"),
        (["--beams", "-1"], "--beams is -1"),
        (["--beams", "2", "--length-penalty", "nan"], "length_penalty is nan"),
        (["--beams", "100000000", "--max-tokens", "5"], "try fewer beams"),
        (["--forced", "the of", "--stop", "of"], "a stop text; leave one out"),
        (["--stop", ""], "stop contains an empty text"),
        (["--top-p", "1.5"], "top_p is 1.5"),
    ):
        assert message in fails("generate", trained_run, "the ", "--quiet", *arguments), arguments


def test_completion_larger_than_memory_is_rejected(
    fails: Fails, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wholegpt.generation.memory.free_memory", lambda device: 100.0)
    assert "smaller max_tokens" in fails("generate", trained_run, "the ", "--quiet")


def test_completions_that_exceed_memory_are_queued(
    capsys: pytest.CaptureFixture[str], trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = wg.load(trained_run)
    capacity = len(lm.tokenizer.encode("the ")) + 4
    settings: dict[str, Any] = {"max_tokens": 4, "seed": 2}
    free = lm.generate_all(["the "] * 6, **settings, console=QUIET)
    two = 2 * lm.model.cache_bytes(2, capacity) + 1
    monkeypatch.setattr("wholegpt.generation.memory.free_memory", lambda device: two)
    few = lm.generate_all(["the "] * 6, **settings)
    assert "memory for 2 of 6 texts at once" in capsys.readouterr().err
    assert [one.text for one in few] == [one.text for one in free]


@pytest.mark.parametrize(("weights", "bfloat16"), WEIGHT_DTYPES)
def test_quantization_error_is_small(
    trained_run: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, weights: str, bfloat16: bool
) -> None:
    monkeypatch.setattr("wholegpt.runtime.precision.has_bfloat16", lambda device: bfloat16)
    most = 0.01 if weights == "bfloat16" else 0.02
    exact = wg.load(trained_run).evaluate(text_file, dtype=Dtype.float32, console=QUIET)
    quantized = wg.load(trained_run, weights=weights).evaluate(text_file, console=QUIET)
    assert quantized.tokens == exact.tokens
    assert 0 < abs(quantized.nats_per_token - exact.nats_per_token) < most * exact.nats_per_token
