"""Import of nanoGPT checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import Fails
from tests.interop.models import tokenizer_of
from wholegpt.checkpoint import load_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.interop.conversion import import_model

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
QUIET = Console(quiet=True)
ARGUMENTS = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "block_size": 16,
    "bias": True,
    "vocab_size": 65,
    "dropout": 0.1,
}
TEXT = "".join(chr(33 + i) for i in range(64)) + "\n"


def reference(bias: bool) -> tuple[Any, dict[str, Tensor]]:
    """Return transformers' GPT-2 with the exact GELU, and its tensors in nanoGPT's layout."""
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=4, activation_function="gelu"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.2)
        if name.endswith(".bias") and not bias:
            parameter.data.zero_()
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {
        name: (tensor.t().contiguous() if name.endswith(transposed) else tensor).clone()
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith(".bias")
    }
    return model, tensors


def save(path: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    torch.save({"model": tensors, "model_args": {**ARGUMENTS, **changes}, "iter_num": 7, "config": {}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_those_of_the_reference(bias: bool, prefix: str, tmp_path: Path) -> None:
    theirs, tensors = reference(bias)
    save(tmp_path / "ckpt.pt", {prefix + name: tensor for name, tensor in tensors.items()}, bias=bias)
    (tmp_path / "input.txt").write_text(TEXT[::-1] + TEXT)
    folder = import_model(tmp_path, tmp_path / "ours", vocabulary_from=tmp_path / "input.txt", console=QUIET)
    loaded = load_model(folder)
    token_ids = torch.randint(65, (3, 16))
    with torch.inference_mode():
        assert (loaded.model.eval()(token_ids) - theirs(token_ids).logits).abs().max() <= 2e-5
    assert loaded.model.config.dropout == 0.1
    # nanoGPT assigns ids to sorted characters and has no end-of-text token.
    assert loaded.tokenizer.encode("\n!") == [0, 1]
    assert not loaded.tokenizer.has_end_of_text


def test_model_without_end_of_text_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    _, tensors = reference(bias=False)
    save(tmp_path / "ckpt.pt", tensors, bias=False)
    (tmp_path / "input.txt").write_text(TEXT)
    ours = str(tmp_path / "ours")
    arguments = [
        "import",
        str(tmp_path / "ckpt.pt"),
        "--vocabulary-from",
        str(tmp_path / "input.txt"),
        "--out",
        ours,
    ]
    assert main(arguments) == 0
    assert main(["generate", ours, "ABC", "--max-tokens", "4"]) == 0
    (tmp_path / "text.txt").write_text("ABCDEF\n" * 9)
    assert main(["evaluate", ours, str(tmp_path / "text.txt")]) == 0
    assert main(["export", ours, "--to", "huggingface", "--quiet"]) == 0
    assert "or give a prompt" in fails("generate", ours, "--quiet")


def test_invalid_checkpoints_are_rejected(tmp_path: Path, fails: Fails) -> None:
    _, tensors = reference(bias=True)
    tokenizer_of(65).save(tmp_path / "tokenizer.json")
    path = tmp_path / "ckpt.pt"
    with_tokenizer = ("--tokenizer", tmp_path / "tokenizer.json", "--out", tmp_path / "out")

    def refused() -> str:
        message = fails("import", path, *with_tokenizer)
        assert str(path) in message
        return message

    path.write_bytes(b"no zip file")
    assert "cannot be read as nanoGPT's ckpt.pt" in refused()
    good = save(path, tensors).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert "cannot be read as nanoGPT's ckpt.pt" in refused()
    torch.save({"model": tensors, "model_args": ARGUMENTS, "evil": Path("x")}, path)
    assert "cannot be read as nanoGPT's ckpt.pt" in refused()
    torch.save([1, 2], path)
    assert "expected model_args and model" in refused()
    torch.save({"model": tensors, "model_args": {"n_layer": 2}}, path)
    assert "model_args lacks vocab_size" in refused()
    save(path, tensors, n_embd=64)
    assert "transformer.wte.weight is 65 × 32 and not 65 × 64" in refused()
    save(path, tensors, n_layer=900)
    assert "too few for the 900 layers" in refused()
    save(path, {name: tensor for name, tensor in tensors.items() if "h.1.ln_2" not in name})
    assert "transformer.h.1.ln_2.weight is missing" in refused()
    (tmp_path / "alone").mkdir()
    assert "no tokenizer beside it" in fails("import", save(tmp_path / "alone" / "ckpt.pt", tensors))
    assert "one vocabulary" in fails("import", path, *with_tokenizer, "--vocabulary-from", path)


def test_untied_output_projection_is_rejected(tmp_path: Path, fails: Fails) -> None:
    _, tensors = reference(bias=True)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save(tmp_path / "ckpt.pt", tensors)
    (tmp_path / "text.txt").write_text(TEXT)
    message = fails("import", tmp_path / "ckpt.pt", "--vocabulary-from", tmp_path / "text.txt")
    assert "lm_head.weight differs from transformer.wte.weight" in message
