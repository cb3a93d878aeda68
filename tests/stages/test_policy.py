"""PPO and GRPO: rollouts, advantages, the objective, and runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import wholegpt as wg
from tests.helpers import tiny_config, tiny_models
from wholegpt.checkpoint import load_metadata, load_model
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate
from wholegpt.errors import CheckpointError, ConfigError
from wholegpt.losses import IGNORED
from wholegpt.model import TaskModel, Transformer
from wholegpt.model.heads import TaskTransformer
from wholegpt.runs import api
from wholegpt.runs.train import open_stage
from wholegpt.settings.choices import Dtype, PolicyNormalization, TaskKind
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import AlignmentConfig
from wholegpt.stages.alignment.policy import PolicyTuning, StopAtKL
from wholegpt.stages.alignment.policy_objective import (
    PolicyObjective,
    adapted_kl,
    grpo_advantages,
    kl_per_completion,
    ppo_advantages,
)
from wholegpt.stages.alignment.rollout import (
    PolicyBatch,
    Sampled,
    collate_completions,
    policy_outputs,
    sample_completions,
    score_completions,
)
from wholegpt.tokenizers import byte_tokenizer
from wholegpt.training.events import StepMetrics
from wholegpt.training.rollouts import RolloutStore
from wholegpt.training.state import TrainingState

QUIET = Console(quiet=True)
TEMPLATE = ChatTemplate()
KNOWN = byte_tokenizer()
TOKENIZER = KNOWN.with_special_tokens([n for n in TEMPLATE.special_tokens if KNOWN.id_of(n) is None])


def tiny_policy(value_head: bool = False, kind: str = "modern") -> Transformer:
    torch.manual_seed(0)
    config = configure({"model": {**vars(tiny_models()[kind]), "vocab_size": TOKENIZER.vocab_size}}).model
    config = configure({"model": {**vars(config), "context_length": 48}}).model
    model = TaskTransformer(config, 1) if value_head else Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def rollout_of(
    model: Transformer, settings: AlignmentConfig, prompts: list[list[int]]
) -> tuple[list[Sampled], dict[str, torch.Tensor]]:
    with torch.no_grad():
        sampled = sample_completions(model, TOKENIZER, TEMPLATE, prompts, settings, Dtype.float32, 1)
    rollout = collate_completions(sampled)
    log_p, values = score_completions(
        model, rollout["token_ids"], rollout["targets"], settings.temperature, Dtype.float32
    )
    return sampled, {**rollout, "old_log_p": log_p, "values": values}


PROMPTS = [[5, 6, 7], [5, 6, 7], [9, 9], [9, 9], [1], [1], [4, 3, 2, 1, 0, 8], [4, 3, 2, 1, 0, 8]]


# --- Rollouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        AlignmentConfig(completion_tokens=12, group_size=2),
        AlignmentConfig(completion_tokens=12, temperature=0.7),
        AlignmentConfig(completion_tokens=12, temperature=1.3),
    ],
)
def test_log_probabilities_are_those_of_the_sampling_distribution(settings: AlignmentConfig) -> None:
    """Recomputed from the logits of the whole sequence, without the excluded special tokens."""
    model = tiny_policy()
    sampled, _ = rollout_of(model, settings, PROMPTS)
    excluded = {TOKENIZER.id_of(name) for name in TEMPLATE.special_tokens} - {
        TOKENIZER.id_of(TEMPLATE.end_of_turn)
    }
    for one in sampled:
        with torch.no_grad():
            logits = model(torch.tensor([[*one.prompt_ids, *one.token_ids]]))[0]
        for i, (token_id, found) in enumerate(zip(one.token_ids, one.log_probabilities, strict=True)):
            here = logits[len(one.prompt_ids) - 1 + i].clone()
            here[[token for token in (*excluded, *TOKENIZER.unused_ids) if token is not None]] = -math.inf
            p = (here / settings.temperature).softmax(0)
            assert found == pytest.approx(math.log(p[token_id]), abs=1e-5)


def test_completions_end_at_the_end_token_or_at_completion_tokens() -> None:
    sampled, rollout = rollout_of(tiny_policy(), AlignmentConfig(completion_tokens=40), PROMPTS * 8)
    end = TOKENIZER.id_of(TEMPLATE.end_of_turn)
    assert {one.finished for one in sampled} == {True, False}
    for row, one in enumerate(sampled):
        assert (one.token_ids[-1] == end) is one.finished
        assert one.finished or len(one.token_ids) == 40
        targets = rollout["targets"][row]
        assert targets[targets != IGNORED].tolist() == one.token_ids
        first = len(one.prompt_ids) - 1
        assert (targets[:first] == IGNORED).all() and targets[first] == one.token_ids[0]
    texts = [one.text for one in sampled]
    assert len(set(texts[::8])) > 1, "equal prompts get different completions"


def test_scoring_does_not_depend_on_padding_or_other_sequences() -> None:
    model = tiny_policy(value_head=True)
    sampled, rollout = rollout_of(model, AlignmentConfig(completion_tokens=20), PROMPTS)
    assert isinstance(model, TaskModel)
    for row, one in enumerate(sampled):
        alone = collate_completions([one])
        with torch.no_grad():
            log_p, values = policy_outputs(model, alone["token_ids"], alone["targets"], 1.0)
        mask = alone["targets"][0] != IGNORED
        length = len(mask)
        assert values is not None
        torch.testing.assert_close(
            rollout["old_log_p"][row, :length].double()[mask], log_p[0][mask], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            rollout["values"][row, :length][mask], values[0].float()[mask], atol=1e-6, rtol=0
        )


# --- Advantages --------------------------------------------------------------------------------------


def test_group_advantages_sum_to_0_and_are_0_for_equal_rewards() -> None:
    settings = AlignmentConfig(group_size=4)
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5])
    mask = torch.ones(8, 3)
    found = grpo_advantages(rewards, mask, settings)
    torch.testing.assert_close(found["advantages"].view(2, 4, 3).sum(1), torch.zeros(2, 3))
    assert found["no_variance"].tolist() == [0] * 4 + [1] * 4
    assert (found["advantages"][4:] == 0).all()


def test_ppo_advantages_equal_their_definition_per_completion() -> None:
    """A sum over all later errors, for completions that start and end at different positions."""
    torch.manual_seed(0)
    settings, weight = AlignmentConfig(discount=0.9, trace=0.8), 0.3
    mask = torch.zeros(3, 8)
    for row, (start, end) in enumerate(((2, 5), (0, 8), (4, 5))):
        mask[row, start:end] = 1
    given = {name: torch.randn(3, 8) * mask for name in ("old_log_p", "reference_log_p", "values")}
    rewards = torch.tensor([1.0, -2.0, 0.5])
    found = ppo_advantages(rewards, given, mask, settings, weight)
    advantages, returns = [], []
    for row in range(3):
        here = mask[row] > 0
        values = given["values"][row, here].tolist()
        earned = (-weight * (given["old_log_p"] - given["reference_log_p"])[row, here]).tolist()
        earned[-1] += rewards[row].item()
        errors = [r + 0.9 * v1 - v for r, v1, v in zip(earned, [*values[1:], 0.0], values, strict=True)]
        for t in range(len(errors)):
            advantages.append(sum((0.9 * 0.8) ** k * errors[t + k] for k in range(len(errors) - t)))
            returns.append(advantages[-1] + values[t])
    expected, of_returns = torch.tensor(advantages), torch.tensor(returns)
    torch.testing.assert_close(found["returns"][mask > 0], of_returns)
    whitened = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(found["advantages"][mask > 0], whitened, atol=1e-5, rtol=1e-5)
    assert (found["advantages"][mask == 0] == 0).all() and (found["returns"][mask == 0] == 0).all()
    explained = 1 - expected.var() / of_returns.var()
    torch.testing.assert_close(found["explained_variance"], explained.expand(3))


def test_kl_weight_adapts_to_its_target() -> None:
    assert adapted_kl(0.1, 12.0, 0.0) == 0.1
    assert adapted_kl(0.1, 6.6, 6.0) == pytest.approx(0.1 * 1.01)
    assert adapted_kl(0.1, 600.0, 6.0) == pytest.approx(0.1 * 1.02)
    assert adapted_kl(0.1, 0.0, 6.0) == pytest.approx(0.1 * 0.98)


def test_kl_is_0_for_equal_models_and_positive_otherwise() -> None:
    torch.manual_seed(0)
    log_p, mask = -torch.rand(4, 6), torch.ones(4, 6)
    assert (kl_per_completion(log_p, log_p, mask) == 0).all()
    assert (kl_per_completion(log_p, log_p - 0.1 * torch.rand(4, 6), mask) > 0).all()


# --- Objective ---------------------------------------------------------------------------------------


def batch_of(model: Transformer, settings: AlignmentConfig, task: TaskKind = TaskKind.grpo) -> PolicyBatch:
    _, rollout = rollout_of(model, settings, PROMPTS)
    mask = (rollout["targets"] != IGNORED).float()
    torch.manual_seed(3)
    rewards = torch.rand(len(PROMPTS))
    rollout["reference_log_p"] = (rollout["old_log_p"] + 0.1 * torch.randn(mask.shape)) * mask
    rollout["reward"] = rewards
    if task is TaskKind.grpo:
        rollout |= grpo_advantages(rewards, mask, settings)
        del rollout["values"]
    else:
        rollout |= ppo_advantages(rewards, rollout, mask, settings, 0.05)
    return PolicyBatch(rollout.pop("token_ids"), rollout.pop("targets"), rollout)


def gradient(
    model: Transformer, objective: PolicyObjective, parts: list[PolicyBatch], count: int
) -> torch.Tensor:
    model.zero_grad()
    for part in parts:
        (objective(model, part).total / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("task", [TaskKind.grpo, TaskKind.ppo])
@pytest.mark.parametrize("normalization", PolicyNormalization)
def test_gradient_does_not_depend_on_micro_batches_order_or_padding(
    task: TaskKind, normalization: PolicyNormalization
) -> None:
    settings = AlignmentConfig(
        group_size=2, completion_tokens=12, kl=0.1, normalization=normalization, temperature=0.8
    )
    model = tiny_policy(value_head=task is TaskKind.ppo)
    batch, objective = batch_of(model, settings, task), PolicyObjective(settings, task)
    count = objective.count(batch)
    whole = gradient(model, objective, [batch], count)
    assert whole.abs().max() > 1e-4
    order = torch.randperm(len(batch))
    shuffled = PolicyBatch(
        batch.token_ids[order], batch.targets[order], {k: v[order] for k, v in batch.tensors.items()}
    )
    parts = [shuffled.rows(0, 3), shuffled.rows(3, 8)]
    assert sum(map(objective.count, parts)) == count
    torch.testing.assert_close(gradient(model, objective, parts, count), whole, atol=1e-6, rtol=0)

    def padded(tensor: torch.Tensor, value: float = 0) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, 5), value=value) if tensor.ndim == 2 else tensor

    wider = PolicyBatch(
        padded(batch.token_ids, 3),
        padded(batch.targets, IGNORED),
        {k: padded(v) for k, v in batch.tensors.items()},
    )
    torch.testing.assert_close(gradient(model, objective, [wider], count), whole, atol=1e-6, rtol=0)


def test_ratio_is_1_in_the_first_epoch() -> None:
    """Nothing is clipped, so the gradient is that of Σ Â·ln π, the policy gradient."""
    settings = AlignmentConfig(group_size=2, completion_tokens=12)
    model = tiny_policy()
    batch, objective = batch_of(model, settings), PolicyObjective(settings, TaskKind.grpo)
    metrics = objective(model, batch).metrics
    for name, expected in (("ratio", 1.0), ("clip_fraction", 0.0)):
        total, count = metrics[name]
        assert float(total) / count == pytest.approx(expected, abs=1e-6)
    found = gradient(model, objective, [batch], 1)
    model.zero_grad()
    log_p, _ = policy_outputs(model, batch.token_ids, batch.targets, 1.0)
    weights = (batch.tensors["old_log_p"] - batch.tensors["sampled_log_p"]).exp()
    (-log_p * weights * batch.tensors["advantages"]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- Runs --------------------------------------------------------------------------------------------

WORDS = ("wren", "heron", "robin", "owl", "kite", "swan", "duck", "crow", "lark", "stork", "tern", "gull")
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"steps": 8, "batch_size": 8},
    "alignment": {"rewards": ("contains:yes",), "group_size": 4, "rollout_size": 16, "completion_tokens": 12},
    "evaluation": {"every": 4},
    "checkpointing": {"every": 4},
    "logging": {"sample_tokens": 20, "sample_every": 4},
    "data": {"validation_fraction": 0.25},
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
    "optimizer": {"learning_rate": 0.003},
}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers a word with yes or no."""
    folder = tmp_path_factory.mktemp("talker")
    rows = [{"prompt": f"{word}?", "response": end} for word in WORDS for end in ("yes", "no")]
    (folder / "talk.json").write_text(json.dumps(rows))
    (folder / "prompts.json").write_text(json.dumps([{"prompt": f"{word}?"} for word in WORDS]))
    (folder / "text.txt").write_text("\n".join(" ".join(row.values()) for row in rows) * 20)
    model = {"context_length": 40, "n_layers": 2, "d_model": 32}
    base = tiny_config(folder / "text.txt", model=model, tokenizer={"kind": "byte"}, training={"steps": 100})
    parent = api.train(config=base, out=folder / "base", console=QUIET)
    tuned = configure(
        {
            "training": {"steps": 200},
            "optimizer": {"learning_rate": 0.01},
            **{name: SETTINGS[name] for name in ("precision", "runtime")},
        },
        wg.recipe("instruct"),
    )
    return api.finetune(
        parent.path, folder / "talk.json", task="instruct", config=tuned, out=folder / "talker", console=QUIET
    ).path


