"""Reward models: a scalar head on the last token of an answer, trained on preference pairs.

Shapes: B pairs, N examples, C answers to one prompt (2 in a pair).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wholegpt.checkpoint import ModelFolder, ModelMetadata, load_model, model_folder
from wholegpt.console import QUIET, Console
from wholegpt.data.chat.template import ChatTemplate, Conversation, Message
from wholegpt.data.examples.batches import TaskBatch, TaskLoader
from wholegpt.data.examples.preferences import PreferenceData, PreferencePair
from wholegpt.data.examples.tasks import EncodedExample, Task
from wholegpt.errors import ConfigError, DataError, counted
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.perplexity import check_not_nan
from wholegpt.losses import bradley_terry
from wholegpt.model import TaskModel, TokenModel
from wholegpt.settings.choices import Architecture, Dtype, TaskKind
from wholegpt.settings.schema import Config
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
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned
from wholegpt.stages.prediction import outputs_of
from wholegpt.stages.task_objective import is_summed
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.objectives import Terms
from wholegpt.training.stage import Criterion, QuickScore, Stage

REWARD = Task(TaskKind.reward)
"""The task in the metadata of a reward model: one output, without labels."""


def encode_answers(
    prompt: Conversation,
    answers: Sequence[str],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    context_length: int,
) -> EncodedExample | None:
    """Return the tokens of a prompt with each answer, up to the end of its turn, at most τ of them.

    The reward is read at the last of these tokens: the end of the turn or, of an answer that is too long, the last
    token that is kept. Return None if the prompt leaves no room for an answer.
    """
    asked = len(template.encode(prompt, tokenizer, generation_prompt=True).token_ids)
    if asked >= context_length:
        return None
    sequences: list[tuple[int, ...]] = []
    cut = 0
    for answer in answers:
        whole = template.encode((*prompt, Message("assistant", answer)), tokenizer)
        end = max((i + 1 for i, counts in enumerate(whole.scored) if counts), default=0)
        sequences.append(tuple(whole.token_ids[: min(max(asked, end), context_length)]))
        cut += max(0, end - context_length)
    return EncodedExample(tuple(sequences), cut, tuple(map(len, sequences)))


def check_reward_model(task: Task | None, name: str | Path) -> None:
    """Raise ``ConfigError`` unless ``task``, that of the model called ``name``, is to score answers."""
    if task is None or task.kind is not TaskKind.reward:
        raise ConfigError(
            f"{name}: is not a reward model; train one with `wholegpt align RUN --method reward --data PAIRS`"
        )


@dataclass(frozen=True)
class RewardModel:
    """A model that scores answers to prompts; only differences of its rewards are meaningful."""

    model: TokenModel
    tokenizer: Tokenizer
    template: ChatTemplate
    dtype: Dtype = Dtype.float32
    """Of matrix products."""

    @classmethod
    def of(
        cls, folder: ModelFolder, name: str | Path = "the model", dtype: Dtype = Dtype.float32
    ) -> "RewardModel":
        """Return the reward model in a loaded folder. Raises ``ConfigError`` if it is not one."""
        check_reward_model(folder.metadata.task, name)
        return cls(folder.model, folder.tokenizer, ChatTemplate(folder.metadata.chat_template), dtype)

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", dtype: Dtype = Dtype.float32
    ) -> "RewardModel":
        """Load the best weights of a run, or a model folder. Raises ``ConfigError`` if it is not a reward model."""
        return cls.of(load_model(model_folder(Path(path), "best", QUIET), device), path, dtype)

    def check_prompts(self, prompts: Sequence[Conversation]) -> None:
        """Raise ``DataError`` if a prompt leaves no room for an answer in the model's context."""
        self._encoded([(one, "") for one in prompts])

    def score(self, samples: Sequence[tuple[Conversation, str]], console: Console = QUIET) -> list[float]:
        """Return the reward of each completion of a prompt, in batches, without dropout and gradient.

        A completion that was cut off is scored as if its turn ended there. One that exceeds the context is scored at
        its last token within it. Raises ``DataError`` if a prompt alone fills the context, ``NumericsError`` for NaN.
        """
        examples = self._encoded(samples)
        return self.rewards(examples, console)[:, 0].tolist() if examples else []

    def _encoded(self, samples: Sequence[tuple[Conversation, str]]) -> list[EncodedExample]:
        examples: list[EncodedExample] = []
        for number, (prompt, completion) in enumerate(samples, 1):
            context = self.model.context_length
            one = encode_answers(prompt, [completion], self.template, self.tokenizer, context)
            if one is None:
                raise DataError(
                    f"prompt {number:,} leaves no room for an answer in the {context:,} tokens of the reward model's "
                    "context; shorten it"
                )
            examples.append(one)
        return examples

    def rewards(
        self, examples: Sequence[EncodedExample], console: Console = QUIET
    ) -> Float[np.ndarray, "N C"]:
        """Return the reward of each sequence of encoded examples, without dropout and gradient."""
        assert isinstance(self.model, TaskModel)
        training = self.model.training
        self.model.eval()
        found = outputs_of(self.model, examples, REWARD, self.dtype, console)
        self.model.train(training)
        check_not_nan(found, "rewards")
        return found

    def evaluate(self, pairs: Sequence[PreferencePair], console: Console) -> TaskScore:
        """Evaluate the model on pairs; leave out those whose prompt fills the context, with a warning."""
        fitted = EncodedPairs.of(pairs, self.template, self.tokenizer, self.model.context_length)
        warn_of_dropped(len(pairs) - len(fitted.pairs), console)
        values = pair_values(torch.from_numpy(self.rewards(fitted.examples, console)), fitted.margins)
        return score_pairs("reward", fitted.pairs, values, PAIR_MEANS, fitted.cut)


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs whose prompts leave room for an answer, with their two sequences of tokens, the chosen one first."""

    pairs: list[PreferencePair]
    examples: list[EncodedExample]

    @classmethod
    def of(
        cls,
        pairs: Sequence[PreferencePair],
        template: ChatTemplate,
        tokenizer: Tokenizer,
        context_length: int,
    ) -> "EncodedPairs":
        """Encode pairs. Raises ``DataError`` if no prompt leaves room for an answer."""
        found = [
            (one, encode_answers(one.prompt, (one.chosen, one.rejected), template, tokenizer, context_length))
            for one in pairs
        ]
        kept = [(pair, example) for pair, example in found if example is not None]
        if not kept:
            raise DataError(
                f"none of {len(pairs):,} pairs has a prompt that leaves room for an answer in the model's context of "
                f"{context_length:,} tokens; shorten the prompts"
            )
        return cls([pair for pair, _ in kept], [example for _, example in kept])

    @property
    def margins(self) -> Float[Tensor, " N"]:
        """Return the margin of each pair."""
        return torch.tensor([one.margin for one in self.pairs])

    @property
    def cut(self) -> int:
        """Return the number of pairs of which a part is beyond the context."""
        return sum(one.cut > 0 for one in self.examples)


def warn_of_dropped(pairs: int, console: Console) -> None:
    """Warn of ``pairs`` that were left out, if any."""
    if pairs:
        console.warn(f"left out, because the prompt fills the context: {counted(pairs, 'pairs')}")


def pair_values(
    rewards: Float[Tensor, "N 2"], margins: Float[Tensor, " N"]
) -> dict[str, Float[Tensor, " N"] | Bool[Tensor, " N"]]:
    """Return −ln σ(r_c − r_r − m), the loss without its centering, and the metrics of each pair."""
    chosen, rejected = rewards.unbind(1)
    losses = bradley_terry(chosen, rejected, margins.to(rewards))
    return {"loss": losses, **rewards_of_pairs(chosen, rejected)}


class RewardObjective:
    """The loss of a reward model, Bradley–Terry with margins and centering (E18); a term is a pair.

    A batch has the tokens of both sides, and the margins as targets. The logged loss is that without centering, so
    that ln 2 is the loss of a model that cannot tell the answers apart.
    """

    unit = LOSS

    def __init__(self, centering: float) -> None:
        self.centering = centering

    def count(self, batch: TaskBatch) -> int:
        """Return the number of pairs."""
        return len(batch)

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Terms:
        """Return the sum over the pairs."""
        assert isinstance(model, TaskModel)
        summed = is_summed(TaskKind.reward)
        _, rewards = model.task_outputs(batch.token_ids, batch.last, batch.second, summed)
        losses = bradley_terry(rewards[:, 0], rewards[:, 1], batch.targets.to(rewards), self.centering)
        return Terms(losses.sum(), metrics_of(pair_values(rewards, batch.targets), PAIR_MEANS))


class RewardTraining(Stage):
    """Training of a reward model on pairs of a chosen and a rejected answer."""

    criterion = Criterion(LOSS, higher_is_better=False, label="validation loss of pairs")
    generates = False

    def __init__(
        self, config: Config, data: PreferenceData, tokenizer: Tokenizer, metadata: ModelMetadata
    ) -> None:
        """``config`` is resolved."""
        super().__init__(config, tokenizer, metadata, RewardObjective(config.alignment.centering))
        self.template, self.columns = ChatTemplate(metadata.chat_template), data.columns
        self.train, self.validation = (
            EncodedPairs.of(side, self.template, tokenizer, config.model.context_length)
            for side in (data.train, data.validation)
        )
        margins = self.train.margins.tolist()
        self.batches = TaskLoader(
            self.train.examples, margins, config.training.batch_size, config.runtime.seed
        )

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> TaskScore | QuickScore:
        """Return the loss and the rewards of the held-out pairs, with confidence intervals if ``whole``."""
        rewarding = RewardModel(model, self.tokenizer, self.template, self.config.precision.dtype)
        values = pair_values(
            torch.from_numpy(rewarding.rewards(self.validation.examples, console)), self.validation.margins
        )
        if not whole:
            return quick_score(values, PAIR_MEANS)
        return score_pairs("reward", self.validation.pairs, values, PAIR_MEANS, self.validation.cut)

    def describe(self) -> str:
        """Return the number of pairs, their columns, the number of epochs, and how many pairs are cut."""
        context, sizes = self.config.model.context_length, (len(self.train.pairs), len(self.validation.pairs))
        return describe_pairs(*sizes, self.train.cut, context, self.columns, self.config)


def set_up(request: SetupRequest) -> NewRun:
    """Set up a reward model, from a model with a chat template.

    Raises ``ConfigError`` for a model that is not instruction-tuned.
    """
    assert request.parent
    check_answers(request.parent)
    return NewRun("", lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Write the pairs into ``folder``, and add a head to the parent."""
    config, parent, console = request.config, request.parent_model, request.console
    data = PreferenceData.read(config, console, margins=True)
    template, context = ChatTemplate(parent.metadata.chat_template), parent.model.context_length
    train, validation = (
        EncodedPairs.of(side, template, parent.tokenizer, context) for side in (data.train, data.validation)
    )
    warn_of_dropped(
        len(data.train) + len(data.validation) - len(train.pairs) - len(validation.pairs), console
    )
    lora = config.lora if config.lora.rank else None
    metadata = ModelMetadata(task=REWARD, lora=lora, chat_template=template.source)
    data_hash = PreferenceData(train.pairs, validation.pairs, data.columns).save(folder / "data")
    return fine_tuned(config, parent, parent.tokenizer, metadata, len(train.pairs), data_hash)


def open_stage(run: RunContents) -> RewardTraining:
    """Open training on the pairs of a run."""
    return RewardTraining(run.config, PreferenceData.open(run.examples()), run.tokenizer(), run.metadata())


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a reward model."""
    return [
        NextStep(
            "{program} align MODEL --method grpo --reward model:{run} --data PROMPTS.json",
            "train a model for its rewards",
        ),
        NextStep("{program} evaluate {run} PAIRS.json", "evaluate it on other pairs"),
    ]


STAGE = StageDefinition(
    name="reward",
    tasks=(TaskKind.reward,),
    architectures=(),
    parents=(Architecture.transformer,),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    recipe="reward",
)
