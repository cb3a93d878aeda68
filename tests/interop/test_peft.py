"""LoRA adapters opened by ``peft``, imported from it, and invalid adapters."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from tests.helpers import shrink, tiny_models
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.interop import huggingface
from wholegpt.interop.peft import BASE, CONFIG, WEIGHTS, base_hash, load_adapter, save_adapter
from wholegpt.model import Transformer
from wholegpt.model.heads import extend_vocabulary
from wholegpt.model.lora import add_lora, lora_layers, merge
from wholegpt.settings.choices import Embeddings, Norm
from wholegpt.settings.schema import LoraConfig
from wholegpt.tokenizers import byte_tokenizer

LORA = LoraConfig(rank=3, alpha=5.0)


def fresh(kind: str, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(shrink(tiny_models()[kind], vocab_size=257, **changes)).eval()


def adapted(kind: str, config: LoraConfig = LORA, seed: int = 0) -> Transformer:
    model = fresh(kind)
    add_lora(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.up.normal_()
    return model


@pytest.mark.parametrize("targets", [("blocks.*",), ("blocks.1.attention.*", "blocks.0.feed_forward.expand")])
@pytest.mark.parametrize("kind", tiny_models())
@pytest.mark.filterwarnings("ignore")
def test_adapter_gives_the_same_logits_in_peft(kind: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    peft: Any = importlib.import_module("peft")
    model = adapted(kind, LoraConfig(rank=3, alpha=5.0, targets=targets))
    huggingface.write(tmp_path, fresh(kind), byte_tokenizer())
    save_adapter(tmp_path / "adapter", model, LoraConfig(rank=3, alpha=5.0, targets=targets))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected, found = model(token_ids), theirs(token_ids).logits
        assert (expected - fresh(kind)(token_ids)).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny_models())
@pytest.mark.filterwarnings("ignore")
def test_adapter_written_by_peft_can_be_loaded(kind: str, tmp_path: Path) -> None:
    """If queries, keys and values are one layer in both; otherwise their A matrices differ, an error."""
    peft: Any = importlib.import_module("peft")
    huggingface.write(tmp_path, fresh(kind), byte_tokenizer())
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    split = kind == "modern"
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if split else ["c_attn", "c_fc"]
    settings = peft.LoraConfig(r=2, lora_alpha=7, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(theirs, settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model = fresh(kind)
    if split:
        with pytest.raises(CheckpointError, match="differ in A"):
            load_adapter(tmp_path / "adapter", model)
        return
    load_adapter(tmp_path / "adapter", model)
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(token_ids), theirs(token_ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny_models())
def test_adapters_can_be_saved_loaded_and_switched(kind: str, tmp_path: Path) -> None:
    first, second = adapted(kind, seed=1), adapted(kind, seed=2)
    save_adapter(tmp_path / "first", first, LORA)
    save_adapter(tmp_path / "second", second, LORA)
    model, token_ids = fresh(kind), torch.arange(12)[None]
    for name, other in (("first", first), ("second", second), ("first", first)):
        config = load_adapter(tmp_path / name, model)
        assert (config.rank, config.alpha) == (3, 5.0)
        with torch.inference_mode():
            assert torch.equal(model(token_ids), other(token_ids))
    merge(model)
    with pytest.raises(ConfigError, match="unmerge it first"):
        load_adapter(tmp_path / "second", model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", tiny_models())
@pytest.mark.filterwarnings("ignore")
def test_adapter_includes_the_rows_of_new_tokens(kind: str, tied: bool, tmp_path: Path) -> None:
    if kind == "gpt1" and not tied:
        pytest.skip("GPT-1 has no untied output projection in transformers")
    peft: Any = importlib.import_module("peft")
    changes: dict[str, Any] = {"embeddings": Embeddings.tied if tied else Embeddings.untied}
    base = fresh(kind, **changes)
    torch.manual_seed(5)
    extended = Transformer(dataclasses.replace(base.config, vocab_size=260)).eval()
    extended.load_state_dict(extend_vocabulary(base, 260))
    huggingface.write(tmp_path, extended, byte_tokenizer().with_special_tokens(["<|a|>", "<|b|>", "<|c|>"]))
    model = Transformer(extended.config).eval()
    model.load_state_dict(extended.state_dict())
    add_lora(model, LORA)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.up.normal_()
        for weight in (model.token_embedding.weight, model.unembedding.weight):
            weight[257:] = torch.randn(3, model.config.d_model)
    save_adapter(tmp_path / "adapter", model, LORA, new_tokens=3)
    token_ids = torch.tensor([[1, 257, 2, 259, 258]])
    with torch.inference_mode():
        expected = model(token_ids)
    load_adapter(tmp_path / "adapter", extended)
    with torch.inference_mode():
        assert torch.equal(extended(token_ids), expected)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(token_ids).logits, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(CheckpointError, match=r"is for another model: \S+ is of \[254, 16\] here"):
        load_adapter(tmp_path / "adapter", fresh(kind, **changes))


def test_adapter_of_a_model_without_a_transformers_architecture(tmp_path: Path) -> None:
    """Its layers have our names in the adapter."""
    torch.manual_seed(0)
    config = shrink(tiny_models()["gpt2"], vocab_size=257, norm=Norm.rms_norm)
    model = Transformer(config)
    add_lora(model, LORA)
    save_adapter(tmp_path / "adapter", model, LORA)
    assert (
        "blocks.0.attention.output"
        in json.loads((tmp_path / "adapter" / CONFIG).read_text())["target_modules"]
    )
    torch.manual_seed(0)
    again = Transformer(config)
    load_adapter(tmp_path / "adapter", again)
    assert len(list(lora_layers(again))) == len(list(lora_layers(model)))


def test_base_hash_excludes_the_adapter(tmp_path: Path) -> None:
    assert base_hash(adapted("gpt2")) == base_hash(fresh("gpt2")) != base_hash(fresh("gpt2", seed=1))
    with pytest.raises(ConfigError, match="has no LoRA"):
        save_adapter(tmp_path / "adapter", fresh("gpt2"), LORA)


def test_adapters_that_do_not_match_the_model_are_rejected(tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    save_adapter(source, adapted("gpt2"), LORA)

    def refused(message: str, model: Transformer, folder: Path = source) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_adapter(folder, model)
        assert not list(lora_layers(model))

    refused("another model of this shape: its weights have the hash", fresh("gpt2", seed=1))
    refused(r"another model: \S+ is of \[257, 32\] here, and of \[257, 16\] there", fresh("gpt2", d_model=32))
    refused("cannot be read|no such", fresh("gpt2"), tmp_path / "nothing")
    content = json.loads((source / CONFIG).read_text())
    tensors = safetensors.torch.load_file(source / WEIGHTS)
    name = next(iter(tensors))
    bad_settings = [
        ({"use_dora": True}, "use_dora is True; only False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": "many"}, "r is 'many'"),
        ({"r": 4}, r"expected \(\d+, 4\) times"),
        ({"modules_to_save": ["wte"]}, "modules_to_save"),
    ]
    bad_tensors: list[tuple[dict[str, torch.Tensor], str]] = [
        (
            {**tensors, "base_model.model.transformer.wte.weight": torch.zeros(2)},
            "not LoRA of a linear layer",
        ),
        ({key: value for key, value in tensors.items() if key != name}, f"lacks {name}"),
        (
            {key.replace("h.0", "h.9"): value for key, value in tensors.items()},
            "which this model does not have",
        ),
    ]
    for number, (changes, message) in enumerate(bad_settings):
        folder = shutil.copytree(source, tmp_path / f"settings-{number}")
        (folder / CONFIG).write_text(json.dumps({**content, **changes}))
        refused(message, fresh("gpt2"), folder)
    for number, (held, message) in enumerate(bad_tensors):
        folder = shutil.copytree(source, tmp_path / f"tensors-{number}")
        (folder / BASE).unlink()  # peft does not write this file
        safetensors.torch.save_file(held, folder / WEIGHTS)
        refused(message, fresh("gpt2"), folder)
