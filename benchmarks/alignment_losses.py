"""Compare the alignment losses and their gradients with TRL's, on the same model and batch.

TRL is installed beside the package for this measurement only: ``pip install trl``.
"""

import importlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import machine_line, publish
from wholegpt.data.examples.batches import TaskBatch
from wholegpt.data.examples.pair_batches import PairBatch
from wholegpt.interop import huggingface
from wholegpt.interop.architectures import architecture_of
from wholegpt.interop.names import names_of, to_theirs
from wholegpt.losses import IGNORED
from wholegpt.model import Transformer
from wholegpt.model.heads import TaskTransformer
from wholegpt.settings import presets
from wholegpt.settings.choices import AdvantageScale, PolicyNormalization, PreferenceLoss, TaskKind
from wholegpt.settings.schema import AlignmentConfig, ModelConfig
from wholegpt.stages.alignment.policy_objective import PolicyObjective, grpo_advantages
from wholegpt.stages.alignment.preference import PreferenceObjective
from wholegpt.stages.alignment.reward_model import RewardObjective
from wholegpt.stages.alignment.rollout import PolicyBatch
from wholegpt.tokenizers import byte_tokenizer

ROWS, LONGEST_PROMPT, LONGEST_ANSWER = 6, 12, 20
Gradients = dict[str, Tensor]


@dataclass
class Compared:
    """A loss and its gradient, here and there."""

    name: str
    ours: float
    theirs: float
    gradients: tuple[Gradients, Gradients]

    @property
    def row(self) -> str:
        """Return the row of the table."""
        ours, theirs = self.gradients
        largest = max(float(one.abs().max()) for one in ours.values())
        difference = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
        return (
            f"| {self.name} | {self.ours:.7f} | {self.theirs:.7f} | {abs(self.ours - self.theirs):.1g} | "
            f"{largest:.3g} | {difference:.1g} |"
        )


