"""The page as a browser's parser sees it: nesting, text, tables, and that it asks for nothing."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from sklearn.metrics import f1_score

from html_page import Page
from netloom.metrics.summary import score_probabilities
from netloom.report.data import Mistake, ModelFacts, ReportData, SourceFacts, TrainingFacts
from netloom.report.report import render_report

NASTY = ["고양이 <b>", "dog & \"friends' <script>alert(1)</script>", "{{ 7 * 7 }}"]


def answers(n_classes: int, n: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    probabilities = rng.dirichlet([0.4] * n_classes, n)
    probabilities[np.arange(n), targets] += 0.9 / n_classes
    return targets, (probabilities / (1 + 0.9 / n_classes)).astype(np.float32)


def report(names=NASTY, **changes) -> ReportData:
    k = len(names)
    targets, probabilities = answers(k, n=40 * k)
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    full = ReportData(
        title=f"{names[0]} and others",
        run_name='run "1" <i>',
        created="3 February 2026",
        status="finished",
        class_names=names,
        source=SourceFacts(
            name="photos <b>.zip",
            kind="archive",
            location="/home/me/<u>photos</u>.zip",
            class_counts={"train": [30] * k, "test": [10 + i for i in range(k)]},
            split_method="As given.",
            rejected=[('<s>"broken".jpg', "truncated & <em>bad</em>")],
            warnings=["2 duplicates of <q>cat.jpg</q>"],
        ),
        model=ModelFacts(
            name="<tt>convnet",
            description="three <blocks>",
            parameters=93322,
            trainable_parameters=93322,
            input_shape=(1, 28, 28),
            layers=[("<conv>", "32 × 26 × 26", 320)],
        ),
        training=TrainingFacts(
            history=[
                {"epoch": e, "train_loss": 1 / e, "validation_loss": 1.1 / e, "seconds": None} for e in range(1, 6)
            ],
            best_epoch=5,
            stopped="All epochs <done>.",
            seconds=12.3,
            images_per_second=1234.5,
        ),
        test=score_probabilities(probabilities, targets, train_targets=np.zeros(3, dtype=int)),
        mistakes=[
            Mistake(
                picture=picture,
                true_name=names[0],
                predicted_name=names[1],
                confidence=0.987,
                sample_id="test/<b>bold</b>/'1'.png",
            )
        ],
        recipe_yaml="model: <convnet>\nseed: 0\n",
        environment={"<dev>": "CPU & <cores>"},
        command="netloom train '<photos>'",
        notes=["A note <b>."],
    )
    return dataclasses.replace(full, **changes)


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(report())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_name_appears_literally_and_makes_no_element(page):
    for name in NASTY:
        assert name in page.words
    literal = (
        "고양이 <b> and others",
        'run "1" <i>',
        "photos <b>.zip",
        "/home/me/<u>photos</u>.zip",
        '<s>"broken".jpg',
        "truncated & <em>bad</em>",
        "<q>cat.jpg</q>",
        "<tt>convnet",
        "three <blocks>",
        "<conv>",
        "All epochs <done>.",
        "test/<b>bold</b>/'1'.png",
        "model: <convnet>",
        "<dev>",
        "CPU & <cores>",
        "netloom train '<photos>'",
        "A note <b>.",
    )
    for text in literal:
        assert text in page.words
    made_by_data = {"b", "script", "u", "s", "em", "q", "tt", "blocks", "conv", "done", "convnet"}
    assert made_by_data.isdisjoint(tag for tag, _ in page.tags)
    assert len(page.named("i")) == 4  # the two keys of two curves, none from the run's name


def test_nothing_is_requested_and_nothing_runs(html, page):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "form", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    policy = next(m for m in page.named("meta") if m.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_ids_are_unique_and_the_title_names_the_run(html, page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "<title>고양이 &lt;b&gt; and others · run &#34;1&#34; &lt;i&gt;</title>" in html


def test_the_answer_comes_first_in_plain_words():
    """351 of 360: the Wilson interval of SciPy is 0.9532 to 0.9868."""
    targets = np.repeat([0, 1], [44, 316])
    probabilities = np.eye(2, dtype=np.float32)[np.where(np.arange(360) < 9, 1, targets)]
    scores = score_probabilities(probabilities, targets, train_targets=np.array([0]))
    page = Page(render_report(report(["cat", "dog"], test=scores)))
    assert (
        "Right on 97.5% of 360 test pictures it had never seen (95% interval 95.3% to 98.7%); "
        "always guessing “cat” would be right on 12.2%."
    ) in page.words


def test_the_confusion_matrix_is_the_counts(page):
    targets, probabilities = answers(3)
    predictions = probabilities.argmax(axis=1)
    rows = page.table("", *NASTY)
    for true, row in enumerate(rows):
        counts = [int(np.sum((targets == true) & (predictions == p))) for p in range(3)]
        assert row == [NASTY[true], *[str(c) if c else "" for c in counts], str(sum(counts))]


def test_classes_are_listed_the_hardest_first(page):
    targets, probabilities = answers(3)
    f1 = f1_score(targets, probabilities.argmax(axis=1), average=None)
    rows = page.table("class", "F1")
    assert [row[0] for row in rows] == [NASTY[i] for i in np.argsort(f1)]
    assert [row[1] for row in rows] == [f"{value:.3f}" for value in np.sort(f1)]
    assert all(re.search(r"n = \d+", row[3]) for row in rows)


def test_a_class_without_test_pictures_has_no_scores_and_comes_last():
    targets, probabilities = answers(2)
    padded = np.pad(probabilities, ((0, 0), (0, 1)))
    scores = score_probabilities(padded, targets, train_targets=np.array([0]))
    last = Page(render_report(report(["cat", "dog", "owl"], test=scores))).table("class", "F1")[-1]
    assert [cell.strip() for cell in last] == ["owl", "–", "", "–", "–", ""]


def test_counts_per_class_and_part_with_their_sums(page):
    rows = page.table("class", "train", "test", "all")
    assert [row[:4] for row in rows] == [
        [NASTY[0], "30", "10", "40"],
        [NASTY[1], "30", "11", "41"],
        [NASTY[2], "30", "12", "42"],
        ["all", "90", "33", "123"],
    ]


def test_a_hundred_classes_give_the_pairs_first_and_more_only_the_pairs():
    hundred = [f"class {i}" for i in range(100)]
    page = Page(render_report(report(hundred)))
    assert len(page.table("", *hundred)) == 100
    pairs = page.table("true class", "taken for")
    counts = [int(row[2]) for row in pairs]
    assert counts == sorted(counts, reverse=True)
    assert len(pairs) == 12
    more = [f"class {i}" for i in range(101)]
    html = render_report(report(more))
    assert len(html) < 400_000
    assert not any(table[0][:2] == ["", "class 0"] for table in Page(html).tables)


def test_mistakes_are_shown_as_pictures_with_names_and_confidence(page):
    (image,) = page.named("img")
    assert image["class"] == "pixelated"
    assert image["alt"] == f"{NASTY[0]} taken for {NASTY[1]}"
    assert f"taken for {NASTY[1]} , 98.7% sure" in page.words


def test_without_a_mistake_the_report_says_so():
    scores = score_probabilities(np.eye(3, dtype=np.float32), np.arange(3), train_targets=np.array([0]))
    page = Page(render_report(report(test=scores, mistakes=())))
    assert "Nothing wrong" in page.words
    assert "Right on 100% of 3 test pictures" in page.words
    assert not page.named("img")


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_reached_nothing_still_has_a_report(status):
    bare = ReportData(
        title="digits",
        run_name="run",
        created="today",
        status=status,
        status_detail="The disk is full.",
        class_names=["0", "1"],
    )
    words = Page(render_report(bare)).words
    assert "There is no result yet: no epoch was completed." in words
    assert "leaves out the data, the model, the curves, the test result" in words
    assert status in words
    assert "The disk is full." in words


def test_an_interrupted_training_shows_what_it_reached():
    accuracy = [0.5, 0.8, 0.7]
    training = TrainingFacts(
        history=[{"epoch": e + 1, "train_loss": 0.5, "validation_accuracy": a} for e, a in enumerate(accuracy)]
    )
    page = Page(render_report(report(status="interrupted", training=training, test=None)))
    assert "Not tested yet. The best validation accuracy so far is 80.0%, in epoch 2 of 3." in page.words
    assert "leaves out the test result" in page.words
    assert len(page.named("svg")) == 2


def test_a_diverged_training_renders():
    training = TrainingFacts(history=[{"epoch": 1, "train_loss": float("nan")}])
    words = Page(render_report(report(status="failed", training=training, test=None))).words
    assert "training diverged" in words


def test_a_result_no_better_than_guessing_is_called_that():
    targets = np.array([0, 1] * 20)
    scores = score_probabilities(np.tile(np.float32([0.6, 0.4]), (40, 1)), targets, train_targets=np.array([0]))
    words = Page(render_report(report(["cat", "dog"], test=scores))).words
    assert "does not show that the network has learned anything" in words


def test_a_file_name_that_is_not_unicode_can_still_be_written():
    source = SourceFacts(name="photos", rejected=[("bad\udcff.jpg", "not a picture")])
    html = render_report(report(source=source))
    assert "bad?.jpg" in html
    html.encode("utf-8")


def test_many_rejected_files_are_counted_and_the_first_hundred_listed():
    source = SourceFacts(name="photos", rejected=[(f"{i}.jpg", "empty") for i in range(250)])
    page = Page(render_report(report(source=source)))
    assert len(page.table("file", "reason")) == 100
    assert "250 files could not be used and were left out" in page.words


def test_the_same_run_gives_the_same_page(html):
    assert render_report(report()) == html


def test_names_and_numbers_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"2 class names.*\[2, 2\]; found \[3, 3\]"):
        render_report(report(class_names=["a", "b"], source=None))
    source = SourceFacts(name="x", class_counts={"train": [1, 2]})
    with pytest.raises(ValueError, match="counts of 2 classes in the train part"):
        render_report(report(source=source))
