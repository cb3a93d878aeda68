"""Direct preference optimization and its relatives: a model learns from pairs which of two answers is preferred.

Shapes: B pairs, N pairs of a split, T positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.checkpoint import ModelMetadata
from wholegpt.console import Console, sample_for_people
from wholegpt.data.chat.packing import batches_of
from wholegpt.data.chat.preferences import (
    EncodedPair,
    PairBatch,
    PairLoader,
    PreferenceData,
    collate_pairs,
    encode_pairs,
    with_references,
)
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import ConfigError, counted
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Record, means_of
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.losses import IGNORED, dpo_loss, ipo_loss, orpo_loss, simpo_loss
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Architecture, Dtype, PreferenceLoss, TaskKind
from wholegpt.settings.schema import AlignmentConfig, Config, GenerationConfig
from wholegpt.settings.sections.alignment import complete_alignment
from wholegpt.stages.answer_training import ANSWER_MARK
from wholegpt.stages.answers import answers
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned, source_of_examples
from wholegpt.stages.prediction import TOKENS_AT_ONCE
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import Terms, with_router_losses
from wholegpt.training.resolution import decide
from wholegpt.training.stage import Criterion, QuickScore, Stage

QUIET = Console(quiet=True)
WITH_REFERENCE = (PreferenceLoss.sigmoid, PreferenceLoss.ipo)
LOSS = "preference_loss"
MEANS = {
    LOSS: "loss",
    "reward_accuracy": "prefers_chosen",
    "reward_margin": "margin",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
    "chosen_nats_per_token": "chosen_nats",
}
"""Metrics, and the field of the records that each is the mean of."""


class PreferenceObjective:
    """The loss of preference pairs (``losses.preference``); a term is a pair.

    The implicit reward of an answer is β·(ln π − ln π_ref) for the losses with a reference, and β·ln π per token for
    the others. ``reward_accuracy`` is the share of pairs whose chosen answer has the higher one.
    """

    unit = LOSS

    def __init__(self, settings: AlignmentConfig) -> None:
        """``settings`` are complete."""
        self.settings = settings

    def count(self, batch: PairBatch) -> int:
        """Return the number of pairs."""
        return len(batch)

    def __call__(self, model: nn.Module, batch: PairBatch) -> Terms:
        """Return the sum over the pairs."""
        values = self.values(answer_log_probabilities(model, batch), batch)
        metrics = {
            name: (values[column].detach().float().sum(), len(batch)) for name, column in MEANS.items()
        }
        return Terms(values["loss"].sum(), metrics)

    def values(self, log_p: Float[Tensor, "B 2"], batch: PairBatch) -> dict[str, Float[Tensor, " B"]]:
        """Return the loss and the metrics of each pair, from the log-probabilities of its answers."""
        loss, beta, margin = self.settings.loss, self.settings.beta, self.settings.margin
        lengths = (batch.targets != IGNORED).sum(-1)
        ratios = log_p - batch.reference.to(log_p.dtype)
        both = lengths[:, 0], lengths[:, 1]
        match loss:
            case PreferenceLoss.sigmoid:
                losses = dpo_loss(ratios[:, 0], ratios[:, 1], beta)
            case PreferenceLoss.ipo:
                losses = ipo_loss(ratios[:, 0], ratios[:, 1], *both, beta)
            case PreferenceLoss.orpo:
                losses = orpo_loss(log_p[:, 0], log_p[:, 1], *both, beta)
            case PreferenceLoss.simpo:
                losses = simpo_loss(log_p[:, 0], log_p[:, 1], *both, beta, margin)
        rewards = beta * (ratios if loss in WITH_REFERENCE else log_p / lengths)
        return {
            "loss": losses,
            "prefers_chosen": rewards[:, 0] > rewards[:, 1],
            "margin": rewards[:, 0] - rewards[:, 1],
            "chosen_reward": rewards[:, 0],
            "rejected_reward": rewards[:, 1],
            "chosen_nats": -log_p[:, 0] / lengths[:, 0],
        }


def answer_log_probabilities(model: nn.Module, batch: PairBatch) -> Float[Tensor, "B 2"]:
    """Return ln π of both answers of each pair, the sum over their tokens, in nats."""
    assert isinstance(model, NeuralModel)
    flat = model.log_probabilities(batch.token_ids.flatten(0, 1), batch.targets.flatten(0, 1))
    return flat.sum(-1).view(len(batch), 2)


@torch.no_grad()
def log_probabilities_of(
    model: TokenModel, pairs: Sequence[EncodedPair], dtype: Dtype, console: Console
) -> Float[Tensor, "N 2"]:
    """Return ln π of both answers of all pairs, in nats, without dropout."""
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    training = model.training
    model.eval()
    lengths = [2 * max(len(side.token_ids) for side in one.sides) for one in pairs]
    with console.progress("scoring answers", len(pairs)) as progress:
        for chunk in batches_of(lengths, TOKENS_AT_ONCE):
            batch = collate_pairs([pairs[i] for i in chunk]).to(model.device)
            with compute_in(dtype, model.device):
                found[chunk] = answer_log_probabilities(model, batch).cpu().double()
            progress.advance(len(chunk))
    model.train(training)
    check_not_nan(found.sum(1).numpy(), "pairs")
    return found


class PreferenceTuning(Stage):
    """Training on pairs of a chosen and a rejected answer."""

    criterion = Criterion(LOSS, higher_is_better=False, words="validation loss of pairs")

    def __init__(
        self, config: Config, data: PreferenceData, tokenizer: Tokenizer, metadata: ModelMetadata
    ) -> None:
        """``config`` is resolved; the pairs of ``data`` have their reference log-probabilities."""
        super().__init__(config, tokenizer, metadata)
        self.template, self.columns = ChatTemplate(metadata.chat_template), data.columns
        self.train = encode_pairs(data.train, self.template, tokenizer, config.window_length)
        self.validation = encode_pairs(data.validation, self.template, tokenizer, config.model.context_length)
        self.pairs = PreferenceObjective(config.alignment)
        self.objective = with_router_losses(self.pairs, config)
        self.batches = PairLoader(self.train, config.training.batch_size, config.runtime.seed)

    def evaluate(self, model: TokenModel, device: torch.device, whole: bool) -> TaskScore | QuickScore:
        """Return the loss and the implicit rewards of the held-out pairs, with confidence intervals if ``whole``."""
        log_p = log_probabilities_of(model, self.validation, self.config.precision.dtype, QUIET)
        values = self.pairs.values(log_p, collate_pairs(self.validation))
        columns = {name: value.numpy() for name, value in values.items()}
        if not whole:
            return QuickScore({name: float(np.mean(columns[column])) for name, column in MEANS.items()})
        records: list[Record] = [
            {
                "line": number,
                "prompt": one.pair.prompt[-1].content,
                "chosen_answer": one.pair.chosen,
                "rejected_answer": one.pair.rejected,
                **{name: column[number - 1].item() for name, column in columns.items()},
            }
            for number, one in enumerate(self.validation, 1)
        ]
        cut = sum(one.cut for one in self.validation)
        return TaskScore(
            "preference",
            len(records),
            0,
            means_of(records, MEANS),
            MEANS,
            cut,
            records,
            "the ends of answers",
        )

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return the first held-out prompt and the model's answer."""
        asked, tokens = self.validation[0].pair.prompt, self.config.logging.sample_tokens
        if not tokens:
            return ""
        config = GenerationConfig(max_tokens=tokens, temperature=0.0)
        (answer,) = answers(model, self.tokenizer, self.template, [asked], config, QUIET)
        return f"{asked[-1].content}{ANSWER_MARK}{sample_for_people(answer.text)}"

    def describe(self) -> str:
        """Return the number of pairs, their columns, and the number of epochs."""
        training = self.config.training
        epochs = training.steps * training.batch_size / len(self.train)
        cut = sum(one.cut for one in self.train)
        left = f"; {cut:,} are cut at {self.config.window_length:,} tokens" if cut else ""
        return (
            f"{counted(len(self.train), 'pairs')} ({epochs:.1f} epochs), {len(self.validation):,} held out; columns "
            f"{', '.join([*self.columns.texts, *self.columns.answers])}{left}"
        )


