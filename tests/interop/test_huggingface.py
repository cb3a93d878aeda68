"""Export to transformers and import from it, with equal logits and tokens."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from tests.helpers import Fails, shrink, text_of, tiny_model
from tests.interop.models import KINDS, random_model, tokenizer_for, tokenizer_of
from wholegpt.checkpoint import load_model, save_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.generation import Sampler, generate_ids
from wholegpt.interop.conversion import export_model, import_model
from wholegpt.language_model import LanguageModel
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.choices import Bias, Embeddings, FeedForward, Norm
from wholegpt.settings.presets import gpt1, gpt2
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)


CLASSES = {
    "gpt1": "OpenAIGPTLMHeadModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "modern": "Qwen3ForCausalLM",
}


def theirs_on(model: Any, token_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(token_ids).logits


def ours_on(model: CausalLanguageModel, token_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(token_ids)


@pytest.fixture(params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """Return the kind, model folder and export of a tiny random model."""
    kind: str = request.param
    save_model(tmp_path / "model", random_model(KINDS[kind]), tokenizer_for(kind))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET)
    assert [one.opened_by.split()[0] for one in export.parity_reports] == ["wholegpt", "transformers"]
    assert not export.unchecked
    return kind, tmp_path / "model", tmp_path / "export"


def test_logits_equal_those_of_transformers(exported: tuple[str, Path, Path]) -> None:
    kind, folder, export = exported
    model = load_model(folder).model.eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    assert type(theirs).__name__ == CLASSES[kind.split("-")[0]]
    token_ids = torch.randint(model.vocab_size, (3, model.context_length))
    difference = (ours_on(model, token_ids) - theirs_on(theirs, token_ids)).abs().max()
    assert difference <= 2e-5
    if kind.startswith("gpt"):  # transformers computes RMSNorm in float32 for any dtype
        difference = (ours_on(model.double(), token_ids) - theirs_on(theirs.double(), token_ids)).abs().max()
        assert difference <= 1e-10


def test_greedy_generation_equals_that_of_transformers(exported: tuple[str, Path, Path]) -> None:
    _, folder, export = exported
    loaded = load_model(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    prompt = text_of(20)[:6]
    prompt_ids = tokenizer(prompt)["input_ids"]
    assert prompt_ids == loaded.tokenizer.encode(prompt)
    settings = GenerationConfig(max_tokens=200, temperature=0)
    ours = list(generate_ids(loaded.model.eval(), prompt_ids, Sampler(settings), torch.device("cpu")))
    generated = theirs.generate(
        torch.tensor([prompt_ids]), do_sample=False, temperature=None, max_new_tokens=200, eos_token_id=None
    )
    assert ours == generated[0, len(prompt_ids) :].tolist()
    assert loaded.tokenizer.decode(ours) == tokenizer.decode(ours)


def test_reimported_export_is_bit_identical(exported: tuple[str, Path, Path]) -> None:
    _, folder, export = exported
    back = load_model(import_model(export, export.with_name("back"), console=QUIET))
    original = load_model(folder)
    assert back.model.config == original.model.config
    assert back.tokenizer.to_json() == original.tokenizer.to_json()
    ours, again = original.model.own_tensors(), back.model.own_tensors()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


LLAMA: dict[str, Any] = {
    "vocab_size": 65,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
THEIR_MODELS = {
    "gpt1": lambda: transformers.OpenAIGPTConfig(
        vocab_size=65, n_positions=64, n_embd=32, n_layer=2, n_head=4
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=65, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=48, activation_function="gelu"
    ),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=None),
    "mistral-64": lambda: transformers.MistralConfig(**LLAMA, sliding_window=64),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16),
}


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", THEIR_MODELS)
def test_models_of_transformers_can_be_imported(
    kind: str, dtype: torch.dtype, shards: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_config(THEIR_MODELS[kind]()).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        parameter.data = parameter.data.to(dtype).float()
    theirs.save_pretrained(
        tmp_path / "theirs",
        max_shard_size=shards,
        state_dict={name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()},
    )
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shards == "20KB")
    tokenizer_of(65).save(tmp_path / "tokenizer.json")
    folder = import_model(
        tmp_path / "theirs", tmp_path / "ours", tokenizer=tmp_path / "tokenizer.json", console=QUIET
    )
    model = load_model(folder).model.eval()
    token_ids = torch.randint(65, (2, 64))
    assert (ours_on(model, token_ids) - theirs_on(theirs, token_ids)).abs().max() <= 2e-5


def test_older_gpt2_files_can_be_imported(tmp_path: Path) -> None:
    """Without the name prefix, with causal masks as tensors and the output projection duplicated."""
    import safetensors.torch

    save_model(tmp_path / "model", random_model(KINDS["gpt2"]), tokenizer_of(65))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET).path
    tensors = safetensors.torch.load_file(export / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    old["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    safetensors.torch.save_file(old, export / "model.safetensors")
    back = load_model(import_model(export, tmp_path / "back", console=QUIET)).model
    original = load_model(tmp_path / "model").model
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), original.parameters(), strict=True))


def test_gpt2_without_biases_gets_zeros(tmp_path: Path) -> None:
    config = shrink(gpt2(), vocab_size=65, context_length=64, bias=Bias.none, feed_forward=FeedForward.gelu)
    save_model(tmp_path / "model", random_model(config), tokenizer_of(65))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET)
    assert all(one.largest_logit_difference < 2e-5 for one in export.parity_reports)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm": Norm.layer_norm}, "model.norm = layer_norm"),
        ({"bias": Bias.all}, "model.bias = all"),
    ],
)
def test_settings_that_no_architecture_supports_are_rejected(
    changes: dict[str, Any], named: str, tmp_path: Path, fails: Fails
) -> None:
    config = tiny_model(vocab_size=65, **changes)
    save_model(tmp_path / "model", random_model(config), tokenizer_of(65))
    message = fails("export", tmp_path / "model", "--to", "huggingface", "--out", tmp_path / "export")
    assert named in message
    assert not (tmp_path / "export").exists()
    assert not list(tmp_path.glob(".partial*"))


def test_gpt1_with_another_feed_forward_width_is_rejected(tmp_path: Path, fails: Fails) -> None:
    save_model(tmp_path / "model", random_model(shrink(gpt1(), vocab_size=65, d_ff=48)), tokenizer_of(65))
    assert "model.d_ff = 48" in fails("export", tmp_path / "model", "--to", "huggingface")


def edit_config(export: Path, **changes: Any) -> None:
    path = export / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown architecture": ({"model_type": "falcon"}, "model_type is 'falcon'"),
    "no architecture": ({"model_type": "absent"}, "model_type is None"),
    "a missing size": ({"n_layer": "absent"}, r"transformer\.h\.10\.attn\.c_attn\.bias is missing"),
    "a null size": ({"n_layer": None}, "n_layer is None"),
    "a size of the wrong type": ({"n_embd": "sixteen"}, "n_embd is 'sixteen'"),
    "half a layer": ({"n_layer": 1.5}, "model.n_layers|n_layers"),
    "an excessive size": ({"n_positions": 10**30}, "n_positions is 1"),
    "an excessive number of layers": (
        {"n_layer": 10_000_000},
        "n_layers is 10000000; expected .* at most 10,000",
    ),
    "more layers than tensors": ({"n_layer": 500}, "too few for the 500 layers"),
    "one layer more": ({"n_layer": 3}, "transformer.h.2.attn.c_attn.bias is missing"),
    "one layer fewer": ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias is not part of it"),
    "another width": ({"n_embd": 64}, "transformer.wte.weight is 65 × 32 and not 65 × 64"),
    "width not divisible by heads": ({"n_head": 5}, "is not divisible by"),
    "another activation": ({"activation_function": "relu"}, "activation_function is 'relu'"),
    "another attention": (
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx is True",
    ),
    "untied embeddings": ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
}


@pytest.fixture(scope="module")
def gpt2_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_model(folder / "model", random_model(KINDS["gpt2"]), tokenizer_of(65))
    return export_model(folder / "model", "huggingface", folder / "export", console=QUIET).path


@pytest.fixture
def broken(gpt2_export: Path, tmp_path: Path) -> Path:
    """A copy of a valid export, to be damaged by a test."""
    import shutil

    return Path(shutil.copytree(gpt2_export, tmp_path / "broken"))


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_inconsistent_config_is_rejected(name: str, broken: Path, fails: Fails) -> None:
    import re

    changes, expected = BAD_CONFIGS[name]
    edit_config(broken, **changes)
    message = fails("import", broken, "--out", broken.with_name("out"))
    assert re.search(expected, message), message
    assert str(broken) in message
    assert not broken.with_name("out").exists()


def test_every_wrong_tensor_is_listed(broken: Path, fails: Fails) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    del tensors["transformer.h.0.ln_1.weight"], tensors["transformer.ln_f.bias"]
    tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(2, 3)
    tensors["transformer.h.1.rogue"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, broken / "model.safetensors")
    message = fails("import", broken, "--out", broken.with_name("out"))
    for expected in (
        "transformer.h.0.ln_1.weight is missing",
        "transformer.ln_f.bias is missing",
        "transformer.h.1.mlp.c_fc.weight is 2 × 3 and not 32 × 128",
        "transformer.h.1.rogue is not part of it",
    ):
        assert expected in message


def test_pickles_are_rejected_with_the_reason(broken: Path, fails: Fails) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    message = fails("import", broken)
    assert "pytorch_model.bin" in message and "pickles" in message and "save_pretrained" in message


def test_damaged_safetensors_headers(broken: Path, fails: Fails) -> None:
    good = (broken / "model.safetensors").read_bytes()
    for bad in (good[:4], good[:40], good[:-1], (100 * 10**9).to_bytes(8, "little") + good[8:], b""):
        (broken / "model.safetensors").write_bytes(bad)
        assert "cannot be read as safetensors" in fails("import", broken)


def test_integer_weights_are_rejected(broken: Path, fails: Fails) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].to(torch.int32)
    safetensors.torch.save_file(tensors, broken / "model.safetensors")
    assert "transformer.wte.weight holds torch.int32" in fails("import", broken)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"a": "../elsewhere.safetensors"}, "expected .safetensors files beside it"),
        ({"a": "model.bin"}, "expected .safetensors files beside it"),
        ({"a": "absent.safetensors"}, "is missing"),
        ({"a": "other.safetensors"}, "names tensors that no file holds: a"),
        ({"a": 3}, "does not give a file for each tensor"),
        ([], "does not give a file for each tensor"),
    ],
)
def test_invalid_shard_indexes_are_rejected(
    weight_map: Any, expected: str, broken: Path, fails: Fails
) -> None:
    (broken / "model.safetensors").rename(broken / "other.safetensors")
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert expected in fails("import", broken)


def test_single_file_takes_precedence_over_an_index_as_in_transformers(
    exported: tuple[str, Path, Path],
) -> None:
    _, folder, export = exported
    (export / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "gone.safetensors"}})
    )
    again = load_model(import_model(export, export.with_name("again"), console=QUIET)).model.own_tensors()
    ours = load_model(folder).model.own_tensors()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_import_rejects_a_path_to_another_file(broken: Path, fails: Fails) -> None:
    (broken / "ema.safetensors").write_bytes((broken / "model.safetensors").read_bytes())
    assert "ema.safetensors: name the folder" in fails("import", broken / "ema.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_rejected(value: float, broken: Path, fails: Fails) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    tensors["transformer.wte.weight"][3, 4] = value
    safetensors.torch.save_file(tensors, broken / "model.safetensors")
    assert "transformer.wte.weight holds values that are infinite or NaN" in fails("import", broken)


def test_yarn_rotary_scaling_is_rejected(tmp_path: Path, fails: Fails) -> None:
    save_model(tmp_path / "model", random_model(KINDS["modern"]), tokenizer_of(65))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET).path
    config = json.loads((export / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    (export / "config.json").write_text(json.dumps(config))
    assert "rope_scaling is of the kind 'yarn'" in fails("import", export)


def test_overwriting_keeps_foreign_files(tmp_path: Path, fails: Fails) -> None:
    save_model(tmp_path / "model", random_model(KINDS["gpt2"]), tokenizer_of(65))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET).path
    command = ("export", tmp_path / "model", "--to", "huggingface", "--out", export, "--overwrite", "--quiet")
    (export / "notes.md").write_text("mine")
    assert main([*map(str, command)]) == 0
    assert (export / "notes.md").read_text() == "mine"
    folder = import_model(export, tmp_path / "back", console=QUIET)
    (folder / "training").mkdir()
    again = ("import", export, "--out", folder, "--overwrite")
    assert main([*map(str, again), "--quiet"]) == 0
    assert (folder / "training").is_dir()
    (folder / "checksums.json").write_text("{}")  # a run's checkpoint
    assert "exists and is not a model folder" in fails(*again)
    (folder / "checksums.json").unlink()
    (tmp_path / "link").symlink_to(folder)
    assert main(["import", str(export), "--out", str(tmp_path / "link"), "--overwrite", "--quiet"]) == 0
    assert (tmp_path / "link").is_symlink() and (folder / "model.safetensors").exists()
    assert "is a preset, which has no trained weights" in fails("export", "gpt2-small", "--to", "gguf")


def test_bytes_are_those_of_the_original_text_for_normalizing_tokenizers(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer_of(300).to_json())
    library.normalizer = tokenizers.normalizers.NFC()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert not tokenizer.keeps_text
    config = replace(KINDS["modern"], vocab_size=300)
    lm = LanguageModel(random_model(config), tokenizer)
    text = "e\u0301 " * 200
    (tmp_path / "text.txt").write_text(text)
    score = lm.evaluate(tmp_path / "text.txt", console=QUIET)
    first = 1 / len(tokenizer.encode(text))
    assert score.bytes == pytest.approx(len(text.encode()), rel=2 * first)
    assert score.characters == pytest.approx(len(text), rel=2 * first)


def test_untied_output_projection_with_a_tied_config_is_rejected(broken: Path, fails: Fails) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    safetensors.torch.save_file(tensors, broken / "model.safetensors")
    assert "lm_head.weight differs from transformer.wte.weight" in fails("import", broken)


def test_tokenizer_of_another_size_is_rejected(broken: Path, fails: Fails) -> None:
    tokenizer_of(40).save(broken / "tokenizer.json")
    assert "the model has 65 tokens and the tokenizer 40" in fails("import", broken)
    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer beside it" in fails("import", broken)


def test_padded_vocabulary_can_be_imported(tmp_path: Path) -> None:
    config = replace(KINDS["modern"], vocab_size=1024, embeddings=Embeddings.untied)
    save_model(tmp_path / "model", random_model(config), tokenizer_of(1024))
    export = export_model(tmp_path / "model", "huggingface", tmp_path / "export", console=QUIET).path
    tokenizer_of(1020).save(export / "tokenizer.json")
    loaded = load_model(import_model(export, tmp_path / "back", console=QUIET))
    assert loaded.tokenizer.vocab_size == 1024
    assert loaded.tokenizer.decode([1023]) == "<|unused_1023|>"


def test_export_and_import_commands_print_the_parity_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", random_model(KINDS["modern"]), tokenizer_of(65))
    arguments = ["export", str(tmp_path / "model"), "--to", "huggingface", "--json", "--quiet"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    export = tmp_path / "model-huggingface"
    assert printed == json.loads((export / "parity_reports.json").read_text())
    assert printed["path"] == str(export)
    (own, theirs) = printed["parity_reports"]
    assert own["largest_logit_difference"] == 0.0
    assert theirs["equal_token_ids"] and theirs["holds"]
    assert theirs["equal_greedy_tokens"] == theirs["greedy_tokens"]
    assert main(["import", str(export), "--out", str(tmp_path / "back"), "--quiet"]) == 0
    assert "Qwen3" in capsys.readouterr().out
    assert main(arguments) == 2  # the folder exists
    assert main([*arguments, "--overwrite"]) == 0
    assert "Qwen3" not in capsys.readouterr().err


def test_only_exports_and_model_folders_are_replaced(broken: Path, tmp_path: Path, fails: Fails) -> None:
    save_model(tmp_path / "model", random_model(KINDS["modern"]), tokenizer_of(65))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "model", tmp_path):
        message = fails("export", tmp_path / "model", "--to", "huggingface", "--out", out, "--overwrite")
        assert "exists and is not an export" in message
    for out in (tmp_path / "mine", broken, tmp_path):
        assert "exists and is not a model folder" in fails("import", broken, "--out", out, "--overwrite")
    assert "already a model folder of wholegpt" in fails(
        "import", tmp_path / "model", "--out", tmp_path / "new"
    )
    assert "type q8_0 is for gguf" in fails(
        "export", tmp_path / "model", "--to", "huggingface", "--type", "q8_0"
    )


def test_import_from_a_path_to_a_weight_file(broken: Path, tmp_path: Path, fails: Fails) -> None:
    assert main(["import", str(broken / "model.safetensors"), "--out", str(tmp_path / "a"), "--quiet"]) == 0
    (broken / "pytorch_model.bin").write_bytes(b"x")
    assert "such files are pickles" in fails("import", broken / "pytorch_model.bin", "--out", tmp_path / "b")


def test_export_beyond_the_tolerance_fails_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    from wholegpt.interop import architectures

    save_model(tmp_path / "model", random_model(KINDS["gpt2"]), tokenizer_of(65))
    wrong = replace(
        architectures.GPT2, activations={"gelu": FeedForward.gelu_tanh, "gelu_new": FeedForward.gelu}
    )
    monkeypatch.setattr(architectures, "ARCHITECTURES", (wrong,))
    message = fails("export", tmp_path / "model", "--to", "huggingface", "--quiet")
    assert "the export is not the same model: opened by transformers" in message
    assert not (tmp_path / "model-huggingface").exists()


def gpt1_library(texts: list[str], vocab_size: int) -> Any:
    """Return a GPT-1 tokenizer made of the library's own parts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    library = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    return library