@dataclass
class Setting:
    """A random model in both programs, another one as the reference, and random pairs."""

    folder: Path
    config: ModelConfig
    model: Transformer
    reference: Transformer
    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    @classmethod
    def random(cls, folder: Path) -> "Setting":
        """Draw the models and the pairs."""
        torch.manual_seed(1)
        tokenizer = byte_tokenizer()
        config = replace(
            presets.preset("modern-tiny"), n_layers=2, vocab_size=tokenizer.vocab_size, context_length=64
        )
        model, reference = (Transformer(config) for _ in range(2))
        for name, one in (("model", model), ("reference", reference)):
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            (folder / name).mkdir()
            huggingface.write(folder / name, one, tokenizer)

        def texts(longest: int) -> list[list[int]]:
            lengths = torch.randint(2, longest, (ROWS,)).tolist()
            return [torch.randint(256, (length,)).tolist() for length in lengths]

        return cls(
            *(folder, model.config, model, reference, texts(LONGEST_PROMPT)),
            *(texts(LONGEST_ANSWER), texts(LONGEST_ANSWER)),
        )

    def theirs(self, name: str = "model", kind: str = "AutoModelForCausalLM", **options: Any) -> Any:
        """Return the model in transformers."""
        import transformers

        opened = getattr(transformers, kind).from_pretrained(
            self.folder / name, dtype=torch.float32, **options
        )
        return opened.eval()

    def sides(self, shift: int = 0) -> tuple[Tensor, Tensor]:
        """Return token ids and targets of the chosen and rejected sides, of shape (B, 2, T).

        The answers of row i are those of row i + ``shift``.
        """
        wholes = [
            [(prompt, answers[(row + shift) % ROWS]) for answers in (self.chosen, self.rejected)]
            for row, prompt in enumerate(self.prompts)
        ]
        longest = max(len(prompt) + len(answer) for pair in wholes for prompt, answer in pair) - 1
        token_ids, targets = (
            torch.zeros(ROWS, 2, longest, dtype=torch.long),
            torch.full((ROWS, 2, longest), IGNORED),
        )
        for row, pair in enumerate(wholes):
            for side, (prompt, answer) in enumerate(pair):
                whole = torch.tensor([*prompt, *answer])
                token_ids[row, side, : len(whole) - 1] = whole[:-1]
                targets[row, side, len(prompt) - 1 : len(whole) - 1] = torch.tensor(answer)
        return token_ids, targets

    @torch.no_grad()
    def scored(self, model: Transformer, shift: int = 0) -> Tensor:
        """Return ln p of both answers of each pair."""
        token_ids, targets = self.sides(shift)
        return model.log_probabilities(token_ids.flatten(0, 1), targets.flatten(0, 1)).sum(-1).view(ROWS, 2)

    def pairs(self, divergence: float = 0.0) -> PairBatch:
        """Return the pairs as a batch, with their reference log-probabilities."""
        return PairBatch(*self.sides(), self.scored(self.reference), divergence)

    def gradients(self) -> Gradients:
        """Return our gradients under the names of transformers, and reset them."""
        found = {name: one.grad for name, one in self.model.named_parameters() if one.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return to_theirs(found, names_of(architecture_of(self.config).table, self.config), self.config)

    def compare(self, name: str, ours: Tensor, theirs: Tensor, their_model: Any) -> Compared:
        """Compute the gradients of both losses."""
        ours.backward()
        theirs.backward()
        mine, parameters = self.gradients(), dict(their_model.named_parameters())
        if "lm_head.weight" not in parameters:  # tied
            mine.pop("lm_head.weight", None)
        given = {key: parameters[key].grad for key in mine}
        return Compared(name, float(ours), float(theirs), (mine, given))


def library(module: str) -> Any:
    """Import a module of TRL, which type checking does not have."""
    return importlib.import_module(module)


def options(folder: str, **settings: Any) -> dict[str, Any]:
    """Return the arguments that all trainers get."""
    return {"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", **settings}


def tokenizer_of(setting: Setting) -> Any:
    """Return the tokenizer in transformers."""
    import transformers

    found = transformers.AutoTokenizer.from_pretrained(setting.folder / "model")
    found.pad_token = found.pad_token or found.eos_token
    return found


def pair_rows() -> Any:
    """Return a data set for trainers that need one; it is not used."""
    import datasets

    return datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def preference(setting: Setting) -> Iterator[Compared]:
    """Compare DPO and IPO."""
    trl = library("trl")
    examples = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in zip(setting.prompts, setting.chosen, setting.rejected, strict=True)
    ]
    for loss, name in ((PreferenceLoss.sigmoid, "DPO"), (PreferenceLoss.ipo, "IPO")):
        with tempfile.TemporaryDirectory() as folder:
            model = setting.theirs()
            trainer = trl.DPOTrainer(
                model,
                setting.theirs("reference"),
                trl.DPOConfig(**options(folder), loss_type=[loss.value], beta=0.1),
                train_dataset=pair_rows(),
                processing_class=tokenizer_of(setting),
            )
            theirs = trainer.compute_loss(model, trainer.data_collator(examples))
        objective = PreferenceObjective(AlignmentConfig(loss=loss, beta=0.1))
        yield setting.compare(name, objective(setting.model, setting.pairs()).total / ROWS, theirs, model)


