"""Logits processors: by hand, against transformers, and by the frequencies of sampled tokens."""

import dataclasses
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
import transformers.generation.logits_process as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegpt.errors import ConfigError
from wholegpt.generation import processors
from wholegpt.generation.sampling import BannedText, Sampler, draw_rows
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import byte_tokenizer, train_bpe, train_gpt1

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 3.0])
TOKENIZER = train_bpe(["the cat sat on the mat, the rat ran at the cat " * 20], 300)


def random_logits(seed: int, size: int = 60) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def kept(logits: torch.Tensor) -> list[bool]:
    return logits.isfinite().tolist()


def test_top_k_keeps_the_k_largest() -> None:
    assert kept(processors.keep_top_k(LOGITS, 3)) == [False, True, True, False, True]
    assert kept(processors.keep_top_k(LOGITS, 1)) == [False, True, False, False, True]  # two logits are equal
    assert kept(processors.keep_top_k(LOGITS, 99)) == [True] * 5


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, count in ((0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        assert sum(kept(processors.keep_top_p(logits, p))) == count, p
    assert sum(kept(processors.keep_top_p(torch.zeros(5000), 0.9))) == 5000  # all logits are equal


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for share, count in ((0.05, 4), (0.11, 3), (0.31, 2), (0.61, 1), (1.0, 1)):
        assert sum(kept(processors.keep_min_p(logits, share))) == count, share


def test_temperature_goes_from_greedy_to_uniform() -> None:
    cold = torch.softmax(processors.scale_by_temperature(LOGITS[:4], 1e-3), -1)
    hot = torch.softmax(processors.scale_by_temperature(LOGITS[:4], 1e6), -1)
    assert cold.tolist() == pytest.approx([0, 1, 0, 0])
    assert hot.tolist() == pytest.approx([0.25] * 4, abs=1e-5)
    assert Sampler(GenerationConfig(temperature=0)).draw(LOGITS, []).token_id == 1


def test_penalties_by_hand() -> None:
    assert processors.penalize_repetition(LOGITS, [0, 3, 0], 2.0).tolist() == [0.5, 3.0, 2.0, -2.0, 3.0]
    assert processors.penalize_frequency(LOGITS, [0, 3, 0], 0.25, 1.0).tolist() == [
        -0.5,
        3.0,
        2.0,
        -2.25,
        3.0,
    ]
    assert processors.penalize_frequency(LOGITS, [], 0.25, 1.0).tolist() == LOGITS.tolist()
    assert processors.add_bias(LOGITS, [(1, -2.0), (4, 0.5)]).tolist() == [1.0, 1.0, 2.0, -1.0, 3.5]


def test_repeated_ngrams() -> None:
    ids = [1, 2, 3, 1, 2, 4, 1, 2]
    assert sorted(processors.ends_of_repeated_ngrams(ids, 3)) == [3, 4]
    assert processors.ends_of_repeated_ngrams(ids, 2) == [3, 4]
    assert sorted(set(processors.ends_of_repeated_ngrams(ids, 1))) == [1, 2, 3, 4]
    assert processors.ends_of_repeated_ngrams(ids, 9) == processors.ends_of_repeated_ngrams([], 2) == []


@given(st.integers(0, 10_000), st.lists(st.integers(0, 59), min_size=1, max_size=12), st.floats(0.2, 3.0))
def test_processors_equal_those_of_transformers(seed: int, ids: list[int], value: float) -> None:
    """Each processor separately, on random logits and sequences."""
    logits = random_logits(seed)
    sequence = torch.tensor([ids])
    share = value / 3.01
    bias = float(torch.tensor(value))  # transformers uses float32
    pairs = [
        (
            processors.penalize_repetition(logits, ids, value),
            reference.RepetitionPenaltyLogitsProcessor(value),
        ),
        (processors.scale_by_temperature(logits, value), reference.TemperatureLogitsWarper(value)),
        (processors.keep_top_k(logits, 1 + seed % 59), reference.TopKLogitsWarper(1 + seed % 59)),
        (processors.keep_top_p(logits, share), reference.TopPLogitsWarper(share)),
        (processors.keep_min_p(logits, share), reference.MinPLogitsWarper(share)),
        *(
            (
                processors.forbid(logits, processors.ends_of_repeated_ngrams(ids, size)),
                reference.NoRepeatNGramLogitsProcessor(size),
            )
            for size in (1, 2, 3)
        ),
        (processors.forbid(logits, ids), reference.SuppressTokensLogitsProcessor(ids)),
        (
            processors.add_bias(logits, [(i, bias) for i in sorted(set(ids))]),
            reference.SequenceBiasLogitsProcessor([[[i], bias] for i in sorted(set(ids))]),
        ),
    ]
    for ours, theirs in pairs:
        expected = theirs(sequence, logits[None].clone())[0]
        difference = torch.softmax(ours, -1) - torch.softmax(expected, -1)
        assert difference.abs().max() < 1e-12, type(theirs)
        assert torch.equal(ours.isfinite(), expected.isfinite()), type(theirs)


SETTINGS = {
    "temperature": GenerationConfig(temperature=1.0),
    "cold": GenerationConfig(temperature=0.5),
    "top k": GenerationConfig(temperature=1.0, top_k=3),
    "top p": GenerationConfig(temperature=2.0, top_p=0.8),
    "min p": GenerationConfig(temperature=1.0, min_p=0.2),
    "repetition": GenerationConfig(temperature=1.0, repetition_penalty=1.5),
    "frequency": GenerationConfig(temperature=1.0, frequency_penalty=0.4),
    "presence": GenerationConfig(temperature=1.0, presence_penalty=-0.7),
    "bias": GenerationConfig(temperature=1.0, logit_bias=((3, 2.0), (1, -1.0))),
    "n-grams": GenerationConfig(temperature=1.0, no_repeat_ngram=1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sampled_frequencies_follow_the_distribution(name: str) -> None:
    """Chi-squared over 4,000 seeds is below its 99.99% quantile (23.5 with 4 degrees of freedom).

    Impossible tokens are never drawn.
    """
    config, generated, n = SETTINGS[name], [0, 2, 0], 4000
    probabilities = torch.softmax(Sampler(config).process(LOGITS, generated), -1)
    samplers = [Sampler(dataclasses.replace(config, seed=seed)) for seed in range(n)]
    drawn = [one.draw(LOGITS, generated).token_id for one in samplers]
    counts = torch.bincount(torch.tensor(drawn), minlength=5)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = n * probabilities[possible]
    assert float(((counts[possible] - expected) ** 2 / expected).sum()) < 23.5
    plain = torch.softmax(LOGITS.double(), -1)
    assert name == "temperature" or (probabilities - plain).abs().max() > 0.01  # the setting has an effect


def test_draws_at_different_positions_are_independent() -> None:
    """Chi-squared of successive pairs is below its 99.99% quantile (59.9 with 24 degrees of freedom)."""
    sampler, n = Sampler(GenerationConfig(temperature=1e9, max_tokens=20_000)), 10_000
    ids: list[int] = []
    for _ in range(n):
        ids.append(sampler.draw(LOGITS, ids).token_id)
    pairs = torch.bincount(torch.tensor([5 * a + b for a, b in pairwise(ids)]), minlength=25)
    assert float(((pairs - (n - 1) / 25) ** 2 / ((n - 1) / 25)).sum()) < 59.9


def drawn_text(config: GenerationConfig, prompt: str, seed: int, tokens: int) -> tuple[list[int], str]:
    """Draw tokens from random logits that change with the position."""
    prompt_ids = TOKENIZER.encode(prompt)
    sampler = Sampler(dataclasses.replace(config, seed=seed), TOKENIZER, prompt_ids)
    generated: list[int] = []
    for position in range(tokens):
        logits = random_logits(seed * 1000 + position, TOKENIZER.vocab_size)
        generated.append(sampler.draw(logits, generated).token_id)
    return generated, prompt + b"".join(TOKENIZER.token_bytes[i] for i in generated).decode("latin-1")


@given(
    st.integers(0, 500),
    st.lists(st.sampled_from(["a", "th", "the", "at", " c", "t t"]), min_size=1, max_size=3),
)
def test_banned_texts_are_never_generated_in_any_tokenization(seed: int, banned: list[str]) -> None:
    prompt = "say t"
    config = GenerationConfig(temperature=0.3, banned=tuple(banned))
    generated, text = drawn_text(config, prompt, seed, 40)
    assert not any(one in text[max(0, len(prompt) - len(one) + 1) :] for one in banned)
    free, _ = drawn_text(GenerationConfig(temperature=0.3), prompt, seed, 40)
    first = next((i for i in range(40) if generated[i] != free[i]), None)
    if first is not None:  # before it, no token that would have been drawn was banned
        completing = [
            i
            for one in banned
            for i in BannedText(one, TOKENIZER.token_bytes).completing(
                [*TOKENIZER.encode(prompt), *free[:first]]
            )
        ]
        probabilities = torch.softmax(random_logits(seed * 1000 + first, TOKENIZER.vocab_size) / 0.3, -1)
        assert free[first] in completing or probabilities[completing].sum() > 0


@given(st.integers(0, 500), st.integers(0, 20))
def test_forced_texts_are_generated_before_max_tokens_is_reached(seed: int, more: int) -> None:
    forced = ("the mat", "ran")
    needed = sum(len(TOKENIZER.encode(text)) for text in forced)
    config = GenerationConfig(temperature=1.0, forced=forced, max_tokens=needed + more)
    _, text = drawn_text(config, "x", seed, needed + more)
    assert all(one in text for one in forced)
    with pytest.raises(ConfigError, match=r"the forced texts take \d+ tokens and max_tokens is"):
        Sampler(dataclasses.replace(config, max_tokens=needed - 1), TOKENIZER)


def test_forced_texts_are_matched_after_normalization() -> None:
    """GPT-1's tokenizer lower-cases its input; a forced text that was generated is not forced again."""
    tokenizer = train_gpt1(["the cat sat on the mat"] * 5, 30)
    sampler = Sampler(GenerationConfig(temperature=0, forced=("The Cat",), max_tokens=8), tokenizer)
    likely = torch.zeros(tokenizer.vocab_size).index_fill(0, torch.tensor(tokenizer.encode("mat")[:1]), 5.0)
    generated: list[int] = []
    while len(generated) < 8:
        generated.append(sampler.draw(likely, generated).token_id)
    assert tokenizer.decode(generated).count("the cat") == 1
    after = [*tokenizer.encode("the cat"), *tokenizer.encode("mat")]
    assert sampler.draw(likely, after).token_id == int(likely.argmax())


def test_end_of_text_waits_for_min_tokens_and_forced_texts() -> None:
    end = TOKENIZER.end_of_text_id
    likely = torch.zeros(TOKENIZER.vocab_size).index_fill(0, torch.tensor([end]), 50.0)
    at_least = Sampler(GenerationConfig(temperature=0, min_tokens=3), TOKENIZER)
    assert [at_least.draw(likely, [1] * n).token_id == end for n in range(5)] == [False] * 3 + [True] * 2
    forced = Sampler(GenerationConfig(temperature=0, forced=("cat",)), TOKENIZER)
    assert forced.draw(likely, []).token_id != end
    assert forced.draw(likely, TOKENIZER.encode("a cat")).token_id == end


def test_settings_that_cannot_be_met_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"logit_bias names token 999; ids go from 0 to \d+"):
        Sampler(GenerationConfig(logit_bias=((999, 1.0),)), TOKENIZER)
    with pytest.raises(ConfigError, match="'the cat' is forced and contains 'at', which is banned"):
        Sampler(GenerationConfig(forced=("the cat",), banned=("at",)), TOKENIZER)
    everything = tuple(chr(i) for i in range(128))
    sampler = Sampler(GenerationConfig(banned=everything, min_tokens=1), byte_tokenizer())
    logits = torch.zeros(257).index_fill(0, torch.arange(128, 256), processors.NEVER)
    with pytest.raises(ConfigError, match="every token is forbidden"):
        sampler.draw(logits, [])


def test_draws_do_not_depend_on_their_order() -> None:
    """A draw depends on seed and position, not on earlier draws."""
    sampler = Sampler(GenerationConfig(temperature=1.0))
    generated = [random.Random(0).randrange(5) for _ in range(10)]
    alone = [sampler.draw(LOGITS, generated[:n]) for n in range(10)]
    backwards = [sampler.draw(LOGITS, generated[:n]) for n in reversed(range(10))]
    assert alone == backwards[::-1]


DRAWN = [
    GenerationConfig(),
    GenerationConfig(temperature=0.6),
    GenerationConfig(top_k=3),
    GenerationConfig(top_p=0.7, temperature=1.4),
]


TOGETHER = [
    *DRAWN,
    GenerationConfig(min_p=0.1),
    GenerationConfig(temperature=0),
    GenerationConfig(top_k=5, top_p=0.9, min_p=0.02),
    GenerationConfig(no_repeat_ngram=2),
]


@pytest.mark.parametrize("config", DRAWN)
def test_log_probability_is_that_of_the_processed_distribution(config: GenerationConfig) -> None:
    for seed in range(20):
        sampler = Sampler(dataclasses.replace(config, seed=seed))
        token_id, log_probability = sampler.draw(LOGITS, [])
        expected = torch.log_softmax(sampler.process(LOGITS, []), dim=-1)[token_id]
        assert log_probability == pytest.approx(float(expected), abs=1e-6)
    assert Sampler(GenerationConfig(temperature=0)).draw(LOGITS, []) == (int(LOGITS.argmax()), 0.0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([7, 300, 2000]))
def test_batched_draws_equal_single_draws(seed: int, rows: int, vocab_size: int) -> None:
    """Independent of the settings of the other rows and of how many logits are processed at once."""
    chooser = random.Random(seed)
    configs = [
        dataclasses.replace(chooser.choice(TOGETHER), seed=chooser.randrange(100)) for _ in range(rows)
    ]
    samplers = [Sampler(config) for config in configs]
    logits = torch.stack([random_logits(seed + row, vocab_size) for row in range(rows)])
    texts = [[0] * chooser.randrange(5) for _ in range(rows)]
    together = draw_rows(samplers, logits, texts)
    alike = Counter(sampler.shared for sampler in samplers)
    for sampler, config, row, text, drawn in zip(samplers, configs, logits, texts, together, strict=True):
        assert (drawn is None) is (config.no_repeat_ngram > 0 or alike[sampler.shared] == 1)
        assert drawn in (None, sampler.draw(row, text))


def test_row_without_an_allowed_token_is_left_to_its_sampler() -> None:
    """The sampler raises the error that names the reason, for its own request only."""
    samplers, logits = [Sampler(GenerationConfig()) for _ in range(2)], torch.zeros(2, 5)
    assert None not in draw_rows(samplers, logits, [[], []])
    logits[1] = processors.NEVER
    assert draw_rows(samplers, logits, [[], []]) == [None, None]
