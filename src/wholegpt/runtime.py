"""The machine's part of a run: device, number format, threads, seeds. Decided once, passed on.

A decision that could change the last bit of a result is made by ``decide`` before step 1 and
written into the run's config; ``check_available`` says whether a recorded one can be kept here.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholegpt.choices import AttentionKernel, Determinism, Dtype, Execution, WeightFormat
from wholegpt.config import Config, PrecisionConfig, RuntimeConfig
from wholegpt.errors import ConfigError, NumericsError

COMPILER_ERRORS = (RuntimeError, OSError, SystemError)
"""What ``torch.compile`` raises where it fails, for which it has no narrower public name."""


def check_threads(threads: int) -> None:
    """Raise ``ConfigError`` for a negative number of threads, and for more than the machine has cores."""
    if not 0 <= threads <= (os.cpu_count() or 1):
        raise ConfigError(f"runtime.threads is {threads}; this machine has {os.cpu_count()} cores")


def decide(config: Config) -> Config:
    """``config`` with every automatic choice of ``precision`` and ``runtime`` made for this machine.

    Raises ``ConfigError`` or ``NumericsError`` for what this machine lacks.
    """
    check_threads(config.runtime.threads)
    runtime = dataclasses.replace(
        config.runtime,
        device=str(choose_device(config.runtime.device)),
        threads=config.runtime.threads or torch.get_num_threads(),
    )
    precision = decide_precision(config.precision, torch.device(runtime.device))
    return dataclasses.replace(config, runtime=runtime, precision=precision)


def decide_precision(precision: PrecisionConfig, device: torch.device) -> PrecisionConfig:
    """``precision`` without automatic values. Raises ``NumericsError`` for bfloat16 where there is none."""
    dtype, attention = precision.dtype, precision.attention
    if dtype is Dtype.automatic:
        dtype = Dtype.bfloat16 if has_bfloat16(device) else Dtype.float32
    if dtype is Dtype.bfloat16 and not has_bfloat16(device):
        raise NumericsError(f"precision.dtype is bfloat16, which this machine's {device} lacks; try float32")
    if attention is AttentionKernel.automatic:
        # The compiler makes its own blocks of the plain products.
        on_cpu = AttentionKernel.blocked if precision.execution is Execution.eager else AttentionKernel.plain
        attention = on_cpu if device.type == "cpu" else AttentionKernel.fused
    return dataclasses.replace(precision, dtype=dtype, attention=attention)


def decide_weights(weights: WeightFormat, device: torch.device) -> tuple[WeightFormat, torch.dtype]:
    """``weights`` without automatic, and the number format of all else: bfloat16 where ``device`` multiplies in it.

    Raises ``NumericsError`` for bfloat16 weights where it does not.
    """
    fast = has_bfloat16(device)
    if weights is WeightFormat.bfloat16 and not fast:
        raise NumericsError(
            f"weights are bfloat16, in which this machine's {device} does not multiply; try int8"
        )
    if weights is WeightFormat.automatic:
        weights = WeightFormat.bfloat16 if fast else WeightFormat.float32
    laid_out = weights is not WeightFormat.float32
    return weights, torch.bfloat16 if fast and laid_out else torch.float32


def choose_device(name: str = "automatic") -> torch.device:
    """The device called ``name``; ``automatic`` is an accelerator where there is one, else the CPU."""
    if name == "automatic":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runtime.device is '{name}'; expected cpu, cuda, cuda:N or mps") from None
    if not device_available(device):
        raise ConfigError(f"runtime.device is '{name}', which this machine or this PyTorch lacks; try cpu")
    return device


def device_available(device: torch.device) -> bool:
    """Whether tensors can be put on ``device`` here."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def separate_compiled_code() -> None:
    """Keep code that PyTorch compiles for one vector unit apart from that for others (``ATEN_CPU_CAPABILITY``).

    PyTorch's cache finds code by what it computes alone, so that a process would run code made for another unit, which
    gives wrong values or fails.
    """
    settings = torch.compiler.config
    settings.cache_key_tag = settings.cache_key_tag or torch.backends.cpu.get_cpu_capability()


def compiler_problem(device: torch.device) -> str:
    """Why torch.compile fails here, in one line; empty where a small function compiles and runs."""
    separate_compiled_code()
    compiled: Any = torch.compile(lambda x: x.sin() + 1)
    try:
        compiled(torch.zeros(8, device=device))
    except COMPILER_ERRORS as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        return capabilities.startswith("AVX512") and _cpu_flag("avx512_bf16", "amx_bf16")
    return False


def _cpu_flag(*names: str) -> bool:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return False
    flags = next((line for line in information.read_text().splitlines() if line.startswith("flags")), "")
    return any(name in flags.split() for name in names)


def machine() -> dict[str, str | int]:
    """What the last bits of a result can depend on: versions, processor, cores."""
    information = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def check_available(config: Config, recorded_machine: dict[str, str | int]) -> list[str]:
    """What a run recorded that this machine cannot repeat, one sentence each; empty when it can."""
    problems: list[str] = []
    device = torch.device(config.runtime.device)
    if not device_available(device):
        problems.append(f"it ran on {device}, which is not here")
    elif config.precision.dtype is Dtype.bfloat16 and not has_bfloat16(device):
        problems.append("it ran in bfloat16, which this processor lacks")
    elif config.precision.execution is Execution.compiled and (problem := compiler_problem(device)):
        problems.append(f"it ran compiled, and compiling fails here ({problem})")
    if config.runtime.threads > (os.cpu_count() or 1):
        problems.append(
            f"it ran on {config.runtime.threads} threads; this machine has {os.cpu_count()} cores"
        )
    here = machine()
    names = ("processor", "torch", *(("accelerator",) if device.type == "cuda" else ()))
    problems += [
        f"it ran with {name} {recorded_machine[name]}; here it is {here[name]}"
        for name in names
        if name in recorded_machine and recorded_machine[name] != here[name]
    ]
    return problems


