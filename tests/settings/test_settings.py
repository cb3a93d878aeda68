"""Settings from YAML, Python and the command line; every validation error names its field."""

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import AlignmentMethod, Bias, FeedForward, TaskKind
from wholegpt.settings.presets import (
    PRESETS,
    configure,
    gpt2,
    modern,
    preset,
    published_architecture,
    recipe,
    recipe_names,
)
from wholegpt.settings.schema import Config, GenerationConfig, ModelConfig, TrainingConfig
from wholegpt.settings.sections.tasks import TASKS
from wholegpt.settings.serialization import from_mapping, read_yaml, to_mapping, to_yaml
from wholegpt.settings.validation import check, check_generation, complete_model, complete_schedule


def test_yaml_round_trip() -> None:
    config = configure({"model": {"n_layers": 7, "feed_forward": "gelu"}, "data": {"source": ["a", "b"]}})
    assert config.model.feed_forward is FeedForward.gelu
    assert config.data.source == ("a", "b")
    assert configure(yaml.safe_load(to_yaml(config))) == config


def test_scientific_notation_that_yaml_reads_as_text() -> None:
    assert configure({"optimizer": {"learning_rate": "1e-3"}}).optimizer.learning_rate == 1e-3


def test_duplicate_key_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for twice in ("model: {n_layers: 1}\nmodel: {d_model: 16}\n", "model:\n  n_layers: 1\n  n_layers: 2\n"):
        path.write_text(twice)
        with pytest.raises(ConfigError, match=r"recipe.yaml: .* is given twice"):
            read_yaml(path)
    path.write_text("model: &base {n_layers: 1, d_model: 16}\ntraining: {<<: *base, n_layers: 2}\n")
    assert read_yaml(path)["training"] == {"n_layers": 2, "d_model": 16}


def test_unknown_field_suggests_the_nearest_name() -> None:
    with pytest.raises(
        ConfigError, match=r"my\.yaml: unknown field 'model.n_layer'; did you mean 'n_layers'\?"
    ):
        configure({"model": {"n_layer": 3}}, where="my.yaml")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"model": {"n_layers": "many"}}, "model.n_layers: expected a whole number"),
        ({"model": {"norm": "batch"}}, "model.norm: there is no value 'batch'"),
        ({"model": 3}, "'model' is a section"),
        ({"modle": {}}, "did you mean 'model'?"),
    ],
)
def test_wrong_values_name_their_field(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(mapping, Config())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "d_model", 0),
        ("model", "dropout", 1.0),
        ("model", "rotary_base", 1.0),
        ("model", "norm_epsilon", 0.0),
        ("tokenizer", "vocab_size", 10),
        ("data", "validation_fraction", 0.0),
        ("training", "batch_size", 0),
        ("training", "gradient_clip", -1.0),
        ("optimizer", "learning_rate", -0.1),
        ("optimizer", "beta2", 1.0),
        ("schedule", "final_fraction", 1.5),
        ("evaluation", "patience", -1),
        ("runtime", "seed", -1),
        ("checkpointing", "keep", 0),
        ("logging", "every", 0),
    ],
)
def test_values_out_of_range_name_their_field(section: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{field} is {value}; expected"):
        check(configure({section: {field: value}}))


def test_width_not_divisible_by_heads() -> None:
    with pytest.raises(
        ConfigError,
        match=r"model\.d_model is 100, which is not divisible by model\.n_heads, 3; try d_model 99",
    ):
        check(configure({"model": {"d_model": 100, "n_heads": 3}}))


def test_key_value_heads_must_divide_heads() -> None:
    with pytest.raises(ConfigError, match=r"model\.n_kv_heads is 3"):
        complete_model(ModelConfig(vocab_size=5, n_heads=4, n_kv_heads=3))


def test_rotary_positions_need_an_even_head_width() -> None:
    with pytest.raises(ConfigError, match=r"model\.d_head is 5"):
        complete_model(ModelConfig(vocab_size=5, d_head=5))


def test_steps_and_epochs_exclude_each_other() -> None:
    for training in (TrainingConfig(steps=3, epochs=1.0), TrainingConfig(steps=0)):
        with pytest.raises(ConfigError, match=r"training\.steps is .* training\.epochs is"):
            check(dataclasses.replace(Config(), training=training))


def test_batch_growth_needs_an_initial_size_and_a_number_of_steps() -> None:
    for training in (TrainingConfig(initial_batch_size=4), TrainingConfig(batch_growth_steps=4)):
        with pytest.raises(ConfigError, match="set both for a batch that grows"):
            check(dataclasses.replace(Config(), training=training))


@pytest.mark.parametrize(
    "wrong",
    [
        GenerationConfig(temperature=-1.0),
        GenerationConfig(temperature=float("nan")),
        GenerationConfig(top_p=0.0),
        GenerationConfig(top_k=-1),
        GenerationConfig(max_tokens=-1),
        GenerationConfig(stop=("",)),
    ],
)
def test_generation_settings_out_of_range(wrong: GenerationConfig) -> None:
    with pytest.raises(ConfigError):
        check_generation(wrong)


def test_unknown_preset_and_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gpt2-small'"):
        preset("gpt2-smal")
    with pytest.raises(ConfigError, match="unknown size 'smal'; did you mean 'small'"):
        gpt2("smal")
    with pytest.raises(ConfigError, match="did you mean 'shakespeare-3min'"):
        recipe("shakespeare-3mn")


def test_recipe_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("model: [unclosed")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        recipe(str(path))
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="expected sections"):
        recipe(str(path))


