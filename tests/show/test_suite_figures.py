"""The figure of a suite: positions, what is not drawn, and names that would like to be markup."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from seamark.features.suite_ranking import RankedSAE, SuiteRanking
from seamark.show.suite_figures import HEIGHT, PANEL, suite_figure
from seamark.stats import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def sae(name: str, l0: float, **changes: Any) -> RankedSAE:
    values = {
        "rank": 1, "rank_i_cdf": 1, "sae": name, "hookpoint": "layers.1.mlp", "activation": "topk", "k": 8, "d_sae": 64,
        "l0": l0, "fvu": 0.2, "quality_l0": l0, "i_cdf": Estimate(value=0.02, low=0.015, high=0.03),
        "null": Estimate(value=0.01, low=0.005, high=0.012), "difference": Estimate(value=0.01),
    }  # fmt: skip
    return RankedSAE.model_validate(values | changes)


def draw(*rows: RankedSAE) -> ElementTree.Element:
    ranking = SuiteRanking(rows=rows, kendall_tau=Estimate(value=1.0), top_stays=Estimate(value=1.0), draws=10)
    assert suite_figure(ranking) == suite_figure(ranking)
    return ElementTree.fromstring(suite_figure(ranking))


def panels(figure: ElementTree.Element) -> list[ElementTree.Element]:
    return [g for g in figure.findall(f"{SVG}g") if "transform" in g.attrib]


def lines(panel: ElementTree.Element) -> list[tuple[str, list[tuple[float, float]]]]:
    """(class, points) of each line."""
    return [
        (line.attrib["class"], [(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())])
        for line in panel.findall(f"{SVG}polyline")
    ]


def words(element: ElementTree.Element) -> str:
    return " | ".join(t.strip() for t in element.itertext() if t.strip())


def test_two_panels_with_a_line_for_each_hookpoint() -> None:
    rows = [
        sae(f"a{k}", k, fvu=1 / k, i_cdf=Estimate(value=0.01 * k, low=0.008 * k, high=0.013 * k)) for k in (8, 2, 4)
    ]
    figure = draw(*rows, sae("b", 4, hookpoint="layers.4.mlp"))
    left, right = panels(figure)
    assert "FVU" in words(left)
    assert "I_CDF" in words(right)
    (_, first), (_, second) = lines(left)
    assert (len(first), len(second)) == (3, 1)
    xs, ys = [x for x, _ in first], [y for _, y in first]
    assert xs == sorted(xs), "from left to right by L0, whatever the order of rows"
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.05), "L0 doubles: equal steps on a logarithmic axis"
    assert ys == sorted(ys), "FVU falls, pixels run downwards"
    assert second[0][0] == xs[1]
    drawn = lines(right)
    assert [("null" in name, "s1" in name, len(points)) for name, points in drawn] == [
        (True, False, 3), (False, False, 3), (True, True, 1), (False, True, 1)]  # fmt: skip
    assert [y for _, y in drawn[1][1]] == sorted((y for _, y in drawn[1][1]), reverse=True)
    for panel in (left, right):
        for _, points in lines(panel):
            assert all(0 < x < PANEL and 0 < y < HEIGHT for x, y in points)
    whiskers = [w for w in right.iter(f"{SVG}line") if "whisker" in w.attrib["class"]]
    assert len(whiskers) == 8
    assert all(float(w.attrib["y1"]) > float(w.attrib["y2"]) for w in whiskers)
    assert "a8: L0 8.00, I_CDF 0.0800 [0.0640 to 0.104]" in words(right)
    assert "layers.1.mlp | layers.4.mlp" in words(figure).replace("layers.1.mlp | layers.1.mlp", "layers.1.mlp")


def test_kinds_are_told_apart_where_a_hookpoint_has_several() -> None:
    figure = draw(sae("a", 2), sae("b", 4, activation="relu", k=None), sae("c", 4, hookpoint="layers.0"))
    assert len(lines(panels(figure)[0])) == 3
    for name in ("layers.0", "layers.1.mlp relu", "layers.1.mlp topk"):
        assert name in words(figure)


def test_what_cannot_be_drawn_is_named() -> None:
    none = Estimate.not_available("no pairs")
    figure = draw(sae("dead", 0.0), sae("unmeasured", 3.0, fvu=None, i_cdf=Estimate(value=0.01), null=none))
    left, right = panels(figure)
    assert "not available: no FVU is known" in words(left)
    assert [len(points) for _, points in lines(right)] == [1]
    assert not [w for w in right.iter(f"{SVG}line") if "whisker" in w.attrib["class"]]
    assert "Not drawn: dead: no latent fires" in words(figure)
    assert "Not drawn: unmeasured: FVU is not known" in words(figure)
    many = words(draw(*(sae(f"n{i}", 3.0, fvu=None) for i in range(9))))
    assert "and 6 more" in many
    assert "nothing fires" in words(draw(sae("dead", 0.0)))


@pytest.mark.parametrize("l0", [1e-3, 1.0, 64.0, 5e4])
def test_one_autoencoder_and_equal_values(l0: float) -> None:
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    for rows in ([sae("a", l0)], [sae("a", l0, fvu=0.0, i_cdf=zero, null=zero), sae("b", l0, fvu=0.0)]):
        for panel in panels(draw(*rows)):
            assert lines(panel)
            ticks = [t for t in panel.findall(f"{SVG}text") if t.attrib.get("class") == "end"]
            assert len(ticks) >= 2


def test_names_are_text() -> None:
    bad = '"><script>alert(1)</script>\x00\x1b[31m\u202e&amp;' + "x" * 500
    figure = draw(sae(bad, 3.0, hookpoint=bad, fvu=None), sae("b", 0.0, hookpoint=bad, activation=bad))
    assert not list(figure.iter(f"{SVG}script"))
    assert not list(figure.iter("script"))
    assert "<script>alert(1)</script>␀␛[31m⟦U+202E⟧&amp;" in words(figure)
    assert not [name for e in figure.iter() for name in e.attrib if name.startswith("on")]
