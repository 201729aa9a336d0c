"""Which backbones there are, what they cost on a machine, and which one is recommended."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.errors import DataError, NetloomError
from netloom.models import backbone_speed
from netloom.models.backbone_list import FREE_LICENCES, listed_backbones
from netloom.models.backbone_speed import Speed
from netloom.workflows.backbones import TimedBackbone, backbones, recommend, time_text


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> Speed:
    """A machine of known speed without a GPU: of four cores like those that the rule was fitted on."""
    speed = Speed(multiply_adds=130e9, written_values=3e9, machine="a laptop")
    monkeypatch.setattr(backbone_speed, "measure_cpu", lambda threads: speed)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return speed


def test_all_are_listed_with_the_features_time_of_two_thousand_pictures(laptop: Speed) -> None:
    table = netloom.backbones()
    assert [row.backbone for row in table.rows] == list(listed_backbones())
    assert (table.kind, table.pictures, table.machine, table.work) == ("cpu", 2000, "a laptop", "features")
    for row in table.rows:
        assert row.seconds == pytest.approx(laptop.seconds(row.backbone, 2000))


def test_those_that_fit_take_at_most_two_minutes() -> None:
    shown, all_of_them = backbones("cpu"), backbones()
    assert [r.backbone.name for r in shown.rows] == [r.backbone.name for r in all_of_them.rows if r.seconds <= 120]
    names = {row.backbone.name for row in shown.rows}
    assert {"mobilenetv1_100", "resnet18"} <= names
    assert not {"vgg19", "vit_base_patch14_dinov2"} & names
    more = {row.backbone.name for row in backbones("cpu", pictures=10_000).rows}
    assert more < names
    assert backbones("cpu", pictures=10_000).rows[0].seconds == pytest.approx(5 * shown.rows[0].seconds)


def test_a_gpu_is_asked_for_finetuning() -> None:
    table = backbones("gpu")
    assert (table.kind, table.work) == ("gpu", "10 epochs of fine-tuning")
    assert "RTX 3090" in table.machine
    assert "--mode finetune" in table.recommendation[0]
    assert {row.backbone.name for row in backbones("cpu").rows} < {row.backbone.name for row in table.rows}


def test_pictures_of_a_source_are_counted() -> None:
    assert backbones(source="digits").pictures == 1797


@pytest.mark.parametrize("fits", ["cpu", "gpu"])
def test_the_most_accurate_that_fits_and_is_free_is_recommended(fits: str) -> None:
    table = backbones(fits)
    able = [row.backbone for row in table.rows if row.backbone.licence in FREE_LICENCES]
    best = max(able, key=lambda b: b.top1 or 0)
    assert table.recommended == best.name
    assert f"{best.name} ({best.top1:.1f}%" in table.recommendation[0]
    assert "most accurate" in table.recommendation[0]
    assert f"netloom transfer SOURCE --backbone {best.name} --mode" in table.recommendation[0]


def test_licences_with_conditions_and_unknown_accuracies_are_never_recommended() -> None:
    best = dataclasses.replace(listed_backbones()[0], name="best", top1=99.0)
    bound = dataclasses.replace(best, licence="cc-by-nc-4.0", name="bound", top1=99.5)
    unknown = dataclasses.replace(best, name="unknown", top1=None)
    timed = [TimedBackbone(b, 1.0) for b in (bound, best, unknown)]
    assert recommend(timed, "cpu", 100)[0].name == "best"


def test_a_quick_one_is_named_beside_a_slow_one() -> None:
    quick = dataclasses.replace(listed_backbones()[0], name="quick", top1=70.0)
    slow = dataclasses.replace(quick, name="slow", top1=80.0)
    found, sentences = recommend([TimedBackbone(quick, 14.0), TimedBackbone(slow, 119.0)], "cpu", 100)
    assert found.name == "slow"
    assert len(sentences) == 2
    assert "first answer: quick (70.0%, about 14 s)" in sentences[1]
    assert len(recommend([TimedBackbone(quick, 14.0)], "cpu", 100)[1]) == 1


def test_where_nothing_fits_the_fastest_is_named_with_its_time() -> None:
    table = backbones("cpu", pictures=10_000_000)
    assert not table.rows
    assert table.recommended == "mobilenetv3_small_100"
    assert "Nothing of the list takes less than two minutes for 10,000,000 pictures" in table.recommendation[0]
    assert " h)" in table.recommendation[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.02, "0.1 s"), (3.04, "3 s"), (85.2, "85 s"), (104.6, "105 s"), (121, "2 min"), (3600, "60 min"), (9000, "2 h")],
)
def test_times_are_as_exact_as_they_are_known(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_mistakes_are_told() -> None:
    with pytest.raises(NetloomError, match=r"fits: expected cpu or gpu, got 'gpus'\. Did you mean 'gpu'"):
        backbones("gpus")
    for count in (0, -1, 10**10):
        with pytest.raises(NetloomError, match="pictures: expected 1 to"):
            backbones(pictures=count)
    with pytest.raises(NetloomError, match="not both"):
        backbones(pictures=3, source="digits")
    with pytest.raises(DataError, match="nowhere"):
        backbones(source="nowhere")


def test_the_command_shows_a_table_and_the_recommendation() -> None:
    result = CliRunner().invoke(app, ["backbones", "--fits", "cpu", "--pictures", "500"])
    assert result.exit_code == 0
    for text in ("mobilenetv1_100", "apache-2.0", "GMACs", "features of 500 pictures on a laptop", "Recommended: "):
        assert text in result.stdout
    assert "224 (own 518)" in result.stdout


def test_the_command_gives_one_json_object() -> None:
    result = CliRunner().invoke(app, ["backbones", "digits", "--json"])
    found = json.loads(result.stdout)
    assert found["pictures"] == 1797
    assert len(found["backbones"]) == len(listed_backbones())
    assert found["recommended"] in {b["name"] for b in found["backbones"]}
    assert {"name", "licence", "top1", "top1_by", "multiply_adds", "parameters", "seconds", "fits"} <= set(
        found["backbones"][0]
    )


@pytest.mark.parametrize(
    "arguments", [["--fits", "tpu"], ["--pictures", "0"], ["--pictures", "many"], ["digits", "--pictures", "3"], ["no"]]
)
def test_the_command_refuses_what_makes_no_sense(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["backbones", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.strip()
