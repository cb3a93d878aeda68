"""The scaling law: its constants are fitted to the recorded sweep, and it predicts texts that were not fitted."""

import dataclasses
import math

import pytest

from benchmarks import scaling as sweep
from wholegpt.model import parameter_count
from wholegpt.planning import ENGLISH_PROSE
from wholegpt.planning.choice import model_of_width, planned_config
from wholegpt.planning.scaling import (
    COVERED_BLOCKS,
    COVERED_EPOCHS,
    COVERED_TEXT,
    COVERED_TOKENS,
    HALF_WIDTH,
    LAW,
    PILOT_TOKENS,
    PILOT_WIDTH,
    SMALLEST_BLOCKS,
    Difficulty,
    ScalingLaw,
    expected_loss,
)
from wholegpt.settings.schema import Config, ModelConfig

POINTS = sweep.recorded()


def test_constants_equal_the_fit() -> None:
    fitted = sweep.fit(POINTS)
    for field in dataclasses.fields(ScalingLaw):
        assert getattr(LAW, field.name) == pytest.approx(getattr(fitted, field.name), rel=2e-3), field.name


def test_every_measured_point_is_inside_the_interval() -> None:
    errors = sweep.residuals(LAW, POINTS)
    assert len(errors) > 30
    assert max(map(abs, errors)) < HALF_WIDTH and sweep.root_mean_square(errors) < HALF_WIDTH / 4


@pytest.mark.parametrize("text", sweep.difficulties(POINTS))
def test_held_out_text_is_inside_the_interval(text: str) -> None:
    law = sweep.fit([point for point in POINTS if point["text"] != text])
    errors = sweep.residuals(law, [point for point in POINTS if point["text"] == text])
    assert max(map(abs, errors)) < HALF_WIDTH


def test_the_level_by_hand() -> None:
    law = ScalingLaw(a=0.5, alpha=1.0, b=2.0, beta=0.5, repeats=2.0, kappa=1.0)
    assert law.level(2e6, 4e6, 8e6) == pytest.approx(1 + 0.5 / 2 + 2 / 2)
    repeated = 4 * (1 + 2 * (1 - math.exp(-1 / 2)))  # two epochs over four million tokens
    assert law.level(2e6, 8e6, 4e6) == pytest.approx(1 + 0.5 / 2 + 2 / math.sqrt(repeated))
    # At most 1 + R effective epochs.
    assert law.level(2e6, 8e9, 4e6) == pytest.approx(1 + 0.5 / 2 + 2 / math.sqrt(12))


def test_predicted_loss_of_the_pilot_run_is_its_measured_loss() -> None:
    pilot = planned_config(Config(), PILOT_WIDTH, ENGLISH_PROSE, PILOT_TOKENS)
    text = Difficulty(early=7.0, last=5.0)
    expected = expected_loss(pilot, math.inf, pilot, text)
    assert expected.expected == pytest.approx(5.0)
    blocks = parameter_count(pilot.model).blocks
    half = 0.03 * (1 + math.log(SMALLEST_BLOCKS / blocks))  # smaller than any other of the sweep
    assert (expected.low, expected.high) == (pytest.approx(5 * (1 - half)), pytest.approx(5 * (1 + half)))
    longer = planned_config(Config(), PILOT_WIDTH, ENGLISH_PROSE, 4 * PILOT_TOKENS)
    losses = [expected_loss(longer, math.inf, pilot, Difficulty(early, 5.0)).expected for early in (6.0, 7.0)]
    assert 5 > losses[0] > losses[1], "a loss that fell faster continues to fall faster"


def test_interval_widens_outside_the_measured_range() -> None:
    text, pilot = Difficulty(7.0, 5.0), planned_config(Config(), PILOT_WIDTH, ENGLISH_PROSE, PILOT_TOKENS)

    def half_width(tokens: float, unique: float, model: ModelConfig | None = None) -> float:
        config = planned_config(Config(), 96, ENGLISH_PROSE, tokens)
        config = dataclasses.replace(config, model=model or config.model)
        loss = expected_loss(config, unique, pilot, text)
        assert loss.high - loss.expected == pytest.approx(loss.expected - loss.low)
        return loss.high / loss.expected - 1

    inside, text_tokens = COVERED_TOKENS / 2, 1e8
    assert half_width(inside, text_tokens) == pytest.approx(HALF_WIDTH)
    assert half_width(math.e * COVERED_TOKENS, text_tokens) == pytest.approx(2 * HALF_WIDTH, rel=1e-3)
    assert half_width(inside, COVERED_TEXT / math.e) == pytest.approx(
        HALF_WIDTH * (2 + math.log(inside * math.e / COVERED_TEXT / COVERED_EPOCHS)), rel=1e-3
    ), "a small text read often counts twice"
    assert half_width(inside, inside / (2 * COVERED_EPOCHS)) > (1 + math.log(2)) * HALF_WIDTH
    large = model_of_width(768, 4096)
    excess = parameter_count(large).blocks / COVERED_BLOCKS
    assert excess > 2
    assert half_width(inside, text_tokens, large) == pytest.approx(
        HALF_WIDTH * (1 + math.log(excess)), rel=1e-3
    )
    assert half_width(1e12, 100.0, large) == pytest.approx(0.5)
