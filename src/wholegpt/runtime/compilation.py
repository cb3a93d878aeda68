"""PyTorch's compiler: whether it works here, and its cache."""

from typing import Any

import torch

COMPILER_ERRORS = (RuntimeError, OSError, SystemError)
"""The errors that ``torch.compile`` raises; it has no narrower public class."""


def separate_compiled_code() -> None:
    """Keep code that PyTorch compiles for one vector unit apart from that for others (``ATEN_CPU_CAPABILITY``).

    PyTorch's cache finds code by what it computes alone, so that a process would run code made for another unit, which
    gives wrong values or fails.
    """
    settings = torch.compiler.config
    settings.cache_key_tag = settings.cache_key_tag or torch.backends.cpu.get_cpu_capability()


def compiler_problem(device: torch.device) -> str:
    """Return why torch.compile fails here, in one line; empty if a small function compiles and runs."""
    separate_compiled_code()
    compiled: Any = torch.compile(lambda x: x.sin() + 1)
    try:
        compiled(torch.zeros(8, device=device))
    except COMPILER_ERRORS as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""
