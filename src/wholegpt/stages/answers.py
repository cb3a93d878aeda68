"""The answers of conversations: their loss, their generation, and an evaluation of both."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate, Conversation, EncodedConversation, Message
from wholegpt.data.examples.packing import batches_of, collate_conversations
from wholegpt.errors import DataError
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Generation, Record, means_of
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.generation import Completion, generate
from wholegpt.metrics import bootstrap, bootstrap_ratio
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import GenerationConfig
from wholegpt.stages.prediction import TOKENS_AT_ONCE
from wholegpt.tokenizers import Tokenizer

MOST_GENERATED_TOKENS = 200
"""Tokens of a generated answer in an evaluation."""
NEVER = -1e6
"""Added to the logit of a token that must not be generated."""
MEANS = {"nats_per_answer": "nats", "stopped": "stopped", "empty": "empty"}


@dataclass(frozen=True)
class AnswerLoss:
    """The cross-entropy of answers, including the token that ends each of them."""

    nats_per_token: float
    perplexity: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class FittedConversation:
    """A conversation, and the part of it that fits into a window."""

    messages: Conversation
    encoded: EncodedConversation
    cut: bool
    """Whether a part of the conversation is beyond the window."""
    asked: int
    """Number of messages before the last answer that starts within the window."""

    @property
    def question(self) -> Conversation:
        """Return the messages before that answer."""
        return self.messages[: self.asked]


def fit_conversations(
    conversations: Sequence[Conversation], template: ChatTemplate, tokenizer: Tokenizer, length: int
) -> list[FittedConversation]:
    """Cut conversations to at most ``length`` + 1 tokens, and drop those that have no answer left.

    Raises ``DataError`` if none is left.
    """
    most, fitted = length + 1, list[FittedConversation]()
    for one in conversations:
        whole = template.encode(one, tokenizer)
        seen = EncodedConversation(whole.token_ids[:most], whole.scored[:most])
        if any(seen.scored[1:]):
            cut = len(whole.token_ids) > most
            indices = [i for i, message in enumerate(one) if message.role == "assistant"]
            last = _last_started(one, indices, template, tokenizer, length) if cut else indices[-1]
            fitted.append(FittedConversation(one, seen, cut, last))
    if not fitted:
        raise DataError(
            f"none of {len(conversations):,} conversations has an answer that begins within its first {length:,} "
            "tokens; shorten what stands before the answers, or raise that limit (--windows.length, or the model's "
            "context)"
        )
    return fitted


def _last_started(
    messages: Conversation,
    indices: Sequence[int],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    length: int,
) -> int:
    """Return the last of the ``indices`` of answers that starts within ``length``, or the first one if none does."""

    def starts(number: int) -> bool:
        before = messages[: indices[number]]
        return len(template.encode(before, tokenizer, generation_prompt=True).token_ids) < length

    return indices[last_that(starts, len(indices) - 1) or 0]


@torch.inference_mode()
def answer_nats(model: TokenModel, conversations: Sequence[EncodedConversation], dtype: Dtype) -> np.ndarray:
    """Return −ln p of the answers of each conversation, including their ends, in nats; shape (N,)."""
    assert isinstance(model, NeuralModel)
    found = np.zeros(len(conversations))
    lengths = [len(one.token_ids) for one in conversations]
    for chunk in batches_of(lengths, TOKENS_AT_ONCE):
        batch = collate_conversations([[conversations[i]] for i in chunk]).to(model.device)
        with compute_in(dtype, model.device):
            log_p = model.log_probabilities(batch.token_ids, batch.targets)
        found[chunk] = -log_p.double().sum(1).cpu().numpy()
    return found


def answers(
    model: TokenModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    questions: Sequence[Sequence[Message]],
    config: GenerationConfig,
    console: Console,
    emit: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Generate answers. Each ends with the template's end of a turn and has no other special token."""
    prompts = [template.encode(one, tokenizer, generation_prompt=True).token_ids for one in questions]
    chosen = answering(config, template, tokenizer)
    configs = [with_room(model, prompt, chosen) for prompt in prompts]
    return generate(model, tokenizer, prompts, configs, model.device, console, emit)


def with_room(model: TokenModel, prompt_ids: Sequence[int], config: GenerationConfig) -> GenerationConfig:
    """Return ``config`` with at most as many tokens as an encoder-decoder's context leaves beside the source.

    Raises ``DataError`` for a source that leaves no room.
    """
    if not model.has_source:
        return config
    room = model.context_length - len(prompt_ids)
    if room < 1:
        raise DataError(
            f"the source has {len(prompt_ids):,} tokens, and the model's context is {model.context_length:,}, which "
            "must hold the target, too; shorten it"
        )
    return replace(config, max_tokens=min(config.max_tokens, room), min_tokens=min(config.min_tokens, room))


