"""Memory limits for the KV caches of generation."""

import torch

from wholegpt.console import Console
from wholegpt.errors import ConfigError
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.runtime import free_memory

MOST_AT_ONCE = 128
"""Most texts of one call that are generated at once (docs/decisions.md)."""
SHARE_OF_MEMORY = 0.5
"""Largest share of the free memory that the cache may take."""


def check_memory(model: CausalLanguageModel, beams: int, capacity: int, device: torch.device) -> None:
    """Raise ``ConfigError`` if memory does not suffice for ``beams`` beams, which are copied when they are
    reordered.
    """
    needed, available = 2 * model.cache_bytes(beams, capacity), SHARE_OF_MEMORY * free_memory(device)
    if needed > available:
        raise ConfigError(
            f"{beams:,} beams of {capacity:,} tokens take {needed / 1e6:,.0f} MB of cache, and "
            f"{available / 1e6:,.0f} MB are available; try fewer beams or a smaller max_tokens"
        )


def plan_slots(
    model: CausalLanguageModel,
    n_texts: int,
    capacity: int,
    device: torch.device,
    console: Console,
    draft: CausalLanguageModel | None = None,
) -> int:
    """Return how many texts of up to ``capacity`` tokens are generated at once; the others wait.

    Each text also has a cache of the ``draft`` model. Notes on the console if memory is the limit. Raises
    ``ConfigError`` if memory does not suffice for one text.
    """

    def cache_bytes(n: int) -> int:
        drafts = n * draft.cache_bytes(1, min(capacity, draft.context_length)) if draft else 0
        return model.cache_bytes(n, capacity) + drafts

    wanted = max(1, n_texts)
    available = SHARE_OF_MEMORY * free_memory(device)
    fitting = next((n for n in range(wanted, 0, -1) if cache_bytes(n) <= available), 0)
    if not fitting:
        raise ConfigError(
            f"the cache of one text of {capacity:,} tokens takes {cache_bytes(1) / 1e6:,.0f} MB, and "
            f"{available / 1e6:,.0f} MB are available; try a shorter prompt or a smaller max_tokens"
        )
    if fitting < wanted:
        console.note(
            f"memory for {fitting} of {n_texts} texts at once "
            f"({cache_bytes(fitting) / 1e6:,.0f} MB); the others wait"
        )
    return fitting
