"""Compare exported models in transformers and llama.cpp, and imported nanoGPT models, with wholegpt."""

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import machine_line, publish
from wholegpt.checkpoint import load_model, save_model
from wholegpt.console import Console
from wholegpt.generation import Sampler, generate_ids
from wholegpt.interop.conversion import Export, export_model, import_model
from wholegpt.losses import negative_log_likelihood
from wholegpt.model import Transformer, parameter_count
from wholegpt.settings import presets
from wholegpt.settings.choices import Positions
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer

ARCHITECTURES = {"gpt1": 40_478, "gpt2-small": 50_257, "modern-small": 50_257}


def row(name: str, made: Export) -> list[str]:
    """Return a row for each program that opened an export."""
    return [
        f"| {name} | {one.opened_by} | {one.largest_logit_difference:.2g} | {one.mean_logit_difference:.2g} | "
        f"{one.largest_logit:.3g} | {one.perplexity:.6g} | {one.export_perplexity:.6g} | "
        f"{one.equal_greedy_tokens} of {one.greedy_tokens} |"
        for one in made.parity_reports
    ]


@torch.inference_mode()
def exact(name: str, model: Transformer, export: Path) -> str:
    """Compare 200 greedy tokens with transformers, and for GPT-1 and GPT-2 the logits in float64."""
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    token_ids = torch.randint(model.vocab_size, (1, 64))
    settings = GenerationConfig(max_tokens=200, temperature=0)
    ours = list(generate_ids(model.eval(), token_ids[0].tolist(), Sampler(settings), torch.device("cpu")))
    written = theirs.generate(
        token_ids, do_sample=False, temperature=None, max_new_tokens=200, eos_token_id=None, pad_token_id=0
    )[0, 64:].tolist()
    line = (
        f"- {name}: {sum(a == b for a, b in zip(ours, written, strict=True))} of 200 greedy tokens are equal"
    )
    if model.config.positions is Positions.learned:
        model.double()
        difference = (model(token_ids) - theirs.double()(token_ids).logits).abs().max()
        model.float()
        line += f", and float64 logits are within {float(difference):.1g}"
    print(line, flush=True)
    return f"{line}."


HEADER = [
    "| Model | Opened by | Largest logit difference | Mean difference | Largest logit | Perplexity in wholegpt | "
    "Perplexity there | Equal greedy tokens |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
]


def huggingface() -> None:
    """Export and import each architecture with random weights."""
    lines = [f"{machine_line()} Random weights, float32.", "", *HEADER]
    notes: list[str] = []
    for name, vocab_size in ARCHITECTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            torch.manual_seed(1)
            model = Transformer(replace(presets.preset(name), vocab_size=vocab_size))
            save_model(here / "model", model, byte_tokenizer().with_unused(vocab_size))
            made = export_model(here / "model", "huggingface", here / "export", console=Console(quiet=True))
            notes.append(exact(name, model, here / "export"))
            back = load_model(import_model(here / "export", here / "back", console=Console(quiet=True)))
            ours, again = model.own_tensors(), back.model.own_tensors()
            assert all(torch.equal(ours[tensor], again[tensor]) for tensor in ours)
            lines += row(f"{name}, {parameter_count(model.config).total / 1e6:.0f} M", made)
            print("\n".join(lines[-2:]), flush=True)
    lines += ["", *notes, "", "All three are bit-identical after export and import."]
    publish("Interoperability, transformers", "\n".join(lines))


def llama_cpp(run: Path) -> None:
    """Export a trained run as GGUF with each tensor type."""
    lines = [f"{machine_line()} The KV cache of llama.cpp is in float32.", "", *HEADER]
    for tensor_type in ("f32", "f16", "q8_0"):
        with tempfile.TemporaryDirectory() as folder:
            made = export_model(
                run, "gguf", Path(folder) / "out", tensor_type=tensor_type, console=Console(quiet=True)
            )
            lines += row(f"{run.name}, {tensor_type}", made)
            print("\n".join([*lines[-2:], *made.unchecked]), flush=True)
    publish("Interoperability, llama.cpp", "\n".join(lines))


def nanogpt(checkout: Path, checkpoint: Path, text: Path) -> None:
    """Compare the losses of a nanoGPT checkpoint in nanoGPT and in wholegpt, on the same windows of text."""
    specification = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert specification and specification.loader
    theirs_module = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = theirs_module
    specification.loader.exec_module(theirs_module)
    saved = torch.load(checkpoint, weights_only=True)
    theirs = theirs_module.GPT(theirs_module.GPTConfig(**saved["model_args"])).eval()
    theirs.load_state_dict({name.removeprefix("_orig_mod."): one for name, one in saved["model"].items()})
    with tempfile.TemporaryDirectory() as folder:
        imported = import_model(
            checkpoint, Path(folder) / "ours", vocabulary_from=text, console=Console(quiet=True)
        )
        ours = load_model(imported)
    token_ids = ours.tokenizer.encode(text.read_text(encoding="utf-8"))
    length = ours.model.context_length
    starts = [int(0.9 * len(token_ids)) + 5000 * i for i in range(20)]
    lines = [
        f"{machine_line()} Nats per character of windows of {length} characters of {text.name}, float32.",
        "",
        "| Window starts at character | nanoGPT | wholegpt |",
        "| ---: | ---: | ---: |",
    ]
    largest = 0.0
    for start in starts:
        window = torch.tensor(token_ids[start : start + length + 1])
        with torch.inference_mode():
            loss = float(theirs(window[None, :-1], window[None, 1:])[1])
            nats = float(
                negative_log_likelihood(ours.model.eval()(window[None, :-1]), window[None, 1:]).mean()
            )
        largest = max(largest, abs(nats - loss))
        lines.append(f"| {start:,} | {loss:.6f} | {nats:.6f} |")
    lines += ["", f"The largest difference is {largest:.1g} nats."]
    publish("Interoperability, nanoGPT", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="export this run to GGUF, and nothing else")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT; compare its loss of --checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="ckpt.pt saved by nanoGPT")
    parser.add_argument("--text", type=Path, help="training text of the checkpoint (character level)")
    arguments = parser.parse_args()
    if arguments.gguf:
        llama_cpp(arguments.gguf)
    elif arguments.nanogpt:
        nanogpt(arguments.nanogpt, arguments.checkpoint, arguments.text)
    else:
        huggingface()


if __name__ == "__main__":
    main()
