"""The page of a search: its figures are the result's own, and it stands whatever the trials came to."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import math
import re
import time
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from html_page import Page
from netloom.errors import NetloomError
from netloom.report.study import describe_study, render_study, write_study_report
from netloom.report.study_data import read_study
from netloom.report.study_marks import SHADES, Shading
from netloom.report.study_progress import draw_courses, draw_history, draw_timeline
from netloom.report.study_space import draw_parallel, draw_slice, filled_contours, kernel_mean

NASTY = "경사 <b> & 'x'"
WIDTHS = [[32, 64, 128], [64, 128], [16]]


def key(name: str, kind: str, low: Any = None, high: Any = None, **more: Any) -> dict[str, Any]:
    return {"key": name, "kind": kind, "low": low, "high": high, "log": False, "choices": None, "when": None, **more}


SPACE = [
    key("learning_rate", "float", 1e-4, 0.1, log=True),
    key("augmentation.rotation", "int", 0, 30),
    key("model_options.widths", "choice", choices=WIDTHS),
    key("optimizer", "choice", choices=["adam", "sgd", NASTY]),
    key("momentum", "float", 0.5, 0.99, when={"key": "optimizer", "values": ["sgd", NASTY]}),
    key("batch_norm", "choice", choices=[True, False, None]),
    key("epochs", "choice", choices=[10]),
    key("dropout", "float", 0.0, 0.5),
]


def trial(number: int, value: float | None, state: str = "complete", **more: Any) -> dict[str, Any]:
    random = np.random.default_rng(number)
    optimizer = ["adam", "sgd", NASTY][number % 3]
    overrides = {
        "learning_rate": float(10 ** random.uniform(-4, -1)),
        "augmentation.rotation": int(random.integers(0, 31)),
        "model_options.widths": WIDTHS[number % 3],
        "optimizer": optimizer,
        "batch_norm": [True, False, None][number % 3],
        "epochs": 10,
        "dropout": float(random.uniform(0, 0.5)),
    }
    if optimizer != "adam":
        overrides["momentum"] = float(random.uniform(0.5, 0.99))
    reached = 0.5 if value is None or not math.isfinite(value) else value
    return {
        "number": number,
        "state": state,
        "value": value,
        "overrides": overrides,
        "epochs": 5,
        "seconds": 10.0 + number % 3,
        "finished_after": 12.0 * (1 + number // 2) + 0.5 * (number % 2),
        "values": [reached * share for share in (0.5, 0.7, 0.85, 0.95, 1.0)],
        "reason": None,
        "from": "recipe" if number == 0 else "sampler",
        **more,
    }


def study(values: list[float | None] | None = None, **changes: Any) -> dict[str, Any]:
    if values is None:
        values = [float(value) for value in np.random.default_rng(0).uniform(0.4, 0.66, 24)]
    trials = [trial(number, value) for number, value in enumerate(values)]
    there = [t for t in trials if t["value"] is not None and math.isfinite(t["value"])]
    best = max(there, key=lambda t: t["value"]) if there else None
    result = {
        "study": "runs/2026-study",
        "source": "cifar10",
        "source_location": "cifar10",
        "recipe": "cifar10-bayes-cnn",
        "model": "convnet",
        "objective": "validation_accuracy",
        "direction": "maximize",
        "sampler": "gp",
        "pruner": "median",
        "scheme_in_words": "hold-out validation part",
        "validation_n": 10000,
        "space": copy.deepcopy(SPACE),
        "trials": trials,
        "n_trials": len(trials),
        "planned": len(trials),
        "seconds": 200.0,
        "jobs": 2,
        "plan": {"device": "cpu", "threads": 2, "precision": "float32"},
        "importances": {"learning_rate": 0.7, "dropout": 0.2, "augmentation.rotation": 0.05},
        "best": best
        and {
            "number": best["number"],
            "value": best["value"],
            "interval": [best["value"] - 0.01, best["value"] + 0.01],
            "overrides": best["overrides"],
        },
        "fresh": {
            "seeds": [1, 2, 3],
            "values": [0.63, 0.64, 0.65],
            "mean": 0.64,
            "standard_deviation": 0.01,
            "interval": [0.615, 0.655],
        },
        "test": {"accuracy": 0.6321, "n": 9876, "interval": [0.6225, 0.6416], "majority_baseline": 0.1},
        "final_run": "runs/2026-final",
        "best_recipe_yaml": "model: convnet\nname: <i>꽃</i>\n",
    }
    return {**result, **changes}


def svgs(html: str) -> list[ElementTree.Element]:
    """Every figure of a page, parsed strictly."""
    return [
        ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox=\"[^\"]*\" role=.*?</svg>", html, re.DOTALL)
    ]


def marks(svg: str, class_: str) -> dict[int, tuple[float, float]]:
    """Where each trial's circle of this class stands."""
    found = [c for c in ElementTree.fromstring(svg).iter("circle") if class_ in c.get("class", "").split()]
    return {
        int(re.findall(r"trial (\d+)", c.findtext("title") or "")[0]): (float(c.get("cx", "")), float(c.get("cy", "")))
        for c in found
    }


