"""Classifier-free guidance, against its formula and on data with known odds."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

import wholegpt as wg
from tests.helpers import Fails, LogitsOnly, generate_one, tiny_config
from tests.properties.test_generation_properties import KINDS, MODELS, PROMPTS, TOKENIZER, settings
from wholegpt.console import Console
from wholegpt.data.control_codes import header_for
from wholegpt.errors import ConfigError
from wholegpt.generation import Engine, Sampler, generate_ids
from wholegpt.generation.guidance import GuidedModel, guided
from wholegpt.settings.schema import GenerationConfig
from wholegpt.settings.validation import check
from wholegpt.tokenizers import train_bpe

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
END = 36
"""The token that stands for end-of-text."""


@given(KINDS, st.lists(st.integers(0, 35), max_size=3), st.lists(st.integers(0, 35), max_size=4))
def test_guided_logits_equal_the_formula(kind: str, header: list[int], text: list[int]) -> None:
    """In one forward pass and in any two pieces through the cache."""
    model, guided = MODELS[kind], GuidedModel(MODELS[kind], END, len(header), 2.5)
    whole = torch.tensor([[END, *header, *text]])
    with torch.inference_mode():
        headed = model(whole)[:, len(header) :]
        plain = model(torch.tensor([[END, *text]]))
        expected = plain + 2.5 * (headed - plain)
        torch.testing.assert_close(guided(whole)[:, len(header) :], expected)
        for position in range(whole.shape[1]):
            cache = guided.new_cache(1)
            if position:
                guided.prefill(whole[:, :position], cache)
            pieces = guided(whole[:, position:], cache)
            size = min(pieces.shape[1], expected.shape[1])
            torch.testing.assert_close(pieces[:, -size:], expected[:, -size:])


@pytest.mark.slow
@effort(max_examples=20)
@given(
    KINDS,
    st.lists(st.integers(0, 35), max_size=3),
    st.lists(st.tuples(PROMPTS, settings(8)), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_batched_guidance_equals_guidance_of_each_request_alone(
    kind: str, header: list[int], requests: list[tuple[list[int], dict[str, Any]]], slots: int
) -> None:
    """Generation without a cache gives the same tokens, too."""
    guided = GuidedModel(MODELS[kind], END, len(header), 1.7)
    engine = Engine(guided, TOKENIZER, CPU, slots)
    submitted = [
        (
            prompt := [END, *header, *end][:8],
            config := GenerationConfig(**chosen),
            engine.submit(prompt, config),
        )
        for end, chosen in requests
    ]
    engine.run()
    for prompt, config, request in submitted:
        alone = generate_one(guided, TOKENIZER, prompt, config)
        assert alone.token_ids == request.token_ids
        if not config.stop:
            uncached = generate_ids(guided, prompt, Sampler(config, None, prompt), CPU)
            assert list(itertools.islice(uncached, config.max_tokens)) == alone.token_ids


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on rows of one letter, which a field names correctly in 70% of the rows."""
    folder = tmp_path_factory.mktemp("guidance")
    generator = random.Random(0)
    lines: list[str] = []
    for i in range(1000):
        letter = "ab"[i % 2]
        said = letter if generator.random() < 0.7 else "ba"[i % 2]
        lines.append(json.dumps({"text": letter * generator.randint(3, 6), "letter": said}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    config = tiny_config(
        folder / "rows.jsonl",
        data={"control": ["letter"], "control_dropout": 0.4},
        windows={"documents": "separate"},
        model={"context_length": 48, "d_model": 32},
        optimizer={"learning_rate": 0.02},
        training={"steps": 200, "batch_size": 16},
        schedule={"warmup_steps": 10, "final_fraction": 0.0},
        evaluation={"every": 0},
        checkpointing={"every": 0},
        logging={"every": 50, "sample_every": 0, "sample_prompt": ""},
    )
    return wg.train(config=config, out=folder / "run", console=QUIET).path


def share_of_first_letter(lm: wg.LanguageModel, letter: str, guidance: float) -> float:
    """Return the share of completions that begin with the requested letter."""
    made = lm.generate_all(
        [""] * 200, control={"letter": letter}, guidance=guidance, temperature=1, max_tokens=1, console=QUIET
    )
    return sum(one.text == letter for one in made) / len(made)


def test_odds_are_raised_to_the_power_of_the_guidance(run: Path) -> None:
    """The ratio of odds with and without the header is raised to the power γ.

    In the data the odds are 7 to 3 with the header and 1 to 1 without.
    """
    lm = wg.load(run, console=QUIET)
    assert lm.tokenizer
    end, (a, b) = lm.tokenizer.end_of_text_id, (lm.tokenizer.encode(letter)[0] for letter in "ab")

    def log_odds(header: str) -> float:
        with torch.inference_mode():
            logits = lm.model(torch.tensor([[end, *lm.tokenizer.encode(header)]]))[0, -1]
        return float(logits[a] - logits[b])

    without = log_odds("")
    for letter, sign in (("a", 1), ("b", -1)):
        header = log_odds(header_for({"letter": letter}, lm.control))
        assert sign * (header - without) > 0
        for guidance in (1.0, 2.0, 3.0):
            expected = 1 / (1 + math.exp(-sign * (without + guidance * (header - without))))
            share = share_of_first_letter(
                lm, letter, guidance
            )  # of 200 draws: 0.1 is three standard deviations at least
            assert share == pytest.approx(expected, abs=0.1), (letter, guidance)


def test_guidance_with_streaming_beam_search_and_speculative_decoding(run: Path) -> None:
    lm = wg.load(run, console=QUIET)
    settings: dict[str, Any] = {"control": {"letter": "b"}, "guidance": 3.0, "console": QUIET}
    shown: list[str] = []
    made = lm.generate("", emit=shown.append, temperature=0, max_tokens=20, **settings)
    assert "".join(shown) == made.text and set(made.text) == {"b"}
    best, *_ = lm.beam_search("", beams=3, max_tokens=20, **settings)
    assert set(best.text) == {"b"} and best.finish_reason == "end_of_text"
    drafted = lm.generate("", temperature=0, max_tokens=20, draft=lm, **settings)
    assert drafted.token_ids == made.token_ids


def test_invalid_guidance_is_rejected(run: Path, fails: Fails) -> None:
    asked = ("generate", run, "a", "--quiet", "--guidance")
    assert "guidance is 0.5; expected 1, which disables it, to 20" in fails(
        *asked, "0.5", "--control", "letter=a"
    )
    assert "guidance is nan" in fails(*asked, "nan", "--control", "letter=a")
    assert "set control too" in fails(*asked, "2")
    message = "with guidance they must fit the 48 that the model sees"
    assert message in fails(*asked, "2", "--control", "letter=a", "--max-tokens", "45")
    with pytest.raises(ConfigError, match="control_dropout is 1"):
        check(wg.configure({"data": {"control": ["a"], "control_dropout": 1.0}}))


def test_guidance_needs_a_token_boundary_after_the_header() -> None:
    """The header's newline and the prompt's first one can be a single token, which cannot be left out."""
    tokenizer = train_bpe(["a\n\n\nb\n\n\nc\n\n\nd " * 20], 300)
    header, end = "kind: x\n", tokenizer.end_of_text_id
    model, config = LogitsOnly(tokenizer.vocab_size, 64), GenerationConfig(max_tokens=1)
    plain, joined = ([end, *tokenizer.encode(header + prompt)] for prompt in ("b", "\n\nb"))
    guided(model, tokenizer, header, [plain], config, 2.0)
    with pytest.raises(ConfigError, match="share a token, so guidance cannot leave that line out"):
        guided(model, tokenizer, header, [plain, joined], config, 2.0)
