"""Memory: free memory, the memory of this process, and the reuse of freed memory."""

import contextlib
import ctypes
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import torch


def free_memory(device: torch.device) -> float:
    """Return the free bytes of ``device``; infinity if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    information = Path("/proc/meminfo")
    if not information.exists():
        return math.inf
    available = next(x for x in information.read_text().splitlines() if x.startswith("MemAvailable"))
    return min(1024 * int(available.split()[1]), _container_memory(Path("/sys/fs/cgroup")))


def _container_memory(folder: Path) -> float:
    """Return the bytes left under a container's limit (control groups, version 2 or 1); infinity without one.

    Cached files, which the system can drop, count as free.
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
    """Return the bytes that this process uses on ``device``, without freed ones."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return_freed_memory()
    return _process_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Return the peak of the bytes that this process has used on ``device``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_bytes("VmHWM")


def _process_bytes(name: str) -> int:
    """Return a figure of this process from Linux; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation; do nothing with other C libraries.

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
    """Return freed memory that ``keep_freed_memory`` kept to the system; the first write to new memory takes longer."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def memory_apart() -> Iterator[None]:
    """Return freed memory to the system before and after the block, so that the peaks of phases do not add up.

    Pieces of other sizes than those just freed seldom fit into them, so that the peak of a run would be
    nearer to the sum of its phases than to the largest, and differ from run to run.
    """
    return_freed_memory()
    try:
        yield
    finally:
        return_freed_memory()