def policy_run(chat_model: Path, out: Path, method: str = "grpo", **changes: dict[str, Any]) -> wg.Run[Any]:
    settings = {name: {**fields, **changes.get(name, {})} for name, fields in SETTINGS.items()}
    settings |= {name: fields for name, fields in changes.items() if name not in settings}
    if method == "ppo" and "group_size" not in changes.get("alignment", {}):
        del settings["alignment"]["group_size"]
    config = configure(settings, wg.recipe(method))
    prompts = chat_model.parent / "prompts.json"
    return api.align(chat_model, prompts, method=method, config=config, out=out, console=QUIET)


@pytest.mark.parametrize(
    ("method", "lora"), [("grpo", 0), pytest.param("grpo", 4, marks=pytest.mark.slow), ("ppo", 0), ("ppo", 4)]
)
def test_training_increases_the_reward(method: str, lora: int, chat_model: Path, tmp_path: Path) -> None:
    steps, size, learning_rate = (40, 16, 0.003) if method == "grpo" else (48, 64, 0.001)
    run = policy_run(
        chat_model,
        tmp_path / "run",
        method,
        training={"steps": steps, "batch_size": size},
        alignment={"rollout_size": size},
        lora={"rank": lora},
        optimizer={"learning_rate": learning_rate},
    )
    trained = [line for line in run.metrics if line["kind"] == "train"]
    assert trained[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-6) and trained[-1]["kl"] > 0.01
    first, last = (sum(line["reward"] for line in some) / 5 for some in (trained[:5], trained[-5:]))
    print(
        f"{method}, LoRA {lora}: mean reward {first:.2f} in the first five steps, {last:.2f} in the last five"
    )
    assert last > first + 0.15
    assert {"reference_reward", "reward"} <= run.validation.metrics.keys()
    assert {"entropy", "completion_tokens", "finished", "clip_fraction", "reward"} <= trained[0].keys()
    assert ("no_variance" in trained[0]) is (method == "grpo")
    assert ("explained_variance" in trained[0]) is (method == "ppo")
    record = run.validation.records[0]
    assert record["prompt"].rstrip("?") in WORDS and {"completion", "reference_completion"} <= record.keys()
    assert "<h2>Completions</h2>" in (run.path / "report.html").read_text(encoding="utf-8")


