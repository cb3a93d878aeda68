"""Measure generation: one sequence, batches, speculative and constrained decoding, quantized weights."""

import argparse
import copy
import importlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import conditions, publish, spread
from wholegpt.checkpoint import save_model
from wholegpt.console import Console
from wholegpt.generation import Engine
from wholegpt.generation.speculation import PromptLookup
from wholegpt.interop.conversion import export_model
from wholegpt.metrics import bootstrap
from wholegpt.model import CompiledTransformer, TokenModel, Transformer, quantize_weights
from wholegpt.runs.folder import run_data
from wholegpt.runs.load import load
from wholegpt.runtime import has_bfloat16, peak_bytes
from wholegpt.settings import presets
from wholegpt.settings.choices import Dtype, WeightFormat
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer, gpt2_tokenizer

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
PROMPT, GENERATED, LONG = 64, 128, 512
BATCH = 32
FORMATS = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 32}
"""Bytes per weight, including scales."""
PEERS = {"float32": "F16", "bfloat16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
"""The corresponding formats of llama.cpp."""
HALF = has_bfloat16(CPU)
THEIRS = "transformers " + ("bfloat16" if HALF else "float32")
COMPILED = ", compiled"
WITHOUT = "" if HALF else ", without bfloat16"
TITLES = {"decoding": f"Generation, one sequence{WITHOUT}", "batches": f"Generation, batches{WITHOUT}"}
Side = Callable[[], float]


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Return the values of each side, measured in turn in every round after one warm-up."""
    for side in sides.values():
        side()
    return {
        name: list(values)
        for name, values in zip(
            sides,
            zip(*([side() for side in sides.values()] for _ in range(rounds)), strict=True),
            strict=True,
        )
    }


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Return the ratio of ours to theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], "{:.2f}")


def median_ratio(ours: list[float], theirs: list[float]) -> str:
    """Return the median ratio of ours to theirs with its 95% interval (a bootstrap over the rounds)."""
    found = np.array(ours) / np.array(theirs)
    median = bootstrap(len(found), lambda rows: float(np.median(found[rows])))
    return f"{median.value:.3f} ({median.low:.3f} to {median.high:.3f})"


def memory_bandwidth() -> float:
    """Return the speed of reading memory in GB/s, by the sum of a gigabyte."""
    numbers = torch.ones(2**28)
    return numbers.nbytes / 1e9 / min(seconds(numbers.sum) for _ in range(3))


def random_ids(n: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(50_000) for _ in range(n)]


def greedy(n: int) -> GenerationConfig:
    return GenerationConfig(max_tokens=n, min_tokens=n, temperature=0)


def generate(
    model: TokenModel,
    tokenizer: Tokenizer,
    requests: list[tuple[list[int], GenerationConfig]],
    slots: int,
    every: int = 0,
    lookup: bool = False,
) -> float:
    """Return the tokens per second of all requests. They arrive one per ``every`` steps, or (0) all at once."""
    capacity = max(len(prompt) + config.max_tokens for prompt, config in requests)
    engine = Engine(model, tokenizer, CPU, slots, capacity)
    waiting = list(reversed(requests))
    started, step = time.perf_counter(), 0
    while waiting or engine.busy:
        while waiting and (not every or step % every == 0):
            prompt, config = waiting.pop()
            engine.submit(prompt, config, drafter=PromptLookup() if lookup else None)
            if every:
                break
        engine.step()
        step += 1
    return sum(config.max_tokens for _, config in requests) / (time.perf_counter() - started)


def prefill_rate(model: TokenModel, tokenizer: Tokenizer) -> float:
    """Return the tokens per second of prefilling a long prompt, including the first generated token."""
    prompt = random_ids(LONG, 1)
    return LONG / seconds(lambda: generate(model, tokenizer, [(prompt, greedy(1))], 1))


def theirs_generate(model: Any, prompts: list[list[int]], n: int) -> float:
    """Return the tokens per second of transformers. Shorter prompts are padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
    seen = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
    return len(prompts) * n / seconds(lambda: model.generate(ids, attention_mask=seen, **settings))


def llama_sides(folder: Path, exported: Path) -> dict[str, tuple[Side, Side]]:
    """Return decode and prefill of llama.cpp in three formats, fed with tokens without sampling."""
    import ctypes

    llama_cpp: Any = importlib.import_module("llama_cpp")

    files: dict[str, Path] = {}
    for name in ("f16", "q8_0", "f32"):
        files[name] = export_model(exported, "gguf", folder / name, tensor_type=name, console=QUIET).path
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.pure = True
    files["q4_0"] = folder / "q4_0.gguf"
    source = next(files.pop("f32").glob("*.gguf"))
    llama_cpp.llama_model_quantize(
        str(source).encode(), str(files["q4_0"]).encode(), ctypes.byref(parameters)
    )
    sides: dict[str, tuple[Side, Side]] = {}
    for name, path in files.items():
        file = path if path.is_file() else next(path.glob("*.gguf"))
        threads = torch.get_num_threads()
        model: Any = llama_cpp.Llama(
            str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
        )

        def decode(model: Any = model) -> float:
            model.reset()

            def work() -> None:
                model.eval(random_ids(PROMPT, 1))
                for token_id in random_ids(GENERATED - 1, 2):
                    model.eval([token_id])

            return GENERATED / seconds(work)

        def prefill(model: Any = model) -> float:
            model.reset()
            return LONG / seconds(lambda: model.eval(random_ids(LONG, 1)))

        sides[name] = decode, prefill
    return sides


def decoding(
    models: dict[str, TokenModel], theirs: Any, tokenizer: Tokenizer, llama: bool, rounds: int
) -> None:
    """Publish the table of decode and prefill of one sequence."""
    prompt = random_ids(PROMPT, 1)
    decode: dict[str, Side] = {
        name: lambda model=model: generate(model, tokenizer, [(prompt, greedy(GENERATED))], 1)
        for name, model in models.items()
    }
    prefill: dict[str, Side] = {
        name: lambda model=model: prefill_rate(model, tokenizer)
        for name, model in models.items()
        if not name.endswith(COMPILED)
    }
    decode["memory"] = memory_bandwidth
    decode[THEIRS] = lambda: theirs_generate(theirs, [prompt], GENERATED)
    with tempfile.TemporaryDirectory() as folder:
        if llama:
            exported = Path(folder) / "gpt2"
            exported.mkdir()
            save_model(exported, Transformer(presets.preset("gpt2-small")), tokenizer)
            for name, (decode_side, prefill_side) in llama_sides(Path(folder), exported).items():
                decode[f"llama.cpp {name.upper()}"] = decode_side
                prefill[f"llama.cpp {name.upper()}"] = prefill_side
        decode_rates, prefill_rates = alternating(decode, rounds), alternating(prefill, rounds)
    bandwidth = decode_rates.pop("memory")
    weights = sum(
        p.numel()
        for name, p in Transformer(presets.preset("gpt2-small")).named_parameters()
        if p.ndim == 2 and "position" not in name
    )
    rows: list[str] = []
    for name, values in decode_rates.items():
        to_theirs = ratio(values, decode_rates[THEIRS])
        form = name.removesuffix(COMPILED)
        peer = f"llama.cpp {PEERS.get(form)}"
        to_llama = ratio(values, decode_rates[peer]) if peer in decode_rates else "–"
        share = "–"
        if form in FORMATS:
            needed = weights * FORMATS[form] / 1e9
            share = spread(
                [rate * needed / read for rate, read in zip(values, bandwidth, strict=True)], "{:.0%}"
            )
        prefill_speed = spread(prefill_rates[name], "{:,.0f}") if name in prefill_rates else "–"
        prefill_ratio = (
            ratio(prefill_rates[name], prefill_rates["llama.cpp F16"])
            if name in prefill_rates and "llama.cpp F16" in prefill_rates
            else "–"
        )
        rows.append(
            f"| {name} | {spread(values, '{:.0f}')} | {to_theirs} | {to_llama} | {share} "
            f"| {prefill_speed} | {prefill_ratio} |"
        )
    processor = "" if HALF else ", on a processor without bfloat16"
    publish(
        TITLES["decoding"],
        "\n".join(
            [
                f"{conditions(rounds)} GPT-2 124 M with random weights{processor}.",
                "",
                f"- **Decode:** a prompt of {PROMPT} tokens and {GENERATED} greedy tokens. **Prefill:** {LONG} tokens.",
                "- **Ratios to llama.cpp** are to the corresponding format (Q8_0, Q4_0; F16 for the other rows), those "
                "of prefill always to F16. llama.cpp decodes a given sequence, without sampling.",
                "- **Memory limit:** the speed if each token only read all weights once, at "
                f"{spread(bandwidth, '{:.0f}')} GB/s, measured in the same rounds.",
                "",
                "| Weights | Decode, tokens/s | Ratio to transformers | Ratio to llama.cpp | Share of the memory limit "
                "| Prefill, tokens/s | Prefill ratio to llama.cpp |",
                "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
                *rows,
            ]
        ),
    )


def batches(models: dict[str, TokenModel], theirs: Any, tokenizer: Tokenizer, rounds: int) -> None:
    """Publish the table of a batch of equal requests, and of mixed requests that arrive over time."""
    prompts = [random_ids(PROMPT, seed) for seed in range(BATCH)]
    equal = [(prompt, greedy(GENERATED)) for prompt in prompts]
    sides: dict[str, Side] = {
        name: lambda model=model: generate(model, tokenizer, equal, BATCH) for name, model in models.items()
    }
    sides[THEIRS] = lambda: theirs_generate(theirs, prompts, GENERATED)
    batch = alternating(sides, rounds)
    generator = random.Random(0)
    mixed = [
        (random_ids(generator.randrange(16, 129), seed), greedy(generator.randrange(32, 193)))
        for seed in range(64)
    ]
    wanted = sum(config.max_tokens for _, config in mixed)

    def theirs_mixed() -> float:
        started = time.perf_counter()
        for first in range(0, len(mixed), BATCH):
            some = mixed[first : first + BATCH]
            theirs_generate(
                theirs, [prompt for prompt, _ in some], max(config.max_tokens for _, config in some)
            )
        return wanted / (time.perf_counter() - started)

    name, model = next(iter(models.items()))
    over_time = alternating(
        {
            "one engine, a new request every second step": lambda: generate(
                model, tokenizer, mixed, BATCH, every=2
            ),
            "one after another": lambda: generate(model, tokenizer, mixed, 1),
            "transformers, two batches": theirs_mixed,
        },
        max(1, rounds // 2),
    )
    together = next(iter(over_time.values()))
    capacity = max(len(prompt) + config.max_tokens for prompt, config in mixed)
    before = peak_bytes(CPU)
    generate(model, tokenizer, mixed, BATCH, every=2)
    planned, grown = model.cache_bytes(BATCH, capacity) / 1e6, (peak_bytes(CPU) - before) / 1e6
    publish(
        TITLES["batches"],
        "\n".join(
            [
                f"{conditions(rounds)} GPT-2 124 M with random weights. A batch of {BATCH} sequences with {PROMPT} "
                f"prompt tokens and {GENERATED} generated tokens each:",
                "",
                "| Weights | Tokens/s | Ratio to transformers |",
                "| --- | ---: | ---: |",
                *(
                    f"| {name} | {spread(values, '{:.0f}')} | {ratio(values, batch[THEIRS])} |"
                    for name, values in batch.items()
                ),
                "",
                f"64 requests in {name}, {max(1, rounds // 2)} rounds: prompts of 16 to 128 tokens, and 32 to 192 "
                f"tokens to generate ({wanted:,} in all). transformers generates two batches of {BATCH}, each up to "
                f"its longest request. Only the requested tokens count. The KV cache was planned at {planned:.0f} MB. "
                f"Generating the requests again in the same process increased its peak memory by {grown:.0f} MB.",
                "",
                "| 64 requests | Tokens/s | Speed of the engine relative to this row |",
                "| --- | ---: | ---: |",
                *(
                    f"| {name} | {spread(values, '{:.0f}')} | {ratio(together, values)} |"
                    for name, values in over_time.items()
                ),
            ]
        ),
    )


def speculative(model: Transformer, weights: str, tokenizer: Tokenizer, rounds: int) -> None:
    """Publish the table of prompt lookup on text that repeats itself, never does, or only seems to."""
    block = random_ids(60, 5)
    cases = {
        "greedy; the text repeats itself": ([(random_ids(PROMPT, 3), greedy(GENERATED))]),
        "sampled at temperature 1; nothing is repeated": (
            [(random_ids(PROMPT, 3), GenerationConfig(GENERATED, 1.0, min_tokens=GENERATED))]
        ),
        "sampled from only two tokens; 3-grams recur with other continuations, so drafts are usually wrong": (
            [(block * 3, GenerationConfig(GENERATED, 1.0, top_k=2, min_tokens=GENERATED))]
        ),
    }
    rows: list[str] = []
    for name, requests in cases.items():
        found = alternating(
            {
                "with": lambda requests=requests: generate(model, tokenizer, requests, 1, lookup=True),
                "without": lambda requests=requests: generate(model, tokenizer, requests, 1),
            },
            rounds,
        )
        rows.append(
            f"| {name} | {spread(found['with'], '{:.0f}')} | {median_ratio(found['with'], found['without'])} |"
        )
    publish(
        f"Speculative decoding, {weights}",
        "\n".join(
            [
                f"{conditions(rounds)} `draft=prompt` (prompt lookup) on GPT-2 124 M in {weights} with random weights, "
                f"{GENERATED} tokens. The ratio is to decoding without draft tokens, with the 95% interval of its "
                "median.",
                "",
                "| Text | Tokens/s | Ratio |",
                "| --- | ---: | ---: |",
                *rows,
            ]
        ),
    )


def constrained(model: Transformer, weights: str, tokenizer: Tokenizer, rounds: int) -> None:
    """Publish the table of the cost of constrained decoding."""
    schema = (
        '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 400}, "tags": {"type": "array", '
        '"items": {"enum": ["a", "b"]}, "maxItems": 50}}, "required": ["name", "tags"], "additionalProperties": false}'
    )
    prompt = random_ids(PROMPT, 1)
    free = GenerationConfig(GENERATED, 1.0)
    held = {
        "`[a-z ]{500,600}`": GenerationConfig(GENERATED, 1.0, regex="[a-z ]{500,600}"),
        "JSON schema with an object, strings and lists": GenerationConfig(GENERATED, 1.0, json_schema=schema),
    }

    def per_token(config: GenerationConfig) -> float:
        engine = Engine(model, tokenizer, CPU, 1, PROMPT + GENERATED)
        request = engine.submit(prompt, config)
        engine.step()
        taken = seconds(engine.run)
        return taken / max(1, len(request.token_ids) - 1) * 1e3

    found = alternating(
        {"none": lambda: per_token(free)}
        | {name: lambda c=config: per_token(c) for name, config in held.items()},
        rounds,
    )
    publish(
        "Constrained decoding",
        "\n".join(
            [
                f"{conditions(rounds)} GPT-2 124 M in {weights} with random weights, temperature 1, after the first "
                "token.",
                "",
                "| Constraint | ms per token | Time relative to no constraint |",
                "| --- | ---: | ---: |",
                *(
                    f"| {name} | {spread(values, '{:.2f}')} | {ratio(values, found['none'])} |"
                    for name, values in found.items()
                ),
            ]
        ),
    )


def quality(run: Path) -> None:
    """Publish the table of the perplexity of quantized weights on the validation text of a run."""
    held_out, rows, exact = run_data(run).validation, list[str](), 0.0
    for name in ("float32", *FORMATS):
        lm = load(run, weights=name)
        score = lm.evaluate_tokens(held_out, 0, Dtype.float32, QUIET)
        exact = exact or score.perplexity
        change = score.perplexity / exact - 1
        rows.append(f"| {name} | {score.nats_per_token:.4f} | {score.perplexity:.3f} | {change:+.2%} |")
    config = load(run).model.config
    publish(
        "Quantized weights",
        "\n".join(
            [
                f"A trained model of {config.n_layers} layers and width {config.d_model}, on the {len(held_out):,} "
                "tokens held out from its training.",
                "",
                "| Weights | Nats per token | Perplexity | Change of perplexity |",
                "| --- | ---: | ---: | ---: |",
                *rows,
            ]
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama", action="store_true", help="compare with llama.cpp (llama-cpp-python)")
    parser.add_argument("--only", default="", help="decoding, batches, speculative or constrained")
    parser.add_argument(
        "--weights", default="bfloat16", help="speculative decoding: float32, bfloat16, int8 or int4"
    )
    parser.add_argument("--run", type=Path, help="only measure the quality of quantized weights on this run")
    arguments = parser.parse_args()
    if arguments.run:
        quality(arguments.run)
        return
    import transformers

    tokenizer = gpt2_tokenizer(Path(os.environ["WHOLEGPT_DATA"]) / "gpt2")
    torch.manual_seed(0)
    exact = Transformer(presets.preset("gpt2-small"))
    numbers = torch.bfloat16 if HALF else torch.float32
    names = [name for name in FORMATS if name != ("float32" if HALF else "bfloat16")]
    models = {name: quantize_weights(copy.deepcopy(exact), WeightFormat(name), numbers) for name in names}
    both: dict[str, TokenModel] = {
        **models,
        **{f"{name}{COMPILED}": CompiledTransformer(model, QUIET) for name, model in models.items()},
    }
    theirs: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    theirs = theirs.to(numbers)
    chosen, rounds = arguments.only, arguments.rounds
    if chosen in ("", "decoding"):
        decoding(both, theirs, tokenizer, arguments.llama, rounds)
    if chosen in ("", "batches"):
        batches(both, theirs, tokenizer, rounds)
    if chosen in ("", "speculative"):
        speculative({**models, "float32": exact}[arguments.weights], arguments.weights, tokenizer, rounds)
    if chosen in ("", "constrained"):
        constrained(models[names[0]], names[0], tokenizer, rounds)


if __name__ == "__main__":
    main()