def test_the_headline_names_the_best_the_fresh_seeds_their_difference_and_the_test() -> None:
    result = study([0.60, 0.66, 0.55])
    words = Page(render_study(result)).words
    for text in (
        "The best of 3 trials reached 66.0% validation accuracy (trial 1); chosen for this very figure, it is a little "
        "too good.",
        "The same recipe on 3 fresh seeds reached 64.0% ± 1.0, 2.0 points lower than as searched, which 3 seeds "
        "cannot tell from noise.",
        "Right on 63.2% of 9,876 test pictures (95% interval 62.3% to 64.2%), looked at once, after the search; always "
        "guessing the commonest class would be right on 10.0%.",
        "n = 9,876",
        "n = 10,000",
        "65.0% to 67.0%",
        "61.5% to 65.5%",
        "netloom train cifar10 --recipe best.yaml",
        "name: <i>꽃</i>",
        "runs/2026-final",
        "cpu, 2 threads, float32",
    ):
        assert text in words
    lines = describe_study(result)
    assert len(lines) == 3
    assert all(line in words for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": 0.67, "interval": [0.66, 0.68]}, "no worse than as searched"),
        ({"standard_deviation": 0.002}, "2.0 points lower than as searched: so much of that figure was the luck"),
        # The mean's interval, 0.634 to 0.646, leaves 0.66 out; one more training may well reach it, up to 0.665.
        ({"standard_deviation": 0.005, "interval": [0.628, 0.652]}, "which 3 seeds cannot tell from noise"),
        ({"mean": 0.655, "interval": [0.64, 0.67]}, "0.5 points lower than as searched, which 3 seeds cannot tell"),
        ({"values": [0.64] * 3, "standard_deviation": 0.0, "interval": None}, "all came out the same cannot tell luck"),
        ({"values": [0.64], "standard_deviation": None, "interval": [None, None]}, "one seed cannot tell luck"),
    ],
)
def test_luck_is_only_claimed_where_the_seeds_show_it(changes: dict[str, Any], words: str) -> None:
    result = study([0.60, 0.66])
    result["fresh"] = {**result["fresh"], **changes}
    assert words in describe_study(result)[1]


def by_folds(**changes: Any) -> dict[str, Any]:
    """A study whose trials were scored by folds, and whose winner by others."""
    result = study([0.60, 0.66, 0.55], scheme_in_words="3 folds", **changes)
    result["fresh"] = {
        "values": [0.61, 0.64, 0.67],
        "mean": 0.64,
        "standard_deviation": 0.03,
        "interval": [0.572, 0.708],
        "n": 3,
        "seeds": [1, 2, 3],
        "folds": 3,
        "held_out_n": 4321,
        "test_per_train": 0.5,
    }
    return result


