"""Reinforcement learning: PPO (Schulman et al. 2017) and GRPO (Shao et al. 2024).

The model generates completions of prompts (a rollout), rewards judge them, and the policy loss makes the better ones
more likely. PPO estimates with a value head how good a completion is going to be; GRPO compares the completions of one
prompt.

Shapes: N completions of a rollout, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wholegpt.checkpoint import ModelFolder, ModelMetadata
from wholegpt.console import QUIET, Console, sample_for_people
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.data.examples.prompts import EncodedPrompt, PromptData, encode_prompts
from wholegpt.data.permutation import endless_order
from wholegpt.errors import ConfigError, counted
from wholegpt.evaluation import TaskScore
from wholegpt.evaluation.examples import Record, means_of
from wholegpt.losses import IGNORED
from wholegpt.model import NeuralModel, TokenModel
from wholegpt.runtime import mix_seed
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.stages.alignment.pairs import check_answers
from wholegpt.stages.alignment.policy_objective import (
    PolicyObjective,
    adapted_kl,
    grpo_advantages,
    kl_per_completion,
    ppo_advantages,
)
from wholegpt.stages.alignment.rewards.interface import Sample
from wholegpt.stages.alignment.rewards.specification import load_reward_models, open_rewards
from wholegpt.stages.alignment.rewards.weighted import WeightedRewards
from wholegpt.stages.alignment.rollout import (
    PolicyBatch,
    Sampled,
    collate_completions,
    sample_completions,
    score_completions,
)
from wholegpt.stages.answer_training import ANSWER_MARK
from wholegpt.stages.definition import NewRun, NextStep, RunContents, RunSetup, SetupRequest, StageDefinition
from wholegpt.stages.initialization import fine_tuned
from wholegpt.stages.reference import companions_of, reference_of
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.events import Callback, StepMetrics
from wholegpt.training.loop import BatchSource
from wholegpt.training.reference import Reference
from wholegpt.training.resolution import decide
from wholegpt.training.rollouts import Rollout, RolloutBatches, RolloutStore
from wholegpt.training.stage import Criterion, QuickScore, Stage
from wholegpt.training.state import TrainingState

QUICK_PROMPTS = 128
"""Held-out prompts of an evaluation during training."""
MEANS = {"reward": "reward", "kl": "kl", "completion_tokens": "tokens", "finished": "finished"}
"""Metrics, and the field of the records that each is the mean of."""


class PolicyTuning(Stage):
    """Training on the rewards of completions that the model generates."""

    criterion = Criterion("reward", higher_is_better=True, label="mean reward of held-out prompts")

    def __init__(
        self,
        config: Config,
        data: PromptData,
        tokenizer: Tokenizer,
        metadata: ModelMetadata,
        run: Path,
        reference: Reference,
        rewards: WeightedRewards,
    ) -> None:
        """``config`` is resolved; ``run`` gets the rollouts."""
        self.settings, self.task, self.columns = config.alignment, config.finetuning.task, data.columns
        super().__init__(config, tokenizer, metadata, PolicyObjective(self.settings, self.task))
        self.store, self.reference, self.rewards = RolloutStore(run), reference, rewards
        self.template, context = ChatTemplate(metadata.chat_template), config.model.context_length
        self.train, self.validation = (
            encode_prompts(side, self.template, tokenizer, context) for side in (data.train, data.validation)
        )
        self.every = self.settings.rollout_epochs * self.settings.rollout_size // config.training.batch_size

    def batches_for(self, model: TokenModel) -> BatchSource:
        """Return the batches of rollouts of ``model``."""
        return RolloutBatches(model, self.store, self.every, self.collect, self.batch_of)

    def collect(self, model: TokenModel, step: int) -> Rollout:
        """Generate a rollout, and compute its rewards, log-probabilities and advantages."""
        assert isinstance(model, NeuralModel)
        settings = self.settings
        prompts = rollout_prompts(self.train, self.config, step // self.every)
        sampled = self._sample(model, prompts, mix_seed(self.config.runtime.seed, step, 8))
        rewards, rollout = self._rewards(prompts, sampled), self._scored(model, sampled)
        mask, weight = (rollout["targets"] != IGNORED).float(), settings.kl
        if before := self.store.read(step - self.every) if step and settings.kl_target else None:
            weight = adapted_kl(float(before["kl_weight"][0]), float(before["kl"].mean()), settings.kl_target)
        if self.task is TaskKind.grpo:
            of_tokens = grpo_advantages(rewards["reward"], mask, settings)
        else:
            of_tokens = ppo_advantages(rewards["reward"], rollout, mask, settings, weight)
        return {**rollout, **rewards, **of_tokens, "kl_weight": torch.full((len(prompts),), weight)}

    def batch_of(self, rollout: Rollout, step: int) -> PolicyBatch:
        """Return the batch of a step of a rollout; each epoch has an order of its own."""
        size, total = self.config.training.batch_size, len(rollout["token_ids"])
        rows = endless_order(step * size, size, total, self.config.runtime.seed)
        chosen = {name: tensor[rows] for name, tensor in rollout.items()}
        width = int((chosen["targets"] != IGNORED).any(dim=0).nonzero().max()) + 1
        cut = {name: one[:, :width] if one.ndim == 2 else one for name, one in chosen.items()}
        return PolicyBatch(cut.pop("token_ids"), cut.pop("targets"), cut)

    def callbacks(self, model: TokenModel, state: TrainingState) -> Sequence[Callback]:
        """Return the early stop, if there is a limit of the KL divergence."""
        return [StopAtKL(self.settings.kl_limit)] if self.settings.kl_limit else []

    def evaluate(
        self, model: TokenModel, device: torch.device, whole: bool, console: Console = QUIET
    ) -> TaskScore | QuickScore:
        """Return the mean reward of one completion of each held-out prompt, generated as in a rollout.

        If ``whole``, the records compare the completions with those of the reference.
        """
        assert isinstance(model, NeuralModel)
        prompts = self.validation if whole else self.validation[:QUICK_PROMPTS]
        records = self._records(model, prompts, console)
        names = {**MEANS, **{name: name for name in records[0] if name.startswith("reward_")}}
        if not whole:
            return QuickScore(
                {name: float(np.mean([r[field] for r in records])) for name, field in names.items()},
                len(records),
            )
        with self.reference.beside(model) as reference:
            before = self._records(reference, prompts, console)
        for record, other in zip(records, before, strict=True):
            record |= {"reference_completion": other["completion"], "reference_reward": other["reward"]}
        names["reference_reward"] = "reference_reward"
        return TaskScore(self.task, len(records), 0, means_of(records, names), names, 0, records)

    def _records(
        self, model: NeuralModel, prompts: Sequence[EncodedPrompt], console: Console
    ) -> list[Record]:
        """Return the completions of held-out prompts, with the same random numbers each time, and their figures."""
        sampled = self._sample(model, prompts, mix_seed(self.config.runtime.seed, 9), console)
        rewards, scored = self._rewards(prompts, sampled), self._scored(model, sampled)
        return [
            {
                "line": number + 1,
                "prompt": one.prompt.messages[-1].content,
                **({"answer": one.prompt.answer} if one.prompt.answer else {}),
                "completion": made.text,
                "tokens": len(made.token_ids),
                "kl": float(scored["kl"][number]),
                **{name: float(values[number]) for name, values in rewards.items()},
                "finished": made.finished,
            }
            for number, (one, made) in enumerate(zip(prompts, sampled, strict=True))
        ]

    def _sample(
        self, model: TokenModel, prompts: Sequence[EncodedPrompt], seed: int, console: Console = QUIET
    ) -> list[Sampled]:
        ids, dtype = [one.token_ids for one in prompts], self.config.precision.dtype
        return sample_completions(
            model, self.tokenizer, self.template, ids, self.settings, dtype, seed, console
        )

    def _rewards(self, prompts: Sequence[EncodedPrompt], sampled: Sequence[Sampled]) -> dict[str, Tensor]:
        """Return ``reward`` of each completion, its parts if there are several, and ``finished``."""
        rewarded = self.rewards(samples_of(prompts, sampled))
        finished = torch.tensor([float(one.finished) for one in sampled])
        reward = torch.tensor(rewarded.total) - self.settings.unfinished_penalty * (1 - finished)
        parts = rewarded.values if len(rewarded.values) > 1 else {}
        named = {f"reward_{name}": torch.tensor(values) for name, values in parts.items()}
        return {"reward": reward, **named, "finished": finished}

    def _scored(self, model: NeuralModel, sampled: Sequence[Sampled]) -> dict[str, Tensor]:
        """Return the tokens of completions, their log-probabilities and values, and their KL from the reference."""
        rollout, dtype = collate_completions(sampled), self.config.precision.dtype
        given = rollout["token_ids"], rollout["targets"], self.settings.temperature, dtype
        log_p, values = score_completions(model, *given)
        with self.reference.beside(model) as reference:
            reference_log_p, _ = score_completions(reference, *given)
        mask = (rollout["targets"] != IGNORED).float()
        rollout |= {"old_log_p": log_p, "reference_log_p": reference_log_p}
        rollout["kl"] = kl_per_completion(log_p, reference_log_p, mask)
        return {**rollout, "values": values} if self.task is TaskKind.ppo else rollout

    def sample(self, model: TokenModel, device: torch.device) -> str:
        """Return the first held-out prompt and a completion."""
        if not self.config.logging.sample_tokens:
            return ""
        first = self.validation[:1]
        (made,) = self._sample(model, first, mix_seed(self.config.runtime.seed, 9))
        return f"{first[0].prompt.messages[-1].content}{ANSWER_MARK}{sample_for_people(made.text)}"

    def describe(self) -> str:
        """Return the numbers of prompts and of rollouts, and the rewards."""
        rollouts = -(-self.config.training.steps // self.every)
        columns = filter(None, [*self.columns.texts, self.columns.target])
        return (
            f"{counted(len(self.train), 'prompts')}, {len(self.validation):,} held out; "
            f"{counted(rollouts, 'rollouts')} of {counted(self.settings.rollout_size, 'completions')}; "
            f"rewards {', '.join(self.settings.rewards)}; columns {', '.join(columns)}"
        )


class StopAtKL(Callback):
    """Stops a run whose policy has moved too far from the reference."""

    def __init__(self, limit: float) -> None:
        """``limit`` is in nats per completion."""
        self.limit = limit

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Stop if the KL divergence of the rollout is above the limit."""
        if (kl := metrics.others["kl"]) > self.limit:
            state.stop_reason = f"the KL divergence is {kl:.3g} nats per completion, above alignment.kl_limit"


