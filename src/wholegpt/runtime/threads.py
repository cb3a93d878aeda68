"""CPU threads, and cores that other programs use."""

import os
import time
from pathlib import Path

import torch

from wholegpt.errors import ConfigError

_set: dict[str, int] = {}
"""The number of threads that ``set_threads`` set last (``ours``), and the number before it (``before``)."""


def check_threads(threads: int) -> None:
    """Raise ``ConfigError`` for a negative number of threads, and for more than the machine has cores."""
    if not 0 <= threads <= (os.cpu_count() or 1):
        raise ConfigError(f"runtime.threads is {threads}; this machine has {os.cpu_count()} cores")


def default_threads() -> int:
    """Return PyTorch's number of threads, as it is without ``set_threads``, so that no run inherits that of another."""
    current = torch.get_num_threads()
    return _set["before"] if current == _set.get("ours") else current


def set_threads(threads: int) -> None:
    """Set PyTorch's number of threads, or its default if 0."""
    before = default_threads()
    _set.update(ours=threads or before, before=before)
    torch.set_num_threads(threads or before)


def overload(threads: int, fixed: bool = False) -> str:
    """Return a warning if other programs leave fewer idle cores than ``threads``; empty otherwise.

    Where the number of threads is ``fixed``, the warning does not suggest another one.
    """
    if threads == 1:
        return ""
    cores, busy = os.cpu_count() or 1, cores_used_by_others()
    if threads + busy < cores + 0.5:
        return ""
    return f"other programs use {busy:.1f} of {cores} cores, so {threads} threads wait for one another; " + (
        "stop them, or wait" if fixed else "try --threads 1, or stop the other programs"
    )


def cores_used_by_others(seconds: float = 0.1) -> float:
    """Return the cores that other processes keep busy, averaged over ``seconds``; 0 if the system does not report it.

    This is the busy time of the machine (``/proc/stat``) minus that of this process.
    """
    before, own, started = _busy_seconds(), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    others = _busy_seconds() - before - (time.process_time() - own)
    return max(0.0, others / (time.perf_counter() - started))


def _busy_seconds() -> float:
    """Return the CPU time of all processes since the machine started, from Linux; 0 on other systems."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system = statistics.read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