def test_file_that_is_not_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.touch()
    with pytest.raises(
        ConfigError, match=r"text\.txt: is not a recipe; expected a YAML file whose name ends in"
    ):
        recipe(str(path))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    """The recipe of an ``align`` method is checked with that method, since it may have its own settings."""
    config = recipe(name)
    if name in list(AlignmentMethod):
        rewards = {"rewards": ["exact"]} if TASKS[TaskKind(name)].rollouts else {}
        chosen = {"task": name, "model": "runs/chat", "data": "data.json"}
        config = configure({"finetuning": chosen, "alignment": rewards}, config)
    check(config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    complete_model(dataclasses.replace(preset(name), vocab_size=preset(name).vocab_size or 100))


def test_recipe_starts_from_its_preset() -> None:
    config = configure({"model": {"preset": "gpt2-small", "n_layers": 3}})
    assert config.model == dataclasses.replace(preset("gpt2-small"), n_layers=3, vocab_size=0)
    config = configure({"model": {"preset": "gpt2-small", "vocab_size": 50_257}})
    assert config.model == preset("gpt2-small")


def test_every_field_has_a_docstring() -> None:
    """The command line takes its help from these docstrings."""
    import ast
    import inspect

    sections = [*get_type_hints(Config).values(), GenerationConfig]
    for section in sections:
        (node,) = ast.parse(inspect.getsource(section)).body
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(field.target)}"
                assert isinstance(after.value, ast.Constant)


def test_derived_sizes() -> None:
    model = complete_model(ModelConfig(vocab_size=10, d_model=384, n_heads=6))
    assert (model.d_head, model.n_kv_heads, model.d_ff) == (64, 6, 1024)
    assert complete_model(model) == model
    assert to_mapping(model)["positions"] == "rotary"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_published_architecture(name: str) -> None:
    family = {"gpt1": "GPT-1", "gpt2": "GPT-2", "modern": "Qwen3"}[name.split("-")[0]]
    assert published_architecture(preset(name)) == (family, [])


def test_fields_without_a_published_architecture_are_listed() -> None:
    mixed = dataclasses.replace(modern(), feed_forward=FeedForward.gelu)
    assert published_architecture(mixed) == ("Qwen3", ["model.feed_forward"])
    grouped = dataclasses.replace(gpt2(), n_kv_heads=4)
    assert published_architecture(grouped) == ("GPT-2", ["model.n_kv_heads"])
    assert published_architecture(dataclasses.replace(gpt2(), bias=Bias.none)) == ("GPT-2", [])


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("steps", [1, 17, 50, 5000])
def test_warmup_of_every_recipe_fits_the_number_of_steps(name: str, steps: int) -> None:
    config = configure({"training": {"steps": steps}}, recipe(name))
    warmup = complete_schedule(config.schedule, steps).warmup_steps
    assert warmup <= steps // 2 and warmup in (config.schedule.warmup_steps, min(steps // 10, 20))