def test_fresh_folds_stand_beside_those_of_the_search() -> None:
    result = by_folds()
    page = Page(render_study(result))
    for text in (
        "The same recipe by 3 folds drawn anew, with fresh seeds, reached 64.0% ± 3.0 from fold to fold, 2.0 points "
        "lower than as searched, which 3 folds cannot tell from noise.",
        "On fresh folds 64.0% 3 trainings, n = 4,321",
        "57.2% to 70.8%",
        "Fresh folds take out the luck of the seed and of how the pictures were divided, not what was learned",
    ):
        assert text in page.words
    assert "fresh seeds take" not in page.words.lower()
    assert describe_study(result)[1] in page.words
    both = describe_study({**result, "final": {"on": "train+validation", "train_n": 5000, "epochs": 7}})[1]
    assert both == (
        f"{describe_study(result)[1]} For the test it was trained anew on 5,000 pictures, of training and validation "
        "part together, for 7 epochs, as many as the winning trial kept."
    )
    result["fresh"] = {**result["fresh"], "mean": 0.66}
    assert "no worse than as searched: the choice owes nothing to lucky folds" in describe_study(result)[1]


@pytest.mark.parametrize(("deviation", "known"), [(0.001, True), (0.003, True), (0.004, False), (0.0, False)])
def test_luck_is_claimed_of_folds_where_another_draw_would_hardly_give_it(deviation: float, known: bool) -> None:
    """0.66 lies outside of 0.64 ± t(2) s sqrt(2 (1/3 + 1/2)) = 0.64 ± 5.55 s for s below 0.0036."""
    result = by_folds()
    result["fresh"]["standard_deviation"] = deviation
    assert ("so much of that figure was the luck" in describe_study(result)[1]) is known


def test_seeds_that_happen_to_agree_are_no_certainty() -> None:
    result = study([0.60, 0.66])
    result["fresh"].update(values=[0.64, 0.64], standard_deviation=1e-17)
    assert "seeds that all came out the same cannot tell luck from noise" in describe_study(result)[1]


def test_a_winner_that_was_trained_again_is_not_said_to_be_without() -> None:
    """As searches by folds left it before there were fresh folds."""
    tested: dict[str, Any] = {
        "fresh": None,
        "final": {"on": "train", "train_n": 4000, "epochs": 7},
        "test_over_seeds": {"values": [0.62, 0.63, 0.64]},
    }
    result = study([0.60, 0.66], scheme_in_words="3 folds", **tested)
    page = Page(render_study(result)).words
    for told in (" ".join(describe_study(result)), page):
        assert "not trained again" not in told
        assert "trained again on fresh seeds and tested, but not scored as the trials were" in told
        assert "Over all 3 fresh seeds the mean is 63.0%" in told
    untouched = study([0.60, 0.66], fresh=None, final=None, test=None, final_run=None)
    assert "The winning recipe was not trained again on fresh seeds" in " ".join(describe_study(untouched))


def test_a_loss_is_better_when_lower() -> None:
    losses = [0.9, 0.7, 1.4, 2.0]
    result = study(losses, objective="validation_loss", direction="minimize")
    result["best"] = {"number": 1, "value": 0.7, "interval": None, "overrides": result["trials"][1]["overrides"]}
    result["fresh"] = {"seeds": [5, 6], "values": [0.8, 0.8], "mean": 0.8, "standard_deviation": 0.0, "interval": None}
    lines = describe_study(result)
    assert lines[0].startswith("The best of 4 trials reached 0.7 validation loss (trial 1)")
    assert "reached 0.8 ± 0, 0.1 higher than as searched" in lines[1]
    page = Page(render_study(result))
    assert [row[0] for row in page.table("trial", "state")] == ["1", "0", "2", "3"]
    shading = Shading(read_study(result))
    assert shading.shade(0.7) == SHADES - 1
    assert shading.shade(2.0) == 0


