"""Rewards: rules, classifiers and user-defined functions; specifications, weights and checks."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_config
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.data.chat.template import Message
from wholegpt.errors import CheckpointError, ConfigError, DataError
from wholegpt.runs import api
from wholegpt.runs.folder import with_absolute_paths
from wholegpt.runs.load import load
from wholegpt.settings.choices import Dtype
from wholegpt.settings.presets import configure
from wholegpt.stages.alignment.rewards.interface import Reward, Sample
from wholegpt.stages.alignment.rewards.specification import (
    RewardKind,
    load_reward_models,
    open_rewards,
    parse_reward,
)
from wholegpt.stages.alignment.rewards.weighted import WeightedRewards, constant_advice

QUIET, CPU = Console(quiet=True), torch.device("cpu")


def samples(*completions: str, answer: str = "46") -> list[Sample]:
    return [Sample((Message("user", "12+34"),), one, answer) for one in completions]


def opened(*texts: str) -> WeightedRewards:
    return open_rewards(texts, load_reward_models(texts, QUIET), CPU, Dtype.float32)


def values(text: str, *completions: str, answer: str = "46") -> list[float]:
    (found,) = opened(text)(samples(*completions, answer=answer)).values.values()
    return found


# --- Rules -------------------------------------------------------------------------------------------


def test_rules() -> None:
    assert values("exact", "46", " 46\n", "47", "", "4 6", "46.") == [1, 1, 0, 0, 0, 0]
    assert values("exact", "a  b", answer=" a  b\n") == [1]
    assert values("contains:4", "46", "64", "53", "") == [1, 1, 0, 0]
    assert values("contains:a:b*c", "see a:b*c", "ab") == [1, 0]
    assert values(r"regex:\d{2}", "46", " 46 ", "460", "") == [1, 1, 0, 0]
    assert values("regex:a:.*|0.5*b", "a:xyz", "0.555b", "b") == [1, 1, 0]
    assert values("length:4", "one two three four", "a b", "", "a b c d e", "x " * 50) == [
        0,
        -0.5,
        -1,
        -0.25,
        -1,
    ]


@given(wanted=st.integers(1, 50), n=st.integers(0, 200))
def test_length_reward_is_largest_at_the_wanted_length(wanted: int, n: int) -> None:
    """The reward falls on both sides of the wanted length."""
    there, more = (values(f"length:{wanted}", "word " * length)[0] for length in (n, n + 1))
    assert -1 <= there <= 0 and (there == 0) == (n == wanted)
    assert there <= more if n < wanted else there >= more


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def schema(folder: Path, content: Any = SCHEMA) -> Path:
    path = folder / "schema.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_json_that_satisfies_a_schema(tmp_path: Path) -> None:
    text = f"json-schema:{schema(tmp_path)}"
    good = ['{"n": 1}', ' {"n": 2, "m": []}\n']
    bad = ['{"n": "1"}', "{}", "[]", '{"n": 1', "", '{"n": NaN}', '{"n": 1} {"n": 1}', "[" * 100_000]
    assert values(text, *good, *bad) == [1] * len(good) + [0] * len(bad)
    schema(tmp_path, {"$defs": {"two": {"const": 2}}, "properties": {"a": {"$ref": "#/$defs/two"}}})
    assert values(text, '{"a": 2}', '{"a": 3}') == [1, 0]


BAD_SCHEMAS = {
    "is not JSON": "{",
    r"is not a JSON schema: 'text' is not valid": {"type": "text"},
    r"is not a JSON schema: '\[' is not a 'regex'": {"pattern": "["},
    "is not a JSON schema: expected an object": "3",
}


@pytest.mark.parametrize("message", BAD_SCHEMAS)
def test_invalid_schemas_are_rejected(message: str, tmp_path: Path) -> None:
    path = schema(tmp_path, BAD_SCHEMAS[message])
    with pytest.raises(ConfigError, match=rf"reward 'json-schema:.*schema\.json: {message}"):
        opened(f"json-schema:{path}")


def test_external_schema_references_are_not_followed(tmp_path: Path) -> None:
    """Neither over the network nor to other files."""
    for reference in ("https://example.com/a.json", "other.json", "#/nothing"):
        reward = opened(f"json-schema:{schema(tmp_path, {'$ref': reference})}")
        with pytest.raises(DataError, match="the JSON schema has a reference that cannot be resolved"):
            reward(samples("{}"))


# --- A classifier ------------------------------------------------------------------------------------

FAST: dict[str, Any] = {
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
    "training": {"steps": 30, "epochs": 0, "batch_size": 8},
    "optimizer": {"learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    texts = [f"{start} {word}" for start in ("a", "the", "my") for word in ("good one", "bad one")] * 10
    (folder / "text.txt").write_text("\n".join(texts * 5))
    base = tiny_config(
        folder / "text.txt", model={"context_length": 24, "n_layers": 1}, tokenizer={"kind": "byte"}
    )
    parent = api.train(config=base, out=folder / "base", console=QUIET).path
    rows = [{"text": f"{text} {n}", "label": text.split()[1]} for n, text in enumerate(texts)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return api.finetune(
        parent,
        folder / "rows.json",
        task="classification",
        config=configure({**FAST, "lora": {"rank": 2}}),
        out=folder / "run",
        console=QUIET,
    ).path


def test_classifier_reward_is_the_probability_of_a_label(classifier: Path, tmp_path: Path) -> None:
    """It equals that of ``predict``, independent of other completions; an empty completion has none."""
    completions = ["a good one", "", "the bad one", " ", "my good one, which is longer than the context"]
    both = opened(f"classifier:{classifier}=good", f"2*classifier:{classifier}=bad")
    found = both(samples(*completions))
    assert list(found.values) == ["classifier_good", "classifier_bad"]
    lm = load(classifier, console=QUIET)
    for index, text in enumerate(completions):
        if text.strip():
            (one,) = lm.predict(text, dtype=Dtype.float32, console=QUIET)
            expected = [one.probabilities["good"], one.probabilities["bad"]]
        else:
            expected = [0, 0]
        assert [column[index] for column in found.values.values()] == pytest.approx(expected, abs=1e-6)
        assert found.total[index] == pytest.approx(expected[0] + 2 * expected[1], abs=1e-6)
    assert found.values["classifier_good"][0] > 0.5 > found.values["classifier_good"][2]
    (model,) = load_reward_models([f"classifier:{classifier}=good"], QUIET).values()
    save_model(tmp_path / "companion", model.model, model.tokenizer, model.metadata)  # the way a run saves it


def test_models_without_a_classifier_are_rejected(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"reward 'classifier:.*=great': the model has no label 'great'; its labels"
    ):
        opened(f"classifier:{classifier}=great")
    with pytest.raises(ConfigError, match="the model has no task head; expected a classifier of texts"):
        opened(f"classifier:{classifier.parent / 'base'}=good")
    with pytest.raises(CheckpointError, match="nothing"):
        opened(f"classifier:{tmp_path / 'nothing'}=good")


# --- User-defined functions --------------------------------------------------------------------------

MODULE = """
import math, sys

