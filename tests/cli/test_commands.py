"""Each command's JSON output and its agreement with the Python interface."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
import yaml

import wholegpt as wg
from tests.helpers import TINY, text_of
from wholegpt.cli import main
from wholegpt.settings.choices import Dtype

SCORE = [
    "nats_per_token",
    "perplexity",
    "bits_per_character",
    "bits_per_byte",
    "tokens",
    "characters",
    "bytes",
]


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """Run a command, and return its JSON object and what it wrote to standard error."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return json.loads(out), err


def test_train(capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path) -> None:
    result, err = call(capsys, "train", text_file, "--out", tmp_path / "run", *TINY)
    assert err == ""  # --quiet
    assert list(result["validation"]) == SCORE
    assert (result["steps"], result["run"]) == (6, str(tmp_path / "run"))
    assert {"tokens", "train_seconds", "other_seconds", "parameters", "best"} <= result.keys()
    assert result["tokens"] == 6 * 2 * 16


def test_train_reports_the_split_and_next_steps(
    capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path
) -> None:
    options = [option for option in TINY if option != "--quiet"]
    assert main(["train", str(text_file), "--out", str(tmp_path / "run"), *options]) == 0
    out, err = capsys.readouterr()
    assert "the last 10% of the characters are held out" in err
    assert "bits per byte" in out and "Next:" in out and "report.html" in out
    assert f"wholegpt generate {tmp_path / 'run'}" in out


def test_options_override_only_their_settings_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "demo", "--model.n_layers", "6", "--seed", "5", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["n_layers"] == 6 and config["runtime"]["seed"] == 5
    recipe = wg.recipe("demo")
    assert config["training"]["steps"] == recipe.training.steps
    assert config["optimizer"]["weight_decay"] == recipe.optimizer.weight_decay
    assert recipe.optimizer.learning_rate == 0 and config["optimizer"]["learning_rate"] == 0.006
    assert config["precision"]["dtype"] in ("float32", "bfloat16")
    assert config["model"]["d_head"] == 64 and config["model"]["vocab_size"] == 0


