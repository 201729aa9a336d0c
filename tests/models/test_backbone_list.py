"""The list of backbones says what timm's networks are, and how long they take."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

from netloom.models import create_model
from netloom.models.backbone_list import Backbone, listed_backbones, published_sources
from netloom.models.backbone_speed import Speed, measure_cpu
from netloom.models.backbones import pretrained_config, timm
from netloom.models.summary import summarize

COUNTED = 6  # networks whose counts the default run repeats, the smallest


def each_backbone() -> list[Any]:
    by_size = sorted(listed_backbones(), key=lambda b: b.parameters)
    return [
        pytest.param(found, id=found.name, marks=pytest.mark.slow if number >= COUNTED else ())
        for number, found in enumerate(by_size)
    ]


def test_forty_backbones_of_many_families_are_listed() -> None:
    found = listed_backbones()
    assert len({b.name for b in found}) == len(found) == 40
    assert len({b.family for b in found}) >= 20
    assert {"resnet18", "vgg16", "vgg19", "mobilenetv1_100"} <= {b.name for b in found}


def test_weights_sizes_and_licences_are_those_that_timm_tells() -> None:
    for found in listed_backbones():
        config = pretrained_config(found.name)
        assert (found.weights, found.licence) == (config["tag"], config["license"])
        assert config["input_size"] == (3, found.own_size, found.own_size)
        architecture = found.name.partition(".")[0]
        assert f"{architecture}.{found.weights}" in timm().list_pretrained(f"{architecture}.*")


def test_accuracies_say_how_they_were_got() -> None:
    kinds = {found.top1_by for found in listed_backbones()}
    assert kinds == {"classifier", "linear probe", "zero-shot", None}
    for found in listed_backbones():
        assert (found.top1 is None) == (found.top1_by is None)
        assert found.top1 is None or 60 < found.top1 < 90
    sources = " ".join(published_sources())
    assert all(kind in sources for kind in kinds if kind)


@pytest.mark.parametrize("found", each_backbone())
def test_counts_are_those_of_the_networks(found: Backbone) -> None:
    size = (found.image_size, found.image_size)
    with torch.device("meta"):
        model = create_model(f"timm/{found.name}", in_channels=3, num_outputs=1, image_size=size, seed=0)
    summary = summarize(model, input_shape=(3, *size))
    assert found.features == model.classifier.in_features
    assert found.parameters == summary.parameters - found.features - 1
    assert found.multiply_adds == summary.multiply_adds - found.features


def test_vgg16_is_the_base_of_the_document() -> None:
    """Chollet, Deep learning with Python, 2017, section 5.3: 14,714,688 parameters without dense layers."""
    (vgg16,) = (found for found in listed_backbones() if found.name == "vgg16")
    assert vgg16.parameters == 14_714_688


def test_a_size_that_is_not_a_networks_own_is_part_of_its_options() -> None:
    options = {found.name: found.options for found in listed_backbones()}
    assert options["resnet18"] == "--backbone resnet18"
    assert options["vit_small_patch14_dinov2"] == "--backbone vit_small_patch14_dinov2 --set image_size=224"


def test_time_is_arithmetic_and_memory_traffic() -> None:
    (found,) = (b for b in listed_backbones() if b.name == "resnet18")
    speed = Speed(multiply_adds=1e9, written_values=1e6, machine="a machine")
    assert speed.seconds(found, 3) == pytest.approx(3 * (found.multiply_adds / 1e9 + found.written_values / 1e6))


def test_the_rule_meets_a_networks_time_on_this_machine() -> None:
    """Within a factor of four here, whatever the machine; within 1.4 where it was fitted."""
    (found,) = (b for b in listed_backbones() if b.name == "mobilenetv1_100")
    model = create_model("timm/mobilenetv1_100", in_channels=3, num_outputs=1, image_size=(224, 224), seed=0).eval()
    threads = torch.get_num_threads()
    expected = measure_cpu(1).seconds(found, 4)
    assert torch.get_num_threads() == threads
    pictures = torch.zeros(4, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    spent = []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(4):
                start = time.thread_time()
                model(pictures)
                spent.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert 0.25 < expected / statistics.median(spent) < 4


def test_more_threads_are_expected_to_gain_less_than_their_number() -> None:
    one, four = measure_cpu(1), measure_cpu(4)
    assert "1 thread" in one.machine
    assert "4 threads" in four.machine
    assert 2 < four.multiply_adds / one.multiply_adds < 6
