"""Our GGUF files in llama.cpp, if it is installed."""

from pathlib import Path

import pytest

from tests.interop.models import KINDS, random_model, tokenizer_of
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.interop.conversion import export_model
from wholegpt.interop.gguf import TensorType

pytest.importorskip("llama_cpp", reason="llama-cpp-python, which is built for minutes, is not installed")
QUIET = Console(quiet=True)


@pytest.mark.parametrize("vocab_size", [65, 300])
@pytest.mark.parametrize("kind", ["gpt2", "modern", "modern-untied"])
def test_logits_and_tokens_equal_those_of_llama_cpp(kind: str, vocab_size: int, tmp_path: Path) -> None:
    config = type(KINDS[kind])(**{**vars(KINDS[kind]), "vocab_size": vocab_size})
    save_model(tmp_path / "model", random_model(config), tokenizer_of(vocab_size))
    for tensor_type in TensorType:
        made = export_model(
            tmp_path / "model", "gguf", tmp_path / tensor_type, tensor_type=tensor_type, console=QUIET
        )
        _, there = made.parity_reports
        assert there.opened_by.startswith("llama.cpp") and there.holds and not made.unchecked
        assert there.equal_token_ids
        if tensor_type is TensorType.f32:
            assert there.equal_greedy_tokens == there.greedy_tokens == 50
