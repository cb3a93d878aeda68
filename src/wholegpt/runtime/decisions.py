"""Decisions that could change the last bit of a result.

``decide`` makes them before step 1, and they are written into the run's config. ``check_available`` says whether
recorded ones can be kept on this machine. ``apply`` sets up this process by them.
"""

import dataclasses
import os

import torch

from wholegpt.runtime.compilation import compiler_problem
from wholegpt.runtime.device import choose_device, device_available
from wholegpt.runtime.memory import keep_freed_memory
from wholegpt.runtime.precision import decide_precision, has_bfloat16
from wholegpt.runtime.provenance import machine
from wholegpt.runtime.seeding import seed_everything
from wholegpt.runtime.threads import check_threads, default_threads, set_threads
from wholegpt.settings.choices import AttentionKernel, Determinism, Dtype, Execution
from wholegpt.settings.schema import Config, RuntimeConfig


def decide(config: Config) -> Config:
    """Return ``config`` with the automatic settings of ``precision`` and ``runtime`` resolved for this machine.

    Raises ``ConfigError`` or ``NumericsError`` for settings that this machine does not support.
    """
    check_threads(config.runtime.threads)
    runtime = dataclasses.replace(
        config.runtime,
        device=str(choose_device(config.runtime.device)),
        threads=config.runtime.threads or default_threads(),
    )
    precision = decide_precision(config.precision, torch.device(runtime.device))
    return dataclasses.replace(config, runtime=runtime, precision=precision)


def check_available(config: Config, recorded_machine: dict[str, str | int]) -> list[str]:
    """Return what this machine cannot repeat of a run's records, one sentence each; empty if it can repeat all."""
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
    """Return ``config`` with the settings that this machine does not support set to automatic."""
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
    """Set the threads, seeds and determinism of this process; return the device."""
    keep_freed_memory()
    set_threads(runtime.threads)
    seed_everything(runtime.seed)
    if runtime.determinism is Determinism.strict:
        # cuBLAS is only repeatable with a fixed workspace, read when its first handle is made.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(runtime.determinism is Determinism.strict)
    torch.backends.cudnn.benchmark = runtime.determinism is Determinism.fast
    return torch.device(runtime.device)
