"""Rollouts: completions that the trained model generates, and the batches made of them.

Shapes: N completions of a rollout, B of a batch, T positions (prompt and completion, padded at the end), K completions
of a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wholegpt.console import QUIET, Console
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.data.examples.packing import PADDING, batches_of
from wholegpt.errors import NumericsError
from wholegpt.generation import Engine, GenerationRequest
from wholegpt.generation.memory import MOST_AT_ONCE, plan_slots
from wholegpt.losses import IGNORED
from wholegpt.model import NeuralModel, TaskModel, TokenModel
from wholegpt.model.heads import head_outputs
from wholegpt.runtime import compute_in, mix_seed
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import AlignmentConfig, GenerationConfig
from wholegpt.stages.answers import answering
from wholegpt.stages.prediction import TOKENS_AT_ONCE
from wholegpt.tokenizers import Tokenizer


@dataclass(frozen=True)
class Sampled:
    """A completion as it was drawn."""

    prompt_ids: list[int]
    token_ids: list[int]
    """With the token that ended it."""
    log_probabilities: list[float]
    """ln p of each token in the distribution that it was drawn from, at the temperature and without the special
    tokens that are excluded from sampling."""
    text: str
    finished: bool
    """Whether the model ended it; else ``alignment.completion_tokens`` or the context did."""


def sample_completions(
    model: TokenModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompts: Sequence[Sequence[int]],
    settings: AlignmentConfig,
    dtype: Dtype,
    seed: int,
    console: Console = QUIET,
) -> list[Sampled]:
    """Generate a completion of each prompt. They differ by their index, also for equal prompts.

    Raises ``NumericsError`` if the model's logits are not finite.
    """
    general = GenerationConfig(max_tokens=settings.completion_tokens, temperature=settings.temperature)
    general = answering(general, template, tokenizer)
    capacity = max(min(len(one) + settings.completion_tokens, model.context_length) for one in prompts)
    slots = plan_slots(model, min(len(prompts), MOST_AT_ONCE), capacity, model.device, console)
    engine = Engine(model, tokenizer, model.device, slots, capacity)
    requests: dict[int, GenerationRequest] = {}
    for index in _distinct_first(prompts, slots):
        config = _with(general, mix_seed(seed, index), capacity - len(prompts[index]))
        requests[index] = engine.submit(prompts[index], config)
    with compute_in(dtype, model.device), console.progress("generating", len(prompts)) as progress:
        while engine.busy:
            progress.advance(len(engine.step()))
    found: list[Sampled] = []
    for request in (requests[index] for index in range(len(prompts))):
        if request.error:
            raise NumericsError(f"the rollout failed: {request.error}") from request.error
        completion = request.completion()
        finished = completion.finish_reason in ("end_of_text", "stop")
        drawn = [one.token_id for one in request.drawn], [one.log_probability for one in request.drawn]
        found.append(Sampled(request.prompt_ids, *drawn, completion.text, finished))
    return found


def _distinct_first(prompts: Sequence[Sequence[int]], slots: int) -> list[int]:
    """Return the order in which the prompts are submitted: in each block of ``slots``, repeated prompts come last.

    The engine then prefills the different prompts together, and copies their caches for the others.
    """
    order: list[int] = []
    for start in range(0, len(prompts), slots):
        seen: set[tuple[int, ...]] = set()
        repeated: list[int] = []
        for index in range(start, min(start + slots, len(prompts))):
            prompt = tuple(prompts[index])
            (repeated if prompt in seen else order).append(index)
            seen.add(prompt)
        order += repeated
    return order


def _with(general: GenerationConfig, seed: int, room: int) -> GenerationConfig:
    """Return the settings of one completion, with at most ``room`` tokens."""
    return replace(general, seed=seed, max_tokens=min(general.max_tokens, room))


def collate_completions(sampled: Sequence[Sampled]) -> dict[str, Tensor]:
    """Return ``token_ids`` and ``targets`` (``IGNORED`` outside the completion), and ``sampled_log_p`` of the targets;
    all of shape (N, T).
    """
    longest = max(len(one.prompt_ids) + len(one.token_ids) for one in sampled) - 1
    token_ids = torch.full((len(sampled), longest), PADDING)
    targets = torch.full((len(sampled), longest), IGNORED)
    sampled_log_p = torch.zeros(len(sampled), longest)
    for row, one in enumerate(sampled):
        whole = torch.tensor([*one.prompt_ids, *one.token_ids])
        here = slice(len(one.prompt_ids) - 1, len(whole) - 1)
        token_ids[row, : len(whole) - 1] = whole[:-1]
        targets[row, here] = whole[1:][here]
        sampled_log_p[row, here] = torch.tensor(one.log_probabilities)
    return {"token_ids": token_ids, "targets": targets, "sampled_log_p": sampled_log_p}


def policy_outputs(
    model: NeuralModel, token_ids: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], temperature: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """Return ln π of each target at the ``temperature``, 0 where ``IGNORED``, and the values, if there is a head."""
    hidden, mask = model.hidden_states(token_ids), targets != IGNORED
    scored = model.log_probabilities_of(hidden[mask][None] / temperature, targets[mask][None])[0]
    log_p = scored.new_zeros(targets.shape).masked_scatter(mask, scored)
    return log_p, head_outputs(model.head, hidden)[..., 0] if isinstance(model, TaskModel) else None


@torch.no_grad()
def score_completions(
    model: NeuralModel,
    token_ids: Int[Tensor, "N T"],
    targets: Int[Tensor, "N T"],
    temperature: float,
    dtype: Dtype,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Return ``policy_outputs`` of a rollout without dropout, on the CPU; the values are 0 without a head."""
    log_p, values = torch.zeros(targets.shape), torch.zeros(targets.shape)
    training = model.training
    model.eval()
    lengths = [int(row.nonzero().max()) + 1 for row in targets != IGNORED]
    for chunk in batches_of(lengths, TOKENS_AT_ONCE):
        width = max(lengths[i] for i in chunk)
        some, goal = (one[chunk, :width].to(model.device) for one in (token_ids, targets))
        with compute_in(dtype, model.device):
            found, valued = policy_outputs(model, some, goal, temperature)
        log_p[chunk, :width] = found.float().cpu()
        if valued is not None:
            values[chunk, :width] = valued.float().cpu()
    model.train(training)
    return log_p, values


@dataclass(frozen=True)
class PolicyBatch:
    """Completions of a rollout, with what the loss needs of each token and what the log shows of each completion."""

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    tensors: Mapping[str, Tensor]
    """Further tensors of the rollout, by name; their first dimension is B."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """Return which targets belong to a completion."""
        return self.targets != IGNORED

    def rows(self, start: int, end: int) -> "PolicyBatch":
        """Return completions ``start`` to ``end`` − 1: a micro-batch."""
        tensors = {name: tensor[start:end] for name, tensor in self.tensors.items()}
        return PolicyBatch(self.token_ids[start:end], self.targets[start:end], tensors)

    def to(self, device: torch.device) -> "PolicyBatch":
        """Return the batch on ``device``."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return PolicyBatch(self.token_ids.to(device), self.targets.to(device), tensors)
