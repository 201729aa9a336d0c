"""Curves as SVG: what is drawn where, read back from the markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from netloom.report.curves import RUN_COLOURS, draw_curve, draw_runs, run_style, running_average

HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "validation_loss": 1 / epoch + 0.01 * epoch,
        "train_accuracy": 1 - 0.5 / epoch,
        "validation_accuracy": 1 - 0.6 / epoch,
    }
    for epoch in range(1, 16)
]


def vertices(svg: str, gid: str) -> np.ndarray:
    """Points of the line drawn in the group `gid`, `[points, 2]` with y downwards."""
    group = next(g for g in ElementTree.fromstring(svg).iter("g") if g.get("id") == gid)
    path = next(p for p in group.iter("path") if "L" in p.get("d", ""))
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d", "")), dtype=float)


def test_the_line_is_the_column_up_to_scale():
    points = vertices(draw_curve(HISTORY, "loss", best_epoch=None), "loss-validation")
    values = np.array([row["validation_loss"] for row in HISTORY])
    assert len(points) == len(HISTORY)
    np.testing.assert_allclose(np.diff(points[:, 0]), np.diff(points[:, 0])[0], rtol=1e-3)
    assert np.corrcoef(points[:, 1], values)[0, 1] == pytest.approx(-1, abs=1e-9)


def test_the_best_epoch_is_marked_on_the_validation_line():
    svg = draw_curve(HISTORY, "accuracy", best_epoch=7)
    marker = next(
        use
        for group in ElementTree.fromstring(svg).iter("g")
        if group.get("id") == "accuracy-best"
        for use in group.iter("use")
    )
    drawn_at = float(marker.get("x", "nan")), float(marker.get("y", "nan"))
    np.testing.assert_allclose(drawn_at, vertices(svg, "accuracy-validation")[6], atol=1e-4)
    assert "epoch 7" in "".join(ElementTree.fromstring(svg).itertext())


def test_accuracy_is_in_percent_and_never_above_100():
    texts = list(ElementTree.fromstring(draw_curve(HISTORY, "accuracy", best_epoch=1)).itertext())
    ticks = [float(text[:-1]) for text in texts if text.strip().endswith("%")]
    assert len(ticks) >= 3
    assert max(ticks) <= 100


def test_a_missing_value_is_a_gap_and_a_missing_column_no_line():
    history = [dict(row) for row in HISTORY]
    history[5]["train_loss"] = float("nan")
    history[9]["train_loss"] = None
    for row in history:
        del row["validation_loss"]
    svg = draw_curve(history, "loss", best_epoch=None)
    assert len(vertices(svg, "loss-train")) == len(HISTORY) - 2
    assert "loss-validation" not in svg


def test_one_epoch_shows_as_a_point():
    svg = draw_curve(HISTORY[:1], "loss", best_epoch=1)
    assert svg.count("<use") >= 2


def test_markup_fits_into_a_page():
    both = [draw_curve(HISTORY, quantity, best_epoch=7) for quantity in ("loss", "accuracy")]
    ids = [identifier for svg in both for identifier in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in both:
        assert svg.startswith("<svg viewBox=")
        assert not re.search(r"https?:|<style|<metadata|xmlns|<!DOCTYPE", svg)
        assert "var(--validation" in svg
        targets = re.findall(r'(?:href="|url\()#([^")]*)', svg)
        assert targets
        assert set(targets) <= set(ids)


def test_the_same_history_gives_the_same_markup_under_any_user_style():
    plain = draw_curve(HISTORY, "loss", best_epoch=7)
    with mpl.rc_context({"svg.fonttype": "path", "font.size": 30, "axes.facecolor": "red"}):
        assert draw_curve(HISTORY, "loss", best_epoch=7) == plain


def test_several_runs_are_drawn_on_one_scale_training_dashed():
    """The second run's validation loss is the first one's training loss, so the two lines coincide."""
    swapped = [{"epoch": row["epoch"], "validation_loss": row["train_loss"]} for row in HISTORY]
    svg = draw_runs([HISTORY, swapped, []], "loss")
    np.testing.assert_allclose(vertices(svg, "loss-run-2-validation"), vertices(svg, "loss-run-1-train"), atol=1e-6)
    assert "loss-run-2-train" not in svg
    assert "loss-run-3" not in svg
    dashed = {
        group.get("id"): "stroke-dasharray" in next(group.iter("path")).get("style", "")
        for group in ElementTree.fromstring(svg).iter("g")
        if (group.get("id") or "").startswith("loss-run-")
    }
    assert dashed == {"loss-run-1-train": True, "loss-run-1-validation": False, "loss-run-2-validation": False}
    assert "var(--run-1" in svg
    assert "var(--run-2" in svg


def test_every_run_has_a_style_of_its_own():
    styles = [run_style(index) for index in range(35)]
    assert len(set(styles)) == 35
    assert {variable for variable, _ in styles} == set(RUN_COLOURS)
    many = draw_runs([HISTORY] * 8, "accuracy")
    lines = [g for g in ElementTree.fromstring(many).iter("g") if (g.get("id") or "").startswith("accuracy-run-")]
    marked = {g.get("id") for g in lines if g.find(".//use") is not None}
    assert marked == {"accuracy-run-8-train", "accuracy-run-8-validation"}


def test_a_run_of_one_epoch_shows_among_others():
    group = next(
        group
        for group in ElementTree.fromstring(draw_runs([HISTORY, HISTORY[:1]], "loss")).iter("g")
        if group.get("id") == "loss-run-2-validation"
    )
    assert len(list(group.iter("use"))) == 1


@pytest.mark.parametrize("theme", [0, 1])
def test_lines_stand_out_from_the_paper(theme):
    """WCAG 2.2, 1.4.11: graphics need a contrast of 3 to 1; papers as in page.css."""
    paper = ("#ffffff", "#191d24")[theme]
    for colour in RUN_COLOURS.values():
        lighter, darker = sorted((luminance(colour[theme]), luminance(paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, colour


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_unfreezing_is_marked_between_epochs_and_averages_are_drawn():
    """The average of the definition: m = 0.8 m + 0.2 x, from the first value on."""
    history = [{"epoch": e, "train_loss": 1 / e, "validation_loss": 1 + (-1) ** e / 4} for e in range(1, 21)]
    plain = draw_curve(history, "loss", best_epoch=None)
    marked = draw_curve(history, "loss", best_epoch=None, unfreezing=[3, 5, 40])
    assert "unfrozen" not in plain
    assert [n for n in (3, 5, 40) if f'id="loss-unfrozen-{n}"' in marked] == [3, 5]
    assert marked.count(">unfrozen<") == 1
    assert "average" not in marked
    assert 'id="loss-validation-average"' in draw_curve(history, "loss", best_epoch=None, averaged=True)
    expected, mean = [], 1.0
    for value in (1.0, 3.0, 2.0):
        mean = 0.8 * mean + 0.2 * value
        expected.append(mean)
    found = running_average(np.array([1.0, 3.0, np.nan, 2.0]))
    assert found[[0, 1, 3]] == pytest.approx(expected)
    assert np.isnan(found[2])
