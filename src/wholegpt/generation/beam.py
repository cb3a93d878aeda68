"""Beam search: the likeliest whole texts, instead of the likeliest next token each time.

Shapes: B beams, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.console import Console
from wholegpt.errors import ConfigError, NumericsError
from wholegpt.generation.engine import check_prompt
from wholegpt.generation.memory import check_memory
from wholegpt.generation.processors import NO_NUMBERS, have_numbers
from wholegpt.generation.results import Hypothesis, InterruptedWriting
from wholegpt.generation.sampling import NothingLeftError, Sampler
from wholegpt.generation.stopping import text_before_stop
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.runtime import at_least_float32
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import MOST_BEAMS
from wholegpt.tokenizers import Tokenizer

MOST_LENGTH_PENALTY = 10


@torch.inference_mode()
def beam_search(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    beams: int,
    length_penalty: float,
    device: torch.device,
    console: Console,
) -> list[Hypothesis]:
    """The ``beams`` best continuations found, by score, the best first (Sutskever et al. 2014; Wu et al. 2016).

    Of all B·V continuations, each step keeps the B likeliest that go on, and of the B likeliest those that end. It
    stops when what goes on can no longer reach the worst of B texts that have ended. Nothing is drawn: temperature,
    top-k, top-p, min-p and seed have no part in it. Raises ``ConfigError`` for settings that make no sense, and for
    texts that do not fit the model's context, ``NumericsError`` where the model gives no numbers,
    ``InterruptedWriting`` on Ctrl-C.
    """
    _check(model, prompt_ids, config, beams, length_penalty)
    if not config.max_tokens:
        return [Hypothesis("", [], 0.0, 0.0, "length")]
    capacity = len(prompt_ids) + config.max_tokens
    check_memory(model, beams, capacity, device)
    samplers = [Sampler(config, tokenizer, prompt_ids) for _ in range(beams)]
    cache = model.new_cache(beams, capacity)
    if len(prompt_ids) > 1:
        model.read(torch.tensor([prompt_ids[:-1]], device=device), cache.rows(0, 1))
    running, unread = [_Beam([], 0.0)], [prompt_ids[-1]]
    ended: list[Hypothesis] = []

    def text_of(beam: _Beam) -> tuple[str, bool]:
        ids, least = beam.token_ids, config.min_tokens
        while least < len(ids) and samplers[0].owes(ids[:least]):
            least += 1
        return text_before_stop(tokenizer, ids, prompt_ids[-1], config.stop, least)

    def finish(beam: _Beam, n_tokens: int, reason: str) -> None:
        score = beam.log_probability / n_tokens**length_penalty
        text, _ = text_of(beam)
        ended.append(Hypothesis(text, beam.token_ids, beam.log_probability, score, reason))
        ended.sort(key=lambda one: -one.score)
        del ended[beams:]

    try:
        for written in console.track("searching", range(1, config.max_tokens + 1)):
            rows = cache.rows(0, len(running))
            logits = model(torch.tensor(unread, device=device)[:, None], rows)[:, -1].cpu()
            if not have_numbers(logits).all():
                cache.clear()  # its memory may serve the next text
                raise NumericsError(NO_NUMBERS)
            chosen: list[tuple[int, _Beam]] = []
            for rank, (row, token_id, log_probability) in enumerate(
                _best(running, logits, samplers, 2 * beams)
            ):
                if samplers[row].ends(token_id):
                    if rank < beams:
                        finish(_Beam(running[row].token_ids, log_probability), written, "end_of_text")
                    continue
                beam = _Beam([*running[row].token_ids, token_id], log_probability)
                stopped = bool(config.stop) and text_of(beam)[1]
                if stopped or samplers[row].complete(beam.token_ids):
                    finish(beam, written, "stop")
                elif len(chosen) < beams:
                    chosen.append((row, beam))
            running = [beam for _, beam in chosen]
            # What is added is never positive, so a text that goes on ends at its present sum over some length at best.
            lengths = (written + 1, config.max_tokens)
            attainable = [beam.log_probability / n**length_penalty for beam in running for n in lengths]
            if not running or (len(ended) == beams and max(attainable) <= ended[-1].score):
                break
            cache.reorder([row for row, _ in chosen])
            unread = [beam.token_ids[-1] for beam in running]
        else:
            for beam in running:
                finish(beam, config.max_tokens, "length")
    except KeyboardInterrupt:
        for beam in running:
            if beam.token_ids:
                finish(beam, len(beam.token_ids), "interrupted")
        raise InterruptedWriting(ended) from None
    return ended


@dataclass(frozen=True)
class _Beam:
    token_ids: list[int]
    log_probability: float


def _best(
    running: list[_Beam], logits: Float[Tensor, "B V"], samplers: list[Sampler], most: int
) -> list[tuple[int, int, float]]:
    """The likeliest continuations of all beams: row, token and the log-probability of the whole."""
    precise = at_least_float32(logits)
    rows: list[Tensor] = []
    for beam, sampler, row in zip(running, samplers, precise, strict=False):
        try:
            restricted = sampler.restrict(row, beam.token_ids)
        except NothingLeftError:
            if len(running) == 1:
                raise
            rows.append(torch.full_like(row, float("-inf")))  # others may go on
            continue
        rows.append(beam.log_probability + torch.log_softmax(restricted, dim=-1))
    sums = torch.stack(rows).flatten()
    best = sums.topk(min(most, len(sums)))
    return [
        (int(place) // logits.shape[1], int(place) % logits.shape[1], float(total))
        for total, place in zip(best.values, best.indices, strict=True)
        if total > float("-inf")
    ]


def _check(
    model: CausalLanguageModel,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    beams: int,
    length_penalty: float,
) -> None:
    check_prompt(prompt_ids, model.vocab_size)
    if not 1 <= beams <= MOST_BEAMS:
        raise ConfigError(f"beams is {beams}; expected 1 to {MOST_BEAMS}")
    if not abs(length_penalty) <= MOST_LENGTH_PENALTY:
        raise ConfigError(
            f"length_penalty is {length_penalty}; expected -{MOST_LENGTH_PENALTY} to {MOST_LENGTH_PENALTY}"
        )
    for name in ("temperature", "top_k", "top_p", "min_p", "max_seconds", "alternatives"):
        without_effect = (getattr(GenerationConfig, name), 0)  # at temperature 0 nothing is drawn either
        if getattr(config, name) not in without_effect:
            raise ConfigError(f"{name} means nothing for beam search; leave it out")
    needed = len(prompt_ids) + config.max_tokens
    if needed > model.context_length:
        raise ConfigError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {config.max_tokens}; beam search needs room "
            f"for both in the {model.context_length} that the model sees"
        )
