"""Instruction tuning, and text to text: conversations of which the answers alone are learned."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wholegpt.checkpoint import ModelFolder, ModelMetadata, make_model
from wholegpt.console import Console, sample_for_people
from wholegpt.data.chat.conversations import ConversationData
from wholegpt.data.chat.packing import ConversationLoader, batches_of, collate_conversations, pack
from wholegpt.data.chat.template import (
    PAIR_TEMPLATE,
    SEPARATOR,
    ChatTemplate,
    Conversation,
    EncodedConversation,
    Message,
)
from wholegpt.data.examples.columns import DETECTED
from wholegpt.data.reading.files import read_text
from wholegpt.data.text.vocabulary import make_tokenizer
from wholegpt.errors import ConfigError, DataError
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Generation, Record, means_of
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.generation import Completion, generate
from wholegpt.losses import IGNORED
from wholegpt.metrics import bootstrap, bootstrap_ratio
from wholegpt.model import EncoderDecoder, TokenModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Dtype, TokenizerKind
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.settings.validation import complete_model
from wholegpt.stages.initialization import begin, source_of_examples, with_steps
from wholegpt.stages.prediction import TOKENS_AT_ONCE
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import LanguageModeling, with_router_losses
from wholegpt.training.stage import Begun, Criterion

QUIET = Console(quiet=True)
MOST_WRITTEN = 200
"""Tokens of an answer, where answers are measured."""
SHOWN_MASKS = 3
NEVER = -1e6
"""What is added to the logit of what must not be written."""
MEANS = {"nats_per_answer": "nats", "stopped": "stopped", "empty": "empty"}


@dataclass(frozen=True)
class AnswerLoss:
    """The cross-entropy of answers, and of the token that ends each."""

    nats_per_token: float
    perplexity: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


class InstructionTuning:
    """The next token of answers (E8), given what stands before them."""

    criterion = Criterion("nats_per_token", higher_is_better=False, words="validation loss of answers")

    def __init__(
        self, config: Config, data: ConversationData, tokenizer: Tokenizer, metadata: ModelMetadata
    ) -> None:
        """``config`` is decided; ``tokenizer`` knows the special tokens of ``metadata.chat_template``.

        Raises ``DataError`` where no answer fits into the context.
        """
        self.config, self.tokenizer, self.metadata = config, tokenizer, metadata
        self.template = ChatTemplate(metadata.chat_template)
        length = config.model.context_length
        self.train = fit_conversations(data.train, self.template, tokenizer, length)
        self.validation = fit_conversations(data.validation, self.template, tokenizer, length)
        self.objective = with_router_losses(LanguageModeling(), config)
        learned = [one.encoded for one in self.train]
        self.batches = ConversationLoader(learned, length, config.training.batch_size, config.runtime.seed)

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> AnswerLoss | TaskScore:
        """The loss of the held-out answers, and at the end what the model answers itself."""
        dtype = self.config.precision.dtype
        if whole:
            return score_answers(model, self.tokenizer, self.template, self.validation, dtype, QUIET)
        encoded = [one.encoded for one in self.validation]
        tokens = sum(sum(one.scored) for one in encoded)
        mean = float(answer_nats(model, encoded, dtype).sum()) / tokens
        return AnswerLoss(mean, float(np.exp(mean)), tokens)

    def write(self, model: TokenModel, device: torch.device) -> str:
        """The answer to the first held-out question, after it."""
        asked = self.validation[0].question
        tokens = self.config.logging.sample_tokens
        if not tokens:
            return ""
        config = GenerationConfig(max_tokens=tokens, temperature=0.0)
        (answer,) = answers(model, self.tokenizer, self.template, [asked], config, QUIET)
        return f"{asked[-1].content}\n→ {sample_for_people(answer.text)}"

    def masks(self) -> list[list[tuple[str, bool]]]:
        """The first training conversations token by token, and whether each is learned."""
        return [
            [
                (self.tokenizer.decode([token_id]), counts)
                for token_id, counts in zip(one.encoded.token_ids, one.encoded.scored, strict=True)
            ]
            for one in self.train[:SHOWN_MASKS]
        ]

    def describe(self) -> str:
        """How many conversations there are, how they are packed, and how often they are read."""
        training, rows = self.config.training, len(self.batches.rows)
        epochs = training.steps * training.batch_size / rows
        scored = sum(sum(one.encoded.scored) for one in self.train)
        cut = sum(one.cut for one in self.train)
        columns = self.metadata.columns or DETECTED
        where = f"columns {', '.join([*columns.texts, columns.target])}"
        left = f"; {cut:,} lose what is beyond the context" if cut else ""
        return (
            f"instruct: {len(self.train):,} conversations in {rows:,} rows ({epochs:.1f} passes), {scored:,} tokens of "
            f"answers; {len(self.validation):,} held out; {where}{left}"
        )


@dataclass(frozen=True)
class FittedConversation:
    """A conversation, and what of it a model sees."""

    messages: Conversation
    encoded: EncodedConversation
    cut: bool
    """Whether some of it is beyond the context."""
    asked: int
    """Messages before the last answer that begins within the context."""

    @property
    def question(self) -> Conversation:
        """What that answer answers."""
        return self.messages[: self.asked]


def fit_conversations(
    conversations: Sequence[Conversation], template: ChatTemplate, tokenizer: Tokenizer, context_length: int
) -> list[FittedConversation]:
    """Each in at most τ + 1 tokens: what is beyond is left out, and a conversation that has no answer left is too.

    Raises ``DataError`` where none is left.
    """
    most, fitted = context_length + 1, list[FittedConversation]()
    for one in conversations:
        whole = template.encode(one, tokenizer)
        seen = EncodedConversation(whole.token_ids[:most], whole.scored[:most])
        if any(seen.scored[1:]):
            cut = len(whole.token_ids) > most
            places = [i for i, message in enumerate(one) if message.role == "assistant"]
            last = _last_begun(one, places, template, tokenizer, context_length) if cut else places[-1]
            fitted.append(FittedConversation(one, seen, cut, last))
    if not fitted:
        raise DataError(
            f"of {len(conversations):,} conversations none has an answer that begins within the model's context of "
            f"{context_length:,} tokens; shorten what stands before the answers, or take a model with a longer context"
        )
    return fitted


def _last_begun(
    messages: Conversation,
    places: Sequence[int],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    context_length: int,
) -> int:
    """Which of the ``places`` of answers is the last with a beginning within the context; the first in any case."""

    def begins(number: int) -> bool:
        before = messages[: places[number]]
        return len(template.encode(before, tokenizer, generation_prompt=True).token_ids) < context_length

    return places[last_that(begins, len(places) - 1) or 0]


@torch.inference_mode()
def answer_nats(model: TokenModel, conversations: Sequence[EncodedConversation], dtype: Dtype) -> np.ndarray:
    """−ln p of the answers of each conversation, their ends included, in nats, shape (N,)."""
    found = np.zeros(len(conversations))
    lengths = [len(one.token_ids) for one in conversations]
    for chunk in batches_of(lengths, TOKENS_AT_ONCE):
        batch = collate_conversations([[conversations[i]] for i in chunk]).to(model.device)
        with compute_in(dtype, model.device):
            logits = model(batch.token_ids)
        nats = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        found[chunk] = nats.view(len(chunk), -1).double().sum(1).cpu().numpy()
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
    """What the model answers; each ends with the template's end of a turn, and holds no other special token."""
    prompts = [template.encode(one, tokenizer, generation_prompt=True).token_ids for one in questions]
    chosen = answering(config, template, tokenizer)
    configs = [with_room(model, prompt, chosen) for prompt in prompts]
    return generate(model, tokenizer, prompts, configs, model.device, console, emit)


