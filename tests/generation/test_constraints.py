"""Constrained decoding with regular expressions and JSON schemas, against other libraries; invalid input."""

import calendar
import gc
import json
import random
import sys
import time
import weakref
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import regex
import torch

from tests.helpers import Fails, generate_one, tiny_config, tiny_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.generation import Completion, Engine, Sampler
from wholegpt.generation.constraints import MOST_CHARACTERS, Constraint
from wholegpt.generation.json_schema import read_schema
from wholegpt.language_model import LanguageModel
from wholegpt.model import Transformer
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer, character_tokenizer, train_bpe, train_gpt1

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
SAMPLES = 100
"""Completions per constraint and vocabulary, from an untrained and from a trained model."""
TEXT = '{"name": "the cat", "age": 12, "tags": [true, null]} the end 2024-01-31 a.b@mail.com +49 (30) 123 '
TOKENIZERS = {"byte": byte_tokenizer(), "bpe": train_bpe([TEXT * 20], 400)}

REGEXES = {
    "date": "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "email": r"[a-z][a-z0-9._]{0,8}@[a-z]{1,6}\.(com|org)",
    "phone": r"\+?[0-9]{1,3}[ -]?\(?[0-9]{2,3}\)? ?[0-9]{3,4}",
    "IPv4": r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])",
    "identifier": "[A-Za-z_][A-Za-z0-9_]{0,12}",
    "words": "^(yes|no|maybe)( (please|thanks)){0,2}$",
    "emoji": "(😀|🎉|👩‍🚀){1,3}",
    "CJK": "[一-龥]{1,4}[。!]",
    "classes": r"\p{Greek}{2,6}\s?\w?",
    "nested repeats": "(?i)((ab?c){1,3}[^a-z\n]){2}",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["red", "green", {"rgb": [1, 2, 3]}, None]},
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 5},
            "home": {
                "type": "object",
                "properties": {
                    "lat": {"type": "integer", "minimum": -90, "maximum": 90},
                    "known": {"type": "boolean"},
                },
                "required": ["lat"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "home"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 255},
        "minItems": 1,
        "maxItems": 4,
    },
    "number": {"type": "number", "minimum": 0, "exclusiveMaximum": 2.5, "multipleOf": 0.5},
    "integer": {"type": "integer", "exclusiveMinimum": -13, "maximum": 1207},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$", "maxLength": 9},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "c": {"const": 'é\n"x"'}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "any of": {
        "anyOf": [
            {"type": "string", "maxLength": 3},
            {"const": -1.5},
            {
                "type": "array",
                "prefixItems": [{"type": "boolean"}, {"type": "null"}],
                "minItems": 2,
                "items": False,
            },
        ]
    },
    "references": {
        "$defs": {"low": {"type": "integer", "maximum": 20}, "day": {"type": "string", "format": "date"}},
        "type": "object",
        "properties": {
            "x": {"allOf": [{"$ref": "#/$defs/low"}, {"minimum": -3}]},
            "day": {"$ref": "#/$defs/day"},
        },
        "required": ["x", "day"],
        "additionalProperties": False,
    },
    "map": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"enum": [1, 2]}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
}


def fresh(vocab_size: int) -> Transformer:
    torch.manual_seed(0)
    return Transformer(tiny_model(vocab_size=vocab_size, context_length=64)).eval()