def without_unavailable(config: Config) -> Config:
    """``config`` with what this machine lacks made automatic again, and everything else kept."""
    runtime, precision = config.runtime, config.precision
    if not device_available(torch.device(runtime.device)):
        runtime = dataclasses.replace(runtime, device="automatic")
        precision = dataclasses.replace(precision, attention=AttentionKernel.automatic)
    if precision.dtype is Dtype.bfloat16 and not has_bfloat16(choose_device(runtime.device)):
        precision = dataclasses.replace(precision, dtype=Dtype.automatic)
    if precision.execution is Execution.compiled and compiler_problem(choose_device(runtime.device)):
        precision = dataclasses.replace(
            precision, execution=Execution.eager, attention=AttentionKernel.automatic
        )
    if runtime.threads > (os.cpu_count() or 1):
        runtime = dataclasses.replace(runtime, threads=0)
    return dataclasses.replace(config, runtime=runtime, precision=precision)


def apply(runtime: RuntimeConfig) -> torch.device:
    """Set this process's threads, seeds and determinism as decided; returns the device."""
    keep_freed_memory()
    torch.set_num_threads(runtime.threads or torch.get_num_threads())
    seed_everything(runtime.seed)
    if runtime.determinism is Determinism.strict:
        # cuBLAS is only repeatable with a fixed workspace, read when its first handle is made.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(runtime.determinism is Determinism.strict)
    torch.backends.cudnn.benchmark = runtime.determinism is Determinism.fast
    return torch.device(runtime.device)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def overload(threads: int) -> str:
    """A warning if other programs leave fewer idle cores than ``threads``; empty otherwise."""
    if threads == 1:
        return ""
    cores, busy = os.cpu_count() or 1, cores_used_by_others()
    if threads + busy < cores + 0.5:
        return ""
    return (
        f"other programs use {busy:.1f} of {cores} cores, so {threads} threads wait for one another; "
        "try --threads 1, or stop the other programs"
    )


def cores_used_by_others(seconds: float = 0.1) -> float:
    """Cores that other processes keep busy, averaged over ``seconds`` from now; 0 where the system does not tell.

    The whole machine's time that is not idle (``/proc/stat``), less this process's.
    """
    before, own, started = _busy_seconds(), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    others = _busy_seconds() - before - (time.process_time() - own)
    return max(0.0, others / (time.perf_counter() - started))


def _busy_seconds() -> float:
    """CPU time of all processes since the machine started, as Linux tells it; 0 elsewhere."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system = statistics.read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_memory(device: torch.device) -> float:
    """Bytes that ``device`` can still give; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    information = Path("/proc/meminfo")
    if not information.exists():
        return math.inf
    available = next(x for x in information.read_text().splitlines() if x.startswith("MemAvailable"))
    return min(1024 * int(available.split()[1]), _container_memory(Path("/sys/fs/cgroup")))


def _container_memory(folder: Path) -> float:
    """Bytes left under a container's own limit (control groups, version 2 or 1); infinite without one.

    Files that the system keeps in memory and would drop count as free.
    """
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            statistics = (folder / used).with_name("memory.stat").read_text().split()
            dropped = int(statistics[statistics.index(cached) + 1])
            return math.inf if most == "max" else int(most) - int((folder / used).read_text()) + dropped
        except (OSError, ValueError):
            continue
    return math.inf


def resident_bytes(device: torch.device) -> int:
    """Bytes that this process holds on ``device`` now, what it freed not counted."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return_freed_memory()
    return _process_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most bytes that this process has held on ``device`` so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_bytes("VmHWM")


def _process_bytes(name: str) -> int:
    """A figure of this process as Linux tells it; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation, where it is the C library.

    By default each tensor above 32 MB is new memory from the kernel, page by page: writing to it takes
    ten times as long.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(top_pad, 64 * 2**20)


def return_freed_memory() -> None:
    """Give the system what ``keep_freed_memory`` has kept; writing to it again takes longer the first time."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def memory_apart() -> Iterator[None]:
    """A block whose memory does not come on top of what was freed before it, nor later memory on top of its own.

    Pieces of other sizes than those just freed seldom fit into them, so that the peak of a run would be
    nearer to the sum of its phases than to the largest, and differ from run to run.
    """
    return_freed_memory()
    try:
        yield
    finally:
        return_freed_memory()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, and PyTorch on CPU and accelerators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def command_line() -> list[str]:
    """The words that started this process, the program by its name alone."""
    program = Path(sys.argv[0]).name
    return ["wholegpt" if program == "__main__.py" else program, *sys.argv[1:]]


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, so that (seed, step) needs no stored random state."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def compute_in(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """A block whose large products run in ``dtype``. Raises ``NumericsError`` for an undecided one."""
    products = torch_dtype(dtype)
    with torch.autocast(device.type, products, enabled=products is not torch.float32):
        yield


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """PyTorch's name of a number format. Raises ``NumericsError`` for an undecided one."""
    if dtype is Dtype.automatic:
        raise NumericsError("precision.dtype is automatic; decide it first with runtime.decide")
    return {Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16, Dtype.float32: torch.float32}[dtype]


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in 32 bits where it has fewer: what is summed or compared is lifted before."""
    return x.float() if x.dtype.itemsize < 4 else x


def compute_dtype(x: Tensor) -> torch.dtype:
    """The number format of the large products on ``x``: that of ``compute_in`` inside it, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
