"""Direct preference optimization: reading and encoding pairs, the losses, and runs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import wholegpt as wg
from tests.helpers import tiny_config, tiny_models
from wholegpt.cli import main
from wholegpt.console import Console
from wholegpt.data.chat.template import ChatTemplate, EncodedConversation, Message
from wholegpt.data.examples.pair_batches import EncodedPair, PairLoader, collate_pairs, encode_pairs
from wholegpt.data.examples.preferences import PreferencePair, mismatched, read_pairs
from wholegpt.data.reading.tables import Reading
from wholegpt.errors import ConfigError, DataError
from wholegpt.evaluation import TaskScore
from wholegpt.losses import dpo_loss, kto_loss, negative_log_likelihood
from wholegpt.model import Transformer
from wholegpt.runs import api
from wholegpt.runs.load import load
from wholegpt.runs.train import open_stage
from wholegpt.settings.choices import Dtype, PreferenceLoss
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import AlignmentConfig
from wholegpt.settings.sections.alignment import complete_alignment
from wholegpt.stages.alignment.preference import (
    PreferenceObjective,
    PreferenceTuning,
    WithDivergence,
    answer_log_probabilities,
)
from wholegpt.tokenizers import byte_tokenizer
from wholegpt.training.loop import accumulate_gradients

QUIET = Console(quiet=True)
USER, ANSWER, OTHER = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "assistant", "content": "Go away!"},
)
PAIR = PreferencePair((Message("user", "Hi"),), "Hello.", "Go away!")
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away!"},
    "TRL, conversational": {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
    "TRL, implicit prompt": {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "prompt repeated in both answers": {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "an empty system message": {
        "chosen": [{"role": "system", "content": ""}, USER, ANSWER],
        "rejected": [{"role": "system", "content": ""}, USER, OTHER],
    },
    "OpenAI": {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [OTHER],
    },
}


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def read(path: Path, rows: Any) -> list[PreferencePair]:
    reading = Reading()
    return read_pairs(reading.table(write(path, rows)), reading)[0]


@pytest.mark.parametrize("form", FORMS)
def test_formats_of_pairs(form: str, tmp_path: Path) -> None:
    assert read(tmp_path / "pairs.json", [FORMS[form]]) == [PAIR]


def test_instruction_input_and_system(tmp_path: Path) -> None:
    row = {
        "instruction": "Add.",
        "input": "1, 2",
        "system": "Be brief.",
        "output": "?",
        "chosen": "3",
        "rejected": "4",
    }
    prompt = (Message("system", "Be brief."), Message("user", "Add.\n\n1, 2"))
    assert read(tmp_path / "pairs.json", [row]) == [PreferencePair(prompt, "3", "4")]


def test_json_answers_are_read_as_text(tmp_path: Path) -> None:
    rows = [{"prompt": "A list?", "chosen": '[{"id": 1}]', "rejected": "[]"}]
    (pair,) = read(tmp_path / "pairs.json", rows)
    assert (pair.chosen, pair.rejected) == ('[{"id": 1}]', "[]")


BAD_ROWS = {
    "the two answers are equal": {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"},
    "answer different prompts": {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "Ho"}, OTHER]},
    "has no prompt": {"prompt": "", "chosen": "Yes", "rejected": "No"},
    "rejected: is missing": {"prompt": "Hi", "chosen": "Yes", "rejected": None},
    "chosen: is empty": {"prompt": "Hi", "chosen": " ", "rejected": "No"},
    "must be the assistant's": {
        "chosen": [USER, ANSWER, USER],
        "rejected": [USER, ANSWER, {**USER, "content": "Ho"}],
    },
    "expected a text or a list": {"prompt": "Hi", "chosen": 3, "rejected": "No"},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_invalid_rows_are_rejected_or_skipped(message: str, tmp_path: Path) -> None:
    rows = [FORMS["texts"], BAD_ROWS[message]]
    with pytest.raises(DataError, match=f"entry 2.*{message}"):
        read(tmp_path / "pairs.json", rows)
    skipping = Reading(on_bad_line="skip")
    assert read_pairs(skipping.table(write(tmp_path / "more.json", rows)), skipping)[0] == [PAIR]


def test_table_without_rejected_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column of rejected answers; the columns are prompt, chosen"):
        read(tmp_path / "pairs.json", [{"prompt": "Hi", "chosen": "Yes"}])


# --- Encoding and loss -------------------------------------------------------------------------------


def tokenizer_for(template: ChatTemplate) -> Any:
    known = byte_tokenizer()
    return known.with_special_tokens([n for n in template.special_tokens if known.id_of(n) is None])


def test_only_the_last_answer_and_its_end_token_are_scored() -> None:
    template = ChatTemplate()
    tokenizer = tokenizer_for(template)
    prompt = (Message("user", "Hi"), Message("assistant", "What?"), Message("user", "Hi!"))
    (encoded,) = encode_pairs([PreferencePair(prompt, "Hello.", "No.")], template, tokenizer, 100)
    for side, text in zip(encoded.sides, ("Hello.", "No."), strict=True):
        scored = [i for i, counts in zip(side.token_ids, side.scored, strict=True) if counts]
        assert tokenizer.decode(scored) == f"{text}{template.end_of_turn}"
    batch = collate_pairs([encoded])
    assert (batch.targets != -100).sum(-1).tolist() == [[7, 4]]


def test_long_pairs_are_truncated_and_those_without_room_are_skipped() -> None:
    template = ChatTemplate()
    tokenizer = tokenizer_for(template)
    long = PreferencePair((Message("user", "Hi"),), "Hello. " * 9, "Go!")
    full = PreferencePair((Message("user", "Hi" * 30),), "Hello.", "Go!")
    found = encode_pairs([PAIR, long, full], template, tokenizer, 20)
    assert [one.pair for one in found] == [PAIR, long] and [one.cut for one in found] == [False, True]
    assert max(len(side.token_ids) for one in found for side in one.sides) == 21
    with pytest.raises(DataError, match="none of 1 pairs has a prompt that leaves room"):
        encode_pairs([full], template, tokenizer, 20)


def random_batch(kind: str) -> tuple[Transformer, Any]:
    torch.manual_seed(0)
    model = Transformer(tiny_models()[kind]).double().eval()

    def side(length: int, asked: int) -> EncodedConversation:
        ids = torch.randint(0, 37, (length,)).tolist()
        return EncodedConversation(ids, [i >= asked for i in range(length)])

    pairs = [
        EncodedPair(PreferencePair((), "", "", (-float(n), -2.0)), (side(4 + n, 2), side(9 - n, 3)), False)
        for n in range(4)
    ]
    return model, pairs


def log_ratios(model: Transformer, pair: EncodedPair) -> torch.Tensor:
    """Return Δ of both answers of a pair, each computed alone."""
    sums: list[torch.Tensor] = []
    for side in pair.sides:
        nats = negative_log_likelihood(
            model(torch.tensor([side.token_ids[:-1]])), torch.tensor([side.token_ids[1:]])
        )
        sums.append(-nats[0][torch.tensor(side.scored[1:])].sum())
    return torch.stack(sums) - torch.tensor(pair.pair.reference)


@pytest.mark.parametrize("kind", sorted(tiny_models()))
def test_the_loss_is_that_of_each_answer_alone(kind: str) -> None:
    """It does not depend on padding, on other pairs, or on the split into micro-batches."""
    model, pairs = random_batch(kind)
    settings = complete_alignment(AlignmentConfig())
    objective = PreferenceObjective(settings)
    expected = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        ratios = log_ratios(model, pair)
        expected = expected + dpo_loss(ratios[:1], ratios[1:], settings.beta)[0]
    batch = collate_pairs(pairs)
    whole = objective(model, batch)
    torch.testing.assert_close(whole.total, expected)
    parts = [objective(model, collate_pairs(some)) for some in (pairs[:1], pairs[1:])]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    for name, (total, count) in whole.metrics.items():
        assert count == 4 and float(total) == pytest.approx(sum(float(p.metrics[name][0]) for p in parts))


@pytest.mark.parametrize("shift", [-1000.0, 3.0])
def test_the_step_of_kto_is_its_definition_for_any_split(shift: float) -> None:
    """z is the mean of Δ over the mismatched answers of the whole step, at least 0, and has no gradient."""
    model, pairs = random_batch("modern")
    settings = complete_alignment(AlignmentConfig(loss=PreferenceLoss.kto))
    others: list[EncodedPair] = []
    for one in pairs[::-1]:  # the references make the mean of Δ about ``shift``
        here = log_ratios(model, replace(one, pair=replace(one.pair, reference=(0.0, 0.0)))).detach()
        reference = tuple((here - shift - torch.randn(2)).tolist())
        others.append(replace(one, pair=replace(one.pair, reference=reference)))
    batch = WithDivergence(PairLoader(pairs, len(pairs), 1), others, model.train(), Dtype.float32).batch(0)
    assert model.training
    z = max(0.0, sum(log_ratios(model, one).mean().item() for one in others) / len(others))
    assert (z == 0) is (shift < 0) and batch.divergence == pytest.approx(z, rel=1e-6)
    losses: list[torch.Tensor] = []
    for one in pairs:
        ratios = log_ratios(model, one)
        losses.append(kto_loss(ratios, torch.tensor([1.0, 0.0]), z, settings.beta).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    expected = gradient_of(model)
    for micro in (0, 1, 2, 3):
        config = configure(
            {
                "training": {"micro_batch_size": micro},
                "precision": {"dtype": "float32"},
                "runtime": {"device": "cpu"},
            }
        )
        config = replace(config, model=replace(config.model, context_length=2 * batch.token_ids.shape[2]))
        model.zero_grad()
        metrics = accumulate_gradients(model, PreferenceObjective(settings), batch, config, 0)
        assert metrics["preference_loss"] == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(gradient_of(model), expected, rtol=1e-6, atol=1e-9)


def gradient_of(model: Transformer) -> torch.Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def test_mismatched_answers_belong_to_the_next_different_prompt() -> None:
    pairs = [
        PreferencePair((Message("user", prompt),), f"yes {i}", f"no {i}", (1.0, 2.0), 0.5, (float(i), -1.0))
        for i, prompt in enumerate("aabc")
    ]
    found = mismatched(pairs, pairs)
    assert [one.chosen for one in found] == ["yes 2", "yes 2", "yes 3", "yes 0"]
    assert [one.prompt for one in found] == [one.prompt for one in pairs]
    assert [one.reference for one in found] == [one.mismatched_reference for one in pairs]
    with pytest.raises(DataError, match=r"all training pairs have the same prompt, and kto needs"):
        mismatched(pairs[:2], pairs[:2])


@pytest.mark.parametrize("loss", PreferenceLoss)
def test_every_loss_learns_the_preferences(loss: PreferenceLoss) -> None:
    """Training from random weights in float64 decreases the loss, and chosen answers get higher rewards."""
    model, pairs = random_batch("modern")
    batch = collate_pairs(pairs)
    with torch.no_grad():
        reference = answer_log_probabilities(model, batch)
    batch = type(batch)(batch.token_ids, batch.targets, reference)
    objective = PreferenceObjective(complete_alignment(AlignmentConfig(loss=loss)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses: list[float] = []
    terms = objective(model, batch)
    for _ in range(30):
        terms = objective(model, batch)
        losses.append(terms.total.item() / len(batch))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert float(terms.metrics["reward_accuracy"][0]) == 4
    if loss is PreferenceLoss.sigmoid:
        assert losses[0] == pytest.approx(math.log(2), rel=1e-12)


# --- Runs --------------------------------------------------------------------------------------------

WORDS = ("wren", "heron", "robin", "owl", "kite", "swan", "duck", "crow", "lark", "stork", "tern", "gull")


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
        {"training": {"steps": 40}, "logging": {"sample_tokens": 0}, **FAST}, wg.recipe("instruct")
    )
    data = write(folder / "talk.json", rows)
    return api.finetune(
        parent.path, data, task="instruct", config=tuned, out=folder / "talker", console=QUIET
    ).path


FAST: dict[str, Any] = {
    "precision": {"dtype": "float32"},
    "runtime": {"device": "cpu"},
    "optimizer": {"learning_rate": 0.003},
}


def preferences(folder: Path) -> Path:
    """Write pairs that prefer yes."""
    rows = [{"prompt": f"{w}?", "chosen": f"{w} yes", "rejected": f"{w} no"} for w in WORDS]
    return write(folder / "pairs.json", rows)


Align = Callable[..., wg.Run[Any]]


@pytest.fixture
def align(chat_model: Path, tmp_path: Path) -> Align:
    def run(name: str = "run", **changes: dict[str, Any]) -> wg.Run[Any]:
        settings = {
            "training": {"steps": 12, "epochs": 0, "batch_size": 4},
            "evaluation": {"every": 6},
            "checkpointing": {"every": 4},
            "logging": {"sample_tokens": 0},
            "data": {"validation_fraction": 0.25},
            **FAST,
        }
        for section, fields in changes.items():
            settings[section] = {**settings.get(section, {}), **fields}
        config = configure(settings, wg.recipe("dpo"))
        return api.align(
            chat_model, preferences(tmp_path), method="dpo", config=config, out=tmp_path / name, console=QUIET
        )

    return run


@pytest.mark.parametrize("lora", [0, 4])
def test_dpo_run_starts_at_ln_2_and_learns_the_preferences(lora: int, align: Align) -> None:
    run = align(lora={"rank": lora}, training={"steps": 60}, optimizer={"learning_rate": 0.01})
    first = next(line for line in run.metrics if line["kind"] == "train")
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-4)
    last = run.validation.to_json()
    assert last["preference_loss"]["value"] < 0.5 and last["reward_accuracy"]["value"] == 1
    assert last["examples"] == 3
    stage = open_stage(run.path)
    assert isinstance(stage, PreferenceTuning)
    assert not {one.pair.prompt for one in stage.train} & {one.pair.prompt for one in stage.validation}


@pytest.mark.parametrize("loss", ["sigmoid", "orpo"])
def test_answers_before_and_after_training_are_those_of_both_models(
    loss: str, align: Align, chat_model: Path
) -> None:
    """One for each different held-out prompt, also for a loss without reference; none without samples."""
    settings = {"alignment": {"loss": loss}, "training": {"steps": 30}, "optimizer": {"learning_rate": 0.01}}
    run = align(**settings, logging={"sample_tokens": 12})
    assert isinstance(run.validation, TaskScore)
    shown = [one for one in run.validation.records if "completion" in one]
    prompts = [one["prompt"] for one in run.validation.records]
    assert [one["prompt"] for one in shown] == list(dict.fromkeys(prompts))
    models = {"completion": wg.load(run.path, checkpoint="last"), "reference_completion": wg.load(chat_model)}
    for name, model in models.items():
        for one in shown:
            asked = [{"role": "user", "content": one["prompt"]}]
            answer = model.chat(asked, max_tokens=12, temperature=0.0)
            assert one[name] == answer.text and one[name]
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Completions</h2>" in report and "the likeliest token each" in report
    plain = align("plain", **settings, logging={"sample_tokens": 0})
    assert isinstance(plain.validation, TaskScore)
    assert not [one for one in plain.validation.records if "completion" in one]


def test_stored_reference_log_probabilities_are_those_of_the_parent(align: Align, chat_model: Path) -> None:
    run = align(training={"steps": 1})
    stage = open_stage(run.path)
    assert isinstance(stage, PreferenceTuning)
    parent = wg.load(chat_model)
    for one in stage.train:
        for side, reference in zip(one.sides, one.pair.reference, strict=True):
            with torch.no_grad():
                logits = parent.model(torch.tensor([side.token_ids[:-1]]))
            nats = negative_log_likelihood(logits, torch.tensor([side.token_ids[1:]]))[0]
            assert reference == pytest.approx(-float(nats[torch.tensor(side.scored[1:])].sum()), abs=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_stopped_run_resumes_bit_for_bit(loss: str, align: Align) -> None:
    whole, stopped = (align(name, alignment={"loss": loss}) for name in ("whole", "stopped"))
    for folder in (stopped.path / "checkpoints").glob("step-*12"):
        for file in folder.rglob("*"):
            file.unlink() if file.is_file() else None
    again = api.resume(stopped.path, console=QUIET)
    ends = [one.load("last").model.state_dict() for one in (whole, again)]
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


def test_kto_run_starts_at_one_half_and_learns_the_preferences(align: Align, chat_model: Path) -> None:
    """It stores reference log-probabilities of mismatched answers."""
    run = align(alignment={"loss": "kto"}, training={"steps": 60}, optimizer={"learning_rate": 0.01})
    first = next(line for line in run.metrics if line["kind"] == "train")
    assert first["preference_loss"] == pytest.approx(0.5, abs=1e-4)
    last = run.validation.to_json()
    assert last["preference_loss"]["value"] < 0.45 and last["reward_accuracy"]["value"] == 1
    stage, parent = open_stage(run.path), wg.load(chat_model).model
    assert isinstance(stage, PreferenceTuning) and isinstance(parent, Transformer)
    for others, pairs in ((stage.others, stage.train), (stage.others_of_validation, stage.validation)):
        assert len(others) == len(pairs)
        for other, one in zip(others, pairs, strict=True):
            assert other.pair.prompt == one.pair.prompt and other.pair.chosen != one.pair.chosen
            assert log_ratios(parent, other).tolist() == pytest.approx([0, 0], abs=1e-4)


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_reference_free_losses_store_no_reference(loss: str, align: Align) -> None:
    run = align(alignment={"loss": loss}, training={"steps": 2})
    stage = open_stage(run.path)
    assert isinstance(stage, PreferenceTuning)
    assert all(one.pair.reference == (0, 0) for one in stage.train)
    assert run.config.alignment.beta == {"orpo": 0.1, "simpo": 2.0}[loss]


def test_invalid_settings_are_rejected(align: Align, chat_model: Path, tmp_path: Path) -> None:
    pairs = preferences(tmp_path)
    base = chat_model.parent / "base"
    with pytest.raises(ConfigError, match=r"has no chat template.*finetune --task instruct"):
        api.align(base, pairs, method="dpo", out=tmp_path / "none", console=QUIET)
    with pytest.raises(ConfigError, match=r"method is 'dpu'.*dpo"):
        api.align(base, pairs, method="dpu", console=QUIET)
    with pytest.raises(DataError, match="12 of its prompts are in"):
        api.align(chat_model, pairs, method="dpo", validation=pairs, out=tmp_path / "none", console=QUIET)
    with pytest.raises(ConfigError, match=r"alignment\.margin is for simpo"):
        align(alignment={"margin": 2.0})
    with pytest.raises(ConfigError, match=r"alignment\.beta is -1"):
        align(alignment={"beta": -1})
    with pytest.raises(ConfigError, match=r"alignment\.\w+ is for `wholegpt align`, not for pretraining"):
        api.train("x.txt", config=configure({"alignment": {"beta": 1}}), out=tmp_path / "none", console=QUIET)
    assert not (tmp_path / "none").exists()


def test_align_command_with_dpo(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--training.steps", "2", "--device", "cpu", "--data.validation-fraction", "0.3", "--quiet"]
    command = ["align", str(chat_model), "--method", "dpo", "--data", str(preferences(tmp_path)), *options]
    assert main([*command, "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stage"] == "preference" and result["task"] == "dpo" and result["steps"] == 2
    assert {"preference_loss", "reward_accuracy", "reward_margin"} <= {*result["validation"]}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()  # the curves
    assert main(["evaluate", str(tmp_path / "run"), "--checkpoint", "last", "--json", "--device", "cpu"]) == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("preference_loss", "chosen_reward"):
        assert again[name]["value"] == pytest.approx(result["validation"][name]["value"], abs=1e-5)


def test_pairs_are_not_examples_of_a_model_without_a_head(chat_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds preference pairs, on which only a reward model is evaluated"):
        load(chat_model, console=QUIET).evaluate_task(preferences(tmp_path), console=QUIET)
