"""Pretraining on text: prediction of the next token, from random weights or continued from a trained model."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from wholegpt.checkpoint import ModelMetadata
from wholegpt.console import QUIET, Console
from wholegpt.data import PreparedData, TextSizes, TokenShards, WindowLoader, make_loader, windows_before
from wholegpt.errors import ConfigError, DataError, RunError
from wholegpt.evaluation import TextScore, evaluate_tokens
from wholegpt.files import read_json, write_json_atomic
from wholegpt.generation import encode_prompt, generate
from wholegpt.model import TokenModel
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config, GenerationConfig, TokenizerConfig
from wholegpt.stages.definition import (
    NewRun,
    NextStep,
    ParentModel,
    RunContents,
    RunSetup,
    SetupRequest,
    StageDefinition,
)
from wholegpt.stages.initialization import architecture_of, initialized_model
from wholegpt.stages.reference import companions_of, reference_of
from wholegpt.stages.text_source import name_of_text, open_text, prepared_text, source_of
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.loop import BatchSource
from wholegpt.training.objectives import LanguageModeling, Objective
from wholegpt.training.reference import Reference, with_reference_kl
from wholegpt.training.stage import Criterion, Score, Stage

OLD_TEXT, BEFORE = "old_text.npy", "old_text.json"


@dataclass(frozen=True)
class Forgetting:
    """Catastrophic forgetting in continued pretraining: the loss on held-out text of the parent, before and after."""

    before: TextScore
    after: TextScore

    @staticmethod
    def set_up(
        run: Path,
        text: TokenShards,
        model: TokenModel,
        config: Config,
        tokenizer: Tokenizer,
        console: Console,
    ) -> None:
        """Copy the held-out ``text`` of the parent's run into ``run``, with the score of its ``model``."""
        np.save(run / OLD_TEXT, text.read(0, len(text)).astype(np.uint32), allow_pickle=False)
        score, sizes = _score(model, text, tokenizer, config, console), text.text
        content = {"sizes": sizes and asdict(sizes), "before": asdict(score)}
        write_json_atomic(run / BEFORE, content)

    @classmethod
    def measure(
        cls, run: Path, model: TokenModel, config: Config, tokenizer: Tokenizer, console: Console
    ) -> "Forgetting | None":
        """Evaluate ``model`` on the text that ``set_up`` left in ``run``; return None if it left none."""
        if not (run / BEFORE).exists():
            return None
        content = read_json(run / BEFORE)
        sizes = msgspec.convert(content["sizes"], TextSizes | None)
        text = TokenShards([np.load(run / OLD_TEXT, allow_pickle=False)], sizes)
        before = msgspec.convert(content["before"], TextScore)
        return cls(before, _score(model, text, tokenizer, config, console))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``nats_per_token`` is the increase of the loss on the parent's text."""
        lost = self.after.nats_per_token - self.before.nats_per_token
        return {"nats_per_token": lost, "before": self.before.to_json(), "after": self.after.to_json()}


def _score(
    model: TokenModel, text: TokenShards, tokenizer: Tokenizer, config: Config, console: Console
) -> TextScore:
    dtype, documents = config.precision.dtype, config.windows.documents
    return evaluate_tokens(model, text, tokenizer, model.device, dtype, console, documents=documents)


def metadata_of(data: PreparedData) -> ModelMetadata:
    """Return the metadata of a model trained on ``data``: its control codes and start text."""
    return ModelMetadata(data.manifest.control, start_text=data.start_text)


