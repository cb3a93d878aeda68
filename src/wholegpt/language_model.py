"""A model with its tokenizer: text in, text and numbers out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wholegpt import presets, runtime
from wholegpt.checkpoint import CHECKSUMS, CheckpointStore, load_model, verify
from wholegpt.config import (
    AttentionKernel,
    Dtype,
    GenerationConfig,
    PrecisionConfig,
)
from wholegpt.console import Console
from wholegpt.data import TokenShards
from wholegpt.data.reading import ReadingReport, read_documents
from wholegpt.errors import CheckpointError, DataError, TokenizerError
from wholegpt.evaluation import TextScore, evaluate_tokens, score_tokens
from wholegpt.evaluation.perplexity import scoring_windows
from wholegpt.generation import Completion, generate
from wholegpt.metrics import nats_to_bits
from wholegpt.model import Transformer
from wholegpt.tokenizers import Tokenizer, byte_tokenizer


@dataclass(frozen=True)
class TokenScores:
    """How surprising each token of a text was."""

    token_ids: list[int]
    tokens: list[str]
    """The text of each token; one that is part of a character shows as U+FFFD."""
    surprisal_bits: list[float]
    """−log₂ p of each token given those before it in its window of τ; the first is given end-of-text."""


class LanguageModel:
    """A trained (or fresh) model that reads and writes text."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None, dtype: Dtype = Dtype.automatic
    ) -> None:
        self.model = model.eval()
        self.dtype = dtype
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises ``TokenizerError`` for a fresh published preset, which has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                "a fresh preset has no tokenizer; train it on text, or call lm.model on token ids"
            )
        return self._tokenizer

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | tuple[str, ...] = (),
        seed: int = 1337,
        emit: Callable[[str], None] = lambda text: None,
        console: Console | None = None,
    ) -> Completion:
        """Continue ``prompt``; the settings are those of ``GenerationConfig``. ``emit`` streams the text."""
        stops = (stop,) if isinstance(stop, str) else stop
        config = GenerationConfig(max_tokens, temperature, top_k, top_p, stops, seed)
        return generate(
            self.model, self.tokenizer, prompt, config, self.model.device, console or Console(), emit
        )

    def score(self, text: str) -> TokenScores:
        """The surprisal of each token of ``text``, in float32."""
        token_ids = self.tokenizer.encode(text)
        if not token_ids:
            raise DataError("the text is empty; there is nothing to score")
        stream = TokenShards([np.array([self.tokenizer.end_of_text_id, *token_ids])])
        windows = list(scoring_windows(len(stream), self.model.context_length, self.model.context_length))
        nats = score_tokens(
            self.model, stream, windows, self.model.device, Dtype.float32, Console(quiet=True)
        )
        tokens = [self.tokenizer.decode([token_id]) for token_id in token_ids]
        return TokenScores(token_ids, tokens, [nats_to_bits(float(n)) for n in nats])

    def evaluate(
        self,
        *sources: str | Path,
        stride: int = 0,
        dtype: Dtype = Dtype.automatic,
        encoding: str = "utf-8",
        text_field: str = "text",
        console: Console | None = None,
    ) -> TextScore:
        """Cross-entropy on text files, folders or JSON lines, documents joined with end-of-text.

        ``stride`` below the context length gives later tokens of each window more context (0: none is
        carried over). The large products run in ``dtype``; automatic is what the run was trained in, where
        that is known and possible, or what training would choose here.
        """
        console = console or Console()
        stream: list[np.ndarray] = []
        for source in sources:
            if not Path(source).exists():
                raise DataError(f"{source}: no such file or folder")
            report = ReadingReport()
            for text in read_documents(Path(source), encoding, text_field, report):
                joint = [self.tokenizer.end_of_text_id] if stream else []
                stream.append(np.array(joint + self.tokenizer.encode(text), dtype=np.int64))
            if report.skipped:
                console.note(f"{source}: {report}")
        if not stream:
            raise DataError(f"{', '.join(map(str, sources)) or 'no source'}: holds no text")
        return self.evaluate_tokens(TokenShards([np.concatenate(stream)]), stride, dtype, console)

    def evaluate_tokens(self, tokens: TokenShards, stride: int, dtype: Dtype, console: Console) -> TextScore:
        """``evaluate`` for text that is tokens already."""
        chosen = runtime.decide_precision(
            PrecisionConfig(dtype=self.dtype if dtype is Dtype.automatic else dtype),
            self.model.device,
        )
        return evaluate_tokens(
            self.model, tokens, self.tokenizer, self.model.device, chosen.dtype, console, stride
        )


def load(
    path: str | Path,
    *,
    checkpoint: str = "best",
    device: str = "automatic",
    threads: int = 0,
    console: Console | None = None,
) -> LanguageModel:
    """A run (its ``best`` or ``last`` checkpoint, or that of a step), a model folder, or a fresh preset.

    A fresh ``modern`` preset reads and writes bytes; the published ones are made for a vocabulary that
    this program does not contain, so they take token ids only.

    Raises ``CheckpointError`` for a folder that holds none, or only damaged ones.
    """
    chosen = runtime.choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    if str(path) in presets.PRESETS:
        config, tokenizer = presets.preset(str(path)), None
        if config.vocab_size == 0:
            tokenizer = byte_tokenizer()
            config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
        return LanguageModel(Transformer(config, _attention(chosen)).to(chosen), tokenizer)
    folder = model_folder(Path(path), checkpoint, console or Console())
    loaded = load_model(folder, chosen, _attention(chosen))
    return LanguageModel(loaded.model, loaded.tokenizer, _trained_in(Path(path), chosen))


def _trained_in(run: Path, device: torch.device) -> Dtype:
    """The number format that a run's config records, where ``device`` has it."""
    if not (run / "config.yaml").exists():
        return Dtype.automatic
    dtype = presets.recipe(str(run)).precision.dtype
    return Dtype.automatic if dtype is Dtype.bfloat16 and not runtime.has_bfloat16(device) else dtype


def _attention(device: torch.device) -> AttentionKernel:
    return runtime.decide_precision(PrecisionConfig(), device).attention


def model_folder(path: Path, checkpoint: str, console: Console) -> Path:
    """The model folder that ``path`` is or, for a run, that ``checkpoint`` picks; warns of damaged ones."""
    if (path / "model.safetensors").exists():
        if (path / CHECKSUMS).exists():
            verify(path)
        return path
    if (path / "checkpoints").is_dir():
        folder, problems = CheckpointStore(path).choose(checkpoint)
        for problem in problems:
            console.warn(f"{problem}; using {folder.name}")
        return folder
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such run, model folder or preset; {presets.nearest(str(path), list(presets.PRESETS))}"
        )
    raise CheckpointError(f"{path}: holds neither a run (checkpoints/) nor a model (model.safetensors)")
