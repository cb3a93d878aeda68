"""Memory: how much is free, how much this process uses, and what becomes of freed memory."""

import contextlib
import ctypes
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import torch


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