def test_the_winning_settings_stand_beside_the_recipe_s_own() -> None:
    result = study([0.60, 0.66, 0.55])
    result["best"]["overrides"]["learning_rate"] = 0.0999
    rows = {row[0]: row[1:] for row in Page(render_study(result)).table("key", "trial 1")}
    own = result["trials"][0]["overrides"]
    assert rows["learning_rate"] == [
        "0.0999at the upper end of its range: try larger ones",
        f"{own['learning_rate']:.4g}",
        "0.0001 to 0.1, by its logarithm",
    ]
    assert rows["model_options.widths"] == ["[64, 128]", "[32, 64, 128]", "[32, 64, 128], [64, 128], [16]"]
    assert rows["momentum"][1:] == ["–", f"0.5 to 0.99, only where optimizer is sgd or {NASTY}"]
    assert rows["batch_norm"] == ["false", "true", "true, false, null"]
    assert list(rows) == [row["key"] for row in SPACE]


def test_a_key_under_a_condition_has_no_importance_and_the_page_says_so() -> None:
    result = study([0.5, 0.6, 0.55, 0.7])
    assert "momentum" not in result["importances"]
    text = " ".join(Page(render_study(result)).text)
    condition = f"only where optimizer is sgd or {NASTY}"
    assert f"momentum is searched {condition}, so what it explains of all trials is not known." in text
    assert text.count("what it explains of all trials") == 1


def test_the_table_holds_every_trial_the_best_first() -> None:
    result = study([0.5, 0.6, 0.55, None, 0.3, None])
    result["trials"][3].update(state="failed", reason="NaN loss <b>")
    result["trials"][4].update(state="pruned", reason="below the median of 3")
    result["trials"][5].update(state="pruned", values=[0.2, 0.25, math.nan])
    result["trials"][2]["from"] = "study runs/an-earlier-one"
    rows = Page(render_study(result)).table("trial", "state")
    assert [row[0] for row in rows] == ["1", "2", "0", "4", "5", "3"]
    assert [row[2] for row in rows] == ["60.00%", "55.00%", "50.00%", "30.00%", "25.00%", "–"]
    assert rows[1][1] == "completestudy runs/an-earlier-one"
    assert rows[3][1] == "prunedbelow the median of 3"
    assert rows[5][1] == "failedNaN loss <b>"
    by_number = {int(row[0]): row[3:-2] for row in rows}
    for found in result["trials"]:
        assert by_number[found["number"]][1] == str(found["overrides"]["augmentation.rotation"])
        momentum = found["overrides"].get("momentum")
        assert by_number[found["number"]][4] == ("" if momentum is None else f"{momentum:.4g}")


def test_names_make_no_element_and_nothing_is_requested() -> None:
    html = render_study(
        study(source="<b>꽃</b>", source_location="/<b>꽃</b>", recipe="<u>r</u>", model="<s>m</s>", study="runs/<em>x")
    )
    page = Page(html)
    for text in ("<b>꽃</b>", "<u>r</u>", "<s>m</s>", "<em>x", NASTY):
        assert text in page.words
    assert {"b", "u", "s", "em"}.isdisjoint(tag for tag, _ in page.tags)
    assert "netloom train '/<b>꽃</b>' --recipe best.yaml" in page.words
    assert not re.search(r"https?:|@import|url\(|xmlns", html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "form", "base", "img"}
        assert not any(name.startswith("on") for name in attributes)
    assert len(svgs(html)) >= 10


def test_only_the_script_that_the_policy_names_can_run() -> None:
    """Content Security Policy level 3: the base64 of the SHA-256 of the element's text."""
    html = render_study(study())
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m for m in Page(html).named("meta") if m.get("http-equiv"))["content"]
    expected = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy == expected


def test_cells_sort_by_what_they_stand_for() -> None:
    result = study([0.5, 0.6])
    cells = [attributes.get("data-sort") for attributes in Page(render_study(result)).named("td")]
    for found in result["trials"]:
        assert repr(found["value"]) in cells
        assert repr(found["overrides"]["learning_rate"]) in cells
        assert repr(found["seconds"]) in cells


def test_the_same_result_gives_the_same_page() -> None:
    assert render_study(study()) == render_study(study())