def kto(setting: Setting) -> Iterator[Compared]:
    """Compare KTO. Their divergence is that of the mismatched answers in the batch, as is ours here."""
    import datasets

    trl = library("trl")
    rows = datasets.Dataset.from_list(
        [{"prompt": "a", "completion": one, "label": one == "b"} for one in ("b", "c", "d")]
    )
    examples = [
        {
            "prompt_ids": prompt,
            "completion_ids": answers[row],
            "KL_completion_ids": answers[(row + 1) % ROWS],
            "label": answers is setting.chosen,
        }
        for answers in (setting.chosen, setting.rejected)
        for row, prompt in enumerate(setting.prompts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = setting.theirs()
        trainer = trl.KTOTrainer(
            model,
            setting.theirs("reference"),
            trl.KTOConfig(**options(folder), beta=0.1, per_device_train_batch_size=2),
            train_dataset=rows,
            processing_class=tokenizer_of(setting),
        )
        theirs = trainer.compute_loss(model, trainer.data_collator(examples))
    mismatched = setting.scored(setting.model, 1) - setting.scored(setting.reference, 1)
    batch = setting.pairs(max(0.0, float(mismatched.mean())))
    objective = PreferenceObjective(AlignmentConfig(loss=PreferenceLoss.kto, beta=0.1))
    yield setting.compare("KTO", objective(setting.model, batch).total / ROWS, theirs, model)


def without_reference(setting: Setting) -> Iterator[Compared]:
    """Compare ORPO and SimPO: their functions of log-probabilities, because their trainers tokenize themselves.

    TRL's ORPO also takes the cross-entropy of the prompt; here it is that of the answers, as in the paper.
    """
    odds_ratio_loss = library("trl.experimental.orpo").ORPOTrainer.odds_ratio_loss
    cpo_loss = library("trl.experimental.cpo").CPOTrainer.cpo_loss
    token_ids, targets = setting.sides()
    labels = targets.flatten(0, 1)
    lengths = (labels != IGNORED).sum(-1)
    device = SimpleNamespace(device=torch.device("cpu"))
    for name, loss, beta in (("ORPO", PreferenceLoss.orpo, 0.1), ("SimPO", PreferenceLoss.simpo, 2.0)):
        model = setting.theirs()
        logits = model(token_ids.flatten(0, 1)).logits.log_softmax(-1)
        chosen_at = logits.gather(-1, labels.clamp_min(0)[..., None])[..., 0] * (labels != IGNORED)
        both = (chosen_at.sum(-1) / lengths).view(ROWS, 2)
        if loss is PreferenceLoss.orpo:
            them = SimpleNamespace(beta=beta, accelerator=device)
            theirs = (-both[:, 0] - odds_ratio_loss(them, both[:, 0], both[:, 1])[0]).mean()
        else:
            them = SimpleNamespace(
                beta=beta,
                alpha=0.0,
                loss_type="simpo",
                simpo_gamma=1.0,
                label_smoothing=0.0,
                accelerator=device,
            )
            theirs = cpo_loss(them, both[:, 0], both[:, 1])[0].mean()
        objective = PreferenceObjective(AlignmentConfig(loss=loss, beta=beta, margin=1.0))
        yield setting.compare(name, objective(setting.model, setting.pairs()).total / ROWS, theirs, model)


def reward(setting: Setting) -> Iterator[Compared]:
    """Compare the loss of a reward model, with margins and centering."""
    trl = library("trl")
    with tempfile.TemporaryDirectory() as folder:
        model = setting.theirs(kind="AutoModelForSequenceClassification", num_labels=1)
        config = trl.RewardConfig(**options(folder), center_rewards_coefficient=0.01)
        tokenizer = tokenizer_of(setting)
        trainer = trl.RewardTrainer(model, config, train_dataset=pair_rows(), processing_class=tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
        margins = torch.linspace(0, 1, ROWS)
        examples = [
            {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "margin": float(margin)}
            for prompt, chosen, rejected, margin in zip(
                *(setting.prompts, setting.chosen, setting.rejected, margins), strict=True
            )
        ]
        theirs = trainer.compute_loss(model, trainer.data_collator(examples))
    headed = TaskTransformer(setting.config, 1)
    headed.load_state_dict(setting.model.state_dict(), strict=False)
    assert headed.head.bias is not None
    with torch.no_grad():
        headed.head.weight.copy_(model.score.weight)
        headed.head.bias.zero_()
    wholes = [
        [prompt + chosen, prompt + rejected]
        for prompt, chosen, rejected in zip(setting.prompts, setting.chosen, setting.rejected, strict=True)
    ]
    longest = max(len(one) for pair in wholes for one in pair)
    token_ids = torch.tensor([[[*one, *[0] * (longest - len(one))] for one in pair] for pair in wholes])
    last = torch.tensor([[len(one) - 1 for one in pair] for pair in wholes])
    batch = TaskBatch(token_ids, last, torch.zeros_like(last), margins)
    plain, setting.model = setting.model, headed
    total = RewardObjective(0.01)(headed, batch).total / ROWS
    yield setting.compare("Reward model, margins and centering", total, theirs, model)
    setting.model = plain


LOSS_TYPES = {
    "grpo": PolicyNormalization.sequence,
    "bnpo": PolicyNormalization.token,
    "dr_grpo": PolicyNormalization.constant,
}


def policy(setting: Setting) -> Iterator[Compared]:
    """Compare GRPO, clip-higher, on completions that were sampled by another policy."""
    import datasets

    trl = library("trl")
    rows = datasets.Dataset.from_list([{"prompt": "a"}])
    token_ids, targets = setting.sides()
    token_ids, targets = token_ids.flatten(0, 1), targets.flatten(0, 1)
    mask = targets != IGNORED
    with torch.no_grad():
        old = setting.model.log_probabilities(token_ids, targets)
    old = (old + 0.3 * torch.randn(old.shape)) * mask
    rewards = torch.randn(2 * ROWS)
    for kind, normalization in LOSS_TYPES.items():
        settings = AlignmentConfig(
            group_size=4,
            completion_tokens=LONGEST_ANSWER,
            normalization=normalization,
            clip_higher=0.28,
            advantage_scale=AdvantageScale.group,
        )
        given = grpo_advantages(rewards, mask.float(), settings)
        tensors = {**given, "old_log_p": old, "sampled_log_p": old}
        objective, batch = PolicyObjective(settings, TaskKind.grpo), PolicyBatch(token_ids, targets, tensors)
        ours = objective(setting.model, batch).total / objective.count(batch)
        with tempfile.TemporaryDirectory() as folder:
            model = setting.theirs()
            config = trl.GRPOConfig(
                **options(folder, loss_type=kind, epsilon=0.2, epsilon_high=0.28, beta=0.0),
                num_generations=4,
                per_device_train_batch_size=12,
                max_completion_length=LONGEST_ANSWER,
            )
            trainer = trl.GRPOTrainer(
                model,
                reward_funcs=lambda completions, **_: [0.0] * len(completions),
                args=config,
                train_dataset=rows,
                processing_class=tokenizer_of(setting),
            )
            trainer.current_gradient_accumulation_steps = 1
            answers = [one for pair in zip(setting.chosen, setting.rejected, strict=True) for one in pair]
            prompts = [one for one in setting.prompts for _ in range(2)]
            width, asked = max(map(len, answers)), max(map(len, prompts))
            of_answers = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in answers])
            old_of_answers = torch.zeros(len(answers), width)
            old_of_answers[of_answers > 0] = old[mask]
            inputs = {
                "prompt_ids": torch.tensor([[0] * (asked - len(one)) + one for one in prompts]),
                "prompt_mask": torch.tensor([[0] * (asked - len(one)) + [1] * len(one) for one in prompts]),
                "completion_ids": torch.tensor([one + [0] * (width - len(one)) for one in answers]),
                "completion_mask": of_answers,
                "advantages": given["advantages"].sum(1) / mask.sum(1),
                "old_per_token_logps": old_of_answers,
                "num_items_in_batch": mask.sum(),
            }
            theirs = trainer._compute_loss(model, inputs)
        yield setting.compare(f"GRPO, {normalization} ({kind} there), clip-higher", ours, theirs, model)


CASES: tuple[Callable[[Setting], Iterator[Compared]], ...] = (
    reward,
    preference,
    kto,
    without_reference,
    policy,
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.random(Path(folder))
        found = [one for case in CASES for one in case(setting)]
    text = [
        f"{machine_line()} TRL {importlib.metadata.version('trl')}, float32, a random model of two layers "
        f"(`modern-tiny` otherwise), {ROWS} pairs of random tokens. PPO is not part of this version of TRL.",
        "",
        "| Loss | Here | TRL | Difference | Largest gradient | Largest difference of gradients |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(one.row for one in found),
    ]
    publish("Alignment losses", "\n".join(text))


if __name__ == "__main__":
    main()
