"""Records of the machine."""

import os
import platform
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """Return what the last bits of a result can depend on: versions, processor, cores."""
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
