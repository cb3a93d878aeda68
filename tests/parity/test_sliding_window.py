"""Perplexity of overlapping windows against the procedure documented by transformers for fixed-length models."""

import math
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_config
from wholegpt.console import Console
from wholegpt.interop.conversion import export_model
from wholegpt.runs import api
from wholegpt.settings.choices import Dtype

transformers = pytest.importorskip("transformers", reason="transformers is a test-only dependency")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
QUIET = Console(quiet=True)


@torch.inference_mode()
def documented_perplexity(export: Path, text: str, stride: int) -> float:
    """Compute perplexity from windows of the model's length, each scoring its last tokens by the model's loss."""
    model = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    token_ids = torch.tensor([tokenizer(text)["input_ids"]])
    longest, total, counted, scored_to = model.config.max_position_embeddings, 0.0, 0, 0
    for start in range(0, token_ids.shape[1], stride):
        end = min(start + longest, token_ids.shape[1])
        window = token_ids[:, start:end]
        labels = window.clone()
        labels[:, : window.shape[1] - (end - scored_to)] = -100
        n_labels = int((labels[:, 1:] != -100).sum())
        if n_labels:
            total += float(model(window, labels=labels).loss) * n_labels
            counted += n_labels
        scored_to = end
        if end == token_ids.shape[1]:
            break
    return math.exp(total / counted)


@pytest.mark.slow
def test_perplexity_equals_the_documented_procedure(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "wikitext2-valid.txt").read_text(encoding="utf-8")
    (tmp_path / "train.txt").write_text(text[:300_000])
    (tmp_path / "text.txt").write_text(text[300_000:340_000])
    config = tiny_config(
        tmp_path / "train.txt",
        model={"context_length": 128, "d_model": 64, "n_heads": 4},
        tokenizer={"kind": "bpe", "vocab_size": 512},
        training={"steps": 100},
    )
    run = api.train(config=config, out=tmp_path / "run", console=QUIET)
    export = export_model(run.path, "huggingface", tmp_path / "export", console=QUIET).path
    theirs = documented_perplexity(export, text[300_000:340_000], stride=64)
    ours = run.load("best").evaluate(tmp_path / "text.txt", stride=64, dtype=Dtype.float32, console=QUIET)
    assert ours.perplexity == pytest.approx(theirs, rel=1e-4)
