"""Reward models: the position of the reward, the loss, runs, loading, and invalid input."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wholegpt as wg
from tests.helpers import Fails, tiny_config, tiny_model, tiny_models
from wholegpt.checkpoint import load_model, model_folder
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate, Message
from wholegpt.data.examples.batches import TaskBatch, collate
from wholegpt.data.examples.preferences import PreferencePair, read_pairs
from wholegpt.data.examples.tasks import EncodedExample
from wholegpt.data.reading.tables import Reading
from wholegpt.errors import ConfigError, DataError
from wholegpt.losses import bradley_terry
from wholegpt.model.heads import TaskTransformer
from wholegpt.runs import api
from wholegpt.runs.train import open_stage
from wholegpt.settings.presets import configure
from wholegpt.stages.alignment.reward_model import (
    RewardModel,
    RewardObjective,
    RewardTraining,
    encode_answers,
)
from wholegpt.tokenizers import Tokenizer, byte_tokenizer
from wholegpt.training.loop import accumulate_gradients

QUIET = Console(quiet=True)
HI = (Message("user", "Hi"),)
TEMPLATE = ChatTemplate()
CHATML = ChatTemplate(
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_for(template: ChatTemplate) -> Tokenizer:
    known = byte_tokenizer()
    return known.with_special_tokens([n for n in template.special_tokens if known.id_of(n) is None])


# --- The position of the reward ----------------------------------------------------------------------


@pytest.mark.parametrize("template", [TEMPLATE, CHATML], ids=["built-in", "ChatML"])
def test_sequence_ends_with_the_end_of_the_answer(template: ChatTemplate) -> None:
    """Also if the template adds text after it."""
    tokenizer = tokenizer_for(template)
    asked = (*HI, Message("assistant", "What?"), Message("user", "Hi!"))
    for answers in (("Hello.", "No."), ("",)):
        one = encode_answers(asked, answers, template, tokenizer, 200)
        assert one and one.cut == 0 and one.second == tuple(map(len, one.sequences))
        for answer, sequence in zip(answers, one.sequences, strict=True):
            whole = template.render((*asked, Message("assistant", answer)))
            assert tokenizer.decode(list(sequence)) == whole.removesuffix("\n")
            assert sequence[-1] == tokenizer.id_of(template.end_of_turn)


def test_truncated_answer_ends_with_the_last_kept_token() -> None:
    tokenizer = tokenizer_for(TEMPLATE)
    whole = encode_answers(HI, ["Hello, hello."], TEMPLATE, tokenizer, 200)
    assert whole
    (everything,) = whole.sequences
    asked = len(TEMPLATE.encode(HI, tokenizer, generation_prompt=True).token_ids)
    for length in range(asked + 1, len(everything)):
        cut = encode_answers(HI, ["Hello, hello."], TEMPLATE, tokenizer, length)
        assert cut and cut.sequences == (everything[:length],) and cut.cut == len(everything) - length
    assert encode_answers(HI, ["Hello, hello."], TEMPLATE, tokenizer, asked) is None


def random_pairs(count: int = 5) -> list[EncodedExample]:
    lengths = [(3 + n, 9 - n) for n in range(count)]
    sides = [tuple(tuple(torch.randint(0, 37, (n,)).tolist()) for n in pair) for pair in lengths]
    return [EncodedExample(both, 0, tuple(map(len, both))) for both in sides]


def random_model(kind: str) -> tuple[TaskTransformer, list[EncodedExample], list[float]]:
    torch.manual_seed(0)
    model = TaskTransformer(tiny_models()[kind], 1).double().eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)  # so that rewards differ
    return model, random_pairs(), [0.0, 0.5, 0.0, 2.0, 0.25]


@pytest.mark.parametrize("kind", sorted(tiny_models()))
def test_the_loss_is_that_of_each_answer_alone(kind: str) -> None:
    """With margins; it does not depend on padding, on other pairs, or on the split into micro-batches."""
    model, pairs, margins = random_model(kind)
    objective, expected = RewardObjective(0.1), torch.zeros((), dtype=torch.float64)
    rewards: list[list[float]] = []
    for pair, margin in zip(pairs, margins, strict=True):
        ends = [model.hidden_states(torch.tensor([side]))[0, -1] for side in pair.sequences]
        chosen, rejected = (model.head(one) for one in ends)
        rewards.append([chosen.item(), rejected.item()])
        term = -torch.nn.functional.logsigmoid(chosen - rejected - margin) + 0.1 * (chosen + rejected) ** 2
        expected = expected + term[0]
    whole = objective(model, collate(pairs, margins))
    torch.testing.assert_close(whole.total, expected)
    scored = RewardModel(model, tokenizer_for(TEMPLATE), TEMPLATE).rewards(pairs)
    assert scored == pytest.approx(np.array(rewards), abs=1e-6)
    for order in ([3, 1, 0, 4, 2], [0, 1, 2, 3, 4]):
        for size in (1, 2, 5):
            parts = [
                objective(model, collate([pairs[i] for i in some], [margins[i] for i in some]))
                for some in (order[at : at + size] for at in range(0, 5, size))
            ]
            torch.testing.assert_close(sum(part.total for part in parts), whole.total)
            for name, (total, count) in whole.metrics.items():
                assert count == 5
                assert float(total) == pytest.approx(
                    sum(float(part.metrics[name][0]) for part in parts), abs=1e-6
                )


@pytest.mark.parametrize("kind", sorted(tiny_models()))
def test_loss_does_not_depend_on_padding(kind: str) -> None:
    """Neither the padding's token ids nor its length matters."""
    model, pairs, margins = random_model(kind)
    batch = collate(pairs, margins)
    real = torch.arange(batch.token_ids.shape[2]) <= batch.last[:, :, None]
    other = batch.token_ids.where(real, (batch.token_ids + 11) % 37)
    assert not other.equal(batch.token_ids)
    longer = torch.nn.functional.pad(other, (0, 3), value=5)
    objective = RewardObjective(0.01)
    expected = objective(model, batch).total
    for token_ids in (other, longer):
        changed = TaskBatch(token_ids, batch.last, batch.second, batch.targets)
        torch.testing.assert_close(objective(model, changed).total, expected, rtol=1e-12, atol=0)