def test_marks_stand_where_values_and_settings_put_them() -> None:
    result = study()
    read = read_study(result)
    values = np.array([t["value"] for t in result["trials"]])
    by_trial = marks(str(draw_history(read)), "trial")
    heights = np.array([by_trial[n][1] for n in range(len(values))])
    assert np.corrcoef(values, heights)[0, 1] == pytest.approx(-1, abs=1e-3)
    order = sorted(range(len(values)), key=lambda n: result["trials"][n]["finished_after"])
    assert sorted(by_trial, key=lambda n: by_trial[n][0]) == order
    rates = np.log([t["overrides"]["learning_rate"] for t in result["trials"]])
    across = marks(str(draw_slice(read, read.keys[0])), "trial")
    assert np.corrcoef(rates, [across[n][0] for n in range(len(values))])[0, 1] == pytest.approx(1, abs=1e-3)
    only = marks(str(draw_slice(read, next(k for k in read.keys if k.name == "momentum"))), "trial")
    assert set(only) == {t["number"] for t in result["trials"] if "momentum" in t["overrides"]}


def test_the_best_so_far_only_rises() -> None:
    svg = ElementTree.fromstring(str(draw_history(read_study(study([0.5, 0.4, 0.6, 0.55, 0.7])))))
    path = next(p for p in svg.iter("path") if "so-far" in p.get("class", ""))
    points = np.array([pair.split(" ") for pair in path.get("d", "")[1:].split("L")], dtype=float)
    assert (np.diff(points[:, 1]) <= 0).all()
    assert len(np.unique(points[:, 1])) == 3  # 0.5, 0.6, 0.7


def test_a_line_of_the_parallel_axes_passes_an_absent_key_below_the_axis() -> None:
    result = study([0.5, 0.6, 0.55])
    read = read_study(result)
    svg = ElementTree.fromstring(str(draw_parallel(read, Shading(read))))
    column = [k.name for k in read.keys_by_importance].index("momentum")
    heights = {}
    for path in (p for p in svg.iter("path") if "course" in p.get("class", "")):
        points = np.array([pair.split(" ") for pair in path.get("d", "")[1:].split("L")], dtype=float)
        assert len(points) == len(SPACE) + 1
        heights[int(re.findall(r"trial (\d+)", path.findtext("title") or "")[0])] = points[column, 1]
    assert heights[0] > max(heights[1], heights[2])
    assert "not set" in [text.text for text in svg.iter("text")]


def test_pictures_in_groups_are_told_beside_their_interval() -> None:
    result = study([0.5, 0.6], validation_groups=25)
    result["test"]["groups"] = 40
    result["best"]["interval"] = None
    page = Page(render_study(result))
    for text in ("of 9,876 test pictures of 40 groups (95%", "n = 9,876 of 40 groups", "n = 10,000 of 25 groups"):
        assert text in page.words
    assert "10,000 pictures of 25 groups" in page.words


def test_what_the_search_adds_is_shown() -> None:
    """The recipe's own values, where the winning recipe lies, the test over all fresh seeds."""
    result = study(
        [0.5, 0.6],
        base={"dropout": 0.123, "optimizer": None},
        best_recipe="runs/2026 study/best.yaml",
        sampler_in_words="Bayesian search",
        test_over_seeds={"values": [0.63, 0.64, 0.65]},
    )
    result["test"]["majority_baseline"] = {"class": "<b>", "accuracy": 0.25}
    page = Page(render_study(result))
    own = {row[0]: row[2] for row in page.table("key", "trial 1")}
    assert (own["dropout"], own["optimizer"], own["momentum"]) == ("0.123", "null", "–")
    assert "netloom train cifar10 --recipe 'runs/2026 study/best.yaml'" in page.words
    assert "Save the recipe" not in page.words
    assert "Settings chosen by Bayesian search" in page.words
    assert "right on 25.0%. Over all 3 fresh seeds the mean is 64.0% ± 1.0." in page.words