def test_value_head_is_loaded_only_for_training(chat_model: Path, tmp_path: Path) -> None:
    """Loading the model elsewhere gives the language model alone."""
    run = policy_run(chat_model, tmp_path / "run", "ppo", training={"steps": 2})
    folder = next((run.path / "checkpoints").glob("step-*2"))
    assert load_metadata(folder).value_head
    whole, plain = load_model(folder, with_value_head=True), load_model(folder)
    assert isinstance(whole.model, TaskModel) and not isinstance(plain.model, TaskModel)
    assert not plain.metadata.value_head
    assert wg.load(run.path).chat([{"role": "user", "content": "owl?"}], max_tokens=5).token_ids
    wg.export_model(run.path, "huggingface", tmp_path / "exported")


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_stopped_run_resumes_bit_for_bit(method: str, chat_model: Path, tmp_path: Path) -> None:
    """Also in the middle of a rollout, which is loaded from the run's folder."""
    changes = {"alignment": {"rollout_epochs": 2, "kl": 0.05}, "checkpointing": {"every": 3, "keep": 5}}
    whole = policy_run(chat_model, tmp_path / "whole", method, **changes)
    stopped = policy_run(chat_model, tmp_path / "stopped", method, **changes)
    for step in (8, 6):
        for file in (stopped.path / "checkpoints" / f"step-{step:08d}").rglob("*"):
            file.unlink() if file.is_file() else None
    again = api.resume(stopped.path, console=QUIET)
    ends = [
        load_model(run.path / "checkpoints" / "step-00000008", with_value_head=True).model.state_dict()
        for run in (whole, again)
    ]
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