def length(prompts, completions):
    return [len(one) for one in completions]

def right(prompts, completions, answers):
    return (one == answer for one, answer in zip(completions, answers))

def keyword(prompts, completions, *, answers=()):
    import beside_it
    return [beside_it.VALUE * (one == answer) for one, answer in zip(completions, answers)]

def fails(prompts, completions):
    return [1 / (one != "47") for one in completions]

def fails_together(prompts, completions):
    return [1 / (len(completions) == 1)]

def leaves(prompts, completions):
    sys.exit(3)

def nan(prompts, completions):
    return [math.nan if one == "47" else 0.0 for one in completions]

def infinite(prompts, completions):
    return [math.inf if one == "47" else 0.0 for one in completions]

def few(prompts, completions):
    return [1.0]

def one_number(prompts, completions):
    return 1.0

def text(prompts, completions):
    return ["good" if one == "47" else 1.0 for one in completions]

def nothing(prompts, completions):
    return [None for one in completions]

VALUE = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder with a unique name, and a second one that it imports later."""
    monkeypatch.chdir(tmp_path)
    name = f"rewards_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE.replace("beside_it", f"beside_{name}"))
    (tmp_path / f"beside_{name}.py").write_text("VALUE = 3.0")
    return name


def test_function_receives_prompts_completions_and_answers(module: str) -> None:
    assert values(f"function:{module}:length", "46", "", "abc") == [2, 0, 3]
    assert values(f"function:{module}:right", "46", "47") == [1, 0]
    assert values(f"function:{module}:keyword", "46", "47") == [3, 0]


CAUSE = "the completion '47' of the prompt '12[+]34'"
BAD_FUNCTIONS = {
    "fails": f"fails: ZeroDivisionError: division by zero, for {CAUSE}",
    "fails_together": "fails: ZeroDivisionError: .* for 3 completions together, but for none of them alone",
    "leaves": "fails: SystemExit: 3, for the completion '46' of",
    "nan": f"is nan for {CAUSE}; expected a finite number",
    "infinite": f"is inf for {CAUSE}; expected a finite number",
    "few": "returned 1 values for 3 completions; expected one each",
    "one_number": "fails: TypeError: 'float' object is not iterable",
    "text": f"returned 'good', for {CAUSE}; expected a number",
    "nothing": "returned None, for the completion '46'",
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_failing_functions_are_reported(name: str, module: str) -> None:
    reward = opened(f"function:{module}:{name}")
    with pytest.raises(DataError, match=f"reward (function {module}:)?{name} {BAD_FUNCTIONS[name]}"):
        reward(samples("46", "47", "48"))


def test_missing_functions_are_reported(module: str, tmp_path: Path) -> None:
    (tmp_path / f"broken_{module}.py").write_text("import not_installed_anywhere")
    (tmp_path / f"wrong_{module}.py").write_text("1 / 0")
    bad = {
        f"function:{module}:lenght": f"'lenght' in the module '{module}' does not exist; did you mean 'length'",
        f"function:{module}:VALUE": f"'VALUE' in the module '{module}' is not a function",
        "function:no_such_module:f": "there is no module 'no_such_module' in the current folder",
        f"function:{module}.py:length": f"there is no module '{module}.py' .*; write {module}:length",
        f"function:lib/{module}.py:length": f"there is no module .*; write lib.{module}:length",
        f"function:broken_{module}:f": "importing .* fails: ModuleNotFoundError: No module named 'not_installed",
        f"function:wrong_{module}:f": "importing .* fails: ZeroDivisionError: division by zero",
        "function:length": "expected MODULE:NAME of a Python function, found 'length'",
    }
    for text, message in bad.items():
        with pytest.raises(ConfigError, match=f"reward '{text}': {message}"):
            opened(text)


# --- Specifications of rewards -----------------------------------------------------------------------


def test_specifications() -> None:
    one = parse_reward("0.5*exact")
    assert (one.weight, one.kind, one.argument, one.run) == (0.5, RewardKind.exact, "", "")
    one = parse_reward("regex:0.5*a:b")
    assert (one.weight, one.kind, one.argument) == (1, RewardKind.regex, "0.5*a:b")
    one = parse_reward(r"2*json-schema:C:\schemas\a.json")
    assert (one.weight, one.kind, one.argument) == (2, RewardKind.json_schema, r"C:\schemas\a.json")
    assert parse_reward("json_schema:a.json").kind is RewardKind.json_schema
    one = parse_reward(".5*classifier:runs/a=b=positive")
    assert (one.weight, one.run, one.label) == (0.5, "runs/a=b", "positive")
    assert parse_reward("model:runs/reward").run == "runs/reward"


BAD_SPECIFICATIONS = {
    "exakt": "no reward is called 'exakt'; did you mean 'exact'",
    "bleu:4": "no reward is called 'bleu'; there are: exact, contains, regex, json-schema",
    "": "no reward is called ''; there are",
    "2*": "no reward is called ''; there are",
    "-0.5*exact": "expected a weight above 0 before [*], as in 0.5[*]exact",
    "x*exact": "expected a weight above 0 before",
    "0*exact": "the weight is '0'; expected a number above 0",
    "1.2.3*exact": "the weight is '1.2.3'",
    ".*exact": "the weight is '.'",
    "9" * 400 + "*exact": "the weight is '999",
    "exact:46": "nothing may follow exact; right answers come from the data",
    "regex": "expected regex:PATTERN",
    "contains:": "expected contains:TEXT",
    "json-schema:": "expected json-schema:FILE",
    "classifier:runs/a": "expected classifier:RUN=LABEL, a run and one of its labels",
    "classifier:runs/a=": "expected classifier:RUN=LABEL",
    "regex:[": "not a regular expression of Python: unterminated character set",
    "length:0": "expected a number of words, at least 1, found '0'",
    "length:few": "expected a number of words, at least 1, found 'few'",
    "json-schema:none.json": "none.json: cannot be read: No such file",
}


@pytest.mark.parametrize("text", BAD_SPECIFICATIONS)
def test_invalid_specifications_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^reward '.*': {BAD_SPECIFICATIONS[text]}"):
        opened(text)


def test_missing_reward_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no reward is given; give --reward, one of exact, contains, regex"):
        opened()


def test_paths_of_rewards_are_saved_as_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    schema(tmp_path)
    given = ["exact", "0.5*json-schema:schema.json", "2*classifier:runs=runs", "model:runs", "regex:runs"]
    config = with_absolute_paths(configure({"alignment": {"rewards": given}}))
    assert config.alignment.rewards == (
        "exact",
        f"0.5*json-schema:{tmp_path}/schema.json",
        f"2*classifier:{tmp_path}/runs=runs",
        f"model:{tmp_path}/runs",
        "regex:runs",
    )


# --- Weights and checks ------------------------------------------------------------------------------


def test_total_reward_is_the_weighted_sum() -> None:
    found = opened("0.5*exact", "contains:4", "2*contains:6")(samples("46", "4", "x"))
    assert found.values == {"exact": [1, 0, 0], "contains": [1, 1, 0], "contains_2": [1, 0, 0]}
    assert found.total == [3.5, 1, 0]
    assert found.seconds.keys() == found.values.keys() and min(found.seconds.values()) >= 0


class Fixed(Reward):
    """Gives every completion the same value."""

    name = "a fixed one"

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [self.value] * len(samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(value: float) -> None:
    with pytest.raises(
        DataError, match=f"the reward a_fixed_one is {value} for the completion '46' of the prompt"
    ):
        WeightedRewards([(1.0, Fixed(value))])(samples("46"))


def test_missing_reference_answers_are_an_error() -> None:
    with pytest.raises(DataError, match=r"exact needs right answers, and the prompt '12\+34' has none"):
        values("exact", "46", answer=" ")
    both = opened("contains:4", "exact")
    both.check_answers(["46", "47"], "sums.csv")
    with pytest.raises(
        DataError, match=r"sums\.csv: 1 of 3 prompts have no right answer, which the reward exact"
    ):
        both.check_answers(["46", "", "47"], "sums.csv")
    opened("contains:4").check_answers(["", ""], "sums.csv")


def test_advice_about_constant_rewards() -> None:
    rewarded = opened("exact", "contains:4")(samples("4", "14", "44"))
    (advice,) = opened("exact", "length:1")(samples("4", "1 4")).advice()
    assert advice == constant_advice("exact", 0.0)
    assert "the reward exact is 0 for all completions, so nothing can be learned from it" in advice
    assert "\n" not in advice and "finetune --task instruct" in advice
    assert [one.split(" is ")[0] for one in rewarded.advice()] == ["the reward exact", "the reward contains"]
    assert opened("exact")(samples("4")).advice() == [], "one completion says nothing"
    rewarded.seconds["contains"] = 100.0
    assert "the reward contains took 100 s for 3 completions" in rewarded.advice()[-1]