def fitting_turns(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, context_length: int, room: int
) -> list[Message]:
    """Return a conversation without its oldest turns, so that an answer of ``room`` tokens fits into the context.

    The system message and the last question are kept. The time is proportional to the turns that are kept. Raises
    ``DataError`` if the system message and the question alone are beyond the context.
    """
    system = [one for one in messages[:1] if one.role == "system"]
    turns = messages[len(system) :]
    shortest = 2 - len(turns) % 2  # begins with the user, as the whole does

    def kept(exchanges: int) -> list[Message]:
        return [*system, *turns[len(turns) - shortest - 2 * exchanges :]]

    def tokens_of(exchanges: int) -> int:
        return len(template.encode(kept(exchanges), tokenizer, generation_prompt=True).token_ids)

    limit = context_length - min(room, context_length // 4)
    most = last_that(lambda exchanges: tokens_of(exchanges) <= limit, (len(turns) - shortest) // 2)
    if most is None and (tokens := tokens_of(0)) >= context_length:
        what = "the system's message and the question have" if system else "the question has"
        raise DataError(
            f"{what} {tokens:,} tokens; the context is {context_length:,} tokens, including the answer"
        )
    return kept(most or 0)


def last_that(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number from 0 to ``most`` for which ``holds`` is true; it must be true for all smaller ones.

    Returns None if there is none. Never calls ``holds`` with more than twice the result plus one.
    """
    low, high = -1, 0
    while high <= most and holds(high):
        low, high = high, 2 * high + 1
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low >= 0 else None


def answering(config: GenerationConfig, template: ChatTemplate, tokenizer: Tokenizer) -> GenerationConfig:
    """Return ``config`` for answers: the end of a turn stops them; others of the template are excluded."""
    others = [tokenizer.id_of(name) for name in template.special_tokens if name != template.end_of_turn]
    never = {token_id for token_id in others if token_id is not None} - tokenizer.end_ids
    bias = (*config.logit_bias, *((token_id, NEVER) for token_id in sorted(never)))
    by_itself = tokenizer.id_of(template.end_of_turn) in tokenizer.end_ids
    stop = config.stop if by_itself else (*config.stop, template.end_of_turn)
    return replace(config, logit_bias=bias, stop=stop)


def evaluate_answers(
    model: TokenModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    dtype: Dtype,
    console: Console,
) -> TaskScore:
    """Evaluate the answers of conversations; leave out those without an answer in the context, with a warning."""
    fitted = fit_conversations(conversations, template, tokenizer, model.context_length)
    if len(fitted) < len(conversations):
        console.warn(
            f"{len(conversations) - len(fitted):,} of {len(conversations):,} conversations have no answer within the "
            f"model's context of {model.context_length:,} tokens and are left out"
        )
    return score_answers(model, tokenizer, template, fitted, dtype, console)


def score_answers(
    model: TokenModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversations: Sequence[FittedConversation],
    dtype: Dtype,
    console: Console,
) -> TaskScore:
    """Evaluate the loss of all answers, and greedily generated answers to the last question of each conversation.

    At most ``MOST_GENERATED_TOKENS`` tokens are generated; a longer answer counts as not stopped.

    ``median_length_ratio`` is the median length of generated answers, in tokens, divided by that of the references. If
    sacreBLEU and rouge-score are installed, BLEU and ROUGE are computed, too.
    """
    nats = answer_nats(model, [one.encoded for one in conversations], dtype)
    check_not_nan(nats, "answers")
    config = GenerationConfig(max_tokens=MOST_GENERATED_TOKENS, temperature=0.0)
    questions = [one.question for one in conversations]
    generated = answers(model, tokenizer, template, questions, config, console)
    overlap = all(importlib.util.find_spec(name) for name in Generation.needs)
    records = [
        {"line": line, "nats": float(loss), **_record(one, answer, tokenizer, overlap)}
        for line, (one, loss, answer) in enumerate(zip(conversations, nats, generated, strict=True), 1)
    ]
    with console.working("resampling for the intervals"):
        lengths = [np.array([one[name] for one in records]) for name in ("tokens", "reference_tokens")]
        metrics = {
            "nats_per_token": bootstrap_ratio(nats, np.array([one["scored"] for one in records])),
            **means_of(records, MEANS),
            "median_length_ratio": bootstrap(
                len(records), lambda rows: float(np.divide(*(np.median(side[rows]) for side in lengths)))
            ),
        }
        if overlap:
            metrics |= Generation.metrics(records)
    cut = sum(one.cut for one in conversations)
    kind = "sequence to sequence" if model.has_source else "instruct"
    return TaskScore(kind, len(records), 0, metrics, MEANS, cut, records, "their end")


def _record(one: FittedConversation, answer: Completion, tokenizer: Tokenizer, overlap: bool) -> Record:
    """Return the record of one conversation."""
    asked = one.question
    reference, text = one.messages[one.asked].content, answer.text.strip()
    return {
        "truncated": one.cut,
        "prompt": asked[-1].content,
        "reference": reference,
        "scored": sum(one.encoded.scored),
        "stopped": answer.finish_reason in ("end_of_text", "stop"),
        "tokens": len(answer.token_ids),
        "reference_tokens": len(tokenizer.encode(reference)),
        "generated": text,
        "empty": not text,
        **(Generation(asked[-1].content, reference).generated_record(text) if overlap else {}),
    }