def test_rollout_contains_the_sampled_tokens(chat_model: Path, tmp_path: Path) -> None:
    run = policy_run(chat_model, tmp_path / "run", training={"steps": 1})
    rollout = RolloutStore(run.path).read(0)
    stage = open_stage(run.path)
    assert rollout is not None and isinstance(stage, PolicyTuning)
    assert len(rollout["token_ids"]) == 16
    for row in range(16):
        targets = rollout["targets"][row]
        text = stage.tokenizer.decode(targets[targets != IGNORED].tolist())
        assert rollout["reward"][row] == float("yes" in text)
    groups = rollout["advantages"].sum(1).view(4, 4)
    lengths = (rollout["targets"] != IGNORED).sum(1).view(4, 4)
    torch.testing.assert_close((groups / lengths).sum(1), torch.zeros(4), atol=1e-5, rtol=0)


def test_run_stops_at_its_kl_limit(chat_model: Path, tmp_path: Path) -> None:
    run = policy_run(
        chat_model,
        tmp_path / "run",
        training={"steps": 40},
        alignment={"kl_limit": 0.02},
        optimizer={"learning_rate": 0.01},
    )
    assert run.state.step < 40 and "above alignment.kl_limit" in run.state.stop_reason
    state = TrainingState()
    StopAtKL(0.5).after_step(state, StepMetrics(0.0, 0.0, None, 1, 1.0, {"kl": 0.4}))
    assert not state.stop_reason


