"""Writing text with a model, one token at a time.

A model sees at most τ tokens. When its window is full, it starts anew from the last τ/2 tokens: the
same rule with and without the cache, so both give the same text.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from wholegpt.config import GenerationConfig
from wholegpt.console import Console
from wholegpt.generation.sampling import Sampler
from wholegpt.protocols import CausalLanguageModel
from wholegpt.tokenizers import Tokenizer


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    token_ids: list[int]
    """The tokens drawn, end-of-text left out."""
    finish_reason: str
    """``length``, ``stop`` (a stop text was written), ``end_of_text`` or ``time``."""
    tokens_per_second: float
    """Tokens drawn over wall clock, reading the prompt included."""


def generate_ids(
    model: CausalLanguageModel,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    device: torch.device,
    cached: bool = True,
) -> Iterator[int]:
    """Draw token after token, as many as the sampler's settings allow. A prompt longer than τ keeps its tail.

    ``cached=False`` reads the whole window again for every token: slow, and the cache's oracle.
    """
    written: list[int] = []
    max_tokens = sampler.config.max_tokens
    window = list(prompt_ids)[-model.context_length :]
    capacity = min(model.context_length, len(window) + max_tokens)
    cache = model.new_cache(1, capacity) if cached else None
    unread = window
    while len(written) < max_tokens:
        with torch.inference_mode():  # not across the yield, where it would be the caller's too
            logits = model(torch.tensor([unread], device=device), cache)[0, -1]
            token_id = sampler.draw(logits.cpu(), written)
        written.append(token_id)
        yield token_id
        if len(window) == model.context_length:
            window = window[-(model.context_length // 2) :] if model.context_length > 1 else []
            if cache is not None:
                cache.clear()
            unread = window = [*window, token_id]
            continue
        window.append(token_id)
        unread = [token_id] if cached else window


def generate(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    config: GenerationConfig,
    device: torch.device,
    console: Console,
    emit: Callable[[str], None] = lambda text: None,
) -> Completion:
    """Continue ``prompt``, a text or ids; an empty one starts from end-of-text. ``emit`` gets the text piece by piece.

    What is emitted never holds half a character, nor any part of a stop text. Raises
    ``ConfigError`` for settings out of range, ``TokenizerError`` for a prompt that cannot be encoded.
    """
    prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not prompt_ids:
        console.note("no prompt: starting from end-of-text")
        prompt_ids = [tokenizer.end_of_text_id]
    if len(prompt_ids) > model.context_length:
        console.note(
            f"the prompt has {len(prompt_ids):,} tokens; the model sees the last {model.context_length:,} of them"
        )
    end_of_text_id = tokenizer.end_of_text_id if tokenizer.has_end_of_text else None
    sampler = Sampler(config, tokenizer, prompt_ids)
    started = time.perf_counter()
    drawn: list[int] = []
    finish_reason = "length"

    def until_end_of_text() -> Iterator[int]:
        nonlocal finish_reason
        for token_id in generate_ids(model, prompt_ids, sampler, device):
            if token_id == end_of_text_id:
                finish_reason = "end_of_text"
                return
            drawn.append(token_id)
            yield token_id
            if config.max_seconds and time.perf_counter() - started > config.max_seconds:
                finish_reason = "time"
                return

    written: list[str] = []
    pieces = tokenizer.decode_stream(until_end_of_text(), prompt_ids[-1])
    for piece in before_stop(pieces, config.stop, config.min_tokens):
        if piece is None:
            finish_reason = "stop"
        elif piece:
            written.append(piece)
            emit(piece)
    seconds = time.perf_counter() - started
    return Completion("".join(written), drawn, finish_reason, len(drawn) / seconds)


def before_stop(pieces: Iterator[str], stops: Sequence[str], after: int = 0) -> Iterator[str | None]:
    """``pieces`` up to the first stop text, wherever its borders fall; then ``None`` if one was found.

    Text that may yet turn out to begin a stop text is held back until that is decided. In the first ``after`` pieces
    none is looked for.
    """
    yield from islice(pieces, after)
    held = ""
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            yield None
            return
        keep = max((_overlap(held, stop) for stop in stops), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