def with_room(model: TokenModel, prompt_ids: Sequence[int], config: GenerationConfig) -> GenerationConfig:
    """``config`` with no more tokens than an encoder–decoder, whose source stays, has room for.

    Raises ``DataError`` for a source that leaves none.
    """
    if not isinstance(model, EncoderDecoder):
        return config
    room = model.context_length - len(prompt_ids)
    if room < 1:
        raise DataError(
            f"the source has {len(prompt_ids):,} tokens, and the model's context is {model.context_length:,}, which "
            "holds what is written too; shorten it"
        )
    return replace(config, max_tokens=min(config.max_tokens, room), min_tokens=min(config.min_tokens, room))


def fitting_turns(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, context_length: int, room: int
) -> list[Message]:
    """A conversation without its oldest turns, as far as an answer of ``room`` tokens needs their place.

    The system's message and the last question stay. Takes time in proportion to what is kept, however long the
    conversation is. Raises ``DataError`` where these alone are beyond the context.
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
        raise DataError(f"{what} {tokens:,} tokens; the model sees {context_length:,}, its answer among them")
    return kept(most or 0)


def last_that(holds: Callable[[int], bool], most: int) -> int | None:
    """The largest number from 0 to ``most`` for which ``holds`` is true, where it is true up to there and not beyond.

    None where it is not even for 0. Asks of no number beyond twice the one that it finds, and one.
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
    """``config`` for answers: their end ends them, and the template's other special tokens are never written."""
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
    """``score_answers`` of conversations, without those that have no answer within the context, which is said."""
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
    """The loss of all answers, and what the model answers to the last question itself, the likeliest token each time.

    At most ``MOST_WRITTEN`` tokens are written; what has not ended then counts as not ended.

    ``median_length_ratio`` is the median of their tokens over that of the references'. BLEU and ROUGE of those against
    the given ones come with them where sacreBLEU and rouge-score are installed.
    """
    nats = answer_nats(model, [one.encoded for one in conversations], dtype)
    check_not_nan(nats, "answers")
    config = GenerationConfig(max_tokens=MOST_WRITTEN, temperature=0.0)
    questions = [one.question for one in conversations]
    written = answers(model, tokenizer, template, questions, config, console)
    overlap = all(importlib.util.find_spec(name) for name in Generation.needs)
    records = [
        {"line": line, "nats": float(loss), **_record(one, answer, tokenizer, overlap)}
        for line, (one, loss, answer) in enumerate(zip(conversations, nats, written, strict=True), 1)
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
    return TaskScore("instruct", len(records), 0, metrics, MEANS, cut, records, "their end")


def _record(one: FittedConversation, answer: Completion, tokenizer: Tokenizer, overlap: bool) -> Record:
    """What became of a conversation's question."""
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


def begin_pairs(config: Config, folder: Path, console: Console) -> Begun:
    """Read sources and targets, keep them in a run's new ``folder``, and make tokenizer and model for them.

    Raises ``DataError`` for conversations of more than one turn.
    """
    data = ConversationData.read(config, console)
    everything = [*data.train, *data.validation]
    if any([one.role for one in pair] != ["user", "assistant"] for pair in everything):
        raise DataError(f"{config.finetuning.data}: has conversations; expected a source and a target each")
    fingerprint = data.save(folder / "data")
    template, names = ChatTemplate(PAIR_TEMPLATE), config.tokenizer.special_tokens
    learned = everything if config.tokenizer.kind is TokenizerKind.character else data.train
    texts = [message.content for pair in learned for message in pair]
    settings = replace(config.tokenizer, special_tokens=(*names, *({SEPARATOR} - {*names})))
    tokenizer = make_tokenizer(settings, lambda: iter(texts), sum(map(len, texts)))
    separator = tokenizer.id_of(SEPARATOR)
    assert separator is not None
    model = complete_model(replace(config.model, vocab_size=tokenizer.vocab_size, separator=separator))
    fitted = fit_conversations(data.train, template, tokenizer, model.context_length)
    fit_conversations(data.validation, template, tokenizer, model.context_length)
    rows = len(pack([len(one.encoded.token_ids) - 1 for one in fitted], model.context_length))
    metadata = ModelMetadata(columns=data.columns, chat_template=template.source)
    config = replace(with_steps(config, rows), model=model, tokenizer=settings)
    torch.manual_seed(config.runtime.seed)
    return Begun(config, make_model(model), tokenizer, metadata, source_of_examples(config, fingerprint))


def begin_instructions(config: Config, parent: ModelFolder, folder: Path, console: Console) -> Begun:
    """Read the conversations, keep them in a run's new ``folder``, and put the template's tokens to the ``parent``."""
    data = ConversationData.read(config, console)
    fingerprint = data.save(folder / "data")
    path = config.finetuning.chat_template
    template = ChatTemplate(read_text(Path(path), "utf-8")) if path else ChatTemplate()
    if not parent.tokenizer.has_end_of_text:
        raise ConfigError("the model's tokenizer has no end-of-text token; instruction tuning needs one")
    new = [name for name in template.special_tokens if parent.tokenizer.id_of(name) is None]
    tokenizer = parent.tokenizer.with_special_tokens(new) if new else parent.tokenizer
    lora = config.lora if config.lora.rank else None
    metadata = ModelMetadata(
        lora=lora,
        new_tokens=len(new),
        columns=data.columns,
        start_text=parent.metadata.start_text,
        chat_template=template.source,
    )
    length = parent.model.context_length
    fitted = fit_conversations(data.train, template, tokenizer, length)
    fit_conversations(data.validation, template, tokenizer, length)
    rows = len(pack([len(one.encoded.token_ids) - 1 for one in fitted], length))
    return begin(config, parent, tokenizer, metadata, rows, fingerprint)