@pytest.mark.parametrize("changes", [{"source_location": ""}, {"custom_model": "my_network"}])
def test_what_a_shell_has_no_pictures_or_network_for_is_no_command(changes: dict[str, Any]) -> None:
    words = Page(render_study(study([0.5, 0.6], **changes))).words
    assert "The winning recipe" in words
    assert "netloom train" not in words
    assert "To train it yourself" not in words


def test_folds_are_called_so_and_trials_that_have_not_ended_are_left_out() -> None:
    result = study([0.5, 0.6, None], scheme_in_words="5 folds")
    result["trials"][2].update(state="running", values=[])
    page = Page(render_study(result))
    assert "Fold by fold" in page.words
    assert "Epoch by epoch" not in page.words
    assert [row[0] for row in page.table("trial", "state")] == ["1", "0"]
    assert "2 complete, of 3 planned" in page.words


def test_many_choices_are_counted_not_listed() -> None:
    many = study([0.5, 0.6], space=[key("optimizer", "choice", choices=[f"o{i}" for i in range(50)])])
    ((*_, searched),) = Page(render_study(many)).table("key", "trial 1")
    assert searched == ", ".join(f"o{i}" for i in range(12)) + " and 38 more"


def test_courses_hold_every_epoch_and_pruned_ones_are_apart() -> None:
    result = study([0.5, 0.6, 0.55])
    result["trials"][0].update(state="pruned", values=[0.2, None, 0.3])
    read = read_study(result)
    svg = ElementTree.fromstring(str(draw_courses(read, Shading(read))))
    lines = {
        path.findtext("title", "").split(":")[0]: (path.get("class", ""), path.get("d", "").count("L") + 1)
        for path in svg.iter("path")
        if "curve" in path.get("class", "")
    }
    assert lines["trial 0"] == ("line curve pruned", 2)
    assert lines["trial 1"][1] == 5
    assert "best" in lines["trial 1"][0]


def test_trials_at_once_lie_in_lanes_of_their_own() -> None:
    times = [(10.0, 10.0), (12.0, 12.0), (21.0, 10.9), (22.0, 10.0), (30.0, 9.0)]
    result = study([0.5] * 5)
    for found, (finished, seconds) in zip(result["trials"], times, strict=True):
        found.update(finished_after=finished, seconds=seconds)
    read = read_study(result)
    svg = ElementTree.fromstring(str(draw_timeline(read, Shading(read))))
    rects = [rect for rect in svg.iter("rect") if "span" in rect.get("class", "")]
    assert len({rect.get("y") for rect in rects}) == 2
    lanes: dict[str, list[tuple[float, float]]] = {}
    for rect in rects:
        left = float(rect.get("x", ""))
        lanes.setdefault(rect.get("y", ""), []).append((left, left + float(rect.get("width", ""))))
    for spans in lanes.values():
        ordered = sorted(spans)
        # A tenth of a trial may overlap: clocks are read at different moments.
        assert all(later >= end - 40 for (_, end), (later, _) in itertools.pairwise(ordered))


def test_the_ground_is_the_nadaraya_watson_estimate() -> None:
    """Against the formula written out: sum(K v) / sum(K) with K = exp(-d^2 / 2h^2), h = n^(-1/6) / sqrt(12)."""
    random = np.random.default_rng(0)
    points, values, at = random.uniform(size=(30, 2)), random.uniform(size=30), np.linspace(0, 1, 5)
    found = kernel_mean(points, values, at)
    width = 30 ** (-1 / 6) / math.sqrt(12)
    for row, up in enumerate(at):
        for column, across in enumerate(at):
            squares = ((points - [across, up]) ** 2).sum(axis=1)
            kernel = np.exp(-squares / (2 * width**2))
            assert bool(np.ma.getmaskarray(found)[row, column]) == (kernel.sum() < 1.5)
            if kernel.sum() >= 1.5:
                assert found[row, column] == pytest.approx((kernel * values).sum() / kernel.sum())


