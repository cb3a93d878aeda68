"""Compiled decoding, in subprocesses without shape checks, which compilation does not support."""

import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import wholegpt as wg
from tests.helpers import generate_one, tiny_models
from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.model import CompiledTransformer, KeyValueCache, Transformer
from wholegpt.runs.load import load
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import character_tokenizer

QUIET = Console(quiet=True)
TOKENIZER = character_tokenizer([string.ascii_lowercase + string.digits + "."])
PROGRAM = """
import dataclasses, sys, torch
from tests.helpers import generate_one, tiny_models
from torch._dynamo.utils import counters
from wholegpt.settings.choices import WeightFormat
from wholegpt.settings.schema import GenerationConfig
from wholegpt.console import Console
from wholegpt.generation import Engine
from wholegpt.runs.load import load
from wholegpt.model import CompiledTransformer, Transformer, quantize_weights
from wholegpt.tokenizers import byte_tokenizer

DEVICE, TOKENIZER = torch.device(sys.argv[1]), byte_tokenizer()
QUIET = Console(quiet=True)

@torch.inference_mode()
def logits(model):
    cache = model.new_cache(1, 64)
    model.prefill(torch.arange(12)[None], cache)
    return torch.cat([model(torch.tensor([[token_id]]), cache) for token_id in range(20)])

torch.manual_seed(0)
config = dataclasses.replace(tiny_models()["modern"], vocab_size=TOKENIZER.vocab_size, d_model=64)
model = Transformer(config).double().eval().to(DEVICE)
engine = Engine(CompiledTransformer(model, QUIET), TOKENIZER, DEVICE, 3, 40)
settings = [GenerationConfig(6 + 5 * i, temperature=i % 2, seed=i) for i in range(5)]
prompts = [list(range(60 + i, 62 + 2 * i)) for i in range(5)]
requests = [engine.submit(*one) for one in zip(prompts, settings)]
engine.run()
alone = [generate_one(model.cpu(), TOKENIZER, *one).token_ids for one in zip(prompts, settings)]
assert [one.token_ids for one in requests] == alone
assert not counters["inductor"]["cudagraph_skips"]
if DEVICE.type == "cpu":
    for seed in range(2):  # the cache of what was compiled holds the first model, of the same shapes
        torch.manual_seed(seed)
        model = quantize_weights(Transformer(config).eval(), WeightFormat.int8, torch.float32)
        eager = logits(model)
        difference = (logits(CompiledTransformer(model, QUIET)) - eager).abs().max() / eager.std()
        print(f"int8: logits differ by {difference:.3f} of their standard deviation at most")
        assert difference < 0.05
    eager, compiled = (load(sys.argv[2], execution=one, console=QUIET) for one in ("eager", "compiled"))
    texts = []
    for one in (eager, compiled):
        one.model.double()  # in 32 bits a draw may fall on the other side of a rounding
        texts.append(one.generate("the", max_tokens=20, console=QUIET).text)
    assert compiled.model.token_embedding.weight.dtype == torch.float64
    assert texts[0] == texts[1]
"""


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__, reason="PyTorch's compiler cannot link where its own path holds a space"
)
def test_compiled_decoding_generates_the_same_tokens(trained_run: Path) -> None:
    """Token for token in float64, and for a run; the largest difference of the logits in 8 bits is printed."""
    print(shown := run_program("cpu", trained_run))
    assert shown.startswith("int8: logits differ by ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_graphs_generate_the_same_tokens(trained_run: Path) -> None:
    assert not run_program("cuda", trained_run)


def run_program(device: str, run: Path) -> str:
    """Run the program without warnings and return its output."""
    command = [sys.executable, "-c", PROGRAM, device, str(run)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0 and not process.stderr, process.stderr
    return process.stdout


def test_decoding_without_a_compiler_is_eager(trained_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wholegpt.cli", "generate", str(trained_run), "the", "--max-tokens", "3"]
    environment = {**os.environ, "CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.run(
        [*command, "--execution", "compiled"], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0 and process.stdout.startswith("the")
    assert (
        "compiling fails here" in process.stderr and "text is generated without compilation" in process.stderr
    )


@pytest.mark.parametrize("kind", [{"attention": "linear", "positions": "none"}, {"n_experts": 2}])
def test_models_without_fixed_shapes_are_rejected(kind: dict[str, object]) -> None:
    config = wg.configure({"model": {"preset": "modern-tiny", "vocab_size": 32, **kind}}).model
    with pytest.raises(ConfigError, match="softmax attention and without experts"):
        CompiledTransformer(Transformer(config), QUIET)


def test_unknown_execution_is_rejected(trained_run: Path) -> None:
    with pytest.raises(ConfigError, match="execution is 'fast'; expected one of eager, compiled"):
        load(trained_run, execution="fast")


def test_cache_capacities_are_rounded_up() -> None:
    config = wg.configure({"model": {"preset": "modern-tiny", "vocab_size": 32}}).model
    model = CompiledTransformer(Transformer(config), QUIET)
    caches = [model.new_cache(2, capacity) for capacity in (1, 200, 256, 0)]
    assert all(isinstance(one, KeyValueCache) and one.capacity == 256 for one in caches)
    assert model.cache_bytes(2, 1) == 2 * caches[0].keys.nbytes


def test_memory_of_freed_caches_is_reused() -> None:
    config = wg.configure({"model": {"preset": "modern-tiny", "vocab_size": 32}}).model
    model = CompiledTransformer(Transformer(config), QUIET)
    first = model.new_cache(2, 10)
    second = model.new_cache(2, 10)
    assert first.keys.data_ptr() != second.keys.data_ptr()
    rows, address = second.rows(0, 1), second.keys.data_ptr()
    second.lengths += 3
    del first, second
    third = model.new_cache(2, 10)
    assert third.keys.data_ptr() != address  # its rows are in use
    address = third.keys.data_ptr()
    del third, rows
    last = model.new_cache(2, 10)
    assert last.keys.data_ptr() == address and not last.lengths.any()
    assert model.new_cache(3, 10).keys.data_ptr() != address


@pytest.mark.parametrize("error", [RuntimeError, OSError, SystemError])
def test_step_that_cannot_be_compiled_runs_eagerly(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(one: object, **_: object) -> Callable[..., object]:
        def call(*inputs: object) -> object:
            raise error("no compiler for this\nand more")

        return call

    torch.manual_seed(0)
    model = Transformer(tiny_models()["gpt2"]).double().eval()
    compiled = CompiledTransformer(model, QUIET, compiler=failing)
    settings = GenerationConfig(8, temperature=0)
    texts = [generate_one(one, TOKENIZER, [1, 2], settings).token_ids for one in (model, compiled)]
    assert texts[0] == texts[1]
    warning = "warning: the step cannot be compiled (no compiler for this); it runs operation by operation"
    assert capsys.readouterr().err.split("\n") == [warning, ""]
