"""lm-eval with our engine gives the results of the exported model in transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import text_of, tiny_config
from wholegpt.console import Console
from wholegpt.evaluation.harness import generation_of
from wholegpt.interop.conversion import export_model
from wholegpt.language_model import LanguageModel
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import GenerationConfig

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    (folder / "text.txt").write_text(text_of(20_000))
    config = tiny_config(
        folder / "text.txt",
        model={"context_length": 128, "d_model": 32, "n_heads": 4},
        tokenizer={"kind": "bpe", "vocab_size": 300},
        training={"steps": 30},
    )
    return api.train(config=config, out=folder / "run", console=QUIET).path


def tasks(folder: Path) -> list[dict[str, Any]]:
    """Return a task for each type of request, from local files."""
    lines = [
        {"context": "the of and a", "choices": ["to in is", "zebra"], "answer": 0},
        {"context": "you that it he was", "choices": ["quartz", "for on are"], "answer": 1},
        {"context": "with as his they " * 30, "choices": ["at", "be this", "from"], "answer": 2},
    ]
    (folder / "choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"page": text_of(900, seed)} for seed in range(3)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    pairs = [{"prompt": "the of and", "target": "a to"}, {"prompt": "is you", "target": "that it"}]
    (folder / "generation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))

    def from_file(name: str) -> dict[str, Any]:
        return {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / name)}},
            "test_split": "test",
        }

    return [
        {
            "task": "local_choice",
            **from_file("choice.jsonl"),
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "num_fewshot": 1,
            "fewshot_split": "test",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            "task": "local_texts",
            **from_file("texts.jsonl"),
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        {
            "task": "local_written",
            **from_file("generation.jsonl"),
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
    ]


def evaluated(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    results = lm_eval.simple_evaluate(model=model, tasks=tasks(folder), log_samples=True, bootstrap_iters=0)
    responses = {
        name: [sample["filtered_resps"] for sample in samples] for name, samples in results["samples"].items()
    }
    return results["results"], responses


@pytest.mark.slow
def test_results_equal_those_of_the_export_in_transformers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    export = export_model(run, "huggingface", tmp_path / "export", console=QUIET).path
    settings = {"pretrained": str(export), "device": "cpu", "dtype": torch.float32, "batch_size": 2}
    theirs = HFLM(**settings, backend="causal")  # pyright: ignore[reportCallIssue]
    ours = LanguageModel.for_lm_eval(load(run), Dtype.float32, QUIET)
    (their_results, their_answers), (our_results, our_answers) = (
        evaluated(m, tmp_path) for m in (theirs, ours)
    )
    for name in ("local_choice", "local_texts"):
        for figure, value in their_results[name].items():
            if isinstance(value, float):
                assert our_results[name][figure] == pytest.approx(value, rel=1e-4), (name, figure)
    for ours_one, theirs_one in zip(our_answers["local_choice"], their_answers["local_choice"], strict=True):
        for (our_nats, our_greedy), (their_nats, their_greedy) in zip(ours_one, theirs_one, strict=True):
            assert our_nats == pytest.approx(their_nats, abs=1e-3) and our_greedy == their_greedy
    assert our_answers["local_written"] == their_answers["local_written"]


def test_generation_settings() -> None:
    assert generation_of({"until": "\n"}, 9) == GenerationConfig(max_tokens=9, temperature=0, stop=("\n",))
    sampled = generation_of({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": ["a", "b"]}, 9)
    assert (sampled.temperature, sampled.top_p, sampled.stop) == (0.5, 0.9, ("a", "b"))
    assert generation_of({"do_sample": False, "temperature": 0.7}, 9).temperature == 0
    assert generation_of({"num_beams": 1, "max_new_tokens": 5}, 9).max_tokens == 5
    for settings in ({"num_beams": 4}, {"repetition_penalty": 2.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            generation_of(settings, 9)
