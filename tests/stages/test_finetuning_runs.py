"""Fine-tuning runs end to end: training, resuming, continued pretraining, saved files and invalid input."""

import csv
import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Fails, tiny_config
from wholegpt.checkpoint import CheckpointStore, load_model
from wholegpt.cli import main
from wholegpt.cli.options import task_table
from wholegpt.console import Console
from wholegpt.data.examples.tasks import SPECIAL_TOKENS
from wholegpt.errors import ConfigError, DataError, NumericsError, RunError, WholeGPTError
from wholegpt.language_model import LanguageModel
from wholegpt.runs import api
from wholegpt.runs.compare import compare
from wholegpt.runs.load import load
from wholegpt.runs.train import open_stage
from wholegpt.settings.choices import Dtype
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import Config
from wholegpt.stages.pretraining import Forgetting

QUIET = Console(quiet=True)
BIRDS, FISH = ["robin", "wren", "heron", "finch"], ["trout", "perch", "salmon", "eel"]
VERBS = ["saw the", "met a", "likes the", "fed one"]
FAST: dict[str, dict[str, Any]] = {
    "finetuning": {"language_modeling": 0.2},
    "training": {"epochs": 0, "steps": 60, "batch_size": 16},
    "optimizer": {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 0.01},
    "schedule": {"warmup_steps": 4},
    "evaluation": {"every": 10, "patience": 0},
    "checkpointing": {"every": 0},
    "logging": {"every": 1, "sample_every": 0, "sample_tokens": 0},
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "whole": {"model": {"dropout": 0.1}},
    "lora": {"lora": {"rank": 2, "dropout": 0.1}, "finetuning": {"head_learning_rate": 0.02}},
    "unfreezing": {"finetuning": {"unfreeze_every": 5}, "training": {"micro_batch_size": 3}},
    "muon": {"optimizer": {"kind": "muon"}, "training": {"ema_decay": 0.9}},
}


def sentence(generator: random.Random, animals: list[str]) -> str:
    return f"{generator.choice(['Ann', 'Bob', 'Eve'])} {generator.choice(VERBS)} {generator.choice(animals)}"


