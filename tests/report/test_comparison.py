"""The page of a comparison as a browser's parser sees it, and its sentences."""

from __future__ import annotations

import re

import pytest

from html_page import Page
from netloom.metrics.intervals import Estimate, Interval
from netloom.report.comparison import ComparedPair, ComparedRun, Comparison, headline, render_comparison, verdict

NASTY = ["고양이 <b>", "dog & \"friends' <script>alert(1)</script>", "{{ 7 * 7 }}"]


def run(name: str, **changes) -> ComparedRun:
    values = {
        "name": name,
        "path": f"runs/{name}",
        "status": "finished",
        "source": "photos",
        "recipe": "made <i>",
        "model": "convnet <u>",
        "parameters": 93322,
        "planned_epochs": 5,
        "kept_epoch": 4,
        "history": [{"epoch": e, "train_loss": 1 / e, "validation_accuracy": 1 - 0.5 / e} for e in range(1, 6)],
        "train_seconds": 12.0,
        "images_per_second": 1234.5,
        "validation": Estimate(0.9, 100, Interval(0.82, 0.95)),
        "test": Estimate(0.8, 200, Interval(0.74, 0.85)),
    }
    return ComparedRun(**{**values, **changes})


def paired(first: int, second: int, difference: float, adjusted_p_value: float) -> ComparedPair:
    return ComparedPair(
        first=first,
        second=second,
        kind="paired",
        difference=difference,
        interval=Interval(difference - 0.01, difference + 0.01),
        n=200,
        only_first=3,
        only_second=7,
        p_value=adjusted_p_value / 2,
        adjusted_p_value=adjusted_p_value,
    )


def comparison(*pairs: ComparedPair, n_runs: int = 3, **changes) -> Comparison:
    values = {
        "runs": [run(name) for name in [*NASTY, *map(str, range(n_runs))][:n_runs]],
        "recipe_differences": {"dropout": [0.3, None, "<s>"]},
        "pairs": pairs or [paired(0, 1, 0.05, 0.01), paired(0, 2, 0.0, 1.0), paired(1, 2, -0.05, 0.0004)],
        "notes": ["A note <em>."],
    }
    return Comparison(**{**values, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return render_comparison(comparison())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_name_appears_literally_and_makes_no_element(page):
    for text in (*NASTY, "made <i>", "convnet <u>", "<s>", "A note <em>."):
        assert text in page.words
    assert {"b", "script", "i", "u", "s", "em"}.isdisjoint(tag for tag, _ in page.tags)


def test_nothing_is_requested_and_nothing_runs(html, page):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "form", "base", "img"}
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(m for m in page.named("meta") if m.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_tables_tell_what_is_known(page):
    rows = page.table("", "run", "model")
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[0][1:] == [
        "고양이 <b>made <i>",
        "convnet <u>93,322 parameters",
        "5 of 5kept: 4",
        "12 s1,234 pictures/s",
        "90.0% of 10082.0% to 95.0%",
        "80.0% of 20074.0% to 85.0%",
    ]
    assert page.table("recipe key") == [["dropout", "0.3", "–", "<s>"]]
    pairs = page.table("runs", "difference in test accuracy")
    assert pairs[0] == [
        "2\N{NO-BREAK SPACE}minus\N{NO-BREAK SPACE}1",
        "+5.0 points+4.0 to +6.0",
        "200",
        "2: 71: 3",
        "0.005",
        "0.010",
        "more than noise",
    ]
    assert pairs[1][-1] == "right equally often"
    assert pairs[2][4:6] == ["< 0.001", "< 0.001"]


def test_every_run_has_its_lines_and_its_legend(html, page):
    for quantity, part in (("loss", "train"), ("accuracy", "validation")):
        for number in (1, 2, 3):
            assert f'id="{quantity}-run-{number}-{part}"' in html
    legend = [a["style"] for a in page.named("li") if "style" in a]
    assert legend == [f"--colour: var(--run-{number})" for number in (1, 2, 3)]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_equal_recipes_are_said_to_be():
    words = Page(render_comparison(comparison(recipe_differences={}))).words
    assert "Nothing: the recipes are the same." in words


def test_many_runs_render_and_repeat_colours_with_a_marker():
    page = Page(render_comparison(comparison(paired(0, 1, 0.05, 0.01), n_runs=9, recipe_differences={})))
    assert len([a for a in page.named("li") if "style" in a]) == 9
    assert "■" in page.words


def test_the_same_comparison_gives_the_same_page(html):
    assert render_comparison(comparison()) == html


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (
            [paired(0, 1, 0.05, 0.01)],
            "Run 2 was right on 5.0 points more of the same 200 test pictures than run 1, more",
        ),
        (
            [paired(0, 1, -0.05, 0.5)],
            "Run 1 was right on 5.0 points more of the same 200 test pictures than run 2, which",
        ),
        ([paired(0, 1, 0.0, 1.0)], "Runs 1 and 2 were right equally often on the same test pictures."),
        ([paired(0, 1, 0.1, 0.2), paired(0, 2, 0.1, 0.2)], "None of the 2 differences on the same test pictures is"),
        (
            [paired(0, 1, 0.1, 0.01), paired(0, 2, 0.1, 0.01), paired(1, 2, 0.0, 1.0)],
            "On the same test pictures 2 of 3 differences are more than noise: run 1 is worse than runs 2 and 3.",
        ),
        (
            [paired(0, 1, -0.1, 0.01), paired(0, 2, 0.1, 0.5)],
            "On the same test pictures 1 of 2 differences is more than noise: run 1 is better than run 2.",
        ),
        ([ComparedPair(first=0, second=1, kind="none", reason="x")], "No two of these runs were tested on the same"),
    ],
)
def test_the_headline_is_the_answer(pairs, expected):
    assert headline(comparison(*pairs)).startswith(expected)


def test_an_unpaired_difference_gets_no_verdict_of_the_paired_test():
    pair = ComparedPair(
        first=0, second=1, kind="unpaired", reason="other pictures", difference=0.1, interval=Interval(0.02, 0.2)
    )
    assert verdict(pair) == "no paired test: other pictures; the interval for independent tests leaves out 0"
    assert pair.more_than_noise is None
