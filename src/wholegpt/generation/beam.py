"""Beam search: the most likely whole texts, instead of the most likely next token at each step.

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
from wholegpt.generation.processors import INVALID_LOGITS, are_valid_logits
from wholegpt.generation.results import Hypothesis, InterruptedGeneration
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
    """Return the ``beams`` best completions found, sorted by score, best first (Sutskever et al. 2014; Wu et
    al. 2016).

    Of all B·V continuations, each step keeps the B most likely ones that do not end; of the B most likely
    ones, those that end become hypotheses. The search stops when no running beam can reach the worst of B
    hypotheses. It is deterministic: temperature, top-k, top-p, min-p and seed have no effect. Raises
    ``ConfigError`` for settings that have no effect and for texts that exceed the model's context,
    ``NumericsError`` for NaN or infinite logits, ``InterruptedGeneration`` on Ctrl-C.
    """
    _check(model, prompt_ids, config, beams, length_penalty)
    if not config.max_tokens:
        return [Hypothesis("", [], 0.0, 0.0, "length")]
    capacity = len(prompt_ids) + config.max_tokens
    check_memory(model, beams, capacity, device)
    samplers = [Sampler(config, tokenizer, prompt_ids) for _ in range(beams)]
    cache = model.new_cache(beams, capacity)
    if len(prompt_ids) > 1:
        model.prefill(torch.tensor([prompt_ids[:-1]], device=device), cache.rows(0, 1))
    running, last_ids = [_Beam([], 0.0)], [prompt_ids[-1]]
    ended: list[Hypothesis] = []

    def text_of(beam: _Beam) -> tuple[str, bool]:
        ids, least = beam.token_ids, config.min_tokens
        while least < len(ids) and samplers[0].has_outstanding(ids[:least]):
            least += 1
        return text_before_stop(tokenizer, ids, prompt_ids[-1], config.stop, least)

    def finish(beam: _Beam, n_tokens: int, reason: str) -> None:
        score = beam.log_probability / n_tokens**length_penalty
        text, _ = text_of(beam)
        ended.append(Hypothesis(text, beam.token_ids, beam.log_probability, score, reason))
        ended.sort(key=lambda one: -one.score)
        del ended[beams:]

    try:
        for n_tokens in console.track("searching", range(1, config.max_tokens + 1)):
            rows = cache.rows(0, len(running))
            logits = model(torch.tensor(last_ids, device=device)[:, None], rows)[:, -1].cpu()
            if not are_valid_logits(logits).all():
                cache.clear()  # its memory may be reused for the next text
                raise NumericsError(INVALID_LOGITS)
            chosen: list[tuple[int, _Beam]] = []
            for rank, (row, token_id, log_probability) in enumerate(
                _best(running, logits, samplers, 2 * beams)
            ):
                if samplers[row].ends(token_id):
                    if rank < beams:
                        finish(_Beam(running[row].token_ids, log_probability), n_tokens, "end_of_text")
                    continue
                beam = _Beam([*running[row].token_ids, token_id], log_probability)
                stopped = bool(config.stop) and text_of(beam)[1]
                if stopped or samplers[row].complete(beam.token_ids):
                    finish(beam, n_tokens, "stop")
                elif len(chosen) < beams:
                    chosen.append((row, beam))
            running = [beam for _, beam in chosen]
            # A log-probability is at most 0, so a running beam scores at best its present sum over one of
            # these lengths.
            lengths = (n_tokens + 1, config.max_tokens)
            attainable = [beam.log_probability / n**length_penalty for beam in running for n in lengths]
            if not running or (len(ended) == beams and max(attainable) <= ended[-1].score):
                break
            cache.reorder([row for row, _ in chosen])
            last_ids = [beam.token_ids[-1] for beam in running]
        else:
            for beam in running:
                finish(beam, config.max_tokens, "length")
    except KeyboardInterrupt:
        for beam in running:
            if beam.token_ids:
                finish(beam, len(beam.token_ids), "interrupted")
        raise InterruptedGeneration(ended) from None
    return ended


@dataclass(frozen=True)
class _Beam:
    token_ids: list[int]
    log_probability: float


def _best(
    running: list[_Beam], logits: Float[Tensor, "B V"], samplers: list[Sampler], most: int
) -> list[tuple[int, int, float]]:
    """Return the most likely continuations of all beams: row, token and log-probability of the whole."""
    precise = at_least_float32(logits)
    rows: list[Tensor] = []
    for beam, sampler, row in zip(running, samplers, precise, strict=False):
        try:
            restricted = sampler.restrict(row, beam.token_ids)
        except NothingLeftError:
            if len(running) == 1:
                raise
            rows.append(torch.full_like(row, float("-inf")))  # other beams may continue
            continue
        rows.append(beam.log_probability + torch.log_softmax(restricted, dim=-1))
    sums = torch.stack(rows).flatten()
    best = sums.topk(min(most, len(sums)))
    return [
        (int(index) // logits.shape[1], int(index) % logits.shape[1], float(total))
        for total, index in zip(best.values, best.indices, strict=True)
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
        without_effect = (getattr(GenerationConfig, name), 0)  # temperature 0 has no effect either
        if getattr(config, name) not in without_effect:
            raise ConfigError(f"{name} has no effect in beam search; leave it out")
    needed = len(prompt_ids) + config.max_tokens
    if needed > model.context_length:
        raise ConfigError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {config.max_tokens}; beam search needs room "
            f"for both in the {model.context_length} that the model sees"
        )
