"""Training on the answers of conversations: what instruction tuning and sequence-to-sequence training share."""

import numpy as np
import torch

from wholegpt.checkpoint import ModelMetadata
from wholegpt.console import QUIET, Console, sample_for_people
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.data.examples.columns import DETECTED
from wholegpt.data.examples.conversations import ConversationData
from wholegpt.data.examples.packing import ConversationLoader, pack
from wholegpt.errors import counted
from wholegpt.evaluation import TaskScore
from wholegpt.model import TokenModel
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.stages.answers import AnswerLoss, answer_nats, answers, fit_conversations, score_answers
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import LanguageModeling
from wholegpt.training.reference import Reference, with_reference_kl
from wholegpt.training.stage import Criterion, Stage

SHOWN_MASKS = 3
ANSWER_MARK = "\n→ "
"""Separates question and answer in a sample."""


class AnswerTraining(Stage):
    """Prediction of the next token of answers alone (E8), given the conversation before them."""

    unit = "conversations"
    """The examples' name in messages."""
    criterion = Criterion("nats_per_token", higher_is_better=False, label="validation loss of answers")

    def __init__(
        self,
        config: Config,
        data: ConversationData,
        tokenizer: Tokenizer,
        metadata: ModelMetadata,
        reference: Reference | None = None,
    ) -> None:
        """``config`` is resolved; ``tokenizer`` has the special tokens of ``metadata.chat_template``.

        Raises ``DataError`` if no answer begins within a window, or within the context for held-out ones.
        """
        super().__init__(config, tokenizer, metadata, LanguageModeling())
        self.objective = with_reference_kl(self.objective, reference)
        self.template = ChatTemplate(metadata.chat_template)
        length = config.window_length
        self.train = fit_conversations(data.train, self.template, tokenizer, length)
        self.validation = fit_conversations(
            data.validation, self.template, tokenizer, config.model.context_length
        )
        learned = [one.encoded for one in self.train]
        loader = ConversationLoader(learned, length, config.training.batch_size, config.runtime.seed)
        self.batches, self.rows = loader, len(loader.rows)

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> AnswerLoss | TaskScore:
        """Return the loss of the held-out answers; if ``whole``, also figures of generated answers."""
        dtype = self.config.precision.dtype
        if whole:
            return score_answers(model, self.tokenizer, self.template, self.validation, dtype, console)
        encoded = [one.encoded for one in self.validation]
        tokens = sum(sum(one.scored) for one in encoded)
        mean = float(answer_nats(model, encoded, dtype).sum()) / tokens
        return AnswerLoss(mean, float(np.exp(mean)), tokens)

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return the first held-out question and the model's answer."""
        asked = self.validation[0].question
        tokens = self.config.logging.sample_tokens
        if not tokens:
            return ""
        config = GenerationConfig(max_tokens=tokens, temperature=0.0)
        (answer,) = answers(model, self.tokenizer, self.template, [asked], config, QUIET)
        return f"{asked[-1].content}{ANSWER_MARK}{sample_for_people(answer.text)}"

    def masks(self) -> list[list[tuple[str, bool]]]:
        """Return the first training conversations token by token, and whether each token has a loss."""
        return [
            list(zip(self.tokenizer.texts_of(one.encoded.token_ids), one.encoded.scored, strict=True))
            for one in self.train[:SHOWN_MASKS]
        ]

    def describe(self) -> str:
        """Return the number of examples, how they are packed, and the number of epochs."""
        training, rows = self.config.training, self.rows
        epochs = training.steps * training.batch_size / rows
        scored = sum(sum(one.encoded.scored) for one in self.train)
        cut = sum(one.cut for one in self.train)
        questions = len({one.messages[:-1] for one in self.validation})
        columns = self.metadata.columns or DETECTED
        where = f"columns {', '.join([*columns.texts, columns.target])}"
        left = f"; {cut:,} are cut at {self.config.window_length:,} tokens" if cut else ""
        return (
            f"{counted(len(self.train), self.unit)} in {counted(rows, 'rows')} ({epochs:.1f} epochs), {scored:,} "
            "tokens of answers; "
            f"{len(self.validation):,} held out, with {counted(questions, 'different questions')}; {where}{left}"
        )


def packed_rows(data: ConversationData, template: ChatTemplate, tokenizer: Tokenizer, config: Config) -> int:
    """Return the number of packed rows of an epoch.

    Raises ``DataError`` if no answer of a split begins within a window (training) or the context (validation).
    """
    length = config.window_length
    fitted = fit_conversations(data.train, template, tokenizer, length)
    fit_conversations(data.validation, template, tokenizer, config.model.context_length)
    return len(pack([len(one.encoded.token_ids) - 1 for one in fitted], length))