def test_invalid_settings_are_rejected(chat_model: Path, tmp_path: Path) -> None:
    base = chat_model.parent / "base"
    with pytest.raises(ConfigError, match="has no chat template"):
        policy_run(base, tmp_path / "none")
    for changes, message in (
        ({"rewards": ()}, "grpo needs a reward"),
        ({"rewards": ("exat",)}, r"no reward is called 'exat'.*exact"),
        ({"rollout_size": 18}, "expected a multiple of alignment.group_size, 4"),
        ({"rollout_size": 12}, r"expected a multiple of training\.batch_size, 8"),
        ({"temperature": 0.0}, r"alignment\.temperature is 0"),
        ({"value_weight": 0.2}, r"alignment\.value_weight is for ppo, not for grpo"),
        ({"beta": 0.2}, r"alignment\.beta is for dpo, not for grpo"),
        (
            {"completion_tokens": 2**21},
            r"alignment\.completion_tokens is 2097152; expected a value from 1 to",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            policy_run(chat_model, tmp_path / "none", alignment=changes)
    with pytest.raises(ConfigError, match=r"alignment\.kl_target adapts alignment\.kl, which is 0"):
        policy_run(chat_model, tmp_path / "none", "ppo", alignment={"kl_target": 6.0, "kl": 0.0})
    for method, changes in (
        ("grpo", {"model": {"dropout": 0.1}}),
        ("ppo", {"lora": {"rank": 2, "dropout": 0.1}}),
    ):
        with pytest.raises(
            ConfigError, match=r"dropout is 0\.1, and .*po compares the model with that of the rollout"
        ):
            policy_run(chat_model, tmp_path / "none", method, **changes)
    assert not (tmp_path / "none").exists()


def test_missing_rollout_is_an_error(chat_model: Path, tmp_path: Path) -> None:
    """In the middle of its epochs, the weights that collected the rollout no longer exist."""
    run = policy_run(
        chat_model,
        tmp_path / "run",
        training={"steps": 3},
        alignment={"rollout_epochs": 2},
        checkpointing={"every": 2, "keep": 3},
    )
    for file in (run.path / "checkpoints" / "step-00000003").rglob("*"):
        file.unlink() if file.is_file() else None
    RolloutStore(run.path).path(0).unlink()
    with pytest.raises(
        CheckpointError, match=r"step-00000000\.safetensors: missing, and cannot be collected again"
    ):
        api.resume(run.path, console=QUIET)


def test_reward_models_trained_with_lora(chat_model: Path, tmp_path: Path) -> None:
    """They are saved with the run, merged with their LoRA; ``evaluate RUN`` repeats the last evaluation."""
    pairs = [{"prompt": f"{word}?", "chosen": f"{word} yes", "rejected": f"{word} no"} for word in WORDS]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    settings = {"training": {"steps": 4, "batch_size": 4}, "lora": {"rank": 2}}
    settings |= {name: SETTINGS[name] for name in ("precision", "runtime", "data")}
    config = configure(settings, wg.recipe("reward"))
    rewarding = api.align(
        chat_model,
        tmp_path / "pairs.json",
        method="reward",
        config=config,
        out=tmp_path / "reward",
        console=QUIET,
    )
    run = policy_run(
        chat_model,
        tmp_path / "run",
        training={"steps": 2},
        alignment={"rewards": (f"model:{rewarding.path}",)},
    )
    assert (run.path / "companions" / "reward-1" / "model.safetensors").exists()
    record = run.validation.records[0]
    (expected,) = wg.load(rewarding.path).rewards([record["prompt"]], [record["completion"]])
    assert record["reward"] == pytest.approx(expected, abs=1e-4)
    assert main(["evaluate", str(run.path), "--quiet"]) == 0


def test_align_command_with_grpo(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--training.steps", "1", "--training.batch-size", "8", "--alignment.rollout-size", "8"]
    command = [
        "align",
        str(chat_model),
        "--method",
        "grpo",
        "--data",
        str(chat_model.parent / "prompts.json"),
        *options,
    ]
    command += ["--reward", "contains:yes", "--reward", "0.1*length:2", "--alignment.completion-tokens", "8"]
    assert main([*command, "--out", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stage"] == "grpo" and result["steps"] == 1
    parts = [result["validation"][name]["value"] for name in ("reward_contains", "reward_length")]
    assert result["validation"]["reward"]["value"] == pytest.approx(parts[0] + 0.1 * parts[1], abs=1e-6)


def test_constant_reward_is_reported_at_once(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--training.steps", "1", "--training.batch-size", "8", "--alignment.rollout-size", "8"]
    command = [
        "align",
        str(chat_model),
        "--method",
        "grpo",
        "--data",
        str(chat_model.parent / "prompts.json"),
        *options,
    ]
    assert main([*command, "--reward", "contains:xyzzy", "--out", str(tmp_path / "run")]) == 0
    assert "the reward contains is 0 for all completions" in " ".join(capsys.readouterr().err.split())
