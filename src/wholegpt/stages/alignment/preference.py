"""Direct preference optimization and its relatives: a model learns from pairs which of two answers is preferred.

Shapes: B pairs, N pairs of a split, T positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wholegpt.checkpoint import ModelMetadata
from wholegpt.console import QUIET, Console, sample_for_people
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.data.examples.packing import batches_of
from wholegpt.data.examples.pair_batches import (
    EncodedPair,
    PairBatch,
    PairLoader,
    collate_pairs,
    encode_pairs,
    with_references,
)
from wholegpt.data.examples.preferences import (
    PreferenceData,
    PreferencePair,
    mismatched,
    with_mismatched_references,
)
from wholegpt.errors import counted
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.generation import Completion
from wholegpt.losses import IGNORED, dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.runtime import compute_in
from wholegpt.settings.choices import Architecture, Dtype, PreferenceLoss, TaskKind
from wholegpt.settings.schema import AlignmentConfig, Config, GenerationConfig
from wholegpt.settings.sections.alignment import complete_alignment
from wholegpt.stages.alignment.pairs import (
    LOSS,
    PAIR_MEANS,
    check_answers,
    describe_pairs,
    metrics_of,
    quick_score,
    rewards_of_pairs,
    score_pairs,
)
from wholegpt.stages.answer_training import ANSWER_MARK
from wholegpt.stages.answers import answers
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned, source_of_examples
from wholegpt.stages.prediction import TOKENS_AT_ONCE
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.loop import BatchSource
from wholegpt.training.objectives import Terms
from wholegpt.training.resolution import decide
from wholegpt.training.stage import Criterion, QuickScore, Stage

WITH_REFERENCE = (PreferenceLoss.sigmoid, PreferenceLoss.ipo, PreferenceLoss.kto)
SHOWN = 8
"""Held-out prompts whose answers before and after training are shown."""
MEANS = {**PAIR_MEANS, "chosen_nats_per_token": "chosen_nats"}


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
        return Terms(values["loss"].sum(), metrics_of(values, MEANS))

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
            case PreferenceLoss.kto:
                desirable = torch.ones_like(ratios[:, 0])
                wanted = kto_loss(ratios[:, 0], desirable, batch.divergence, beta)
                unwanted = kto_loss(ratios[:, 1], 1 - desirable, batch.divergence, beta)
                losses = (wanted + unwanted) / 2
            case PreferenceLoss.orpo:
                losses = orpo_loss(log_p[:, 0], log_p[:, 1], *both, beta)
            case PreferenceLoss.simpo:
                losses = simpo_loss(log_p[:, 0], log_p[:, 1], *both, beta, margin)
        rewards = beta * (ratios if loss in WITH_REFERENCE else log_p / lengths)
        return {
            "loss": losses,
            **rewards_of_pairs(rewards[:, 0], rewards[:, 1]),
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


def divergence_of(model: TokenModel, others: Sequence[EncodedPair], dtype: Dtype) -> float:
    """Estimate z = max(0, mean of ln π − ln π_ref) over both answers of all ``mismatched`` pairs, in nats."""
    log_p = log_probabilities_of(model, others, dtype, QUIET)
    references = torch.tensor([one.pair.reference for one in others], dtype=torch.float64)
    return max(0.0, float((log_p - references).mean()))


class WithDivergence:
    """The batches of a loader, each with the estimate z of KTO for all its prompts under the current weights.

    z is the same for every micro-batch, so that a step does not depend on how it is split.
    """

    def __init__(
        self, loader: PairLoader, others: Sequence[EncodedPair], model: TokenModel, dtype: Dtype
    ) -> None:
        """``others`` are the ``mismatched`` pairs of those that ``loader`` draws from."""
        self.loader, self.others, self.model, self.dtype = loader, others, model, dtype

    def batch(self, step: int) -> PairBatch:
        """Return the pairs of optimizer step ``step`` (from 0), which is the next one of the model."""
        others = [self.others[i] for i in self.loader.indices(step)]
        return replace(self.loader.batch(step), divergence=divergence_of(self.model, others, self.dtype))


class PreferenceTuning(Stage):
    """Training on pairs of a chosen and a rejected answer."""

    criterion = Criterion(LOSS, higher_is_better=False, label="validation loss of pairs")

    def __init__(
        self, config: Config, data: PreferenceData, tokenizer: Tokenizer, metadata: ModelMetadata
    ) -> None:
        """``config`` is resolved; the pairs of ``data`` have their reference log-probabilities."""
        self.pairs = PreferenceObjective(config.alignment)
        super().__init__(config, tokenizer, metadata, self.pairs)
        self.template, self.columns = ChatTemplate(metadata.chat_template), data.columns
        self.train = encode_pairs(data.train, self.template, tokenizer, config.window_length)
        self.validation = encode_pairs(data.validation, self.template, tokenizer, config.model.context_length)
        self.loader = PairLoader(self.train, config.training.batch_size, config.runtime.seed)
        self.batches = self.loader
        self.others, self.others_of_validation = list[EncodedPair](), list[EncodedPair]()
        if config.alignment.loss is PreferenceLoss.kto:
            others, held_out = (mismatched(one, data.train) for one in (data.train, data.validation))
            self.others = encode_pairs(others, self.template, tokenizer, config.window_length)
            self.others_of_validation = encode_pairs(
                held_out, self.template, tokenizer, config.model.context_length
            )

    def batches_for(self, model: TokenModel) -> BatchSource:
        """Return the pairs; for kto with its estimate of the divergence."""
        if not self.others:
            return self.batches
        return WithDivergence(self.loader, self.others, model, self.config.precision.dtype)

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> TaskScore | QuickScore:
        """Return the loss and the implicit rewards of the held-out pairs, with confidence intervals if ``whole``."""
        dtype, others = self.config.precision.dtype, self.others_of_validation
        log_p = log_probabilities_of(model, self.validation, dtype, console)
        divergence = divergence_of(model, others, dtype) if others else 0.0
        values = self.pairs.values(log_p, replace(collate_pairs(self.validation), divergence=divergence))
        if not whole:
            return quick_score(values, MEANS)
        pairs, cut = [one.pair for one in self.validation], sum(one.cut for one in self.validation)
        score = score_pairs("preference", pairs, values, MEANS, cut)
        shown = [i for i, pair in enumerate(pairs) if pair.reference_answer]
        for i, answer in zip(shown, self._answers(model, [pairs[i] for i in shown], console), strict=True):
            score.records[i] |= {
                "completion": answer.text,
                "finished": answer.finish_reason != "length",
                "reference_completion": pairs[i].reference_answer,
            }
        return score

    def _answers(
        self, model: TokenModel, pairs: Sequence[PreferencePair], console: Console = QUIET
    ) -> list[Completion]:
        tokens = self.config.logging.sample_tokens
        return (
            likeliest_answers(model, self.tokenizer, self.template, pairs, tokens, console) if tokens else []
        )

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return the first held-out prompt and the model's answer."""
        first = self.validation[0].pair
        answer = next(iter(self._answers(model, [first])), None)
        return f"{first.prompt[-1].content}{ANSWER_MARK}{sample_for_people(answer.text)}" if answer else ""

    def describe(self) -> str:
        """Return the number of pairs, their columns, and the number of epochs."""
        cut, length = sum(one.cut for one in self.train), self.config.window_length
        return describe_pairs(len(self.train), len(self.validation), cut, length, self.columns, self.config)