def rollout_prompts(prompts: Sequence[EncodedPrompt], config: Config, number: int) -> list[EncodedPrompt]:
    """Return the prompt of each completion of rollout ``number`` (from 0); those of a group follow each other."""
    group = group_size(config)
    asked = config.alignment.rollout_size // group
    chosen = endless_order(number * asked, asked, len(prompts), config.runtime.seed)
    return [prompts[index] for index in chosen for _ in range(group)]


def group_size(config: Config) -> int:
    """Return how many completions of a rollout belong to one prompt."""
    return config.alignment.group_size if config.finetuning.task is TaskKind.grpo else 1


def samples_of(prompts: Sequence[EncodedPrompt], sampled: Sequence[Sampled]) -> list[Sample]:
    """Return completions as rewards take them."""
    return [
        Sample(one.prompt.messages, made.text, one.prompt.answer, made.finished)
        for one, made in zip(prompts, sampled, strict=True)
    ]


def set_up(request: SetupRequest) -> NewRun:
    """Set up reinforcement learning of a model that answers. Raises ``ConfigError`` for any other."""
    assert request.parent
    check_answers(request.parent)
    return NewRun("", lambda folder: _write(request, folder))


def _write(request: SetupRequest, folder: Path) -> RunSetup:
    """Read the prompts into ``folder``, and keep the parent as the reference, and the models of rewards."""
    parent, config, console = request.parent_model, request.config, request.console
    settings = config.alignment
    if settings.rollout_size % config.training.batch_size:
        raise ConfigError(
            f"alignment.rollout_size is {settings.rollout_size}; expected a multiple of training.batch_size, "
            f"{config.training.batch_size}"
        )
    data = PromptData.read(config, console)
    data_hash = data.save(folder / "data")
    metadata = ModelMetadata(
        lora=config.lora if config.lora.rank else None,
        columns=parent.metadata.columns,
        start_text=parent.metadata.start_text,
        chat_template=parent.metadata.chat_template,
        value_head=config.finetuning.task is TaskKind.ppo,
    )
    rows = max(len(data.train) * group_size(config), config.training.batch_size) * settings.rollout_epochs
    setup = fine_tuned(config, parent, parent.tokenizer, metadata, rows, data_hash)
    assert setup.model
    models = load_reward_models(settings.rewards, console)
    _try_rewards(setup.config, parent, data, models, console)
    companions = companions_of(setup.config, setup.model, parent.tokenizer, metadata)
    return replace(setup, companions={**companions, **models})


