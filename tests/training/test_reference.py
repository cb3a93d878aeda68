"""The frozen reference model of a run and the KL divergence from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import WORDS, text_of, tiny_config
from wholegpt.checkpoint import load_model
from wholegpt.console import Console
from wholegpt.data import Batch
from wholegpt.errors import ConfigError, RunError
from wholegpt.losses import kl_divergence
from wholegpt.model import Transformer
from wholegpt.model.lora import add_lora
from wholegpt.runs import api
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import LoraConfig, ModelConfig
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.reference import FrozenReference, LoraBase, WithReferenceKL

QUIET = Console(quiet=True)
TINY = ModelConfig(vocab_size=11, context_length=8, n_layers=2, d_model=16, n_heads=2)


def test_kl_divergence_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert kl_divergence(p, p).abs().max() == 0


def test_reference_kl_is_a_mean_over_scored_positions_and_does_not_change_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, other = Transformer(TINY).double(), Transformer(TINY).double()
    token_ids = torch.randint(11, (3, 9))
    targets = token_ids[:, 1:].clone()
    targets[0, :5] = -100
    batch = Batch(token_ids[:, :-1], targets)
    monkeypatch.setattr("wholegpt.training.reference.POSITIONS_AT_ONCE", 4)  # several chunks
    objective = WithReferenceKL(LanguageModeling(), FrozenReference(other))
    terms = objective(model.train(), batch)
    plain = LanguageModeling()(model, batch)
    assert model.training and not any(p.requires_grad for p in other.parameters())
    assert terms.total.item() == plain.total.item()
    total, count = terms.metrics["reference_kl"]
    scored = targets != -100
    expected = kl_divergence(model(batch.token_ids)[scored], other(batch.token_ids)[scored])
    assert count == int(scored.sum())
    assert float(total) / count == pytest.approx(expected.mean().item(), rel=1e-12)


def test_base_model_of_lora_is_the_reference() -> None:
    torch.manual_seed(0)
    model = Transformer(TINY).double()
    token_ids = torch.randint(11, (2, 9))
    before = model(token_ids[:, :-1])
    add_lora(model, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.copy_(torch.randn_like(parameter) / 4)
    after = model(token_ids[:, :-1])
    with LoraBase().beside(model) as base:
        torch.testing.assert_close(base(token_ids[:, :-1]), before)
    torch.testing.assert_close(model(token_ids[:, :-1]), after)
    batch = Batch(token_ids[:, :-1], token_ids[:, 1:])
    total, count = WithReferenceKL(LanguageModeling(), LoraBase())(model, batch).metrics["reference_kl"]
    expected = kl_divergence(after.flatten(0, 1), before.flatten(0, 1)).mean()
    assert float(total) / count == pytest.approx(expected.item(), rel=1e-9) and expected.item() > 1e-3


def parent_and_text(folder: Path) -> tuple[Path, Path]:
    text = folder / "text.txt"
    text.write_text(text_of(4000))
    api.train(config=tiny_config(text, training={"steps": 6}), out=folder / "parent", console=QUIET)
    return folder / "parent", text


def logged(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["reference_kl"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("lora", [0, 2])
def test_continued_pretraining_logs_the_divergence_from_its_parent(lora: int, tmp_path: Path) -> None:
    parent, text = parent_and_text(tmp_path)
    changes: dict[str, Any] = {
        "finetuning": {"reference_kl": True},
        "lora": {"rank": lora},
        "training": {"steps": 5},
        "logging": {"every": 1},
    }
    config = configure(changes, tiny_config(text))
    run = api.finetune(
        parent, text, task="pretraining", config=config, out=tmp_path / "run", console=QUIET
    ).path
    found = logged(run)
    assert len(found) == 5 and found[0] < 1e-6 < 1e-4 < found[-1]
    companions = json.loads((run / "lineage.json").read_text())["companions"]
    if lora:
        assert companions == {} and not (run / "companions").exists()
        return
    kept, expected = (
        load_model(run / "companions" / "reference"),
        load_model(next((parent / "checkpoints").glob("step-*6"))),
    )
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(kept.model.state_dict()[name], tensor)
    weights = run / "companions" / "reference" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="not the reference model that the run started with"):
        api.resume(run, console=QUIET)


def test_reference_of_instruction_tuning_includes_the_new_tokens(tmp_path: Path) -> None:
    parent, _ = parent_and_text(tmp_path)
    rows = [{"prompt": f"{one} of {other}", "response": one} for one in WORDS[:7] for other in WORDS[7:13]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes: dict[str, Any] = {
        "finetuning": {"reference_kl": True},
        "lora": {"rank": 2},
        "training": {"steps": 5, "batch_size": 4},
        "logging": {"every": 1},
    }
    config = configure(changes, tiny_config(tmp_path / "none"))
    run = api.finetune(
        parent,
        tmp_path / "pairs.jsonl",
        task="instruct",
        config=config,
        out=tmp_path / "run",
        console=QUIET,
    ).path
    found = logged(run)
    assert found[0] < 1e-6 < 1e-4 < found[-1]
    assert (run / "companions" / "reference" / "model.safetensors").exists()


def test_reference_kl_needs_a_parent(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text_of(4000))
    config = tiny_config(tmp_path / "text.txt", finetuning={"reference_kl": True})
    with pytest.raises(ConfigError, match="reference_kl compares with the model that training starts from"):
        api.train(config=config, out=tmp_path / "run", console=QUIET)
