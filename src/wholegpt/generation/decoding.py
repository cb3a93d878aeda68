"""Generate texts with a model, which sees at most τ tokens.

Models with learned positions have no more than τ of them, so a full window restarts with its last τ/2 tokens.
With rotary positions generation continues, and each token sees the last τ.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from wholegpt.console import QUIET, Console
from wholegpt.errors import ConfigError
from wholegpt.generation.engine import Engine, check_can_rewind, restarted_window
from wholegpt.generation.memory import MOST_AT_ONCE, plan_slots
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.results import Completion, InterruptedGeneration
from wholegpt.generation.sampling import Sampler
from wholegpt.generation.speculation import Drafter, DraftModel, PromptLookup
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import MOST_WAITING
from wholegpt.tokenizers import Tokenizer


def generate_ids(
    model: CausalLanguageModel, prompt_ids: Sequence[int], sampler: Sampler, device: torch.device
) -> Iterator[int]:
    """Draw one token after another until the settings end the text, and recompute the whole window for each.

    This is the plain twin of the engine: slow, without a cache. A prompt longer than τ is cut to its end.
    """
    generated: list[int] = []
    window = list(prompt_ids)[-model.context_length :]
    while len(generated) < sampler.config.max_tokens and not sampler.complete(generated):
        with torch.inference_mode():  # not across the yield, where it would also apply to the caller
            logits = model(torch.tensor([window], device=device))[0, -1]
            token_id = sampler.draw(logits.cpu(), generated).token_id
        generated.append(token_id)
        yield token_id
        window.append(token_id)
        if model.ends_at_context and len(window) > model.context_length:
            window = restarted_window(window, model.context_length)


def generate(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    configs: Sequence[GenerationConfig],
    device: torch.device,
    console: Console,
    emit: Callable[[int, str], None] | None = None,
    draft: CausalLanguageModel | str = "",
) -> list[Completion]:
    """Complete ``prompts``, each with its own settings, as many at once as memory allows.

    ``emit`` receives the index of a text and its next piece, which never contains an incomplete character or
    any part of a stop text; without it, progress is shown. ``draft`` enables speculative decoding, which
    changes no text but saves time if the draft tokens are accepted: "prompt" is prompt lookup, a smaller
    model of the same vocabulary is a draft model. Raises ``ConfigError`` for settings that are out of range
    or allow no token at all, ``InterruptedGeneration`` on Ctrl-C.
    """
    if len(prompts) > MOST_WAITING:
        raise ConfigError(f"{len(prompts):,} texts requested at once; expected at most {MOST_WAITING:,}")
    drafting = None if isinstance(draft, str) else draft
    if drafting:
        check_can_rewind(drafting.new_cache(1, 1))
    needed = [
        min(model.context_length, len(prompt_ids) + config.max_tokens)
        for prompt_ids, config in zip(prompts, configs, strict=True)
    ]
    capacity = max(needed, default=1)
    slots = plan_slots(model, min(len(prompts), MOST_AT_ONCE), capacity, device, console, drafting)
    engine = Engine(model, tokenizer, device, slots, capacity)

    def emit_for(index: int) -> Callable[[str], None]:
        return lambda text: emit(index, text) if emit else None

    requests: list[GenerationRequest] = []
    for index, (prompt_ids, config) in enumerate(zip(prompts, configs, strict=True)):
        drafter = make_drafter(draft, prompt_ids, config, tokenizer, device)
        requests.append(engine.submit(prompt_ids, config, emit_for(index), drafter))
    shown_by_caller = QUIET if emit else console
    total, ended, shown = sum(config.max_tokens for config in configs), 0, 0
    try:
        with shown_by_caller.progress("generating", total) as progress:
            while engine.busy:
                ended += sum(one.config.max_tokens for one in engine.step())
                done = ended + engine.unfinished_tokens
                progress.advance(done - shown)
                shown = done
    except KeyboardInterrupt:
        raise InterruptedGeneration([request.completion() for request in requests]) from None
    for request in requests:
        if request.error:
            raise request.error
    _report_forbidden(requests, console)
    return [request.completion() for request in requests]


def stream(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    device: torch.device,
    console: Console,
    draft: CausalLanguageModel | str = "",
) -> Iterator[str]:
    """Return an iterator over the pieces of one completion, which is that of ``generate``.

    Raises the errors of ``generate``; errors in the settings are raised before the first piece. Generation ends when
    the iterator is closed or no longer referenced.
    """
    capacity = min(model.context_length, len(prompt_ids) + config.max_tokens)
    drafter = make_drafter(draft, prompt_ids, config, tokenizer, device)
    slots = plan_slots(model, 1, capacity, device, console, None if isinstance(draft, str) else draft)
    engine, pieces = Engine(model, tokenizer, device, slots, capacity), list[str]()
    request = engine.submit(prompt_ids, config, pieces.append, drafter)

    def run() -> Iterator[str]:
        while engine.busy:
            engine.step()
            yield from filter(None, pieces)
            pieces.clear()
        if request.error:
            raise request.error
        _report_forbidden([request], console)

    return run()


def _report_forbidden(requests: Sequence[GenerationRequest], console: Console) -> None:
    """Warn of texts that the settings end early. Raises ``ConfigError`` if they allow no text at all."""
    problems = [one.problem for one in requests if one.problem]
    if problems and not any(one.token_ids for one in requests):
        raise ConfigError(problems[0])
    if problems:
        console.warn(f"{len(problems)} of {len(requests)} texts end early: {problems[0]}")


def make_drafter(
    draft: CausalLanguageModel | str,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    device: torch.device,
) -> Drafter | None:
    """Return the drafter of one request. Raises ``ConfigError`` for an unknown name."""
    if not draft:
        return None
    if isinstance(draft, str):
        if draft != "prompt":
            raise ConfigError(f"draft is '{draft}'; expected prompt, or a model")
        return PromptLookup()
    # Draft tokens need not satisfy the constraint: those that do not are rejected.
    free = dataclasses.replace(config, regex="", json_schema="")
    return DraftModel(draft, Sampler(free, tokenizer, prompt_ids), device)


def encode_prompt(
    model: CausalLanguageModel,
    tokenizer: Tokenizer,
    header: str,
    prompt: str,
    allow_special: bool,
    console: Console,
    start_text: str = "",
) -> list[int]:
    """Return the ids of a prompt, at least one: an empty prompt becomes ``start_text``, or else end-of-text.

    Notes this on the console, and if a prompt is too long. The tokenizer's prefix tokens come before every
    prompt.

    A ``header`` starts a document, so it follows end-of-text. It is encoded together with the prompt as one
    text, as in training, unless ``allow_special``. Raises ``TokenizerError`` for text that cannot be encoded.
    """
    if allow_special:
        header_ids = tokenizer.encode(header)
        prompt_ids = header_ids + tokenizer.encode(prompt, True, continues=bool(header))
    else:
        prompt_ids = tokenizer.encode(header + prompt)
    if header and tokenizer.has_end_of_text:
        prompt_ids = [tokenizer.end_of_text_id, *prompt_ids]
    if not prompt_ids and start_text:
        console.note(
            f"no prompt: starting from {start_text!r}, as the training text had too few documents to learn "
            "how one starts"
        )
        prompt_ids = tokenizer.encode(start_text)
    prompt_ids = [*tokenizer.prefix_ids, *prompt_ids]
    if not prompt_ids:
        console.note("no prompt: starting from end-of-text")
        return [tokenizer.end_of_text_id]
    if len(prompt_ids) > model.context_length:
        without = f", without the line '{header.strip()}'" if header else ""
        console.note(
            f"the prompt has {len(prompt_ids):,} tokens; the model sees the last {model.context_length:,} of them"
            f"{without}"
        )
    return prompt_ids