def _try_rewards(
    config: Config, parent: ModelFolder, data: PromptData, models: Mapping[str, ModelFolder], console: Console
) -> None:
    """Warn of a reward that is constant or slow for the completions of one rollout by the parent.

    Raises ``DataError`` for a prompt that a reward cannot judge, and for a reward that is not finite.
    """
    decided, settings, model = decide(config), config.alignment, parent.model
    device, dtype = torch.device(decided.runtime.device), decided.precision.dtype
    rewards = open_rewards(settings.rewards, models, device, dtype)
    rewards.check_answers([one.answer for one in (*data.train, *data.validation)], config.finetuning.data)
    template, tokenizer = ChatTemplate(parent.metadata.chat_template), parent.tokenizer
    train, validation = (
        encode_prompts(side, template, tokenizer, model.context_length, console)
        for side in (data.train, data.validation)
    )
    rewards.check_prompts([one.prompt.messages for one in (*train, *validation)])
    for role, one in models.items():
        if one.tokenizer.sha256 != tokenizer.sha256:
            console.note(
                f"{role} has another vocabulary than the model; completions are encoded again for it"
            )
    prompts = rollout_prompts(train, config, 0)
    ids, seed = [one.token_ids for one in prompts], mix_seed(config.runtime.seed, 10)
    model.to(device).eval()
    sampled = sample_completions(model, tokenizer, template, ids, settings, dtype, seed, console)
    model.cpu()  # frees the memory of the device
    rewarded, group = rewards(samples_of(prompts, sampled)), group_size(config)
    advice = rewarded.advice()
    groups = torch.tensor(rewarded.total).view(-1, group)
    if group > 1 and not advice and bool((groups == groups[:, :1]).all()):
        advice = [
            "the completions of each prompt have equal rewards, so nothing can be learned from them; raise "
            "--alignment.temperature or --alignment.group-size, or choose a reward that distinguishes them"
        ]
    for line in advice:
        console.warn(line)


def open_stage(run: RunContents) -> PolicyTuning:
    """Open reinforcement learning on the prompts of a run."""
    reference, config = reference_of(run), run.config
    assert reference
    device = torch.device(config.runtime.device)
    rewards = open_rewards(config.alignment.rewards, run.companions(), device, config.precision.dtype)
    data = PromptData.open(run.examples())
    return PolicyTuning(config, data, run.tokenizer(), run.metadata(), run.path, reference, rewards)


def next_steps(_: Config) -> list[NextStep]:
    """Return the uses of a model that answers."""
    return [NextStep("{program} chat {run}", "talk to it")]


PPO = StageDefinition(
    name="ppo",
    tasks=(TaskKind.ppo,),
    architectures=(),
    parents=(Architecture.transformer,),
    set_up=set_up,
    open=open_stage,
    next_steps=next_steps,
    recipe="ppo",
    fixed_dtype=True,
)
GRPO = replace(PPO, name="grpo", tasks=(TaskKind.grpo,), recipe="grpo")