def test_explicit_default_overrides_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    default = wg.Config().training.steps
    assert wg.recipe("demo").training.steps != default
    assert main(["train", "--recipe", "demo", "--training.steps", str(default), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["steps"] == default


def test_generate(capsys: pytest.CaptureFixture[str], trained_run: Path) -> None:
    arguments = ["generate", trained_run, "the ", "--max-tokens", "7", "--min-tokens", "7", "--seed", "3"]
    arguments += ["--weights", "float32"]
    result, _ = call(capsys, *arguments)
    completion = result["completions"][0]
    assert completion["finish_reason"] == "length" and len(completion["token_ids"]) == 7
    assert result["tokens_per_second"] > 0
    lm = wg.load(trained_run)
    assert lm.generate("the ", max_tokens=7, min_tokens=7, seed=3).text == completion["text"]
    assert main([*map(str, arguments), "--quiet"]) == 0
    assert capsys.readouterr().out == f"the {completion['text']}\n"


def test_generate_without_a_prompt(capsys: pytest.CaptureFixture[str], trained_run: Path) -> None:
    result, err = call(capsys, "generate", trained_run, "--max-tokens", "3")
    assert len(result["completions"][0]["token_ids"]) <= 3
    assert "no prompt: starting from '\\n', as the training text had too few documents" in err


def test_evaluate(capsys: pytest.CaptureFixture[str], trained_run: Path, text_file: Path) -> None:
    result, _ = call(capsys, "evaluate", trained_run, text_file, "--dtype", "float32", "--stride", "4")
    more = ["bits_per_token", "words", "bits_per_word", "perplexity_per_word", "intervals"]
    assert list(result) == SCORE + more
    text = text_file.read_text()
    assert result["tokens"] == result["characters"] == len(text) - 1
    score = wg.load(trained_run).evaluate(text_file, stride=4, dtype=Dtype.float32)
    assert result == score.to_json()
    assert result["bits_per_byte"] == pytest.approx(result["nats_per_token"] / math.log(2))


def test_evaluate_on_the_runs_own_held_out_text(
    capsys: pytest.CaptureFixture[str], trained_run: Path
) -> None:
    """The result equals the last evaluation of training in the same dtype."""
    result, _ = call(capsys, "evaluate", trained_run, "--checkpoint", "last")
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    assert result["nats_per_token"] == pytest.approx(last["nats_per_token"], rel=1e-6)


def test_info(capsys: pytest.CaptureFixture[str], trained_run: Path) -> None:
    result, _ = call(capsys, "info", "gpt2-small")
    assert result["parameters"] == 124_439_808
    assert result["parameters_without_embeddings"] == 85_056_000
    assert result["memory_bytes"] == 16 * 124_439_808
    assert result["config"]["n_layers"] == 12
    assert result["cache_bytes"] == 2 * 12 * 768 * 1024 * 4
    assert result["activation_bytes_per_token"] > 12 * 16 * 768 * 4
    result, _ = call(capsys, "info", trained_run)
    assert result["parameters"] == sum(p.numel() for p in wg.load(trained_run).model.parameters())


def test_tokenizer_commands(capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer.json"
    result, _ = call(capsys, "tokenizer", "train", text_file, "--out", out, "--vocab-size", "300")
    assert result["vocab_size"] == 300
    encoded, _ = call(capsys, "tokenizer", "encode", out, "the of é")
    assert encoded["token_ids"] == library.Tokenizer.from_file(str(out)).encode("the of é").ids
    ids = [str(i) for i in encoded["token_ids"]]
    assert call(capsys, "tokenizer", "decode", out, *ids)[0] == {"text": "the of é"}
    assert main(["tokenizer", "decode", str(out), "999"]) == 2
    assert "token id 999 does not exist" in capsys.readouterr().err


def test_data_commands(capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path) -> None:
    listed, _ = call(capsys, "data", "list")
    assert set(listed["corpora"]) == {"python-docs", "python-stdlib", "tinyshakespeare"}
    out = tmp_path / "data"
    options = ["--tokenizer.kind", "byte", "--data.validation-fraction", "0.25"]
    result, _ = call(capsys, "data", "prepare", text_file, "--out", out, *options)
    total = len(text_file.read_bytes())
    assert result["vocab_size"] == 257
    assert result["train"]["bytes"] == int(total * 0.75)
    assert result["validation"]["tokens"] == total - int(total * 0.75)
    assert main(["data", "prepare", str(text_file), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    trained, _ = call(capsys, "train", out, "--out", tmp_path / "run", *TINY)
    assert trained["steps"] == 6


def test_json_lines_by_documents(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"body": text_of(80, i)}) + "\n" for i in range(60)))
    out = tmp_path / "data"
    result, err = call(capsys, "data", "prepare", path, "--out", out, "--data.text-field", "body")
    assert (
        "of 60 documents, drawn at random, are held out" in str(result["split"])
        and str(result["split"]) in err
    )


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "generate", "evaluate", "info", "tokenizer train", "tokenizer encode",
                    "tokenizer decode", "data list", "data prepare"):  # fmt: skip
        assert main([*command.split(), "--help"]) == 0
        out = capsys.readouterr().out
        assert "--json" in out and "--threads" in out and "negative" not in out


def test_help_comes_from_the_field_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model.n-layers INT Number of blocks (L)." in out
    assert main(["train", "--help-all"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Maximum global L2 norm of the gradient" in out


def test_help_joins_the_lines_of_a_docstring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for command in (["train"], ["data", "prepare"], ["tokenizer", "train"]):
        assert main([*command, "--help-all"]) == 0
        shown = capsys.readouterr().out
        lines = [line.strip("│ ") for line in shown.splitlines()]
        described = " ".join(" ".join(lines).split())
        assert "Kind of tokenizer: byte-level BPE as in GPT-2 (bpe), BPE on lower-cased words" in described
        assert "one token per character, or one per byte." in described
        start = next(i for i, line in enumerate(lines) if "Kind of tokenizer" in line)
        column = shown.splitlines()[start].index("Kind of tokenizer")
        assert all(line[column] != " " for line in shown.splitlines()[start : start + 3])


def test_interrupted_generation_keeps_the_generated_text(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text goes to standard output or into the JSON object; the exit code is 130."""
    from wholegpt.generation import GenerationRequest

    accept = GenerationRequest.accept

    def interrupted(self: GenerationRequest, token_id: int) -> str:
        if len(self.token_ids) == 5:
            raise KeyboardInterrupt
        return accept(self, token_id)

    monkeypatch.setattr(GenerationRequest, "accept", interrupted)
    assert main(["generate", str(trained_run), "the ", "--quiet"]) == 130
    printed = capsys.readouterr()
    assert printed.out.startswith("the ") and len(printed.out) >= 4 + 5 and "interrupted" in printed.err
    assert main(["generate", str(trained_run), "the ", "--quiet", "--json"]) == 130
    made = json.loads(capsys.readouterr().out)["completions"][0]
    assert made["finish_reason"] == "interrupted" and f"the {made['text']}" == printed.out.rstrip("\n")
