"""Compare the time of a GRPO step (rollout and update) and of a DPO step with TRL's, in alternating processes.

TRL is installed beside the package for this measurement only: ``pip install trl``.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import wholegpt as wg
from benchmarks.tables import conditions, spread
from wholegpt.console import Console
from wholegpt.data.examples.built_in import TASKS
from wholegpt.interop.conversion import export_model
from wholegpt.settings.presets import configure
from wholegpt.training.events import Callback, StepMetrics
from wholegpt.training.state import TrainingState

STEPS, WARM_UP = 8, 2
"""Measured steps of a process, and steps before them."""
COMPLETIONS, GROUP, PAIRS = 64, 8, 16
CASES = {"grpo, 64 tokens": 64, "grpo, 8 tokens": 8, "dpo": 0}
"""Tokens of a completion; the weights are nearly random, so few completions end earlier."""
SIDES_OF_PAIR, PREFERENCES = ("chosen", "rejected"), "preferences.json"
LONGEST_PAIR = 600
"""Characters of a pair that is used, so that no program has to cut it."""
QUIET = Console(quiet=True)


def make_model(work: Path, instruct: Path) -> None:
    """Write a model that knows little more than the form of answers, its export, and the pairs for both programs."""
    rows = json.loads((instruct / "instructions.json").read_text(encoding="utf-8"))
    text = work / "text.txt"
    text.write_text("\n".join(f"{row['instruction']} {row['output']}" for row in rows), encoding="utf-8")
    common = {"evaluation": {"every": 1000}, "logging": {"sample_tokens": 0}}
    settings = {
        "model": {"preset": "modern-tiny", "context_length": 256},
        "data": {"source": [str(text)]},
        "tokenizer": {"kind": "bpe", "vocab_size": 2048},
        "training": {"steps": 1, "batch_size": 4},
        **common,
    }
    base = wg.train(config=configure(settings), out=work / "base", console=QUIET)
    tuned = configure({"training": {"steps": 1}, **common}, wg.recipe("instruct"))
    instructions = instruct / "instructions.json"
    wg.finetune(base.path, instructions, task="instruct", config=tuned, out=work / "chat", console=QUIET)
    export_model(work / "chat", "huggingface", work / "export", console=QUIET)
    pairs = [
        {
            "prompt": f"{row['instruction']}\n{row['input']}".strip(),
            **{side: row[side] for side in SIDES_OF_PAIR},
        }
        for row in json.loads((instruct / "preferences.json").read_text(encoding="utf-8"))
        if row["chosen"] != row["rejected"]
    ]
    chosen = [one for one in pairs if sum(map(len, one.values())) < LONGEST_PAIR]
    (work / PREFERENCES).write_text(json.dumps(chosen), encoding="utf-8")


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_step(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def ours(case: str, work: Path) -> list[float]:
    """Return the seconds of each step of a run."""
    method, clock = case.partition(",")[0], Clock()
    settings: dict[str, Any] = {
        "training": {"steps": STEPS + WARM_UP, "batch_size": PAIRS if method == "dpo" else COMPLETIONS},
        "evaluation": {"every": 1000},
        "checkpointing": {"every": 1000},
        "logging": {"sample_tokens": 0},
        "precision": {"dtype": "float32"},
    }
    if method == "grpo":
        settings["alignment"] = {
            "rewards": ("contains:1",),
            "group_size": GROUP,
            "rollout_size": COMPLETIONS,
            "completion_tokens": CASES[case],
        }
    config = configure(settings, wg.recipe(method))
    with tempfile.TemporaryDirectory() as folder:
        source = "addition" if method == "grpo" else work / PREFERENCES
        wg.align(
            *(work / "chat", source),
            method=method,
            config=config,
            out=Path(folder) / "run",
            callbacks=[clock],
            console=QUIET,
        )
    return np.diff(clock.times)[WARM_UP - 1 :].tolist()


def theirs(case: str, work: Path) -> list[float]:
    """Return the seconds of each step of TRL's trainer."""
    import datasets
    import transformers

    trl, method = importlib.import_module("trl"), case.partition(",")[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "export", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "export")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    times: list[float] = []

    class Noting(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "max_steps": STEPS + WARM_UP,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "beta": 0.0,
        }
        if method == "grpo":
            prompts = [[{"role": "user", "content": one.prompt}] for one in TASKS["addition"].train(2000, 1)]
            settings = trl.GRPOConfig(
                **common,
                per_device_train_batch_size=COMPLETIONS,
                num_generations=GROUP,
                max_completion_length=CASES[case],
            )
            trainer = trl.GRPOTrainer(
                model,
                reward_funcs=lambda completions, **_: [
                    float("1" in one[0]["content"]) for one in completions
                ],
                args=settings,
                train_dataset=datasets.Dataset.from_list([{"prompt": one} for one in prompts]),
                processing_class=tokenizer,
                callbacks=[Noting()],
            )
        else:
            rows = [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    **{side: [{"role": "assistant", "content": row[side]}] for side in SIDES_OF_PAIR},
                }
                for row in json.loads((work / PREFERENCES).read_text())
            ]
            settings = trl.DPOConfig(
                **{**common, "beta": 0.1},
                per_device_train_batch_size=PAIRS,
                precompute_ref_log_probs=True,
                max_length=256,
            )
            trainer = trl.DPOTrainer(
                model,
                args=settings,
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[Noting()],
            )
        trainer.train()
    return np.diff(times)[WARM_UP - 1 :].tolist()


SIDES = {"wholegpt": ours, "TRL": theirs}


def measured(side: str, case: str, work: Path) -> float:
    """Return the median seconds of a step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.alignment_speed", "--side", side, "--case", case]
    command += ["--work", str(work)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if printed.returncode:
        raise RuntimeError(printed.stderr[-3000:])
    return float(np.median(json.loads(printed.stdout.splitlines()[-1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with instruct/instructions.json and instruct/preferences.json"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.case[0], arguments.work)))
        return
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_model(work, arguments.data.resolve() / "instruct")
        for case in arguments.case or CASES:
            found: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(arguments.rounds):
                for side, seconds in found.items():
                    seconds.append(measured(side, case, work))
            ratios = [there / here for here, there in zip(found["wholegpt"], found["TRL"], strict=True)]
            cells = [spread(found[side], "{:.2f}") for side in SIDES]
            rows.append(f"| {case} | {cells[0]} | {cells[1]} | {spread(ratios, '{:.2f}')} |")
            print(rows[-1], flush=True)
    text = [
        f"{conditions(arguments.rounds)} TRL {importlib.metadata.version('trl')}, float32, `modern-tiny` with nearly "
        f"random weights and 2,048 tokens. A step of GRPO generates {COMPLETIONS} completions of "
        f"{COMPLETIONS // GROUP} sums and updates once; a step of DPO is {PAIRS} pairs, with stored reference "
        "log-probabilities. Each value is the median of "
        f"{STEPS} steps of a process.",
        "",
        "| Step | Seconds, wholegpt | Seconds, TRL | TRL ÷ wholegpt |",
        "| --- | ---: | ---: | ---: |",
        *rows,
    ]
    print("\n".join(text))


if __name__ == "__main__":
    main()