MODELS = {name: fresh(tokenizer.vocab_size) for name, tokenizer in TOKENIZERS.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CausalLanguageModel]:
    """One model per vocabulary, trained on the text."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "text.txt").write_text(TEXT * 40)
    models: dict[str, CausalLanguageModel] = {}
    for kind, tokenizer in TOKENIZERS.items():
        tokenizer.save(folder / f"{kind}.json")
        config = tiny_config(
            folder / "text.txt",
            tokenizer={"path": str(folder / f"{kind}.json")},
            model={"context_length": 64, "d_model": 32},
            optimizer={"learning_rate": 0.005},
            training={"steps": 25, "batch_size": 8},
            evaluation={"every": 0},
            checkpointing={"every": 0},
            logging={"every": 25, "sample_every": 0, "sample_prompt": ""},
        )
        models[kind] = load(api.train(config=config, out=folder / kind, console=QUIET).path).model
    return models


def generate_constrained(kind: str, seed: int = 0, **settings: Any) -> Completion:
    config = GenerationConfig(**{"temperature": 1.0, "max_tokens": 300, "seed": seed, **settings})
    return generate_one(MODELS[kind], TOKENIZERS[kind], "x", config)


def complete_texts(model: CausalLanguageModel, kind: str, **form: Any) -> Iterator[str]:
    """Return completions that ended by themselves, and check that truncated ones are their prefixes."""
    tokenizer = TOKENIZERS[kind]

    def completions_of(lengths: dict[int, int]) -> list[Completion]:
        """Return one completion per seed, of at most the given number of tokens."""
        engine = Engine(model, tokenizer, CPU, SAMPLES)
        requests = [
            engine.submit([5], GenerationConfig(length, 1.0, seed=seed, **form))
            for seed, length in lengths.items()
        ]
        engine.run()
        return [request.completion() for request in requests]

    whole = completions_of(dict.fromkeys(range(SAMPLES), 300))
    for completion in whole:
        assert completion.finish_reason in ("stop", "end_of_text")
        spelled = b"".join(tokenizer.token_bytes[token_id] for token_id in completion.token_ids)
        assert spelled.decode() == completion.text
    sizes = {seed: seed * len(whole[seed].token_ids) // SAMPLES for seed in range(0, SAMPLES, 10)}
    for (seed, size), cut in zip(sizes.items(), completions_of(sizes), strict=True):
        assert cut.finish_reason == "length" and cut.token_ids == whole[seed].token_ids[:size]
    return (completion.text for completion in whole)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", REGEXES)
def test_completions_match_the_regex(name: str, kind: str, trained: dict[str, CausalLanguageModel]) -> None:
    for model, least in ((MODELS[kind], 5), (trained[kind], 2)):
        texts = set(complete_texts(model, kind, regex=REGEXES[name]))
        assert all(regex.fullmatch(REGEXES[name], text) for text in texts), texts
        assert len(texts) >= least


@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=pytest.mark.slow) if one == "byte" else one for one in TOKENIZERS]
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_completions_validate_against_the_json_schema(
    name: str, kind: str, trained: dict[str, CausalLanguageModel]
) -> None:
    validator = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for model, least in ((MODELS[kind], 3), (trained[kind], 2)):
        texts = set(complete_texts(model, kind, json_schema=json.dumps(SCHEMAS[name])))
        for text in texts:
            validator.validate(json.loads(text, parse_float=Decimal if name == "any of" else float))
        assert len(texts) >= least


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", ["date", "email", "phone", "IPv4", "identifier", "words", "nested repeats"])
def test_allowed_tokens_equal_the_partial_matches_of_regex(name: str, kind: str) -> None:
    """ASCII tokens only, at every position of a completion."""
    tokenizer, pattern = TOKENIZERS[kind], regex.compile(REGEXES[name])
    spelled = [(i, one.decode()) for i, one in enumerate(tokenizer.token_bytes) if one.isascii()]
    spelled.remove((tokenizer.end_of_text_id, "<|endoftext|>"))
    constraint = Constraint(GenerationConfig(regex=REGEXES[name]), tokenizer)
    generated = generate_constrained(kind, 1, regex=REGEXES[name]).token_ids
    for size in range(len(generated) + 1):
        text = tokenizer.decode(generated[:size])
        if text.endswith("\ufffd"):
            continue  # an incomplete character, which only bytes can continue
        allowed = constraint.allowed(generated[:size])
        for token_id, more in spelled:
            assert bool(allowed[token_id]) == bool(pattern.fullmatch(text + more, partial=True)), text + more
        assert bool(allowed[tokenizer.end_of_text_id]) == bool(pattern.fullmatch(text))


@pytest.mark.parametrize("settings", [{"regex": "[ab]{3,9}c?"}, {"json_schema": '{"type": "array"}'}])
def test_constraint_depends_only_on_the_generated_tokens(settings: dict[str, Any]) -> None:
    """In any order of positions, with one sampler or several."""
    tokenizer = TOKENIZERS["bpe"]
    config = GenerationConfig(temperature=1.0, max_tokens=30, **settings)
    generated = generate_constrained("bpe", 7, max_tokens=30, **settings).token_ids
    positions = [*range(len(generated) + 1)]
    logits = torch.randn(tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    alone = [Sampler(config, tokenizer).process(logits, generated[:n]) for n in positions]
    sampler = Sampler(config, tokenizer)
    for n in [*positions, *reversed(positions), *random.Random(0).sample(positions, len(positions))]:
        assert torch.equal(sampler.process(logits, generated[:n]), alone[n])
    assert generate_constrained("bpe", 7, max_tokens=30, **settings).token_ids == generated


def test_constraints_combine_with_other_settings() -> None:
    """Bans, biases and penalties choose among the allowed tokens; runs of white space are limited."""
    assert generate_constrained("byte", regex="a|b", banned=("a",)).text == "b"
    assert (
        generate_constrained("byte", regex="[ab]{20}", no_repeat_ngram=0, logit_bias=((ord("a"), 99.0),)).text
        == "a" * 20
    )
    assert (
        generate_constrained("byte", regex="(aaa){2}", temperature=0, repetition_penalty=5.0, top_k=1).text
        == "aaaaaa"
    )
    assert generate_constrained("byte", regex="abc", banned=("b",)).finish_reason == "forbidden"
    spaces = tuple((token_id, 50.0) for token_id in (9, 10, 13, 32))
    text = generate_constrained(
        "byte", json_schema='{"const": {"a": [1, 2], "b": {}}}', logit_bias=spaces
    ).text
    assert text == '{"a": [1, 2], "b": {}}'


def test_generation_stops_when_the_match_is_complete() -> None:
    assert generate_constrained("byte", regex="abc").finish_reason == "stop"
    assert generate_constrained("byte", regex="abc", max_tokens=3).finish_reason == "stop"
    assert generate_constrained("byte", regex="abc", max_tokens=2).finish_reason == "length"
    longer = generate_constrained(
        "byte", regex="a*", max_tokens=5, logit_bias=((TOKENIZERS["byte"].end_of_text_id, -99.0),)
    )
    assert (longer.finish_reason, longer.text) == ("length", "aaaaa")
    assert generate_constrained("byte", regex="a*", max_tokens=0).text == ""


def test_special_tokens_do_not_count_as_text() -> None:
    tokenizer = byte_tokenizer().with_special_tokens(["ab"])
    allowed = Constraint(GenerationConfig(regex="ab|<.*"), tokenizer).allowed([])
    assert allowed.nonzero().flatten().tolist() == [ord("<"), ord("a")]


def test_generation_stops_without_an_end_of_text_token() -> None:
    tokenizer = character_tokenizer("abc")
    assert not tokenizer.has_end_of_text
    config = GenerationConfig(regex="(ab|cb){2,3}", temperature=1.0, max_tokens=20)
    made = generate_one(fresh(3), tokenizer, [0], config)
    assert made.finish_reason == "stop" and regex.fullmatch("(ab|cb){3}", made.text)


def test_characters_missing_from_the_vocabulary() -> None:
    tokenizer = character_tokenizer("abc")
    with pytest.raises(ConfigError, match="regex: no text of this vocabulary matches it"):
        Sampler(GenerationConfig(regex="x+"), tokenizer)
    allowed = Constraint(GenerationConfig(regex="(x|a)[b-z]"), tokenizer).allowed([])
    assert int(allowed.sum()) == 1
    with pytest.raises(ConfigError, match="only the empty text matches it"):
        Sampler(GenerationConfig(regex="x*"), tokenizer)
    later = Constraint(GenerationConfig(regex="ax?b|bx"), tokenizer)
    for _ in range(2):
        with pytest.raises(ConfigError):
            later.allowed([1])
    assert later.allowed([0]).tolist() == [False, True, False] and later.complete([0, 1])
    with pytest.raises(ConfigError, match="json_schema needs a tokenizer whose tokens spell out their text"):
        Sampler(GenerationConfig(json_schema="{}"), train_gpt1(["the cat sat"] * 5, 30))


REFUSED = {
    "(a": "unclosed group",
    "[^\\s\\S]": "no text of this vocabulary matches it",
    "a{0}": "only the empty text matches it",
    "(?=a)b": "look-around, including look-ahead and look-behind, is not supported",
    r"(a)\1": "backreferences are not supported",
    r"\bfoo": "lookarounds not supported",
    "(?-u:\\xff)": "pattern can match invalid UTF-8",
    "a\\": "ends in a backslash",
    "a{2,1}": "invalid repetition count range",
    "\ud800": "contains a lone surrogate",
    "(" * 2000 + ")" * 2000: "maximum number of nested parentheses",
    "[a-z]?" * 4000: "lexer precomputation failed|grows too large",
    "x" * 1_000_000: f"has 1,000,000 characters; expected at most {MOST_CHARACTERS:,}",
}


@pytest.mark.timed
@pytest.mark.parametrize("expression", REFUSED, ids=lambda text: ascii(text[:20]))
def test_invalid_regexes_are_rejected(expression: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=rf"^regex.*({REFUSED[expression]})") as caught:
        sampler = Sampler(GenerationConfig(regex=expression), TOKENIZERS["byte"])
        sampler.process(torch.zeros(257), list(b"a"))
    assert len(str(caught.value)) < 400
    assert time.process_time() - started < 2


@pytest.mark.timed
@pytest.mark.parametrize(
    "expression", ["(a{1000}){1000}{1000}", "(((a{1,100}){1,100}){1,100}){1,100}", "(a|aa)*" * 1000]
)
def test_nested_repeats_are_not_expanded(expression: str) -> None:
    """Each token takes a tenth of a second at most; the match continues or ends with an error."""
    constraint = Constraint(GenerationConfig(regex=expression), TOKENIZERS["byte"])
    started, size = time.process_time(), 0
    for size in range(60):
        try:
            allowed = set(constraint.allowed([ord("a")] * size).nonzero().flatten().tolist())
        except ConfigError as error:
            assert size > 20 and "grows too large to follow" in str(error)
            break
        assert ord("a") in allowed <= {ord("a"), TOKENIZERS["byte"].end_of_text_id}
    assert time.process_time() - started < 0.3 * (size + 1)


LOOP = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
UNMET: dict[str, str] = {
    '{"type": "integer", "minimum": 5, "maximum": 3}': r"minimum \(5\) is greater than maximum \(3\)",
    '{"enum": []}': "Unsatisfiable schema",
    '{"type": "string", "pattern": "^a{5}$", "maxLength": 3}': "Unsatisfiable schema: Regex is empty",
    '{"type": "array", "items": false, "minItems": 1}': "required item is unsatisfiable",
    '{"properties": {"a": false}, "required": ["a"], "type": "object"}': "required property 'a' is unsatisfiable",
    json.dumps(LOOP): "no finite text satisfies it",
    '{"$ref": "#"}': "no finite text satisfies it",
    '{"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}}, "$ref": "#/$defs/x"}': "finite",
    "{": "not JSON: Expecting property name",
    "[1]": r"expected an object, found \[1\]",
    '{"a": ' * 3000: "not JSON|nested too deep",
    '{"items": ' * 300 + "{}" + "}" * 300: "recursion limit exceeded|nested too deep",
    '{"type": "array", "uniqueItems": true}': "#/uniqueItems: this keyword is not supported",
    '{"properties": {"a": {"type": "string", "maxlength": 3}}}': "#/properties/a/maxlength: this keyword is not",
    '{"not": {}}': "#/not: this keyword is not supported",
    '{"minProperties": 2}': "#/minProperties: this keyword is not supported",
    '{"x-guidance": {"lenient": true}}': "#/x-guidance: this keyword is not supported",
    '{"anyOf": {}}': r"#/anyOf: expected schemas, found \{\}",
    '{"items": 3}': "#/items: expected a schema, found 3",
    '{"type": "strin"}': "Invalid type: strin",
    '{"type": "string", "format": "foo"}': "Unknown format: foo",
    '{"type": "string", "pattern": "a\\\\"}': "#/pattern: ends in a backslash",
    '{"type": "string", "pattern": "(?=a)"}': "look-around",
    '{"$ref": "#/$defs/none"}': '\\$ref "#/\\$defs/none" points to nothing',
    '{"$ref": "http://example.com/x"}': "points to nothing in the schema",
    '{"oneOf": [{"type": "integer"}, {"type": "number"}]}': "oneOf constraints are not supported",
    '{"minimum": NaN}': ".",
    json.dumps({"enum": ["x" * 60_000]}): "has 60,014 characters",
    json.dumps(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(5)]} for i in range(12)]}
    ): ("schema too large"),
}


@pytest.mark.timed
@pytest.mark.parametrize("schema", UNMET, ids=lambda text: text[:40])
def test_invalid_schemas_are_rejected(schema: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=f"^json_schema.*({UNMET[schema]})") as caught:
        Sampler(GenerationConfig(json_schema=schema), TOKENIZERS["byte"])
    assert len(str(caught.value)) < 400
    assert time.process_time() - started < 2


@pytest.mark.timed
def test_terminating_recursion_is_accepted() -> None:
    tree = {
        "$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}},
        "type": "object",
        "properties": {
            "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "leaves": {"$ref": "#/$defs/a~1b"},
        },
        "required": ["left", "leaves"],
    }
    assert read_schema(json.dumps(tree)) == tree
    order = random.Random(0).sample(range(1500), 1500)
    chain = {f"d{a}": {"$ref": f"#/$defs/d{b}"} for a, b in pairwise(order)}
    started = time.process_time()
    read_schema(json.dumps({"$defs": {**chain, f"d{order[-1]}": {}}, "$ref": f"#/$defs/d{order[0]}"}))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("form", ["date", "date-time"])
def test_dates_exist_in_the_calendar(form: str) -> None:
    """February 29 is allowed in leap years only."""
    schema = json.dumps({"items": {"type": "string", "format": form, "default": {"format": "date"}}})
    assert json.dumps(read_schema(schema)).count("allOf") == 1
    constraint = Constraint(GenerationConfig(json_schema=schema), TOKENIZERS["byte"])
    for year in (*range(1, 50), *range(1600, 2101, 4), 1900, 2001, 3073, 9999):
        allowed = constraint.allowed(list(f'["{year:04}-02-2'.encode()))
        assert bool(allowed[ord("9")]) == calendar.isleap(year) and bool(allowed[ord("8")]), year
    allowed = constraint.allowed(list(b'["000'))
    assert [chr(i) for i in allowed.nonzero().flatten().tolist()] == list("123456789")


def test_conflicting_settings_are_rejected() -> None:
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"regex": "a", "json_schema": "{}"}, "json_schema cannot be combined with regex"),
        ({"regex": "a", "stop": ("b",)}, "stop cannot be combined with regex"),
        ({"json_schema": "{}", "forced": ("b",)}, "forced cannot be combined with json_schema"),
        ({"json_schema": "{}", "min_tokens": 2}, "min_tokens cannot be combined with json_schema"),
    ]
    for settings, message in contradictions:
        with pytest.raises(ConfigError, match=message):
            Sampler(GenerationConfig(**settings), TOKENIZERS["byte"])


def test_generated_text_must_be_a_prefix_of_a_match() -> None:
    sampler = Sampler(GenerationConfig(regex="abc"), TOKENIZERS["byte"])
    logits = torch.zeros(257)
    with pytest.raises(ConfigError, match="regex: the text so far cannot be continued"):
        sampler.process(logits, list(b"ax"))
    assert int(sampler.process(logits, list(b"ab")).argmax()) == ord("c")


def test_cached_vocabulary_is_freed_with_its_tokenizer() -> None:
    tokenizer = byte_tokenizer()
    kept = weakref.ref(tokenizer)
    Sampler(GenerationConfig(regex="a"), tokenizer)
    del tokenizer
    gc.collect()
    assert kept() is None


def test_constraints_from_python(trained_run: Path) -> None:
    """A schema may be a mapping; a template's stop strings are ignored under a constraint."""
    lm = load(trained_run, console=QUIET)
    assert lm.generate("the", json_schema={"const": True}).text == "true"
    lm = LanguageModel(MODELS["byte"], TOKENIZERS["byte"])
    assert (
        lm.generate("the", template="conversation", regex="[abt]{9}", console=QUIET).finish_reason == "stop"
    )


def test_constraints_from_the_command_line(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"const": true}')
    for given in (("--json-schema", str(schema)), ("--json-schema", ' {"const": true}'), ("--regex", "true")):
        assert main(["generate", str(trained_run), "the", *given, "--json"]) == 0
        made = json.loads(capsys.readouterr().out)["completions"][0]
        assert (made["text"], made["finish_reason"]) == ("true", "stop")
    (tmp_path / "empty").write_text("\n")
    for given in ("nowhere.json", tmp_path / "empty", tmp_path, "[1]"):
        message = fails("generate", trained_run, "the", "--json-schema", given)
        assert "neither a JSON object nor a file with one" in message
    assert "regex: unclosed group" in fails("generate", trained_run, "the", "--regex", "(the")


def test_missing_llguidance_is_reported(
    trained_run: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    message = fails("generate", trained_run, "the", "--regex", "the")
    assert "llguidance is not installed; pip install 'wholegpt[constraints]'" in message
