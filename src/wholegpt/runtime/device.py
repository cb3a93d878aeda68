"""The choice of the device."""

import torch

from wholegpt.errors import ConfigError


def choose_device(name: str = "automatic") -> torch.device:
    """Return the device called ``name``; ``automatic`` is an accelerator if there is one, else the CPU."""
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
    """Return whether this machine has ``device``."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
