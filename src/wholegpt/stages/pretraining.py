"""Pretraining on text, from the beginning or going on: what the loop is given, and how the model is measured."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from wholegpt.checkpoint import ModelMetadata
from wholegpt.console import Console
from wholegpt.data import PreparedData, TextSizes, TokenShards, make_loader, windows_before
from wholegpt.evaluation import TextScore, evaluate_tokens
from wholegpt.files import read_json, write_json_atomic
from wholegpt.generation import encode_prompt, generate
from wholegpt.model import TokenModel
from wholegpt.settings.schema import Config, GenerationConfig
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import LanguageModeling, with_router_losses
from wholegpt.training.stage import Criterion, Score

QUIET = Console(quiet=True)


FORGETTING_FILES = OLD_TEXT, BEFORE = "old_text.npy", "old_text.json"


@dataclass(frozen=True)
class Forgetting:
    """What a model that learned another text lost of the one before: the cross-entropy of that one's held-out part."""

    before: TextScore
    after: TextScore

    @staticmethod
    def begin(run: Path, text: TokenShards, model: TokenModel, config: Config, tokenizer: Tokenizer) -> None:
        """Copy the held-out ``text`` of the run before into ``run``, with the score of its ``model``."""
        np.save(run / OLD_TEXT, text.read(0, len(text)).astype(np.uint32), allow_pickle=False)
        score, sizes = _score(model, text, tokenizer, config), text.text
        content = {"sizes": sizes and asdict(sizes), "before": asdict(score)}
        write_json_atomic(run / BEFORE, content)

    @classmethod
    def measure(
        cls, run: Path, model: TokenModel, config: Config, tokenizer: Tokenizer
    ) -> "Forgetting | None":
        """By what ``begin`` left in ``run``; none where it left nothing."""
        if not (run / BEFORE).exists():
            return None
        content = read_json(run / BEFORE)
        sizes = msgspec.convert(content["sizes"], TextSizes | None)
        text = TokenShards([np.load(run / OLD_TEXT, allow_pickle=False)], sizes)
        before = msgspec.convert(content["before"], TextScore)
        return cls(before, _score(model, text, tokenizer, config))

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``nats_per_token`` is what was lost, of a token of the old text."""
        lost = self.after.nats_per_token - self.before.nats_per_token
        return {"nats_per_token": lost, "before": self.before.to_json(), "after": self.after.to_json()}


def _score(model: TokenModel, text: TokenShards, tokenizer: Tokenizer, config: Config) -> TextScore:
    dtype, documents = config.precision.dtype, config.windows.documents
    return evaluate_tokens(model, text, tokenizer, model.device, dtype, QUIET, documents=documents)


def metadata_of(data: PreparedData) -> ModelMetadata:
    """What a model that is trained on ``data`` can be asked for, and what its texts start from."""
    return ModelMetadata(data.manifest.control, start_text=data.start_text)


class Pretraining:
    """The next token of text."""

    criterion = Criterion("nats_per_token", higher_is_better=False, words="validation loss")

    def __init__(self, config: Config, data: PreparedData, metadata: ModelMetadata | None = None) -> None:
        """``config`` is decided, and ``data`` its tokens; ``metadata`` are those of a model that goes on."""
        self.config, self.data = config, data
        self.tokenizer, self.metadata = data.tokenizer, metadata or metadata_of(data)
        self.objective, self.batches = (
            with_router_losses(LanguageModeling(), config),
            make_loader(data, config),
        )

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> Score:
        """The cross-entropy of the held-out text, or of ``evaluation.tokens`` of it."""
        return evaluate_tokens(
            model,
            self.data.validation,
            self.tokenizer,
            device,
            self.config.precision.dtype,
            QUIET,
            sample=0 if whole else self.config.evaluation.tokens,
            documents=self.config.windows.documents,
        )

    def write(self, model: TokenModel, device: torch.device) -> str:
        """A continuation of ``logging.sample_prompt``, with it; of what ``metadata`` say where that is empty."""
        logging = self.config.logging
        settings = GenerationConfig(max_tokens=logging.sample_tokens, seed=self.config.runtime.seed)
        prompt, start = logging.sample_prompt, self.metadata.start_text
        prompt_ids = encode_prompt(model, self.tokenizer, "", prompt, False, QUIET, start)
        (completion,) = generate(model, self.tokenizer, [prompt_ids], [settings], device, QUIET)
        return prompt + completion.text

    def masks(self) -> list[list[tuple[str, bool]]]:
        """None: every token counts."""
        return []

    def describe(self) -> str:
        """The sizes of both sides, and how often the text is read."""
        manifest, training = self.data.manifest, self.config.training
        tokens = windows_before(training.steps, training) * self.config.model.context_length
        return (
            f"training: {manifest.train.tokens:,} tokens; {tokens:,} are read, "
            f"{tokens / max(manifest.train.tokens, 1):.1f} epochs; "
            f"validation: {manifest.validation.tokens:,} ({manifest.split})"
        )