def test_micro_batches_do_not_change_the_gradient() -> None:
    model, pairs, margins = random_model("modern")
    gradients: list[torch.Tensor] = []
    for micro in (0, 1, 2, 3):
        config = configure(
            {"training": {"batch_size": 5, "micro_batch_size": micro}, "precision": {"dtype": "float32"}}
        )
        config = replace(
            config,
            model=replace(tiny_model(), context_length=18),
            runtime=replace(config.runtime, device="cpu"),
        )
        model.zero_grad()
        accumulate_gradients(model, RewardObjective(0.01), collate(pairs, margins), config, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for one in gradients[1:]:
        torch.testing.assert_close(one, gradients[0], rtol=1e-9, atol=1e-12)


def test_logged_loss_is_ln_2_and_accuracy_0_for_equal_rewards() -> None:
    model, pairs, _ = random_model("gpt2")
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, 3.0)
    terms = RewardObjective(0.5)(model, collate(pairs, [0.0] * 5))
    means = {name: float(total) / count for name, (total, count) in terms.metrics.items()}
    assert means["preference_loss"] == pytest.approx(math.log(2))
    assert means["reward_accuracy"] == 0 and means["chosen_reward"] == means["rejected_reward"] == 3
    assert terms.total.item() == pytest.approx(5 * (math.log(2) + 0.5 * 36))  # including the centering term


