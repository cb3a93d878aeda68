"""Generation without a prompt starts from a token that occurred in training."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import text_of, tiny_config
from wholegpt.checkpoint import CheckpointStore, load_metadata
from wholegpt.console import Console, sample_for_people
from wholegpt.data import PreparedData, open_corpus, prepare
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.choices import TokenizerKind
from wholegpt.settings.schema import DataConfig, TokenizerConfig
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.callbacks import MetricsLog, Sample
from wholegpt.training.loop import StepMetrics
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)
TEXTS: dict[str, tuple[str, str]] = {
    "lines": ("one line\nanother line\n" * 60, "\n"),
    "one line": ("one long line " * 100, " "),
    "neither": ("abcdefgh" * 100, "a"),
}


def prepared(path: Path, kind: TokenizerKind) -> PreparedData:
    data = DataConfig(source=(str(path),))
    return prepare(open_corpus(data), data, TokenizerConfig(kind), path.parent / f"data-{kind}", QUIET)


@pytest.mark.parametrize("kind", [TokenizerKind.character, TokenizerKind.byte])
@pytest.mark.parametrize("name", TEXTS)
def test_single_document_starts_from_a_token_it_contains(
    name: str, kind: TokenizerKind, tmp_path: Path
) -> None:
    text, expected = TEXTS[name]
    (tmp_path / "t.txt").write_text(text)
    data = prepared(tmp_path / "t.txt", kind)
    assert data.start_text == expected
    assert data.tokenizer.encode(data.start_text)[0] in data.train.read(0, len(data.train))


@pytest.mark.parametrize(
    "kind", [TokenizerKind.character, TokenizerKind.bpe, TokenizerKind.byte, TokenizerKind.gpt1]
)
def test_start_token_occurs_in_the_training_data(kind: TokenizerKind, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text_of(4000).replace("\n", "\n\n"))
    data = prepared(tmp_path / "t.txt", kind)
    seen = set(data.train.read(0, len(data.train)).tolist())
    assert data.tokenizer.end_of_text_id not in seen
    (token_id,) = data.tokenizer.encode(data.start_text)
    assert token_id in seen


@pytest.mark.parametrize(("documents", "expected"), [(20, "\n"), (100, "")])
def test_many_documents_start_from_end_of_text(documents: int, expected: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text_of(80, seed) + "\n"}) for seed in range(documents)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = prepared(tmp_path / "t.jsonl", TokenizerKind.byte)
    assert data.start_text == expected and data.tokenizer.end_of_text_id in data.train.read(
        0, len(data.train)
    )


def started_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the token ids from which generation without a prompt starts."""
    from wholegpt import language_model

    prompts: list[Any] = []
    generate = language_model.generate

    def watched(model: Any, tokenizer: Any, given: Any, *arguments: Any, **named: Any) -> Any:
        prompts.extend(given)
        return generate(model, tokenizer, given, *arguments, **named)

    monkeypatch.setattr(language_model, "generate", watched)
    load(path, console=QUIET).generate(max_tokens=1)
    return prompts[0]


def test_run_on_one_document_never_starts_from_end_of_text(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run, nor one checkpoint, nor an older run, whose checkpoints store no start text."""
    tokenizer = Tokenizer.load(trained_run / "tokenizer.json")
    folder, _ = CheckpointStore(trained_run).choose("best")
    assert load_metadata(folder).start_text == "\n"
    assert (
        started_from(trained_run, monkeypatch) == started_from(folder, monkeypatch) == tokenizer.encode("\n")
    )
    (tmp_path / "text.txt").write_text(text_of(3000))
    with monkeypatch.context() as before:
        before.setattr(PreparedData, "start_text", "")
        old = api.train(config=tiny_config(tmp_path / "text.txt"), out=tmp_path / "run", console=QUIET).path
    assert not load_metadata(CheckpointStore(old).choose("best")[0]).start_text
    assert started_from(old, monkeypatch) == tokenizer.encode("\n")


def test_samples_start_from_a_token_of_the_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wholegpt.stages import pretraining

    prompts: list[Any] = []
    generate = pretraining.generate

    def watched(model: Any, tokenizer: Any, given: Any, *arguments: Any, **named: Any) -> Any:
        prompts.extend(given)
        return generate(model, tokenizer, given, *arguments, **named)

    monkeypatch.setattr(pretraining, "generate", watched)
    (tmp_path / "text.txt").write_text(text_of(3000))
    config = tiny_config(tmp_path / "text.txt", logging={"sample_prompt": ""}, training={"steps": 3})
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    newline = Tokenizer.load(run.path / "tokenizer.json").encode("\n")
    assert prompts and all(prompt == newline for prompt in prompts)


def test_empty_sample_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample_for_people("a\n") == "a\n"
    assert sample_for_people(" \n") == "(white space only: ' \\n')"
    config = tiny_config("none", logging={"sample_every": 1}, training={"steps": 2})
    metrics = StepMetrics(1.0, 1.0, 1.0, 1, 1.0)
    state = TrainingState(step=1)
    Sample(lambda: "", MetricsLog(tmp_path / "m.jsonl"), config, Console()).after_step(state, metrics)
    assert "sample after step 1:\n(empty: the model ended the text at once)" in capsys.readouterr().err
