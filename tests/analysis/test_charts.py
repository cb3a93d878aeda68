"""Charts: positions of elements, reproducible output, and escaping of foreign names."""

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from wholegpt.analysis.charts import BOTTOM, HEIGHT, RIGHT, WIDTH, Chart, SecondAxis, Series, line_chart
from wholegpt.analysis.interval_chart import Estimates, interval_chart
from wholegpt.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


def chart_of(y: list[float], **how: object) -> Chart:
    series = Series("loss", np.arange(len(y), dtype=float), np.array(y, dtype=float))
    return line_chart([series], x_label="steps", y_label="nats", **how)  # pyright: ignore[reportArgumentType]


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg)


def coordinates(chart: Chart) -> list[tuple[float, float]]:
    (path,) = (one for one in parsed(chart).iter(f"{SVG}path"))
    return [tuple(map(float, pair.split())) for pair in path.attrib["d"].removeprefix("M").split("L")]  # pyright: ignore[reportReturnType]


def test_line_passes_through_the_points() -> None:
    points = coordinates(chart_of([1, 3, 2]))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x2 == WIDTH - RIGHT and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 < y2 < y0 < HEIGHT - BOTTOM
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_logarithmic_axis() -> None:
    (_, y0), (_, y1), (_, y2) = coordinates(chart_of([1, 10, 100], logarithmic=True))
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    with pytest.raises(ValueError, match="a logarithmic axis has no 0"):
        chart_of([0, 1], logarithmic=True)


def test_axis_from_zero() -> None:
    (_, y0), _ = coordinates(chart_of([0, 7], from_zero=True))
    assert y0 == HEIGHT - BOTTOM


def test_non_finite_values_are_skipped() -> None:
    assert len(coordinates(chart_of([1, math.nan, math.inf, 2]))) == 2
    assert "no values" in chart_of([math.nan]).svg and "<path" not in chart_of([]).content


def test_equal_data_gives_equal_bytes() -> None:
    assert chart_of([1, 3, 2]).svg == chart_of([1, 3, 2]).svg != chart_of([1, 3, 4]).svg


def test_single_point_is_drawn() -> None:
    series = Series("loss", np.array([5.0]), np.array([2.0]), marker="circle")
    assert line_chart([series], x_label="x", y_label="y").content.count("<circle") == 1


def test_ticks_of_a_second_axis_are_at_their_values() -> None:
    steps, tokens = np.array([0.0, 10, 20]), np.array([0.0, 100, 400])
    series = Series("loss", tokens, np.array([3.0, 2, 1]))
    second = SecondAxis("steps", steps, tokens)
    tree = parsed(line_chart([series], x_label="tokens", y_label="y", second_x=second))
    axes = {one.attrib["class"]: one for one in tree.iter(f"{SVG}g")}

    def positions(name: str) -> dict[str, float]:
        texts = axes[name].iter(f"{SVG}text")
        return {one.text or "": float(one.attrib["x"]) for one in texts}

    first, other = positions("first"), positions("second")
    assert other["10"] == first["100"] and other["20"] == first["400"] and other["0"] == first["0"]


def test_foreign_names_are_escaped() -> None:
    hostile = '</text><script>alert(1)</script>"'
    many = [Series(hostile, np.array([0.0, 1]), np.array([0.0, 1]), color) for color in range(2)]
    chart = line_chart(many, x_label=hostile, y_label=hostile)
    assert "<script" not in chart.svg
    assert [one.text for one in parsed(chart).iter(f"{SVG}text")].count(hostile) == 4


def test_svg_is_self_contained(tmp_path: Path) -> None:
    chart = chart_of([1, 2])
    tree = parsed(chart)
    assert (
        tree.attrib["role"] == "img" and tree.attrib["aria-label"] == "nats against steps: loss from 1 to 2"
    )
    links = re.findall(r"(?:https?:|url\(|@import|xlink|href)[^\"]*", chart.svg)
    assert links == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme:dark" in chart.svg
    assert chart.save(tmp_path / "loss.svg").read_text(encoding="utf-8") == chart.svg == chart._repr_html_()
    with pytest.raises(
        ConfigError, match=r"loss.png: charts are saved as SVG; name a file that ends with .svg"
    ):
        chart.save(tmp_path / "loss.png")


def test_wide_legend_is_wrapped() -> None:
    def lines(names: list[str]) -> int:
        some = [Series(name, np.array([0.0, 1]), np.array([0.0, 1])) for name in names]
        texts = parsed(line_chart(some, x_label="x", y_label="y")).iter(f"{SVG}text")
        return len({one.attrib["y"] for one in texts if one.text in names})

    assert lines(["a", "b"]) == 1 and lines(["a" * 40, "b" * 40, "c"]) == 2


def test_estimates_with_intervals() -> None:
    kinds = [
        Estimates("one", [(2.0, 1.0, 4.0), None], 0, "circle", has_labels=True),
        Estimates("other", [None, (1.0, 1.0, 1.0)], 1, "diamond"),
    ]
    tree = parsed(interval_chart(["first", "second"], kinds, "bits"))
    (circle,) = (one for one in tree.iter(f"{SVG}circle") if float(one.attrib["cy"]) > 40)
    (interval,) = (
        one for one in tree.iter(f"{SVG}path") if "H" in one.attrib["d"] and "c0" in one.attrib["class"]
    )
    low, high = re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", interval.attrib["d"]).groups()  # pyright: ignore[reportOptionalMemberAccess]
    value = float(circle.attrib["cx"])
    assert value - float(low) == pytest.approx((float(high) - value) / 2, abs=0.2)
    assert {"first", "second", "2.000", "bits", "one", "other"} <= {
        one.text for one in tree.iter(f"{SVG}text")
    }