def likeliest_answers(
    model: TokenModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    pairs: Sequence[PreferencePair],
    tokens: int,
    console: Console = QUIET,
) -> list[Completion]:
    """Generate an answer of at most ``tokens`` tokens to the prompt of each pair, at temperature 0."""
    config = GenerationConfig(max_tokens=tokens, temperature=0.0)
    return answers(model, tokenizer, template, [one.prompt for one in pairs], config, console)


def with_reference_answers(
    pairs: Sequence[PreferencePair], answer: Callable[[Sequence[PreferencePair]], list[Completion]]
) -> list[PreferencePair]:
    """Return the pairs; those of the first ``SHOWN`` different prompts with the reference's answer, by ``answer``."""
    first = {pair.prompt: i for i, pair in reversed([*enumerate(pairs)])}
    shown = sorted(first.values())[:SHOWN]
    found = zip(shown, answer([pairs[i] for i in shown]), strict=True)
    texts = {i: one.text for i, one in found}
    return [replace(pair, reference_answer=texts.get(i, "")) for i, pair in enumerate(pairs)]


def set_up(request: SetupRequest) -> NewRun:
    """Set up training on pairs. Raises ``ConfigError`` for a model that is not instruction-tuned."""
    assert request.parent
    check_answers(request.parent)
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
    decided = decide(setup.config)
    reference = parent.model.to(decided.runtime.device)
    if config.alignment.loss in WITH_REFERENCE:

        def scored(side: list[EncodedPair]) -> Float[Tensor, "N 2"]:
            return log_probabilities_of(reference, side, decided.precision.dtype, request.console)

        sides = [with_references(side, scored(side)) for side in (train, validation)]
        if config.alignment.loss is PreferenceLoss.kto:
            lengths = (config.windows.length or context, context)
            others = [
                encode_pairs(mismatched(side, sides[0]), template, tokenizer, length)
                for side, length in zip(sides, lengths, strict=True)
            ]
            sides = [
                with_mismatched_references(side, scored(one)) for side, one in zip(sides, others, strict=True)
            ]
    if tokens := decided.logging.sample_tokens:
        ask = partial(likeliest_answers, reference.eval(), tokenizer, template, tokens=tokens)
        sides[1] = with_reference_answers(sides[1], ask)
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
    recipe="dpo",
    fixed_dtype=True,
)