def table(path: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def animals(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Write sentences about a bird or a fish."""
    generator = random.Random(seed)
    kinds = [generator.choice(["bird", "fish"]) for _ in range(count)]
    rows = [[sentence(generator, BIRDS if kind == "bird" else FISH), kind] for kind in kinds]
    return table(path, ["text", "label"], rows)


def pairs(path: Path, target: str, count: int = 120) -> Path:
    """Write pairs of sentences about the same kind of animal or not, with a label or a fractional score."""
    generator = random.Random(1)
    rows: list[list[Any]] = []
    for _ in range(count):
        sides = [generator.choice([BIRDS, FISH]) for _ in range(2)]
        same = sides[0] is sides[1]
        answer = ("same" if same else "different") if target == "label" else 4.5 if same else 1.25
        rows.append([*(sentence(generator, side) for side in sides), answer])
    return table(path, ["sentence1", "sentence2", target], rows)


def questions(path: Path, count: int = 120) -> Path:
    """Write multiple-choice questions: which of the animals a sentence names."""
    generator = random.Random(2)
    lines: list[str] = []
    for _ in range(count):
        answers = generator.sample([*BIRDS, *FISH], 3)
        right = generator.randrange(3)
        context = f"{sentence(generator, [answers[right]])}."
        lines.append(json.dumps({"context": context, "choices": answers, "answer": right}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run pretrained on such sentences; tests only read it."""
    folder = tmp_path_factory.mktemp("base")
    generator = random.Random(3)
    text = "".join(sentence(generator, BIRDS + FISH) + ".\n" for _ in range(400))
    (folder / "text.txt").write_text(text)
    model = {"context_length": 32, "n_layers": 2, "d_model": 32, "n_heads": 2}
    config = tiny_config(folder / "text.txt", model=model, tokenizer={"kind": "byte"}, training={"steps": 30})
    return api.train(config=config, out=folder / "run", console=QUIET).path


def settings(**sections: dict[str, Any]) -> Config:
    merged = {name: {**FAST.get(name, {}), **sections.get(name, {})} for name in {**FAST, **sections}}
    return configure(merged)


def finetune(base: Path, data: Path, task: str, out: Path, /, **sections: dict[str, Any]) -> api.Run[Any]:
    return api.finetune(base, data, task=task, config=settings(**sections), out=out, console=QUIET)


@pytest.fixture(scope="module")
def classifier(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that distinguishes birds from fish; tests only read it."""
    folder = tmp_path_factory.mktemp("classifier")
    return finetune(base, animals(folder / "animals.csv"), "classification", folder / "run").path


def test_classifier_learns_its_examples(classifier: Path, tmp_path: Path) -> None:
    lm = load(classifier, console=QUIET)
    assert lm.task and lm.task.labels == ("bird", "fish")
    score = lm.evaluate_task(animals(tmp_path / "test.csv", seed=5), console=QUIET)
    assert score.kind == "classification" and score.metrics["accuracy"].value > 0.95
    assert sum(one["correct"] for one in score.records) / 120 == score.metrics["accuracy"].value
    first, second = lm.predict("Ann saw the wren", "Bob met a trout")
    assert (first.label, second.label) == ("bird", "fish")
    assert sum(first.probabilities.values()) == pytest.approx(1) and first.probabilities["bird"] > 0.6
    (alone,) = lm.predict("Bob met a trout")
    assert alone.probabilities == pytest.approx(second.probabilities, rel=1e-5)


@pytest.mark.parametrize("target", ["label", "score"])
def test_similarity_is_symmetric(base: Path, tmp_path: Path, target: str) -> None:
    run = finetune(base, pairs(tmp_path / "pairs.csv", target), "similarity", tmp_path / "run")
    lm = run.load()
    texts = ("Ann saw the wren", "Bob met a trout")
    one, other = lm.predict(texts, texts[::-1])
    if target == "score":
        assert isinstance(one.label, float) and one.probabilities == {}
        assert one.label == pytest.approx(other.label, abs=1e-4) and 0 < one.label < 6
        assert {"pearson_correlation", "squared_error"} <= run.validation.metrics.keys()
        assert run.state.best and run.state.best.validation["pearson_correlation"] is not None
    else:
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_entailment_needs_premise_and_hypothesis(base: Path, tmp_path: Path) -> None:
    run = finetune(base, pairs(tmp_path / "pairs.csv", "label"), "entailment", tmp_path / "run")
    assert run.load().task == dataclasses.replace(
        run.load().task or pytest.fail("no task"), labels=("different", "same")
    )
    with pytest.raises(DataError, match="entailment needs two texts, found 1"):
        run.load().predict("only one")


def test_choice_predicts_a_probability_per_answer(base: Path, tmp_path: Path) -> None:
    run = finetune(base, questions(tmp_path / "questions.jsonl"), "choice", tmp_path / "run")
    (answer,) = run.load().predict(("Ann saw the wren.", "wren", "trout", "eel", "perch"))
    assert set(answer.probabilities) == {"wren", "trout", "eel", "perch"}
    assert run.validation.metrics.keys() == {"accuracy", "nats_per_example"}


@pytest.mark.parametrize("way", WAYS)
def test_every_fine_tuning_setup_resumes_bit_for_bit(base: Path, tmp_path: Path, way: str) -> None:
    data = animals(tmp_path / "animals.csv", 60)
    config = settings(**{**WAYS[way], "training": {"steps": 17, **WAYS[way].get("training", {})}})
    runs = [
        api.finetune(
            base,
            data,
            task="classification",
            config=config,
            out=tmp_path / name,
            max_seconds=limit,
            console=QUIET,
        )
        for name, limit in (("whole", None), ("cut", 1e-9))
    ]
    assert runs[1].state.step == 1
    data.unlink()  # only the run's folder is needed
    moved = (tmp_path / "cut").rename(tmp_path / "moved")
    again = api.resume(moved, max_seconds=1e-9, console=QUIET)
    assert again.state.step == 2
    resumed = api.resume(moved, console=QUIET)
    last = [CheckpointStore(path).path(17) for path in (tmp_path / "whole", moved)]
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
    assert resumed.validation == runs[0].validation


def test_lora_trains_adapters_head_and_new_tokens_only(base: Path, tmp_path: Path) -> None:
    run = finetune(
        base, animals(tmp_path / "animals.csv", 60), "classification", tmp_path / "run", **WAYS["lora"]
    )
    before = load_model(CheckpointStore(base).choose("best")[0]).model.state_dict()
    loaded = load_model(CheckpointStore(run.path).choose("last")[0])
    after = {name.replace(".base.", "."): tensor for name, tensor in loaded.model.state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
    new = after["token_embedding.weight"][-len(SPECIAL_TOKENS) :]
    start = load_model(CheckpointStore(base).choose("best")[0]).model.vocab_size
    assert len(after["token_embedding.weight"]) == start + len(SPECIAL_TOKENS) and new.norm() > 0.1
    assert all(after[name].abs().sum() > 0 for name in after if name.endswith(".up"))
    assert loaded.metadata.lora and loaded.metadata.lora.rank == 2
    merged = run.load("last").predict("Ann saw the wren", dtype=Dtype.float32)
    layered = _unmerged(run.path)
    assert merged[0].probabilities == pytest.approx(layered[0].probabilities, rel=1e-4)


def _unmerged(run: Path) -> list[Any]:
    loaded = load_model(CheckpointStore(run).choose("last")[0])
    return LanguageModel(loaded.model, loaded.tokenizer, metadata=loaded.metadata).predict(
        "Ann saw the wren", dtype=Dtype.float32
    )


def test_gradual_unfreezing_starts_with_the_head(base: Path, tmp_path: Path) -> None:
    data = animals(tmp_path / "animals.csv", 60)
    changes = {"finetuning": {"unfreeze_every": 3}, "checkpointing": {"every": 1, "keep": 100}}
    run = finetune(base, data, "classification", tmp_path / "run", **changes, training={"steps": 10})
    store = CheckpointStore(run.path)
    states = {step: load_model(store.path(step)).model.state_dict() for step in (1, 3, 4, 6, 7, 9, 10)}

    def changed(first: int, second: int) -> set[str]:
        parts = {".".join(n.split(".")[:2]) if n.startswith("blocks") else n.split(".")[0] for n in states[1]}
        of = {part: [n for n in states[1] if n.startswith(part + ".")] for part in parts}
        return {
            p for p, names in of.items() if any(not states[first][n].equal(states[second][n]) for n in names)
        }

    assert changed(1, 3) == {"head"}
    assert changed(3, 4) == changed(4, 6) == {"head", "blocks.1"}
    assert changed(6, 7) == changed(7, 9) == {"head", "blocks.0", "blocks.1"}
    assert {"token_embedding", "final_norm", "blocks.0"} <= changed(9, 10)


def test_random_initialization_keeps_the_architecture_but_not_the_weights(base: Path, tmp_path: Path) -> None:
    data = animals(tmp_path / "animals.csv", 60)
    first = {"training": {"steps": 1}, "checkpointing": {"every": 1, "keep": 9}}
    trained = finetune(base, data, "classification", tmp_path / "trained", **first)
    scratch = finetune(
        base, data, "classification", tmp_path / "scratch", **first, finetuning={"initialization": "random"}
    )
    assert trained.config.model == scratch.config.model and trained.parameters == scratch.parameters
    weights = [load_model(CheckpointStore(run.path).path(1)).model.state_dict() for run in (trained, scratch)]
    parent = load_model(CheckpointStore(base).choose("best")[0]).model.state_dict()
    name = "blocks.0.attention.query_key_value.weight"
    assert (
        (weights[0][name] - parent[name]).abs().max() < 0.011 < (weights[1][name] - parent[name]).abs().max()
    )
    scores = compare(trained.load(), scratch.load(), data, console=QUIET)
    assert (
        scores["accuracy"].first
        == trained.load().evaluate_task(data, console=QUIET).metrics["accuracy"].value
    )


def forgetting_of(run: api.Run[Any]) -> Forgetting | None:
    found = run.results.get("forgetting")
    assert found is None or isinstance(found, Forgetting)
    return found


def test_continued_pretraining_measures_forgetting(base: Path, text_file: Path, tmp_path: Path) -> None:
    run = finetune(
        base,
        text_file,
        "pretraining",
        tmp_path / "run",
        training={"steps": 25},
        finetuning={"language_modeling": 0.5},
    )
    forgetting = forgetting_of(run)
    assert forgetting
    old = load(base, console=QUIET)
    parent = api.resume(base, console=QUIET)
    assert forgetting.before.nats_per_token == pytest.approx(parent.validation.nats_per_token, abs=1e-6)
    assert forgetting.after.nats_per_token > forgetting.before.nats_per_token
    assert run.load().tokenizer.sha256 == old.tokenizer.sha256
    assert (
        run.load().evaluate(text_file, console=QUIET).bits_per_byte
        < old.evaluate(text_file, console=QUIET).bits_per_byte
    )
    assert run.to_json()["forgetting"]["nats_per_token"] > 0


def test_forgetting_is_measured_without_the_parent_run(base: Path, text_file: Path, tmp_path: Path) -> None:
    """Neither the parent model nor its text is needed; for a chat model, the pretraining text is used."""
    old = shutil.copytree(base, tmp_path / "old")
    pairs = [("Who?", "Ann"), ("What?", "A wren"), ("Who?", "Ann"), ("What?", "A wren")]
    talk = [{"prompt": asked, "response": answer} for asked, answer in pairs]
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    fast: dict[str, Any] = {
        "training": {"steps": 2},
        "finetuning": {"language_modeling": 0.5},
        "data": {"validation_fraction": 0.5},
    }
    chat = finetune(old, tmp_path / "talk.json", "instruct", tmp_path / "chat", **fast)
    run = finetune(chat.path, text_file, "pretraining", tmp_path / "run", **fast)
    forgetting = forgetting_of(run)
    assert forgetting
    assert forgetting.before.tokens == api.resume(base, console=QUIET).validation.tokens
    assert run.load().answering_template()
    shutil.rmtree(old)
    shutil.rmtree(chat.path)
    again = api.resume(run.path, console=QUIET)
    assert forgetting_of(again) == forgetting


def test_missing_pretraining_text_does_not_fail_the_run(base: Path, text_file: Path, tmp_path: Path) -> None:
    old = shutil.copytree(base, tmp_path / "old")
    shutil.rmtree(old / "data")
    fast: dict[str, Any] = {"training": {"steps": 2}, "finetuning": {"language_modeling": 0.5}}
    run = finetune(old, text_file, "pretraining", tmp_path / "run", **fast)
    assert forgetting_of(run) is None and (run.path / "report.html").exists()


def test_duplicates_are_on_one_side_of_the_split_and_small_classes_on_both(
    base: Path, tmp_path: Path
) -> None:
    rows = [[f"text {i} of many", f"label {i % 10}"] for i in range(40)]
    data = table(tmp_path / "a.csv", ["text", "label"], rows * 2)
    run = finetune(base, data, "classification", tmp_path / "run", training={"steps": 1})
    kept = [
        {json.loads(line)["parts"][0][0] for line in (run.path / "data" / name).read_text().splitlines()}
        for name in ("train.jsonl", "validation.jsonl")
    ]
    assert not kept[0] & kept[1] and len(kept[1]) == 4
    said = open_stage(run.path).describe()
    assert "8 held out;" in said
    same = api.finetune(
        base,
        data,
        task="classification",
        validation=data,
        config=settings(training={"steps": 1}),
        out=tmp_path / "b",
    )
    assert "80 held out (80 of them are training examples" in open_stage(same.path).describe()


def test_resuming_on_the_command_line_shows_task_metrics(
    classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(classifier), "--quiet"]) == 0
    assert "matthews correlation" in capsys.readouterr().out


def test_info_shows_the_task_and_labels(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(classifier), "--json", "--quiet"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["task"]["labels"] == ["bird", "fish"] and "chat_template" not in info


def test_lineage_names_the_parent(classifier: Path, base: Path) -> None:
    lineage = json.loads((classifier / "lineage.json").read_text())
    assert [one["model"] for one in lineage["parents"]] == [str(base)]
    assert (
        lineage["parents"][0]["checkpoint"].startswith("step-")
        and len(lineage["parents"][0]["weights"]) == 64
    )


def test_changed_examples_are_rejected(base: Path, tmp_path: Path) -> None:
    run = finetune(
        base, animals(tmp_path / "a.csv", 60), "classification", tmp_path / "run", training={"steps": 2}
    )
    kept = run.path / "data" / "train.jsonl"
    kept.write_text(kept.read_text().replace("bird", "fish", 1))
    with pytest.raises(DataError, match=r"train\.jsonl: not the examples that the run started with"):
        api.resume(run.path, console=QUIET)


def test_split_is_stratified_by_label(base: Path, tmp_path: Path) -> None:
    rows = [[f"Ann saw {n}", "often" if n % 10 else "rare"] for n in range(100)]
    data = table(tmp_path / "t.csv", ["text", "label"], rows)
    run = finetune(base, data, "classification", tmp_path / "run", training={"steps": 1})
    kept = [json.loads(line) for line in (run.path / "data" / "validation.jsonl").read_text().splitlines()]
    assert sorted(one["target"] for one in kept) == ["often"] * 9 + ["rare"]
    few = table(tmp_path / "few.csv", ["text", "label"], [["a", "x"], ["b", "y"], ["c", "x"], ["d", "y"]])
    with pytest.raises(DataError, match="has 4 examples, too few to hold 10% of them out"):
        finetune(base, few, "classification", tmp_path / "none")
    repeated = table(tmp_path / "same.csv", ["text", "label"], [["a", "x"], ["b", "y"]] * 30)
    with pytest.raises(
        DataError, match="has 60 examples of 2 different texts, too few to hold 10% of them out"
    ):
        finetune(base, repeated, "classification", tmp_path / "none")


def test_report_shows_errors_and_confusion_matrix(classifier: Path) -> None:
    api.resume(classifier, console=QUIET)
    page = (classifier / "report.html").read_text()
    assert "Confusion" in page and "<dt>accuracy</dt>" in page and "Validation: accuracy" in page
    assert "nats per token" not in page.split("Settings")[0]


DISTINCT = "".join(f"a{i},x\nb{i},y\n" for i in range(20))
BAD: dict[str, tuple[str, str, dict[str, dict[str, Any]], type[WholeGPTError], str]] = {
    "one label": (
        "text,label\nhello,a\nworld,a\n",
        "classification",
        {},
        DataError,
        "every example has the label 'a'",
    ),
    "one example": (
        "text,label\na,x\nb,x\nc,y\n",
        "classification",
        {},
        DataError,
        "'y' has a single example",
    ),
    "empty text": (
        "text,label\n,x\nb,y\n",
        "classification",
        {},
        DataError,
        "line 2: has an empty text in 'text'",
    ),
    "no label": ("text,label\na,\nb,y\n", "classification", {}, DataError, "line 2: has no label in 'label'"),
    "column": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"finetuning": {"label_column": "kind"}},
        DataError,
        "has no column 'kind'; there are text, label",
    ),
    "one text": (
        "text,label\na,x\nb,y\n",
        "entailment",
        {},
        DataError,
        "entailment needs 2 columns of texts",
    ),
    "architecture": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"model": {"n_layers": 7}},
        ConfigError,
        "model.n_layers is 7, and 2 in",
    ),
    "unfreezing": (
        "text,label\n" + DISTINCT,
        "classification",
        {"finetuning": {"unfreeze_every": 20}},
        ConfigError,
        "frees the embeddings after 60 steps, and there are 60",
    ),
    "names": (
        "title,2020\na,x\nb,y\n",
        "classification",
        {},
        DataError,
        "the first row, too, was read as an example",
    ),
    "lora and unfreezing": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"lora": {"rank": 2}, "finetuning": {"unfreeze_every": 5}},
        ConfigError,
        "unfreeze_every cannot be combined with lora.rank",
    ),
    "validation fraction too large": (
        "text,label\n" + "a,x\nb,y\n" * 5,
        "classification",
        {"data": {"validation_fraction": 0.99}},
        DataError,
        "too few to hold 99% of them out",
    ),
    "no head": (
        "prompt,response\na,x\nb,y\n",
        "instruct",
        {"finetuning": {"unfreeze_every": 1, "language_modeling": 0.5}},
        ConfigError,
        "finetuning.unfreeze_every does not apply to instruct",
    ),
    "weights of scores": (
        "a,b,score\n" + "".join(f"x{i},y,{i / 2}\n" for i in range(20)),
        "similarity",
        {"finetuning": {"class_weights": "balanced"}},
        ConfigError,
        "is for labels, and these examples have scores",
    ),
    "rank": (
        "text,label\n" + DISTINCT,
        "classification",
        {"lora": {"rank": 99}},
        ConfigError,
        "at most 32",
    ),
    "no rank": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"lora": {"alpha": 3.0}},
        ConfigError,
        "lora.rank is 0, but other settings of lora are set",
    ),
    "choices": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"finetuning": {"answer_columns": ["a"]}},
        ConfigError,
        "finetuning.answer_columns does not apply to classification",
    ),
    "language modeling": (
        "prompt,response\na,x\nb,y\n",
        "instruct",
        {"finetuning": {"language_modeling": 0.1}},
        ConfigError,
        "finetuning.language_modeling does not apply to instruct",
    ),
    "lambda": (
        "text,label\na,x\nb,y\n",
        "classification",
        {"finetuning": {"language_modeling": -1}},
        ConfigError,
        "finetuning.language_modeling is -1",
    ),
    "constant score": (
        "a,b,score\nx,y,1.5\nx,z,1.5\n",
        "similarity",
        {},
        DataError,
        "every example has the score 1.5",
    ),
    "task": ("text,label\na,x\nb,y\n", "classifcation", {}, ConfigError, "did you mean 'classification'"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_examples_and_settings_are_rejected(base: Path, tmp_path: Path, name: str) -> None:
    content, task, sections, error, message = BAD[name]
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(error, match=message.replace("(", r"\(")):
        finetune(base, tmp_path / "data.csv", task, tmp_path / "run", **sections)
    assert not (tmp_path / "run").exists()


def test_labels_that_only_held_out_examples_have_are_rejected(base: Path, tmp_path: Path) -> None:
    data = animals(tmp_path / "a.csv", 20)
    held_out = table(tmp_path / "dev.csv", ["text", "label"], [["Ann", "bird"], ["Bob", "beast"]])
    with pytest.raises(
        DataError, match=r"dev\.csv: line 3: the label 'beast' is not in the training examples"
    ):
        api.finetune(
            base,
            data,
            task="classification",
            validation=held_out,
            config=settings(),
            out=tmp_path / "r",
            console=QUIET,
        )
    words = table(tmp_path / "words.csv", ["sentence1", "sentence2", "score"], [["a", "b", "much"]])
    scores = pairs(tmp_path / "pairs.csv", "score", 20)
    with pytest.raises(DataError, match=r"words\.csv: line 2: 'much' in 'score' is not a number"):
        api.finetune(
            base,
            scores,
            task="similarity",
            validation=words,
            config=settings(),
            out=tmp_path / "r",
            console=QUIET,
        )


def test_predictions_of_a_table(
    classifier: Path, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts are taken from the training column or from the only text column; an ambiguous table is an error."""
    rows = [["Ann saw the wren", "x"], ["Bob met a trout", "y"]]
    known = table(tmp_path / "known.csv", ["text", "other"], rows)
    alone = table(tmp_path / "alone.csv", ["number", "review"], [[n, row[0]] for n, row in enumerate(rows)])
    for file in (known, alone):
        assert main(["predict", str(classifier), "--data", str(file), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["predictions"]
        assert [one["label"] for one in found] == ["bird", "fish"]
    lines, listed = tmp_path / "answers.jsonl", tmp_path / "answers.csv"
    for out in (lines, listed):
        assert main(["predict", str(classifier), "--data", str(known), "--out", str(out)]) == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["label"] for one in records] == ["bird", "fish"]
    assert listed.read_text().splitlines()[0] == "text,label,probability"
    assert listed.read_text().splitlines()[1].startswith("Ann saw the wren,bird,0.")
    strange = table(tmp_path / "strange.csv", ["title", "body"], rows)
    message = fails("predict", classifier, "--data", strange)
    assert "has no text, as the training examples have, and not 1 column of texts that could" in message
    message = fails("predict", classifier, "--data", known, "--out", tmp_path / "answers.tsv")
    assert "expected a name that ends in .csv or .jsonl" in message


def test_invalid_parents_and_output_folders_are_rejected(
    classifier: Path, base: Path, tmp_path: Path
) -> None:
    data = animals(tmp_path / "a.csv", 20)
    with pytest.raises(ConfigError, match="is fine-tuned for classification already"):
        finetune(classifier, data, "classification", tmp_path / "run")
    with pytest.raises(RunError, match="which the run starts from"):
        api.finetune(
            base, data, task="classification", config=settings(), out=base, overwrite=True, console=QUIET
        )
    with pytest.raises(ConfigError, match="the model has no task head"):
        load(base, console=QUIET).predict("Ann")
    with pytest.raises(ConfigError, match="`wholegpt finetune` starts from a trained model"):
        api.train(base / "data", config=settings(finetuning={"task": "classification", "model": str(base)}))


def test_texts_longer_than_the_context_are_truncated_and_counted(base: Path, tmp_path: Path) -> None:
    rows = [[f"a very long text, number {n}, that goes on and never ends", n % 2] for n in range(20)]
    run = finetune(
        base,
        table(tmp_path / "t.csv", ["text", "label"], rows),
        "classification",
        tmp_path / "r",
        training={"steps": 1},
    )
    assert run.validation.truncated == run.validation.examples == 2
    assert "2 truncated: without the ends of their longest text" in task_table(run.validation.to_json())
    with torch.no_grad():
        lm = load(run.path)
        next(lm.model.parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="produces NaN"):
        lm.predict("a text")  # instead of predicting the first label
