"""A model with its tokenizer: generate, score and evaluate text."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from wholegpt import runtime
from wholegpt.checkpoint import NO_METADATA, ModelMetadata
from wholegpt.console import QUIET, Console
from wholegpt.data import TextSizes, TokenShards
from wholegpt.data.chat.messages import read_message
from wholegpt.data.chat.template import ChatTemplate, Conversation, Message, check_conversation
from wholegpt.data.control_codes import NO_CONTROL, header_for
from wholegpt.data.examples.columns import DETECTED
from wholegpt.data.examples.conversations import holds_conversations, read_like
from wholegpt.data.examples.data import read_labeled
from wholegpt.data.examples.preferences import PreferencePair, holds_pairs, read_pairs
from wholegpt.data.examples.tasks import Task, TaskExample, parts_of, read_parts
from wholegpt.data.reading.decoding import ReadingReport
from wholegpt.data.reading.files import check_options, read_documents, useful_options
from wholegpt.data.reading.sources import check_sources, source_path
from wholegpt.data.reading.tables import Reading, is_table
from wholegpt.errors import ConfigError, DataError, TokenizerError
from wholegpt.evaluation import (
    PseudoPerplexity,
    Published,
    TaskScore,
    TextEvaluation,
    evaluate_task,
    evaluate_text,
    plain_text,
    pseudo_perplexity,
    read_examples,
    score_tokens,
)
from wholegpt.evaluation.perplexity import check_not_nan, scoring_windows
from wholegpt.generation import Completion, Hypothesis, beam_search, encode_prompt, generate, stream
from wholegpt.generation.guidance import guided
from wholegpt.generation.templates import fill_template
from wholegpt.metrics import nats_to_bits
from wholegpt.model import Encoder, TaskModel, TokenModel
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.choices import Documents, Dtype, OnBadLine, OnBadText, TaskKind
from wholegpt.settings.keywords import GenerationSettings, ReadingSettings, checked_keywords
from wholegpt.settings.schema import DataConfig, GenerationConfig, PrecisionConfig
from wholegpt.settings.serialization import from_mapping
from wholegpt.stages.alignment.reward_model import RewardModel, check_reward_model
from wholegpt.stages.answers import answers, evaluate_answers, fitting_turns, with_room
from wholegpt.stages.prediction import Prediction, evaluate_head, predict
from wholegpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM


@dataclass(frozen=True)
class TokenScores:
    """The surprisal of each token of a text."""

    token_ids: list[int]
    tokens: list[str]
    """The text of each token; joined they are the whole text. A character of several tokens belongs to its
    last one.
    """
    surprisal_bits: list[float]
    """−log₂ p of each token given the earlier ones in its window of τ; the first one is given end-of-text."""


class PromptSettings(GenerationSettings, total=False):
    """The keyword arguments of ``generate`` and ``stream``; ``generate_all`` describes them."""

    template: str
    control: Mapping[str, object]
    guidance: float
    allow_special: bool
    draft: "LanguageModel | str"
    console: Console | None


class LanguageModel:
    """A model, trained or untrained, with its tokenizer."""

    def __init__(
        self,
        model: TokenModel,
        tokenizer: Tokenizer | None,
        dtype: Dtype = Dtype.automatic,
        documents: Documents = Documents.joined,
        metadata: ModelMetadata = NO_METADATA,
        generator: TokenModel | None = None,
    ) -> None:
        """Wrap a model. ``dtype`` and ``documents`` are those of its training, and the defaults of its
        evaluation.

        ``metadata`` is that of its folder: control codes, task of the head, chat template. ``generator`` is
        an optional faster form of the model that generates texts.
        """
        self.generator = generator or model
        self.model, self.control, self.task = model.eval(), metadata.control, metadata.task
        self.columns, self.start_text = metadata.columns or DETECTED, metadata.start_text
        self.chat_template = ChatTemplate(metadata.chat_template) if metadata.chat_template else None
        self.dtype, self.documents = dtype, documents
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"LanguageModel({config.architecture}, {self.model.parameter_count:,} parameters, "
            f"vocabulary of {config.vocab_size:,}, context of {config.context_length:,} tokens, {self.model.device})"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises ``TokenizerError`` for an untrained published preset, which has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                "a fresh preset has no tokenizer; train it on text, or call lm.model on token ids"
            )
        return self._tokenizer

    @property
    def is_reward_model(self) -> bool:
        """Return whether the model scores answers instead of generating them."""
        return self.task is not None and self.task.kind is TaskKind.reward

    @overload
    def generate(
        self,
        prompt: str = "",
        *,
        emit: Callable[[str], None] | None = None,
        **settings: Unpack[PromptSettings],
    ) -> Completion: ...

    @overload
    def generate(self, prompt: Sequence[str], **settings: Unpack[PromptSettings]) -> list[Completion]: ...

    @checked_keywords
    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        emit: Callable[[str], None] | None = None,
        **settings: Unpack[PromptSettings],
    ) -> Completion | list[Completion]:
        """Complete ``prompt``, or each of a list of prompts, in order and in one batch.

        ``emit`` receives the pieces of the text of a single prompt; ``settings`` are those of ``generate_all``.
        Raises ``ConfigError`` for anything but text.
        """
        if not isinstance(prompt, str):
            if emit is not None:
                raise ConfigError("emit gets the text of one prompt; for several call generate_all")
            return self.generate_all(prompt, **settings)
        emit_first = None if emit is None else lambda _, text: emit(text)
        return self.generate_all([prompt], emit=emit_first, **settings)[0]

    @checked_keywords
    def stream(
        self,
        prompt: str = "",
        *,
        template: str = "",
        control: Mapping[str, object] = NO_CONTROL,
        guidance: float = 1.0,
        allow_special: bool = False,
        draft: "LanguageModel | str" = "",
        console: Console | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> Iterator[str]:
        """Return an iterator over the pieces of the completion of ``prompt``, each as soon as it is generated.

        Parameters are those of ``generate_all``, and joined pieces are its text. Invalid settings raise
        ``ConfigError`` at once. Leaving the loop over the pieces ends the generation.
        """
        _check_text(prompt, "prompt")
        console = console or Console()
        config, encoded = self._prepared([prompt], template, control, allow_special, console, settings)
        model = self._guided(control, encoded, config, guidance)
        config, drafter = with_room(self.model, encoded[0], config), self._draft(draft)
        return stream(model, self.tokenizer, encoded[0], config, self.model.device, console, drafter)

    @checked_keywords
    def generate_all(
        self,
        prompts: Sequence[str],
        *,
        template: str = "",
        control: Mapping[str, object] = NO_CONTROL,
        guidance: float = 1.0,
        allow_special: bool = False,
        draft: "LanguageModel | str" = "",
        emit: Callable[[int, str], None] | None = None,
        console: Console | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> list[Completion]:
        """Complete each prompt, many at once; text i is drawn with ``seed`` + i. ``emit`` receives index and
        piece.

        ``template`` is a text with ``{prompt}`` in it, a file with such a text, or the name of a built-in one
        (``TEMPLATES`` of ``wholegpt.generation.templates``). Its stop texts apply too, unless ``regex`` or
        ``json_schema`` is set. ``control`` sets control codes, values of the fields before the training
        texts: ``{"sentiment": "positive"}``. A ``guidance`` above 1 amplifies them by classifier-free
        guidance (``wholegpt.generation.guidance``), in twice the time. ``allow_special`` parses special
        tokens in a prompt. ``draft`` enables speculative decoding, which gives the same texts faster if the
        draft tokens are accepted: "prompt" is prompt lookup, a smaller model of the same vocabulary is a
        draft model.

        ``settings`` are the fields of ``GenerationConfig`` by name: ``max_tokens``, ``temperature``,
        ``top_p``, ``stop``, ``json_schema`` (as text or mapping), ``seed`` and so on. Raises ``ConfigError``
        for a setting that does not exist or is out of range.
        """
        _check_texts(prompts, "prompts")
        console = console or Console()
        config, encoded = self._prepared(prompts, template, control, allow_special, console, settings)
        model = self._guided(control, encoded, config, guidance)
        configs = [
            dataclasses.replace(with_room(self.model, one, config), seed=config.seed + i)
            for i, one in enumerate(encoded)
        ]
        device, drafter = self.model.device, self._draft(draft)
        return generate(model, self.tokenizer, encoded, configs, device, console, emit, drafter)

    @checked_keywords
    def beam_search(
        self,
        prompt: str = "",
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        template: str = "",
        control: Mapping[str, object] = NO_CONTROL,
        guidance: float = 1.0,
        allow_special: bool = False,
        console: Console | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> list[Hypothesis]:
        """Return the ``beams`` best completions of beam search, best first; other parameters as in
        ``generate_all``.

        The score is the log-probability divided by the number of tokens to the power of ``length_penalty``.
        """
        _check_text(prompt, "prompt")
        console = console or Console()
        config, encoded = self._prepared([prompt], template, control, allow_special, console, settings)
        model = self._guided(control, encoded, config, guidance)
        config = with_room(self.model, encoded[0], config)
        return beam_search(
            model, self.tokenizer, encoded[0], config, beams, length_penalty, self.model.device, console
        )

    def _prepared(
        self,
        prompts: Sequence[str],
        template: str,
        control: Mapping[str, object],
        allow_special: bool,
        console: Console,
        settings: GenerationSettings,
    ) -> tuple[GenerationConfig, list[list[int]]]:
        """Return the validated settings and the ids of the prompts."""
        self.check_language_model()
        chosen = _plain(settings)
        if template:
            stops = fill_template(template, "")[1]
            prompts = [fill_template(template, prompt)[0] for prompt in prompts]
            if not (chosen.get("regex") or chosen.get("json_schema")):  # constraints end the text themselves
                chosen["stop"] = (*chosen.get("stop", ()), *stops)
        config = from_mapping(chosen, GenerationConfig(), "generate")
        header = header_for(control, self.control) if control else ""
        if self.model.has_source:  # the prompt
            chat = self.answering_template()
            if not all(prompt.strip() for prompt in prompts):
                raise DataError("the source is empty; give a text as the prompt")
            sources = [[Message("user", prompt)] for prompt in prompts]
            return config, [
                chat.encode(one, self.tokenizer, generation_prompt=True).token_ids for one in sources
            ]
        encoded_by_prompt = {
            prompt: encode_prompt(
                self.model, self.tokenizer, header, prompt, allow_special, console, self.start_text
            )
            for prompt in dict.fromkeys(prompts)
        }
        return config, [encoded_by_prompt[prompt] for prompt in prompts]

    def _draft(self, draft: "LanguageModel | str") -> CausalLanguageModel | str:
        """Return the draft model of speculative decoding, or its name. Raises ``ConfigError`` if it does not fit."""
        if isinstance(draft, str):
            return draft
        if draft.tokenizer.sha256 != self.tokenizer.sha256:
            raise ConfigError("draft has another vocabulary, so its draft tokens cannot be used")
        if draft.model.device != self.model.device:
            raise ConfigError(
                f"draft is on {draft.model.device} and the model on {self.model.device}; load both on one"
            )
        return draft.generator

    def _guided(
        self,
        control: Mapping[str, object],
        prompts: list[list[int]],
        config: GenerationConfig,
        guidance: float,
    ) -> CausalLanguageModel:
        header = header_for(control, self.control) if control else ""
        return guided(self.generator, self.tokenizer, header, prompts, config, guidance)

    def score(self, text: str) -> TokenScores:
        """Return the surprisal of each token of ``text``, in float32 or in the dtype of packed weights."""
        _check_text(text, "text")
        self.check_language_model()
        check_predicts_next_token(self.model)
        token_ids = self.tokenizer.encode(text)
        if not token_ids:
            raise DataError("the text is empty; there is nothing to score")
        stream = TokenShards([np.array([self.tokenizer.end_of_text_id, *token_ids])])
        windows = list(scoring_windows(len(stream), self.model.context_length, self.model.context_length))
        nats = score_tokens(self.model, stream, windows, self.model.device, Dtype.float32, QUIET)
        check_not_nan(nats, "tokens")
        return TokenScores(
            token_ids, self.tokenizer.texts_of(token_ids), [nats_to_bits(float(n)) for n in nats]
        )

    @checked_keywords
    def evaluate(
        self,
        *sources: str | Path,
        stride: int = 0,
        context: int = 0,
        detokenize: Published | str = Published.none,
        dtype: Dtype = Dtype.automatic,
        encoding: str = "utf-8",
        text_field: str = "",
        on_bad_text: OnBadText = "stop",
        on_bad_line: OnBadLine = "stop",
        console: Console | None = None,
    ) -> TextEvaluation:
        """Compute the cross-entropy on text files, folders or JSON lines, with documents separated by
        end-of-text.

        Documents are context for later ones, unless the model was trained on separate documents. Windows have
        ``context`` tokens (0: the model's context length); a smaller ``stride`` gives later tokens of each
        window more context (0: windows do not overlap). ``detokenize`` undoes the published form of WikiText
        or the Penn Treebank. Large products run in ``dtype``; automatic is that of training, if known and
        possible, or what training would choose here.

        Raises ``ConfigError`` for a model that does not predict the next token, ``DataError`` if there is no
        text.
        """
        console = console or Console()
        self.check_language_model()
        check_predicts_next_token(self.model)
        tokens, words = self._read(
            sources,
            Published(detokenize),
            DataConfig(
                encoding=encoding, text_field=text_field, on_bad_text=on_bad_text, on_bad_line=on_bad_line
            ),
            console,
        )
        return self.evaluate_tokens(tokens, stride, dtype, console, words, context)

    def _read(
        self, sources: tuple[str | Path, ...], published: Published, reading: DataConfig, console: Console
    ) -> tuple[TokenShards, int]:
        """Return the tokens of all sources as one sequence, and the number of words."""
        if self.control:
            console.note(
                f"the model's training texts started with a header of {', '.join(self.control)}; these texts have none"
            )
        check_sources(sources)
        stream: list[np.ndarray] = []
        words = n_bytes = n_characters = 0
        for source in sources:
            source_path(source)  # raises for what is no source
        check_options(
            reading,
            lambda: set[str]().union(*(useful_options(source_path(one), reading) for one in sources)),
            ", ".join(map(str, sources)),
        )
        for source in sources:
            report = ReadingReport()
            for text in read_documents(source_path(source), reading, report):
                plain = plain_text(text, published)
                words += plain.words
                n_bytes += len(plain.text.encode())
                n_characters += len(plain.text)
                joint = [self.tokenizer.end_of_text_id] if stream and self.tokenizer.has_end_of_text else []
                stream.append(np.array(joint + self.tokenizer.encode(plain.text), dtype=np.int64))
            report.show(console, str(source))
        if not stream:
            raise DataError(f"{', '.join(map(str, sources)) or 'no source'}: holds no text")
        return TokenShards([np.concatenate(stream)], TextSizes(n_bytes, n_characters)), words

    def evaluate_tokens(
        self,
        tokens: TokenShards,
        stride: int,
        dtype: Dtype,
        console: Console,
        words: int | None = None,
        context: int = 0,
    ) -> TextEvaluation:
        """Run ``evaluate`` on text that is already tokenized. ``words`` defaults to the number of words of
        the tokens.
        """
        return evaluate_text(
            self.model,
            tokens,
            self.tokenizer,
            self.model.device,
            self.precision(dtype),
            console,
            stride,
            words,
            context,
            self.documents,
        )

    @checked_keywords
    def pseudo_perplexity(
        self,
        *sources: str | Path,
        context: int = 0,
        detokenize: Published | str = Published.none,
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
        **reading: Unpack[ReadingSettings],
    ) -> PseudoPerplexity:
        """Compute how well an encoder predicts each token of a text from all others in a window of
        ``context`` tokens.

        Other parameters as in ``evaluate``; ``reading`` are its ``encoding``, ``text_field``, ``on_bad_text``
        and ``on_bad_line``. Raises ``ConfigError`` for a model that is not an encoder, and for a context
        longer than the model's; ``DataError`` if there is no text.
        """
        console = console or Console()
        tokens, _ = self._read(sources, Published(detokenize), DataConfig(**reading), console)
        return self.pseudo_perplexity_of_tokens(tokens, dtype, console, context)

    def pseudo_perplexity_of_tokens(
        self, tokens: TokenShards, dtype: Dtype, console: Console, context: int = 0
    ) -> PseudoPerplexity:
        """Run ``pseudo_perplexity`` on text that is already tokenized."""
        if not isinstance(self.model, Encoder):
            raise ConfigError("pseudo-perplexity requires an encoder; use evaluate() for this model")
        precision = self.precision(dtype)
        return pseudo_perplexity(
            self.model, tokens, self.tokenizer, precision, console, context, self.documents
        )

    @checked_keywords
    def evaluate_task(
        self,
        path: str | Path,
        *,
        shots: int = 0,
        examples: str | Path | None = None,
        seed: int = 1337,
        generation: GenerationConfig | None = None,
        encoding: str = "utf-8",
        on_bad_text: OnBadText = "stop",
        on_bad_line: OnBadLine = "stop",
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
    ) -> TaskScore:
        """Evaluate the model on a file of examples (``wholegpt.evaluation.examples`` lists the kinds).

        Each prompt starts with ``shots`` few-shot examples, drawn with ``seed`` from the file ``examples``,
        or from ``path`` itself, which then loses them. ``generation`` sets how texts are generated, for tasks
        that need it.

        A model that was fine-tuned for a task predicts with its head instead; ``path`` is then a table of
        labeled examples, or of preference pairs for a reward model. Files have this ``encoding``;
        ``on_bad_text`` and ``on_bad_line`` say how to handle invalid rows.
        """
        check_sources([path])
        console = console or Console()
        reading = Reading(encoding, on_bad_text, on_bad_line)
        if self.task:
            if shots or examples or generation:
                raise ConfigError(
                    "the model predicts with its head; shots, examples and generation have no effect"
                )
            if self.is_reward_model:
                pairs, _ = read_pairs(reading.table(Path(path)), reading, console, margins=True)
                reading.show(console)
                return self.evaluate_pairs(pairs, dtype, console)
            labeled = read_labeled(Path(path), reading, self.task)
            reading.show(console)
            return self.evaluate_examples(labeled, dtype, console)
        if (
            self.chat_template
            and is_table(Path(path))
            and holds_conversations(Path(path), reading, self.columns)
        ):
            if shots or examples or generation:
                raise ConfigError(
                    "answers are evaluated zero-shot and greedily; leave out shots, examples and generation"
                )
            conversations = read_like(Path(path), reading, self.columns, console)
            reading.show(console)
            return self.evaluate_conversations(conversations, dtype, console)
        try:
            to_score = read_examples(Path(path), reading)
        except DataError as error:
            if is_table(Path(path)) and holds_pairs(Path(path), reading):
                raise DataError(
                    f"{path}: holds preference pairs, on which only a reward model is evaluated; `wholegpt evaluate "
                    "RUN` without a file evaluates a run of dpo on its held-out pairs"
                ) from error
            raise
        reading.show(console)
        return evaluate_task(
            self.model,
            self.tokenizer,
            to_score,
            self.model.device,
            self.precision(dtype),
            console,
            shots=shots,
            pool=None if examples is None else read_examples(Path(examples), reading),
            seed=seed,
            generation=generation,
        )

    def evaluate_examples(
        self, examples: Sequence[TaskExample], dtype: Dtype = Dtype.automatic, console: Console | None = None
    ) -> TaskScore:
        """Evaluate a fine-tuned model on examples that are already loaded."""
        task, precision = self._head(), self.precision(dtype)
        assert isinstance(self.model, TaskModel)
        return evaluate_head(self.model, self.tokenizer, task, examples, precision, console or Console())

    def evaluate_pairs(
        self,
        pairs: Sequence[PreferencePair],
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
    ) -> TaskScore:
        """Evaluate a reward model on preference pairs that are already loaded."""
        return self._reward_model(dtype).evaluate(pairs, console or Console())

    def evaluate_conversations(
        self,
        conversations: Sequence[Conversation],
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
    ) -> TaskScore:
        """Evaluate an instruction-tuned model on conversations that are already loaded."""
        precision, template = self.precision(dtype), self.answering_template()
        return evaluate_answers(
            self.model, self.tokenizer, template, conversations, precision, console or Console()
        )

    @checked_keywords
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        emit: Callable[[str], None] | None = None,
        console: Console | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> Completion:
        """Return the answer to a conversation of ``{"role": "user", "content": …}``; ``settings`` as in
        ``generate_all``.

        If conversation and answer exceed the context, the oldest turns are dropped with a note. Raises
        ``ConfigError`` for a model without a chat template.
        """
        console, template = console or Console(), self.answering_template()
        conversation = _conversation(messages, "chat")
        config = from_mapping(_plain(settings), GenerationConfig(), "chat")
        kept = fitting_turns(
            conversation, template, self.tokenizer, self.model.context_length, config.max_tokens
        )
        if len(kept) < len(conversation):
            console.note(
                f"the first {len(conversation) - len(kept)} messages no longer fit into the model's context"
            )
        emit_first = None if emit is None else lambda _, text: emit(text)
        return answers(self.generator, self.tokenizer, template, [kept], config, console, emit_first)[0]

    def answering_template(self) -> ChatTemplate:
        """Return the chat template. Raises ``ConfigError`` for a model that does not answer."""
        self.check_language_model()
        if self.chat_template is None:
            raise ConfigError("the model is not instruction-tuned; run `wholegpt finetune --task instruct`")
        return self.chat_template

    def check_language_model(self) -> None:
        """Raise ``ConfigError`` for a reward model, whose training leaves no usable language model."""
        if self.is_reward_model:
            raise ConfigError(
                "the model is a reward model, which scores answers and does not generate text; use the model that it "
                "was trained from, or rewards()"
            )

    @checked_keywords
    def rewards(
        self,
        prompts: Sequence[str | Sequence[Message | Mapping[str, Any]]],
        completions: Sequence[str],
        *,
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
    ) -> list[float]:
        """Return the reward of each completion of a prompt, by a reward model; only differences are meaningful.

        A prompt is a text, or a conversation as for ``chat``. Raises ``ConfigError`` for any other model, ``DataError``
        for a prompt that leaves no room for an answer in the context.
        """
        _check_texts(completions, "completions")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ConfigError(f"prompts is of type {type(prompts).__name__}; expected a list of prompts")
        if len(prompts) != len(completions):
            raise ConfigError(
                f"there are {len(prompts):,} prompts and {len(completions):,} completions; give as many"
            )
        conversations = [
            (Message("user", one),) if isinstance(one, str) else tuple(_conversation(one, f"prompt {number}"))
            for number, one in enumerate(prompts, 1)
        ]
        for number, one in enumerate(conversations, 1):
            check_conversation((*one, Message("assistant", "")), f"prompt {number} with its completion")
        samples = list(zip(conversations, completions, strict=True))
        return self._reward_model(dtype).score(samples, console or QUIET)

    def _reward_model(self, dtype: Dtype) -> RewardModel:
        check_reward_model(self.task, "the model")
        assert self.chat_template
        return RewardModel(self.model, self.tokenizer, self.chat_template, self.precision(dtype))

    @checked_keywords
    def predict(
        self, *examples: str | Sequence[str], dtype: Dtype = Dtype.automatic, console: Console | None = None
    ) -> list[Prediction]:
        """Predict with a fine-tuned model: one text, or as many texts as its task has, per example
        (``parts_of``).

        Raises ``ConfigError`` for a model without a head, ``DataError`` for texts that do not fit its task.
        """
        task = self._head()
        for one in examples:
            texts = (one,) if isinstance(one, str) else one
            if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
                raise DataError(f"expected texts, found {one!r:.80}")
        texts = [(one,) if isinstance(one, str) else tuple(one) for one in examples]
        try:
            parts = [parts_of(task.kind, *one) for one in texts]
        except DataError as error:
            if len(examples) == 1 and len(texts[0]) > 1:  # probably a list of examples
                raise DataError(
                    f"{error}; give each example as an argument of its own, predict(*examples)"
                ) from None
            raise
        return self._predictions(parts, dtype, console)

    @checked_keywords
    def predict_table(
        self,
        path: str | Path,
        *,
        encoding: str = "utf-8",
        on_bad_text: OnBadText = "stop",
        on_bad_line: OnBadLine = "stop",
        dtype: Dtype = Dtype.automatic,
        console: Console | None = None,
    ) -> list[Prediction]:
        """Run ``predict`` on each row of a table; labels are not needed."""
        task = self._head()
        console, reading = console or Console(), Reading(encoding, on_bad_text, on_bad_line)
        table = reading.table(Path(path), (*task.columns.texts, *task.columns.answers))
        parts = read_parts(table, task, reading)
        reading.show(console)
        console.note(f"{path}: {len(parts):,} examples; its columns are {', '.join(table.columns)}")
        return self._predictions(parts, dtype, console)

    def _predictions(
        self, parts: Sequence[Sequence[Sequence[str]]], dtype: Dtype, console: Console | None
    ) -> list[Prediction]:
        assert isinstance(self.model, TaskModel)
        if not parts:
            raise DataError("there are no examples to predict")
        precision = self.precision(dtype)
        return predict(self.model, self.tokenizer, self._head(), parts, precision, console or Console())

    def _head(self) -> Task:
        if self.task is None:
            advice = (
                "it answers in `wholegpt chat`"
                if self.chat_template
                else "train one with `wholegpt finetune`"
            )
            raise ConfigError(f"the model has no task head; {advice}")
        if self.is_reward_model:
            raise ConfigError("the model is a reward model, which predicts no labels; use rewards()")
        return self.task

    def for_lm_eval(self, dtype: Dtype = Dtype.float32, console: Console | None = None) -> "TemplateLM":
        """Return the model for ``lm_eval.simple_evaluate(model=…)``; requires lm-eval."""
        from wholegpt.evaluation.harness import harness_model

        self.check_language_model()
        precision = self.precision(dtype)
        return harness_model(self.model, self.tokenizer, self.model.device, precision, console or Console())

    def precision(self, dtype: Dtype) -> Dtype:
        """Return the dtype of matrix products; for ``dtype`` automatic, that of training if this device supports it."""
        if dtype not in list(Dtype):
            raise ConfigError(f"dtype is '{dtype}'; expected one of {', '.join(Dtype)}")
        chosen = PrecisionConfig(dtype=self.dtype if dtype == Dtype.automatic else Dtype(dtype))
        return runtime.decide_precision(chosen, self.model.device).dtype


def _conversation(messages: Sequence[Message | Mapping[str, Any]], where: str) -> list[Message]:
    """Return the messages of a conversation. Raises ``ConfigError`` or ``DataError`` if they are not valid."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        found = "one text" if isinstance(messages, str) else f"a {type(messages).__name__}"
        raise DataError(f"messages is {found}; give a list of messages, each with its role and content")
    for one in messages:
        if not isinstance(one, Message | Mapping):
            raise DataError(f"a message is a {type(one).__name__}; give its role and content")
    conversation = [
        one if isinstance(one, Message) else read_message(one, f"{where}: message {number}")
        for number, one in enumerate(messages, 1)
    ]
    if not all(one.content for one in conversation):
        raise DataError("a message has no content")
    check_conversation(conversation, where)
    return conversation


def _plain(settings: GenerationSettings) -> dict[str, Any]:
    """Return the settings as ``GenerationConfig`` has them: lists of texts, and the schema as JSON text."""
    plain = dict[str, Any](settings)
    for name in ("stop", "banned", "forced"):
        if isinstance(plain.get(name), str):
            plain[name] = (plain[name],)
    if isinstance(plain.get("json_schema"), Mapping):
        plain["json_schema"] = json.dumps(plain["json_schema"])
    return plain


def _check_texts(texts: object, name: str) -> None:
    """Raise ``ConfigError`` for anything but a list of texts."""
    if isinstance(texts, str):
        raise ConfigError(f"{name} is one text; give a list of them, or call generate")
    if not isinstance(texts, Sequence):
        raise ConfigError(f"{name} is a {type(texts).__name__}; expected a text or a list of texts")
    for one in texts:
        _check_text(one, name)


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{name}: found a value of type {type(text).__name__}; expected a text")


def check_predicts_next_token(model: TokenModel) -> None:
    """Raise ``ConfigError`` for a model that does not predict the next token."""
    if not model.predicts_next_token:
        raise ConfigError("an encoder is bidirectional and has no perplexity; use pseudo_perplexity()")
    if model.has_source:
        raise ConfigError(
            "an encoder–decoder needs a source, so a text alone has no perplexity; give a table of sources "
            "and targets"
        )
