"""The machine of a run: device, precision, threads, memory, seeds, processes. Resolved once and passed on."""

from wholegpt.runtime.compilation import COMPILER_ERRORS, compiler_problem, separate_compiled_code
from wholegpt.runtime.decisions import apply, check_available, decide, without_unavailable
from wholegpt.runtime.device import choose_device, device_available, synchronize
from wholegpt.runtime.distributed import Processes, processes
from wholegpt.runtime.memory import (
    free_memory,
    keep_freed_memory,
    memory_apart,
    peak_bytes,
    resident_bytes,
    return_freed_memory,
)
from wholegpt.runtime.precision import (
    at_least_float32,
    compute_dtype,
    compute_in,
    decide_precision,
    decide_weights,
    has_bfloat16,
    torch_dtype,
)
from wholegpt.runtime.provenance import machine
from wholegpt.runtime.seeding import seed_everything
from wholegpt.runtime.threads import check_threads, cores_used_by_others, overload, set_threads
from wholegpt.seeds import mix_seed

__all__ = [
    "COMPILER_ERRORS",
    "Processes",
    "apply",
    "at_least_float32",
    "check_available",
    "check_threads",
    "choose_device",
    "compiler_problem",
    "compute_dtype",
    "compute_in",
    "cores_used_by_others",
    "decide",
    "decide_precision",
    "decide_weights",
    "device_available",
    "free_memory",
    "has_bfloat16",
    "keep_freed_memory",
    "machine",
    "memory_apart",
    "mix_seed",
    "overload",
    "peak_bytes",
    "processes",
    "resident_bytes",
    "return_freed_memory",
    "seed_everything",
    "separate_compiled_code",
    "set_threads",
    "synchronize",
    "torch_dtype",
    "without_unavailable",
]