class Pretraining(Stage):
    """Prediction of the next token of text, from random weights or from a trained model (continued pretraining)."""

    criterion = Criterion("nats_per_token", higher_is_better=False, label="validation loss")

    def __init__(
        self,
        config: Config,
        data: PreparedData,
        metadata: ModelMetadata | None = None,
        run: Path | None = None,
        reference: Reference | None = None,
    ) -> None:
        """``metadata`` are those of the parent model, if any; ``run`` may hold the text to measure forgetting on."""
        super().__init__(config, data.tokenizer, metadata or metadata_of(data), self.make_objective())
        self.objective = with_reference_kl(self.objective, reference)
        self.data, self.run = data, run
        self.batches = self.make_batches(make_loader(data, config))

    def make_objective(self) -> Objective:
        """Return the objective, without router losses."""
        return LanguageModeling()

    def make_batches(self, loader: WindowLoader) -> BatchSource:
        """Return the batches, given those of the next tokens of text."""
        return loader

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> Score:
        """Return the cross-entropy of the held-out text, or of ``evaluation.tokens`` of it."""
        return evaluate_tokens(
            model,
            self.data.validation,
            self.tokenizer,
            device,
            self.config.precision.dtype,
            console,
            sample=0 if whole else self.config.evaluation.tokens,
            documents=self.config.windows.documents,
        )

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return ``logging.sample_prompt``, or the start text of ``metadata`` if it is empty, and its continuation."""
        logging = self.config.logging
        settings = GenerationConfig(max_tokens=logging.sample_tokens, seed=self.config.runtime.seed)
        prompt, start = logging.sample_prompt, self.metadata.start_text
        prompt_ids = encode_prompt(model, self.tokenizer, "", prompt, False, QUIET, start)
        (completion,) = generate(model, self.tokenizer, [prompt_ids], [settings], device, QUIET)
        return prompt + completion.text

    def results(self, model: TokenModel, console: Console = QUIET) -> dict[str, Score]:
        """Return how much continued pretraining forgot."""
        found = self.run and Forgetting.measure(self.run, model, self.config, self.tokenizer, console)
        return {"forgetting": found} if found else {}

    def describe(self) -> str:
        """Return the sizes of both splits, and the number of epochs."""
        manifest, training = self.data.manifest, self.config.training
        tokens = windows_before(training.steps, training) * self.config.window_length
        return (
            f"training: {manifest.train.tokens:,} tokens; {tokens:,} tokens in {training.steps:,} steps, "
            f"{tokens / max(manifest.train.tokens, 1):.1f} epochs; "
            f"validation: {manifest.validation.tokens:,} tokens ({manifest.split})"
        )


def set_up(request: SetupRequest) -> NewRun:
    """Set up pretraining from random weights, or continued pretraining of the parent."""
    if request.parent:
        return NewRun("", lambda folder: _write_continued(request, folder))
    return set_up_text(request)


def set_up_text(request: SetupRequest) -> NewRun:
    """Set up a run over text whose first step initializes the model."""
    config, corpus = open_text(request.config, request.console, request.texts)

    def write(folder: Path) -> RunSetup:
        data = prepared_text(config, corpus, folder / "data", request.console)
        data.warn_unless(config.data.card, request.console)
        return RunSetup(request.resolve(config, data), data.tokenizer, source_of(data))

    return NewRun(name_of_text(config, corpus), write)


def _write_continued(request: SetupRequest, folder: Path) -> RunSetup:
    """Tokenize the text with the parent's tokenizer, and take over its weights."""
    parent, source = request.parent_model, request.parent
    assert source
    tokenizer = TokenizerConfig(path=str(source.folder.resolve()))
    architecture = architecture_of(request.config, parent, parent.tokenizer.vocab_size)
    config = replace(request.config, tokenizer=tokenizer, model=architecture)
    config, corpus = open_text(config, request.console, request.texts)
    data = prepared_text(config, corpus, folder / "data", request.console)
    if data.tokenizer.sha256 != parent.tokenizer.sha256:
        raise ConfigError(
            f"{data.folder}: was prepared with another tokenizer than the model's; name the text itself"
        )
    ends = parent.metadata.end_token_ids
    metadata = replace(
        parent.metadata,
        control=data.manifest.control,
        start_text=data.start_text,
        lora=config.lora if config.lora.rank else None,
        new_tokens=0,
        # Documents end with end-of-text, whatever ended texts before.
        end_token_ids=(*ends, *({data.tokenizer.end_of_text_id} - {*ends})) if ends else (),
    )
    config = request.resolve(config, data)
    model = initialized_model(config, parent, metadata)
    _set_up_forgetting(config, model, source, folder, request.console)
    companions = companions_of(config, model, parent.tokenizer, metadata)
    return RunSetup(config, parent.tokenizer, source_of(data), model, metadata, companions)


def _set_up_forgetting(
    config: Config, model: TokenModel, parent: ParentModel, folder: Path, console: Console
) -> None:
    """Keep the text that may be forgotten, and the parent's loss on it."""
    try:
        text = parent.held_out_text()
    except (DataError, RunError) as error:
        console.note(f"forgetting is not measured: {error}")
        return
    device = torch.device(config.runtime.device)
    console.note("measuring the model on the held-out text of its parent")
    Forgetting.set_up(folder, text, model.to(device).eval(), config, parent.loaded.tokenizer, console)


def open_stage(run: RunContents) -> Pretraining:
    """Open pretraining over the text of a run."""
    continued = bool(run.config.finetuning.model)
    metadata = run.metadata() if continued else None
    return Pretraining(run.config, run.text(), metadata, run.path, reference_of(run))


def next_steps(config: Config) -> list[NextStep]:
    """Return the uses of a model that generates text."""
    steps = [
        NextStep('{program} generate {run} "The"', "generate text"),
        NextStep("{program} evaluate {run} YOUR.txt", "measure its loss on another text"),
    ]
    if config.model.architecture is Architecture.transformer:
        task = "{program} finetune {run} --task classification --data YOUR.csv"
        steps.append(NextStep(task, "train a classifier from it"))
    return steps


STAGE = StageDefinition(
    name="pretraining",
    tasks=(TaskKind.pretraining,),
    architectures=(Architecture.transformer, Architecture.elman, Architecture.gru, Architecture.lstm),
    parents=(Architecture.transformer,),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    files=(OLD_TEXT, BEFORE),
)
