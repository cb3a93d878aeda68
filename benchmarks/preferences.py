"""A reward model and direct preference optimization on preference pairs of one data set, on prompts never trained on.

Base model, instruction-tuned model and both runs are kept in the folder ``--work``, and resumed after an interruption.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

import wholegpt as wg
from benchmarks.runs import finished
from benchmarks.tables import machine_line, publish
from wholegpt.console import Console
from wholegpt.data.chat.template import Message
from wholegpt.data.examples.preferences import PreferenceData
from wholegpt.files import write_text_atomic
from wholegpt.language_model import LanguageModel
from wholegpt.metrics import Estimate, bootstrap
from wholegpt.model import NeuralModel
from wholegpt.runs.train import open_stage
from wholegpt.settings.choices import Dtype
from wholegpt.settings.presets import configure
from wholegpt.settings.schema import AlignmentConfig
from wholegpt.stages.alignment.rollout import collate_completions, sample_completions, score_completions

SECTION = "Preferences"
HELD_OUT = 0.2
"""Share of the prompts that neither the instruction-tuned model nor the others were trained on."""
MOST_TOKENS, SEED = 96, 1
SHOWN = 6


def split(folder: Path, work: Path) -> dict[str, Path]:
    """Write training and held-out examples of both files; all rows of a prompt are on the same side."""
    files: dict[str, Path] = {}
    for name in ("instructions", "preferences"):
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if name == "preferences":
            rows = [row for row in rows if row["chosen"] != row["rejected"]]
        for side in ("train", "held-out"):
            chosen = [row for row in rows if is_held_out(row) is (side == "held-out")]
            files[f"{name}, {side}"] = path = work / f"{name}-{side}.json"
            write_text_atomic(path, json.dumps(chosen, ensure_ascii=False))
    return files


def is_held_out(row: dict[str, str]) -> bool:
    """Return whether the prompt of a row is held out: a function of the prompt alone."""
    return random.Random(f"{row['instruction']}\n{row['input']}").random() < HELD_OUT


def runs(data: Path, work: Path, minutes: float, console: Console) -> dict[str, Path]:
    """Return the folders of the base model, the instruction-tuned one, the reward model and the aligned model."""
    files = split(data / "instruct", work)
    logging = {"logging": {"sample_tokens": MOST_TOKENS}}
    base = finished(
        work / "base",
        lambda: wg.train(data / "english.jsonl", minutes=minutes, out=work / "base", console=console),
        console,
    )
    options: Any = {"console": console}
    chat = finished(
        work / "chat",
        lambda: wg.finetune(
            *(base, files["instructions, train"]), task="instruct", out=work / "chat", **options
        ),
        console,
    )
    found = {"base": base, "chat": chat}
    for method in ("reward", "dpo"):
        config, out = configure(logging, wg.recipe(method)), work / method
        given = {"validation": files["preferences, held-out"], "config": config, "out": out}
        found[method] = finished(
            out,
            lambda method=method, given=given: wg.align(
                chat, files["preferences, train"], method=method, **given, **options
            ),
            console,
        )
    return found


def answers(
    model: LanguageModel, reference: LanguageModel, prompts: list[str]
) -> tuple[list[str], Estimate, Estimate]:
    """Sample an answer to each prompt; return the answers, their KL divergence in nats, and their tokens."""
    policy, parent = model.model, reference.model
    assert isinstance(policy, NeuralModel) and isinstance(parent, NeuralModel)
    template, settings = model.chat_template, AlignmentConfig(completion_tokens=MOST_TOKENS)
    assert template
    ids = [
        template.encode((Message("user", one),), model.tokenizer, generation_prompt=True).token_ids
        for one in prompts
    ]
    sampled = sample_completions(policy, model.tokenizer, template, ids, settings, Dtype.float32, SEED)
    rollout = collate_completions(sampled)
    log_p, log_q = (
        score_completions(one, rollout["token_ids"], rollout["targets"], 1.0, Dtype.float32)[0].sum(1)
        for one in (policy, parent)
    )
    divergences, lengths = (log_p - log_q).numpy(), np.array([len(one.token_ids) for one in sampled])
    kl, tokens = (
        bootstrap(len(prompts), lambda chosen, values=values: float(values[chosen].mean()))
        for values in (divergences, lengths)
    )
    return [one.text for one in sampled], kl, tokens


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def shown(figure: Estimate, share: bool = False) -> str:
    """Return an estimate with its interval."""
    value, low, high = (f"{x:.1%}" if share else f"{x:.2f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with english.jsonl and instruct/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=5, help="training time of the base model")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    found = runs(arguments.data.resolve(), work, arguments.minutes, console)
    models = {name: wg.load(found[name], console=console) for name in ("chat", "dpo", "reward")}
    pairs = PreferenceData.open(found["dpo"] / "data").validation
    scores: dict[str, Any] = {
        "reward model": models["reward"].evaluate_pairs(pairs, Dtype.float32, console),
        "DPO": open_stage(found["dpo"]).evaluate(models["dpo"].model, models["dpo"].model.device, whole=True),
    }
    accuracies = [
        f"| {name} | {shown(score.metrics['reward_accuracy'], share=True)} "
        f"| {shown(score.metrics['reward_margin'])} |"
        for name, score in scores.items()
    ]
    prompts = list(dict.fromkeys(one.prompt[-1].content for one in pairs))
    texts, rows = dict[str, list[str]](), list[str]()
    for name in ("chat", "dpo"):
        texts[name], kl, tokens = answers(models[name], models["chat"], prompts)
        rows.append(f"| {'before' if name == 'chat' else 'after DPO'} | {shown(kl)} | {shown(tokens)} |")
    samples = [
        f"| {cell(prompt)} | {cell(before)} | {cell(after)} |"
        for prompt, before, after in zip(prompts, texts["chat"], texts["dpo"], strict=True)
    ]
    train = PreferenceData.open(found["dpo"] / "data").train
    what = (
        f"{machine_line()} The base model ({models['chat'].model.parameter_count:,} parameters) was trained for "
        f"{arguments.minutes:g} minutes on english.jsonl, and tuned on the instructions. The reward model and DPO "
        f"(each with the defaults of its recipe) were trained on {len(train):,} pairs of polite and rude answers, and "
        f"are evaluated on {len(pairs):,} pairs, whose prompts no model was trained on. The reward is that of the "
        "reward model, or the implicit reward of DPO. Intervals are 95%."
    )
    sampled = (
        f"Answers were sampled to {len(prompts):,} held-out prompts at temperature 1, with at most {MOST_TOKENS} "
        "tokens. The KL divergence from the instruction-tuned model is in nats per answer."
    )
    table = [
        *(
            what,
            "",
            "| Model | Prefers the chosen answer | Reward margin |",
            "| --- | --- | --- |",
            *accuracies,
        ),
        *("", sampled, "", "| Answers | KL divergence | Tokens |", "| --- | --- | --- |", *rows, ""),
        *(
            "The first of them:",
            "",
            "| Prompt | Before | After DPO |",
            "| --- | --- | --- |",
            *samples[:SHOWN],
        ),
    ]
    publish(SECTION, "\n".join(table))


if __name__ == "__main__":
    main()