def test_bands_follow_the_values_and_need_enough_trials() -> None:
    """Values that grow to the right: the middle of each band lies to the right of the one before."""
    random = np.random.default_rng(1)
    points = random.uniform(size=(200, 2))
    shading = Shading(read_study(study([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])))
    assert (shading.low, shading.high) == (0.0, 1.0)
    bands = filled_contours(points, points[:, 0], shading)
    assert len(bands) >= 6
    middles = [np.mean([ring[:, 0].mean() for ring in rings]) for _, rings in bands]
    assert [shade for shade, _ in bands] == sorted(shade for shade, _ in bands)
    assert middles == sorted(middles)
    assert filled_contours(points[:19], points[:19, 0], shading) == []


def edge_cases() -> dict[str, dict[str, Any]]:
    failed = study([None] * 4, best=None, fresh=None, test=None, final_run=None, importances=None, best_recipe_yaml="")
    for found in failed["trials"]:
        found.update(state="failed", reason="no memory", values=[])
    outside = study([0.5, 0.6, 0.4])
    outside["trials"][0]["overrides"].update(
        {"learning_rate": 0.0, "dropout": 0.9, "optimizer": "rmsprop", "augmentation.rotation": None}
    )
    never = study([0.5, 0.6])
    for found in never["trials"]:
        found["overrides"].pop("momentum", None)
    return {
        "one trial": study([0.5]),
        "two trials": study([0.5, 0.6]),
        "constant": study([0.5] * 30),
        "all failed": failed,
        "no trials": study([], best=None, fresh=None, test=None),
        "not finite": study([math.nan, math.inf, -math.inf, 0.5, 0.6, None]),
        "nothing after the search": study(fresh=None, test=None, final_run=None, importances=None, validation_n=None),
        "hopeless loss": study([0.5, 0.6, 0.7, 0.65, 0.55, 1e30], objective="validation_loss", direction="minimize"),
        "outside the space": outside,
        "a key that no trial has": never,
        "no key": study(space=[]),
        "only a choice of one": study([0.5, 0.6, 0.7], space=[key("epochs", "choice", choices=[10])]),
        "one number": study([0.5, 0.6], space=[key("dropout", "float", 0.2, 0.2)]),
        "fifty choices": study(space=[key("optimizer", "choice", choices=[f"선택지 {i}" for i in range(50)])]),
        "thirty keys": study(
            importances=None, space=[key(f"k{i}.x", "float", 0, 1) for i in range(22)] + copy.deepcopy(SPACE)
        ),
        "no plan": study(plan=None, pruner=None),
        "folds": by_folds(),
        "unknown times": study(
            trials=[{**trial(n, 0.5 + n / 10), "seconds": None, "finished_after": None} for n in range(3)]
        ),
    }


@pytest.mark.parametrize("name", edge_cases())
def test_a_page_stands_whatever_happened(name: str) -> None:
    html = render_study(edge_cases()[name])
    page = Page(html)
    assert all(len(svg) for svg in svgs(html))
    shown = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"\bnan\b|\binf\b|None|Undefined", shown)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    lines = describe_study(edge_cases()[name])
    assert lines
    assert all(line in page.words for line in lines)


def test_what_failed_is_said_once_with_its_reasons() -> None:
    cases = edge_cases()
    words = Page(render_study(cases["all failed"])).words
    assert "All 4 trials failed: no memory" in words
    assert "How the search went" not in words
    assert describe_study(cases["all failed"]) == ["All 4 trials failed: no memory"]
    many = study([0.5] * 10)
    for number in range(1, 9):
        many["trials"][number].update(state="failed", value=None, reason=f"reason {max(number, 2)}")
    words = Page(render_study(many)).words
    assert "2 trials failed: reason 2" in words
    assert "2 trials more failed for other reasons" in words
    words = Page(render_study(cases["not finite"])).words
    assert "4 trials failed: its value is not a finite number" in words