def test_gpt1_with_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = gpt1_library([text_of(4000)], 120)
    size = library.get_vocab_size()
    torch.manual_seed(4)
    config = transformers.OpenAIGPTConfig(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    theirs = transformers.OpenAIGPTLMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.OpenAIGPTTokenizer(
        vocab=json.loads(library.to_str())["model"]["vocab"],
        merges=[tuple(merge) for merge in json.loads(library.to_str())["model"]["merges"]],
    ).save_pretrained(tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    folder = import_model(tmp_path / "theirs", tmp_path / "ours", console=QUIET)
    loaded = load_model(folder)
    for text in ("The of, AND!", "The of AND   a to\n in is you"):
        token_ids = tokenizer(text)["input_ids"]
        assert loaded.tokenizer.encode(text) == token_ids
        assert loaded.tokenizer.decode(token_ids) == tokenizer.decode(token_ids)
    assert not loaded.tokenizer.keeps_text and not loaded.tokenizer.has_end_of_text
    # Each token's bytes are those it adds to the text, including the space after a word.
    assert loaded.tokenizer.text_sizes[token_ids, 0].sum() == len(tokenizer.decode(token_ids) + " ")
    (tmp_path / "text.txt").write_text(text_of(500))
    assert main(["evaluate", str(folder), str(tmp_path / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == pytest.approx(len(text_of(500).encode()), rel=0.02)
    assert main(["generate", str(folder), "the of", "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("the of")
    export = export_model(folder, "huggingface", tmp_path / "again", console=QUIET)
    assert all(one.equal_token_ids for one in export.parity_reports)


@pytest.mark.parametrize(("to", "program"), [("huggingface", "transformers"), ("gguf", "llama_cpp")])
def test_export_without_the_other_program_reports_what_was_not_checked(
    to: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", random_model(KINDS["gpt2"]), tokenizer_of(65))
    monkeypatch.setitem(sys.modules, program, None)
    out = tmp_path / "export"
    assert main(["export", str(tmp_path / "model"), "--to", to, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "did not open it" in printed and "pip install" in printed
    report = json.loads((out / "parity_reports.json").read_text())
    assert len(report["parity_reports"]) == 1 and len(report["unchecked"]) == 1
