"""The Python interface: keyword arguments, texts in memory, streams and representations."""

import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import wholegpt as wg
from tests.helpers import tiny_config
from wholegpt.console import Console
from wholegpt.language_model import LanguageModel, PromptSettings
from wholegpt.settings.keywords import GenerationSettings, TaskEvaluationSettings, TextEvaluationSettings
from wholegpt.settings.schema import GenerationConfig

QUIET = Console(quiet=True)
untyped: Any = wg
"""An untyped reference, for calls that a type checker would report."""


def names_of(kind: type) -> set[str]:
    return {*inspect.get_annotations(kind)}


def keywords_of(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}


def test_typed_keywords_equal_those_of_the_functions() -> None:
    assert names_of(GenerationSettings) == {field.name for field in dataclasses.fields(GenerationConfig)}
    own = names_of(PromptSettings) - names_of(GenerationSettings)
    assert own == keywords_of(LanguageModel.generate_all) - {"emit"} == keywords_of(LanguageModel.stream)
    assert names_of(TextEvaluationSettings) == keywords_of(LanguageModel.evaluate) - {"console"}
    assert names_of(TaskEvaluationSettings) == keywords_of(LanguageModel.evaluate_task) - {"console"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    lm = wg.load("modern-tiny")
    lm.model.double()  # so that rounding does not change tokens
    return lm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda lm: lm.generate("x", max_token=3),
            r"generate\(\) has no parameter 'max_token'; .*'max_tokens'",
        ),
        (lambda lm: lm.generate_all(["x"], guidence=2), "'guidence'; did you mean 'guidance'"),
        (lambda lm: lm.stream("x", temprature=1), "'temprature'; did you mean 'temperature'"),
        (lambda lm: lm.beam_search("x", beam=1), "'beam'; did you mean 'beams'"),
        (lambda lm: lm.chat([], max_toks=1), "'max_toks'; did you mean 'max_tokens'"),
        (lambda lm: untyped.compare(lm, lm, "a.txt", strid=3), "'strid'; did you mean 'stride'"),
        (lambda lm: untyped.compare(lm, lm, __file__, shots=3), "shots does not apply to text"),
        (
            lambda lm: untyped.train("a.txt", minuts=3),
            r"train\(\) has no parameter 'minuts'; did you mean 'minutes'",
        ),
        (
            lambda lm: untyped.train("a.txt", steps=3),
            r"train\(\) has no parameter 'steps'; give config=wg\.configure\(\{'training': \{'steps': 3\}\}\)",
        ),
        (
            lambda lm: untyped.configure({"lr": 0.1}),
            "unknown field 'lr'; the setting is optimizer.learning_rate",
        ),
        (
            lambda lm: untyped.configure({"training.steps": 5}),
            r"the setting is training\.steps, as in \{'training': \{'steps': 5\}\}",
        ),
        (lambda lm: untyped.train("a.txt", minutes="2"), "minutes is '2'; expected a number"),
        (lambda lm: untyped.load(None), "the path of a model is None"),
        (lambda lm: untyped.finetune("a", "b", tasks="instruct"), "'tasks'; did you mean 'task'"),
        (lambda lm: untyped.plan("a.txt", minute=3), "'minute'; did you mean 'minutes'"),
        (lambda lm: untyped.resume("runs/a", step=3), "'step'; did you mean 'steps'"),
        (lambda lm: untyped.load("runs/a", devise="cpu"), "'devise'; did you mean 'device'"),
        (
            lambda lm: lm.evaluate(__file__, on_bad_text="drop"),
            "on_bad_text is 'drop'; expected one of stop,",
        ),
        (lambda lm: untyped.train(texts="one text"), "texts is of type str; expected a list"),
        (lambda lm: untyped.train("a.txt", texts=["b"]), "texts and a source are given; give one"),
        (lambda lm: untyped.train(texts=[]), "texts: holds no text"),
        (
            lambda lm: untyped.train(texts=["a"], config=wg.configure({"data": {"text_field": "body"}})),
            "--text-field has no effect here: the list of texts has no fields and records; leave it out",
        ),
    ],
)
def test_wrong_argument_is_named_in_the_error(
    lm: LanguageModel, call: Callable[[Any], object], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(wg.WholeGPTError, match=message):
        call(lm)


def test_stream_equals_generate(lm: LanguageModel) -> None:
    settings: GenerationSettings = {"max_tokens": 40, "seed": 3}
    pieces = [*lm.stream("Once", **settings)]
    assert "".join(pieces) == lm.generate("Once", **settings).text
    assert len(pieces) > 10 and all(pieces)
    assert "".join(lm.stream("Once", **settings, draft="prompt")) == "".join(pieces)


def test_abandoned_stream_computes_no_further_tokens(lm: LanguageModel, monkeypatch: Any) -> None:
    calls: list[int] = []
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", lambda *given: calls.append(1) or forward(*given))
    for _ in lm.stream("Once", max_tokens=1000):
        break
    assert 0 < len(calls) < 10


def test_representation_of_a_fine_tuned_run(tmp_path: Path) -> None:
    texts = ["the good, the bad film " * 100]
    parent = wg.train(texts=texts, config=tiny_config("unused"), out=tmp_path / "parent", console=QUIET)
    rows = "".join(f"{'good ' * n}film,pos\n{'bad ' * n}film,neg\n" for n in range(1, 21))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    config = wg.configure({"training": {"steps": 2}}, base=wg.recipe("finetune"))
    run = wg.finetune(
        parent.path,
        tmp_path / "rows.csv",
        task="classification",
        config=config,
        out=tmp_path / "tuned",
        console=QUIET,
    )
    assert "accuracy" in repr(run) and "accuracy" in run._repr_html_()


def test_stop_before_the_first_step_is_saved(tmp_path: Path) -> None:
    class Stop(wg.Callback):
        def at_start(self, state: wg.TrainingState, config: wg.Config) -> None:
            state.stop_reason = "not today"

    config = tiny_config("unused")
    run = wg.train(
        texts=["one two three " * 100], config=config, out=tmp_path / "r", callbacks=[Stop()], console=QUIET
    )
    assert run.state.step == 0 and run.load() is not None
    assert wg.resume(run.path, console=QUIET).state.stop_reason == "not today"


def test_training_on_texts_in_memory_equals_training_on_a_file(tmp_path: Path) -> None:
    texts = [f"Text {number} says that {number} is smaller than {number + 1}.\n" * 3 for number in range(60)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = tiny_config("unused", training={"steps": 3})
    stated = {
        "file": wg.train(path, config=config, out=tmp_path / "file", console=QUIET),
        "memory": wg.train(texts=texts, config=config, out=tmp_path / "memory", console=QUIET),
        "records": wg.train(
            texts=({"text": text} for text in texts), config=config, out=tmp_path / "records", console=QUIET
        ),
    }
    weights = {
        name: (run.path / "checkpoints" / "step-00000003" / "model.safetensors").read_bytes()
        for name, run in stated.items()
    }
    assert weights["file"] == weights["memory"] == weights["records"]
    assert stated["memory"].config.data.source == ()
    resumed = wg.resume(tmp_path / "memory", steps=5, console=QUIET)
    assert resumed.state.step == 5


def test_representations_fit_on_one_line_and_metrics_are_a_list(tmp_path: Path, lm: LanguageModel) -> None:
    run = wg.train(
        texts=["One two three. " * 200],
        config=tiny_config("unused", training={"steps": 3}),
        out=tmp_path / "<run>",
        console=QUIET,
    )
    assert repr(run).startswith(f"Run('{tmp_path}/<run>', 3 of 3 steps, ") and "nats_per_token" in repr(run)
    html = run._repr_html_()
    assert html.startswith("<table>") and "&lt;run&gt;" in html and "<run>" not in html
    lines = (tmp_path / "<run>" / "metrics.jsonl").read_text().splitlines()
    assert run.metrics == [json.loads(line) for line in lines]
    run.plot().save(tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").read_text().startswith("<svg") and "<svg" in run.plot()._repr_html_()
    assert {"train", "validation"} <= {line["kind"] for line in run.metrics}
    for shown in (repr(run), repr(lm), repr(lm.generate("Once", max_tokens=5))):
        assert "\n" not in shown and len(shown) < 250
    assert repr(lm).startswith("LanguageModel(transformer, ")


def test_run_is_accepted_in_place_of_its_folder(trained_run: Path, tmp_path: Path) -> None:
    run = wg.resume(shutil.copytree(trained_run, tmp_path / "copy"), console=Console(quiet=True))
    assert wg.load(run).model.parameter_count == run.parameters
    text = trained_run.parent / "text.txt"
    config = wg.configure({"training": {"steps": 1}, "runtime": {"device": "cpu"}})
    tuned = wg.finetune(
        run, text, task="pretraining", config=config, out=tmp_path / "run", console=Console(quiet=True)
    )
    assert wg.resume(tuned, console=Console(quiet=True)).state.step == 1