def require_answers(request: SetupRequest) -> None:
    """Raise ``ConfigError`` if the parent has no chat template: it was not taught to answer."""
    assert request.parent
    if not request.parent_model.metadata.chat_template:
        raise ConfigError(
            f"{request.parent.name}: has no chat template, because it was not tuned to answer; first tune it with "
            "`wholegpt finetune --task instruct`"
        )


def set_up(request: SetupRequest) -> NewRun:
    """Set up training on pairs. Raises ``ConfigError`` for a model that was not taught to answer."""
    require_answers(request)
    return NewRun("", lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Read the pairs, score them with the parent as the reference, and write them into ``folder``."""
    parent = request.parent_model
    config = replace(request.config, alignment=complete_alignment(request.config.alignment))
    data = PreferenceData.read(config, request.console)
    tokenizer, template = parent.tokenizer, ChatTemplate(parent.metadata.chat_template)
    context = parent.model.context_length
    train = encode_pairs(data.train, template, tokenizer, config.windows.length or context)
    validation = encode_pairs(data.validation, template, tokenizer, context)
    dropped = len(data.train) + len(data.validation) - len(train) - len(validation)
    if dropped:
        request.console.warn(f"left out, because the prompt fills the window: {counted(dropped, 'pairs')}")
    metadata = ModelMetadata(
        lora=config.lora if config.lora.rank else None,
        columns=parent.metadata.columns,
        start_text=parent.metadata.start_text,
        chat_template=template.source,
    )
    setup = fine_tuned(config, parent, tokenizer, metadata, len(train), "")
    sides = [[one.pair for one in side] for side in (train, validation)]
    if config.alignment.loss in WITH_REFERENCE:
        decided = decide(setup.config)
        reference = parent.model.to(decided.runtime.device)
        sides = [
            with_references(
                side, log_probabilities_of(reference, side, decided.precision.dtype, request.console)
            )
            for side in (train, validation)
        ]
        reference.cpu()  # frees the memory of the device
    data_hash = PreferenceData(sides[0], sides[1], data.columns).save(folder / "data")
    return replace(setup, source=source_of_examples(config.finetuning.data, data_hash))


def open_stage(run: RunContents) -> PreferenceTuning:
    """Open training on the pairs of a run."""
    return PreferenceTuning(run.config, PreferenceData.open(run.examples()), run.tokenizer(), run.metadata())


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a model that answers."""
    return [NextStep("{program} chat {run}", "talk to it")]


STAGE = StageDefinition(
    name="preference",
    tasks=(TaskKind.dpo,),
    architectures=(),
    parents=(Architecture.transformer,),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    section="alignment",
    recipe="dpo",
)