def test_why_test_pictures_are_not_new_stands_behind_the_test() -> None:
    note = "7 of the 12 pictures are <b>known</b>."
    tested = describe_study(study(test_notes=[note]))[-1]
    assert tested == f"{describe_study(study())[-1]} {note}"
    assert note in Page(render_study(study(test_notes=[note]))).words
    untested = describe_study(study(test=None, test_notes=[note]))[-1]
    assert untested == f"The test pictures have not been looked at. {note}"


def test_a_search_that_was_stopped_says_what_is_missing() -> None:
    words = Page(render_study(study([0.5, 0.6], planned=50))).words
    assert "2 complete, of 50 planned" in words
    assert "planned" not in Page(render_study(study([0.5, 0.6], planned=None))).words
    assert describe_study(study([], best=None, fresh=None, test=None)) == ["No trial has ended yet."]


def test_a_hopeless_trial_does_not_squash_the_others() -> None:
    losses = [0.5, 0.6, 0.7, 0.65, 0.55, 1e6]
    result = study(losses, objective="validation_loss", direction="minimize")
    result["best"].update(number=0, value=0.5)
    heights = marks(str(draw_history(read_study(result))), "trial")
    assert heights[2][1] - heights[5][1] > 20
    assert heights[0][1] - heights[2][1] > 20
    assert "1 trial would lie far beyond the axis and is drawn at its end." in Page(render_study(result)).words


def test_the_colour_scale_shows_differences_among_the_good_half() -> None:
    """Its bad end is three times as far from the best as the median: 1 - 3 * (1 - 0.9); few trials have all of it."""
    values = [0.1, 0.1, 0.1, 0.85, 0.9, 0.9, 0.92, 0.95, 1.0]
    many, few = Shading(read_study(study(values))), Shading(read_study(study(values[2:8])))
    assert (many.open_ended, few.open_ended) == (True, False)
    assert (many.low, many.high) == (pytest.approx(0.7), 1.0)
    assert (few.low, few.high) == (0.1, 0.95)
    assert [many.shade(value) for value in (math.nan, 0.1, 0.71, 0.99)] == [0, 0, 0, SHADES - 1]
    assert "70.0% or worse" in Page(render_study(study(values))).words


def test_five_hundred_trials_are_drawn_in_no_time() -> None:
    """0.5 s of CPU where this was written; the bound leaves room for slow machines."""
    result = study([float(value) for value in np.random.default_rng(0).uniform(0.4, 0.66, 500)])
    began = time.process_time()
    html = render_study(result)
    assert time.process_time() - began < 4
    assert len(html) < 3_000_000
    assert len(Page(html).table("trial", "state")) == 500


@pytest.mark.parametrize(("theme", "paper"), [("light", "#ffffff"), ("dark", "#191d24")])
def test_the_better_half_of_the_colour_scale_stands_out_from_the_paper(theme: str, paper: str) -> None:
    """WCAG 2.2, 1.4.11: 3 to 1; and every shade is farther from the paper than the one before."""
    html = render_study(study())
    blocks = re.findall(r"\.v(\d+) \{ --shade: (#\w{6}); \}", html)
    assert len(blocks) == 2 * SHADES
    colours = [colour for _, colour in (blocks[:SHADES] if theme == "light" else blocks[SHADES:])]
    contrasts = [contrast(colour, paper) for colour in colours]
    assert contrasts == sorted(contrasts)
    assert min(contrasts[SHADES // 2 :]) >= 3


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_damaged_result_is_named(tmp_path) -> None:
    result = study()
    del result["space"], result["jobs"]
    with pytest.raises(NetloomError, match="The result of the search lacks space, jobs"):
        render_study(result)
    result = study()
    del result["trials"][3]["overrides"]
    with pytest.raises(NetloomError, match="A trial of the search lacks overrides"):
        write_study_report(result, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    result = study()
    result["trials"][0]["state"] = "lost"
    with pytest.raises(NetloomError, match="Trial 0 is 'lost'; expected complete, pruned, failed"):
        describe_study(result)


def test_the_page_is_written_as_one_file(tmp_path) -> None:
    write_study_report(study(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == render_study(study()).encode()
    assert len(list(tmp_path.iterdir())) == 1
