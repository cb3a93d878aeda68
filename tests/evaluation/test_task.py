"""Evaluation on files of examples: reading, few-shot prompts, and scores calculated by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Fails
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError, DataError, NumericsError
from wholegpt.evaluation import read_examples
from wholegpt.evaluation.examples import Choice, Classification, Cloze, Generation, LastWord, Score
from wholegpt.evaluation.task import few_shot
from wholegpt.language_model import LanguageModel
from wholegpt.runs.load import load
from wholegpt.settings.choices import Dtype

QUIET = Console(quiet=True)
LINES: dict[str, list[dict[str, Any]]] = {
    "multiple choice": [
        {"context": "the of", "choices": ["and a", "to"], "answer": 0},
        {"context": "is you that", "choices": ["it", "he was", "for on"], "answer": 2, "id": "x"},
        {"context": "with as", "choices": ["his", "they"], "answer": 1},
    ],
    "cloze": [
        {"text": "the of _ a to", "choices": ["and", "for"], "answer": 0},
        {"text": "is you _ it he", "choices": ["that", "this"], "answer": 0},
    ],
    "last word": [{"passage": "the of and a to in is you"}, {"passage": "that it he was\n"}],
    "classification": [
        {"prompt": "the of and:", "label": "is"},
        {"prompt": "you that it:", "label": "he"},
        {"prompt": "his they at:", "label": "is"},
    ],
    "score": [
        {"prompt": "the of:", "choices": ["1", "2"], "score": 1.25},
        {"prompt": "and a to:", "choices": ["1", "2"], "score": 2},
        {"prompt": "in is:", "choices": ["1", "2"], "score": 1},
    ],
    "generation": [
        {"prompt": "the of", "references": "and a to"},
        {"prompt": "in is", "references": ["you that", "it he"]},
    ],
}


def save(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """An untrained byte-level model: it can process any text and predicts nearly uniformly."""
    torch.manual_seed(2)
    fresh = load("modern-tiny")
    with torch.no_grad():
        for parameter in fresh.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return fresh


def nats(lm: LanguageModel, context: str, continuation: str) -> float:
    """Compute −ln p(continuation | context) of bytes in one forward pass."""
    ids = lm.tokenizer.encode(context) if context else [lm.tokenizer.end_of_text_id]
    whole = ids + lm.tokenizer.encode(continuation)
    with torch.inference_mode():
        chosen = torch.log_softmax(lm.model(torch.tensor([whole[:-1]]))[0], dim=-1)
    return -sum(float(chosen[i - 1, whole[i]]) for i in range(len(ids), len(whole)))


@pytest.mark.parametrize("kind", LINES)
def test_kinds_of_examples_are_detected(kind: str, tmp_path: Path) -> None:
    examples = read_examples(save(tmp_path, LINES[kind]))
    assert examples.kind.kind == kind
    assert list(examples.by_line) == list(range(1, len(LINES[kind]) + 1))


def test_choice(lm: LanguageModel, tmp_path: Path) -> None:
    score = lm.evaluate_task(save(tmp_path, LINES["multiple choice"]), dtype=Dtype.float32, console=QUIET)
    right = {"accuracy": 0, "accuracy_per_token": 0, "accuracy_per_byte": 0}
    for line, record in zip(LINES["multiple choice"], score.records, strict=True):
        by_hand = [nats(lm, line["context"], " " + choice) for choice in line["choices"]]
        assert record["nats"] == pytest.approx(by_hand, abs=1e-4)
        tokens = [n / (1 + len(c)) for n, c in zip(by_hand, line["choices"], strict=True)]
        n_bytes = [n / len(c) for n, c in zip(by_hand, line["choices"], strict=True)]
        for name, values in zip(right, (by_hand, tokens, n_bytes), strict=True):
            right[name] += min(range(len(values)), key=values.__getitem__) == line["answer"]
    assert {name: estimate.value for name, estimate in score.metrics.items()} == {
        name: count / 3 for name, count in right.items()
    }
    assert (score.examples, score.truncated, score.shots) == (3, 0, 0)


def test_cloze(lm: LanguageModel, tmp_path: Path) -> None:
    score = lm.evaluate_task(save(tmp_path, LINES["cloze"]), dtype=Dtype.float32, console=QUIET)
    record = score.records[0]
    assert record["nats_full"] == pytest.approx(
        [nats(lm, "", "the of and a to"), nats(lm, "", "the of for a to")], abs=1e-4
    )
    assert record["nats_partial"] == pytest.approx(
        [nats(lm, "the of and", " a to"), nats(lm, "the of for", " a to")], abs=1e-4
    )
    assert score.metrics.keys() == {"accuracy_full", "accuracy_partial"}


def test_last_word(lm: LanguageModel, tmp_path: Path) -> None:
    import math

    score = lm.evaluate_task(save(tmp_path, LINES["last word"]), dtype=Dtype.float32, console=QUIET)
    by_hand = [nats(lm, "the of and a to in is", " you"), nats(lm, "that it he", " was")]
    assert [record["nats"] for record in score.records] == pytest.approx(by_hand, abs=1e-4)
    assert score.metrics["perplexity_per_word"].value == pytest.approx(math.exp(sum(by_hand) / 2), rel=1e-4)


def test_classification_and_score(lm: LanguageModel, tmp_path: Path) -> None:
    import math

    labeled = lm.evaluate_task(save(tmp_path, LINES["classification"]), dtype=Dtype.float32, console=QUIET)
    assert labeled.metrics.keys() == {"accuracy", "f1", "f1_macro", "matthews_correlation"}
    weights = [math.exp(-nats(lm, "the of and:", " " + label)) for label in ("he", "is")]
    probabilities = labeled.records[0]["probabilities"]
    assert list(probabilities) == ["he", "is"]
    assert probabilities["he"] == pytest.approx(weights[0] / sum(weights), abs=1e-4)
    scored = lm.evaluate_task(save(tmp_path, LINES["score"]), dtype=Dtype.float32, console=QUIET)
    weights = [math.exp(-nats(lm, "the of:", " " + number)) for number in ("1", "2")]
    assert scored.records[0]["expected"] == pytest.approx(
        (weights[0] + 2 * weights[1]) / sum(weights), abs=1e-4
    )
    assert scored.metrics.keys() == {"pearson_correlation", "spearman_correlation", "squared_error"}


def test_generation(lm: LanguageModel, tmp_path: Path) -> None:
    score = lm.evaluate_task(save(tmp_path, LINES["generation"]), console=QUIET)
    greedy = lm.generate("the of", max_tokens=100, temperature=0, stop="\n", console=QUIET)
    assert score.records[0]["generated"] == greedy.text.strip()
    assert score.metrics.keys() == {"bleu", "rouge1", "rouge2", "rougeL", "empty"}


def test_few_shot_examples_are_drawn_once_and_not_scored(lm: LanguageModel, tmp_path: Path) -> None:
    path = save(tmp_path, LINES["multiple choice"])
    examples = read_examples(path)
    before, left = few_shot(examples, 2, None, seed=1)
    assert before.endswith("\n\n") and before.count("\n\n") == 2
    (line,) = left.by_line
    solved = {n: one.solved() for n, one in examples.by_line.items()}
    assert solved[1] == "the of and a"
    assert sorted(before.split("\n\n")[:-1]) == sorted(text for n, text in solved.items() if n != line)
    assert few_shot(examples, 2, None, seed=1)[0] == before
    assert {few_shot(examples, 1, None, seed)[0] for seed in range(20)} == {
        t + "\n\n" for t in solved.values()
    }
    with pytest.raises(ConfigError, match="has 0 examples that are not scored themselves"):
        few_shot(examples, 1, examples, seed=1)
    pool = save(
        tmp_path / "pool", [*LINES["multiple choice"], {"context": "he", "choices": ["is", "a"], "answer": 0}]
    )
    assert few_shot(examples, 1, read_examples(pool), seed=1) == ("he is\n\n", examples)
    score = lm.evaluate_task(path, shots=2, seed=1, dtype=Dtype.float32, console=QUIET)
    example = LINES["multiple choice"][line - 1]
    by_hand = [nats(lm, before + example["context"], " " + choice) for choice in example["choices"]]
    assert score.records[0]["nats"] == pytest.approx(by_hand, abs=1e-3)


def test_examples_longer_than_the_context_are_counted(lm: LanguageModel, tmp_path: Path) -> None:
    long = {"context": "the of " * 100, "choices": ["and", "to"], "answer": 0}
    score = lm.evaluate_task(
        save(tmp_path, [*LINES["multiple choice"], long]), dtype=Dtype.float32, console=QUIET
    )
    assert score.truncated == 1
    kept = long["context"].rstrip()[-(lm.model.context_length + 1 - 4) :]
    assert score.records[3]["nats"][0] == pytest.approx(nats(lm, kept, " and"), abs=1e-3)


BAD_LINES: dict[str, tuple[str, str]] = {
    "invalid JSON": ("{", "is not JSON"),
    "a wrong field": ('{"context": "a", "choice": ["b"], "answer": 0}', "fields match no kind"),
    "not an object": ("[1]", "fields match no kind"),
}
BAD_SECOND_LINES: dict[str, tuple[str, str]] = {
    "invalid JSON": ("{", "line 2 is not JSON"),
    "not an object": ("3", "line 2: expected a JSON object"),
    "a missing field": ('{"context": "a", "answer": 0}', "line 2: lacks 'choices'"),
    "a field of another kind": ('{"prompt": "a", "label": "b"}', "has 'label'; has 'prompt'"),
    "an answer out of range": (
        '{"context": "a", "choices": ["b", "c"], "answer": 2}',
        "answer is 2; expected an index",
    ),
    "a negative answer": ('{"context": "a", "choices": ["b", "c"], "answer": -1}', "answer is -1"),
    "an answer of the wrong type": (
        '{"context": "a", "choices": ["b", "c"], "answer": "b"}',
        "answer: expected a whole number",
    ),
    "one choice": ('{"context": "a", "choices": ["b"], "answer": 0}', "choices has 1 entries"),
    "a choice of the wrong type": (
        '{"context": "a", "choices": ["b", 1], "answer": 0}',
        "choices[1]: expected text",
    ),
}


@pytest.mark.parametrize("name", BAD_SECOND_LINES)
def test_invalid_lines_are_reported(name: str, tmp_path: Path, trained_run: Path, fails: Fails) -> None:
    line, expected = BAD_SECOND_LINES[name]
    path = save(tmp_path, LINES["multiple choice"][:1])
    path.write_text(path.read_text() + line + "\n")
    message = fails("evaluate", trained_run, path, "--quiet")
    assert expected in message and str(path) in message


@pytest.mark.parametrize("name", BAD_LINES)
def test_files_of_unknown_kind_are_rejected(name: str, tmp_path: Path) -> None:
    line, expected = BAD_LINES[name]
    path = tmp_path / "examples.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=expected):
        read_examples(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"text": "no blank", "choices": ["a", "b"], "answer": 0}, "holds 0 times '_'"),
        ({"text": "at the _", "choices": ["a", "b"], "answer": 0}, "nothing follows the blank"),
        ({"passage": "word"}, "fewer than two words"),
        ({"prompt": "a", "choices": ["1", "x"], "score": 1}, "'x', which is not a number"),
        ({"prompt": "a", "references": []}, "references is empty"),
        ({"prompt": "a", "label": "b"}, "all examples have the label 'b'"),
        ({"prompt": "a", "label": " "}, "label is empty"),
        ({"prompt": "a", "label": "b", "labels": ["b", " b"]}, "labels holds 'b' twice"),
        ({"context": "a", "choices": ["b", "b "], "answer": 1}, "choices holds 'b' twice"),
        ({"context": "a", "choices": ["b", " "], "answer": 0}, "choices holds an empty text"),
        ({"prompt": "a", "choices": ["1", "nan"], "score": 1}, "'nan', which is not a number"),
        ({"prompt": "a", "choices": ["1", "2"], "score": float("inf")}, "line 1 holds Infinity"),
    ],
)
def test_invalid_examples_are_rejected(line: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected):
        read_examples(save(tmp_path, [line]))


def test_evaluate_command(
    tmp_path: Path, trained_run: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    path, records = save(tmp_path, LINES["multiple choice"]), tmp_path / "records.jsonl"
    arguments = ["evaluate", str(trained_run), str(path), "--quiet", "--shots", "1", "--seed", "3"]
    assert main([*arguments, "--json", "--records", str(records)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "multiple choice" and result["examples"] == 2 and result["shots"] == 1
    assert result["accuracy"].keys() == {"value", "low", "high"}
    assert [json.loads(line)["line"] for line in records.read_text().splitlines()]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "accuracy per byte" in shown and "2 examples (multiple choice), 1 shots" in shown
    assert "shots is 3" in fails(*arguments[:4], "--shots", "3")
    assert "--stride does not apply to a file of examples" in fails(*arguments[:4], "--stride", "4")
    text = tmp_path / "text.txt"
    text.write_text("the of and a to in is you\n")
    assert "--shots does not apply to text" in fails("evaluate", trained_run, text, "--shots", "1")
    assert "--max-tokens does not apply to text" in fails("evaluate", trained_run, text, "--max-tokens", "9")
    assert "--encoding does not apply to the validation text of a run" in fails(
        "evaluate", trained_run, "--encoding", "latin-1"
    )
    assert "by itself" in fails("evaluate", trained_run, path, text)
    generated = save(tmp_path, LINES["generation"])
    assert main(["evaluate", str(trained_run), str(generated), "--quiet", "--max-tokens", "5"]) == 0
    assert "bleu" in capsys.readouterr().out
    assert "max_tokens is 99" in fails("evaluate", trained_run, generated, "--max-tokens", "99", "--quiet")


@pytest.mark.parametrize(
    "line",
    [
        {"context": "a", "choice": ["b"], "answer": 0},
        {"text": "a _ b", "choice": ["b"], "answer": 0},
        {"q": 1},
    ],
)
def test_unknown_field_on_the_first_line_is_an_error(
    line: dict[str, Any], tmp_path: Path, trained_run: Path, fails: Fails
) -> None:
    assert "fields match no kind" in fails("evaluate", trained_run, save(tmp_path, [line]), "--quiet")


def test_compare(tmp_path: Path, trained_run: Path, fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, LINES["multiple choice"])
    both = [str(trained_run), str(trained_run)]
    assert main(["compare", *both, str(path), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"]["difference"] == 0 and result["accuracy"]["p_value"] == 1
    assert result["accuracy"]["better"] == "uncertain"
    text = tmp_path / "text.txt"
    text.write_text("the of and a to in is you that it he was for on are with as his they\n" * 40)
    assert main(["compare", *both, str(text), "--quiet"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert "give texts or a file of examples to compare on" in fails("compare", *both)


def test_compare_finds_the_better_model(tmp_path: Path, trained_run: Path) -> None:
    from wholegpt.runs.compare import compare

    trained = load(trained_run)
    worse = load(trained_run)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in worse.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    text = tmp_path / "text.txt"
    text.write_text("the of and a to in is you that it he was for on are with as his they\n" * 40)
    difference = compare(trained, worse, text, console=QUIET)["bits_per_byte"]
    assert difference.difference.low > 0 and difference.p_value < 0.001
    assert difference.difference.value == pytest.approx(difference.second - difference.first, rel=0.02)
    assert difference.better == "first"


def test_every_kind_has_an_example() -> None:
    from wholegpt.evaluation.examples import KINDS

    assert {kind.kind for kind in KINDS} == LINES.keys()
    assert set(KINDS) == {Choice, Cloze, LastWord, Classification, Score, Generation}


def test_truncated_choice_is_normalized_by_its_scored_bytes(lm: LanguageModel, tmp_path: Path) -> None:
    """An untrained model gives long and short choices about equal scores per byte."""
    path = save(tmp_path, [{"context": "x", "choices": ["ab " * 100, "ab"], "answer": 1}])
    (record,) = lm.evaluate_task(path, dtype=Dtype.float32, console=QUIET).records
    assert record["truncated"]
    sizes = (lm.model.context_length, len(" ab"))
    rates = [n / size for n, size in zip(record["nats"], sizes, strict=True)]
    assert rates[0] == pytest.approx(rates[1], rel=0.2)
    long = lm.evaluate_task(path, dtype=Dtype.float32, console=QUIET).records[0]
    per_byte = [long["nats"][0] / (300 * lm.model.context_length / 301), long["nats"][1] / 2]
    assert long["chosen_per_byte"] == per_byte.index(min(per_byte))


def test_nan_weights_are_an_error(lm: LanguageModel, tmp_path: Path) -> None:
    path = save(tmp_path, LINES["multiple choice"])
    weight = next(lm.model.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
        with pytest.raises(NumericsError, match="produces NaN"):
            lm.evaluate_task(path, dtype=Dtype.float32, console=QUIET)
        weight.copy_(kept)


def test_records_have_ids_and_do_not_overwrite_files(trained_run: Path, tmp_path: Path, fails: Fails) -> None:
    path = save(tmp_path, [{**line, "id": f"q{i}"} for i, line in enumerate(LINES["multiple choice"])])
    before = path.read_text()
    assert "already exists; name another --records" in fails("evaluate", trained_run, path, "--records", path)
    missing = tmp_path / "no" / "records.jsonl"
    assert "its folder does not exist" in fails("evaluate", trained_run, path, "--records", missing)
    assert path.read_text() == before
    records = tmp_path / "records.jsonl"
    assert main(["evaluate", str(trained_run), str(path), "--records", str(records), "--quiet"]) == 0
    ids = [json.loads(line)["id"] for line in records.read_text().splitlines()]
    assert ids == [f"q{i}" for i in range(len(LINES["multiple choice"]))]


def test_options_without_effect_are_rejected(trained_run: Path, tmp_path: Path, fails: Fails) -> None:
    path = save(tmp_path, LINES["multiple choice"])
    assert "nothing is generated for multiple choice" in fails(
        "evaluate", trained_run, path, "--max-tokens", "3"
    )
    assert "but shots is 0" in fails("evaluate", trained_run, path, "--examples", path)
    assert "shots is -1; expected 0 or more" in fails("evaluate", trained_run, path, "--shots", "-1")
    path.write_bytes(path.read_bytes() + b'{"context": "\xe9"}\n')
    assert "byte 230 (0xe9) is not utf-8" in fails("evaluate", trained_run, path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LINES["multiple choice"][0]).encode())
    assert len(read_examples(path).by_line) == 1


def test_compare_reads_the_given_text_field(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "body.jsonl").write_text('{"body": "the of and"}\n' * 20)
    command = [
        "compare",
        str(trained_run),
        str(trained_run),
        str(tmp_path / "body.jsonl"),
        "--text-field",
        "body",
    ]
    assert main([*command, "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert result["difference"] == 0 and result["better"] == "uncertain"


def test_evaluation_with_shorter_windows(trained_run: Path, text_file: Path, fails: Fails) -> None:
    lm = load(trained_run)
    short, whole = (lm.evaluate(text_file, context=n, console=QUIET).nats_per_token for n in (2, 0))
    assert short > whole
    assert "context is 999; expected 1 to" in fails("evaluate", trained_run, text_file, "--context", "999")