# --- Pairs with margins ------------------------------------------------------------------------------


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_margins_of_a_table(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go!"}
    rows = [
        row,
        {**row, "margin": 2},
        {**row, "margin": "0.5"},
        {**row, "margin": None},
        {**row, "margin": ""},
    ]
    reading = Reading()
    table = reading.table(write(tmp_path / "pairs.json", rows))
    pairs, columns = read_pairs(table, reading, margins=True)
    assert [one.margin for one in pairs] == [0, 2, 0.5, 0, 0] and columns.target == "margin"
    without, columns = read_pairs(table, reading)
    assert {one.margin for one in without} == {0} and columns.target == ""
    for bad in (-1, "much", "nan", "inf", True, [1]):
        table = reading.table(write(tmp_path / "bad.json", [row, {**row, "margin": bad}]))
        with pytest.raises(
            DataError, match=r"entry 2: the margin is .*; expected a finite number of at least 0"
        ):
            read_pairs(table, reading, margins=True)


# --- Runs --------------------------------------------------------------------------------------------

WORDS = ("wren", "heron", "robin", "owl", "kite", "swan", "duck", "crow", "lark", "stork", "tern", "gull")
FAST: dict[str, Any] = {
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
    "optimizer": {"learning_rate": 0.003},
}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    rows = [{"prompt": f"{word}?", "response": f"{word} {end}"} for word in WORDS for end in ("yes", "no")]
    (folder / "text.txt").write_text("\n".join(" ".join(row.values()) for row in rows) * 20)
    base = tiny_config(
        folder / "text.txt", model={"context_length": 32, "n_layers": 1}, tokenizer={"kind": "byte"}
    )
    parent = api.train(config=base, out=folder / "base", console=QUIET)
    tuned = configure(
        {"training": {"steps": 4}, "logging": {"sample_tokens": 0}, **FAST}, wg.recipe("instruct")
    )
    data = write(folder / "talk.json", rows)
    out = folder / "talker"
    return api.finetune(parent.path, data, task="instruct", config=tuned, out=out, console=QUIET).path


def preferences(folder: Path, **more: Any) -> Path:
    """Write pairs that prefer yes."""
    rows = [{"prompt": f"{w}?", "chosen": f"{w} yes", "rejected": f"{w} no", **more} for w in WORDS]
    return write(folder / "pairs.json", rows)


Align = Callable[..., wg.Run[Any]]


@pytest.fixture
def align(chat_model: Path, tmp_path: Path) -> Align:
    def run(name: str = "run", data: Path | None = None, **changes: dict[str, Any]) -> wg.Run[Any]:
        settings = {
            "training": {"steps": 12, "epochs": 0, "batch_size": 4},
            "evaluation": {"every": 6},
            "checkpointing": {"every": 4},
            "data": {"validation_fraction": 0.25},
            **FAST,
        }
        for section, fields in changes.items():
            settings[section] = {**settings.get(section, {}), **fields}
        config = configure(settings, wg.recipe("reward"))
        pairs = data or preferences(tmp_path)
        return api.align(
            chat_model, pairs, method="reward", config=config, out=tmp_path / name, console=QUIET
        )

    return run


@pytest.mark.parametrize("lora", [0, 4])
def test_run_learns_the_preferences(lora: int, align: Align, chat_model: Path) -> None:
    """Training ranks more held-out pairs correctly; with LoRA, the base is unchanged."""
    run = align(lora={"rank": lora}, training={"steps": 60}, optimizer={"learning_rate": 0.01})
    first = next(line for line in run.metrics if line["kind"] == "validation")
    last = run.validation.to_json()
    assert first["step"] == 0
    assert first["reward_accuracy"] < last["reward_accuracy"]["value"] == 1
    assert last["preference_loss"]["value"] < 0.3 < first["preference_loss"]
    assert last["reward_accuracy"]["low"] == pytest.approx(
        0.025 ** (1 / 3), rel=1e-6
    )  # Clopper–Pearson, 3 of 3
    assert last["kind"] == "reward" and last["examples"] == 3
    margin = last["chosen_reward"]["value"] - last["rejected_reward"]["value"]
    assert last["reward_margin"]["value"] == pytest.approx(margin)
    record = run.validation.records[0]
    assert {"prompt", "chosen_answer", "rejected_answer", "chosen_reward", "loss"} <= {*record}
    stage = open_stage(run.path)
    assert isinstance(stage, RewardTraining)
    trained, held_out = ({one.prompt for one in side.pairs} for side in (stage.train, stage.validation))
    assert not trained & held_out
    if lora:
        stored = load_model(model_folder(run.path, "last", QUIET)).model.state_dict()
        base = wg.load(chat_model).model.state_dict()
        assert all(base[n.replace(".base.", ".")].equal(t) for n, t in stored.items() if ".base." in n)


def test_rewards_of_texts(align: Align, tmp_path: Path) -> None:
    """All interfaces give the same rewards; other samples in the batch change only the rounding."""
    run = align(training={"steps": 30}, optimizer={"learning_rate": 0.01})
    lm = wg.load(run.path)
    samples = [((Message("user", f"{word}?"),), f"{word} {end}") for word in WORDS for end in ("yes", "no")]
    prompts, completions = [f"{word}?" for word in WORDS for _ in range(2)], [one for _, one in samples]
    expected = lm.rewards(prompts, completions)
    assert sum(expected[::2]) > sum(expected[1::2])
    loaded = load_model(model_folder(run.path, "best", QUIET))
    assert RewardModel.of(loaded).score(samples) == pytest.approx(expected, abs=1e-6)
    rewarding = RewardModel.load(run.path)
    assert rewarding.score(samples[::-1])[::-1] == pytest.approx(expected, abs=1e-5)
    assert [rewarding.score([one])[0] for one in samples] == pytest.approx(expected, abs=1e-5)
    conversation = [{"role": "user", "content": "owl?"}]
    assert lm.rewards([conversation], ["owl yes"])[0] == pytest.approx(lm.rewards(["owl?"], ["owl yes"])[0])
    assert lm.rewards([], []) == [] and len(lm.rewards(["owl?"] * 2, ["", "owl " * 40])) == 2
    with pytest.raises(DataError, match="prompt 2 leaves no room for an answer in the 32 tokens"):
        lm.rewards(["owl?", "owl" * 30], ["yes", "yes"])
    with pytest.raises(ConfigError, match="there are 1 prompts and 2 completions"):
        lm.rewards(["owl?"], ["yes", "no"])
    with pytest.raises(ConfigError, match="prompt 1 with its completion: user and assistant must alternate"):
        lm.rewards([[*conversation, {"role": "assistant", "content": "yes"}]], ["no"])


def test_evaluate_repeats_the_metrics_of_the_run(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    """From the run's folder, and from a table with the same pairs."""
    run = align()
    pairs = [PreferencePair(one.prompt, one.chosen, one.rejected) for one in held_out(run)]
    rows = [{"prompt": p.prompt[0].content, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    table = write(run.path.parent / "test.json", rows)
    expected = run.validation.to_json()
    for sources in ([], [str(table)]):
        command = [
            "evaluate",
            str(run.path),
            *sources,
            "--checkpoint",
            "last",
            "--json",
            "--quiet",
            "--device",
            "cpu",
        ]
        assert main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "reward" and found["examples"] == 3
        for name in ("preference_loss", "reward_accuracy", "reward_margin", "chosen_reward"):
            assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=1e-5)
    assert (
        main(["compare", str(run.path), str(run.path), str(table), "--json", "--quiet", "--device", "cpu"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["reward_accuracy"]["difference"] == 0


def held_out(run: wg.Run[Any]) -> list[PreferencePair]:
    stage = open_stage(run.path)
    assert isinstance(stage, RewardTraining)
    return stage.validation.pairs


def test_margins_change_the_loss(align: Align, tmp_path: Path) -> None:
    plain, with_margins = (
        align(name, preferences(tmp_path, margin=margin), training={"steps": 1}, evaluation={"every": 1})
        for name, margin in (("plain", 0), ("margins", 3))
    )
    first = [
        next(line for line in run.metrics if line["kind"] == "validation") for run in (plain, with_margins)
    ]
    assert first[0]["chosen_reward"] == first[1]["chosen_reward"]
    difference = torch.tensor([[one["chosen_reward"], one["rejected_reward"]] for one in first])
    expected = bradley_terry(difference[:, 0], difference[:, 1], torch.tensor([0.0, 3.0]))
    assert [one["preference_loss"] for one in first] == pytest.approx(expected.tolist(), abs=0.01)


def test_stopped_run_resumes_bit_for_bit(align: Align) -> None:
    whole, stopped = align("whole"), align("stopped")
    for folder in (stopped.path / "checkpoints").glob("step-*12"):
        for file in folder.rglob("*"):
            file.unlink() if file.is_file() else None
    again = api.resume(stopped.path, console=QUIET)
    ends = [one.load("last").model.state_dict() for one in (whole, again)]
    assert "head.weight" in ends[0]
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


def test_long_pairs_are_truncated_and_reported(align: Align, tmp_path: Path) -> None:
    rows = [{"prompt": f"{w}?", "chosen": f"{w} yes" * 6, "rejected": f"{w} no"} for w in WORDS]
    rows += [{"prompt": w * 12, "chosen": "yes", "rejected": "no"} for w in WORDS[:2]]
    run = align(data=write(tmp_path / "long.json", rows), training={"steps": 1})
    stage = open_stage(run.path)
    assert isinstance(stage, RewardTraining)
    assert len(stage.train.pairs) + len(stage.validation.pairs) == 12
    assert f"{len(stage.train.pairs)} (100.0%) are cut at 32 tokens" in stage.describe()
    assert max(len(side) for one in stage.train.examples for side in one.sequences) == 32
    with pytest.raises(DataError, match="none of 9 pairs has a prompt that leaves room"):
        align("none", write(tmp_path / "none.json", [{**rows[-1], "prompt": w * 30} for w in WORDS]))


def test_invalid_settings_are_rejected(align: Align, chat_model: Path, tmp_path: Path, fails: Fails) -> None:
    pairs, base = preferences(tmp_path), chat_model.parent / "base"
    with pytest.raises(ConfigError, match=r"has no chat template.*finetune --task instruct"):
        api.align(base, pairs, method="reward", out=tmp_path / "none", console=QUIET)
    for section, fields, message in (
        ("alignment", {"centering": -1.0}, r"alignment\.centering is -1"),
        ("alignment", {"beta": 0.5}, r"alignment\.beta is for dpo, not for reward"),
        ("finetuning", {"language_modeling": 0.1}, r"finetuning\.language_modeling does not apply to reward"),
        ("finetuning", {"unfreeze_every": 2}, r"finetuning\.unfreeze_every does not apply to reward"),
        (
            "finetuning",
            {"class_weights": "balanced"},
            r"finetuning\.class_weights does not apply to reward",
        ),
        ("windows", {"length": 8}, r"windows\.length does not apply to reward"),
    ):
        with pytest.raises(ConfigError, match=message):
            align("none", **{section: fields})
    with pytest.raises(DataError, match="the two answers are equal"):
        align("none", write(tmp_path / "equal.json", [{"prompt": "?", "chosen": "a", "rejected": "a"}] * 9))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="is not a reward model; train one with `wholegpt align"):
        RewardModel.load(chat_model)
    with pytest.raises(ConfigError, match="is not a reward model"):
        wg.load(chat_model).rewards(["owl?"], ["yes"])

    run = align(training={"steps": 1}).path
    lm = wg.load(run)
    uses: dict[str, Callable[[], Any]] = {
        "generate": lambda: lm.generate("owl"),
        "stream": lambda: lm.stream("owl"),
        "beam_search": lambda: lm.beam_search("owl"),
        "chat": lambda: lm.chat([{"role": "user", "content": "owl?"}]),
        "score": lambda: lm.score("owl"),
        "evaluate": lambda: lm.evaluate(pairs),
    }
    for use in uses.values():
        with pytest.raises(
            ConfigError, match="is a reward model, which scores answers and does not generate text"
        ):
            use()
    with pytest.raises(ConfigError, match="is a reward model, which predicts no labels"):
        lm.predict("owl")
    for command in (["generate", run, "owl"], ["chat", run]):
        assert "is a reward model" in fails(*command, "--device", "cpu")
    assert "is a reward model" in fails("export", run, "--to", "huggingface", "--out", tmp_path / "export")
    assert "is fine-tuned for reward already" in fails("align", run, "--method", "dpo", "--data", pairs)


def test_align_command_with_a_reward_model(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--training.steps", "2", "--device", "cpu", "--data.validation-fraction", "0.3", "--quiet"]
    command = ["align", str(chat_model), "--method", "reward", "--data", str(preferences(tmp_path)), *options]
    assert main([*command, "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stage"] == "reward" and result["task"] == "reward" and result["steps"] == 2
    figures = {"preference_loss", "reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"}
    assert figures <= {*result["validation"]} and figures <= {*result["best"]}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()  # the curves
