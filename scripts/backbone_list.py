"""Write src/netloom/models/backbones.yaml: facts about the listed backbones, counted on the networks themselves.

    python scripts/backbone_list.py --results results-imagenet.csv   # timm's results/results-imagenet.csv
    python scripts/backbone_list.py --check                          # counts and licences as timm has them today

Networks are built on the meta device, without weights. Accuracies are looked up in timm's table for the very weights
and size of pictures; those that are published elsewhere are in `ELSEWHERE`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from netloom.models import create_model
from netloom.models.backbone_list import Backbone, listed_backbones
from netloom.models.backbones import pretrained_config, timm
from netloom.models.summary import summarize

TARGET = Path(__file__).parent.parent / "src" / "netloom" / "models" / "backbones.yaml"
NOTE = "# Written by scripts/backbone_list.py; edit the choice there.\n"

IMAGENET = "ImageNet-1k"
# Name, family, what the weights were trained on; in the order in which the list shows them.
CHOSEN: tuple[tuple[str, str, str], ...] = (
    ("mobilenetv1_100", "mobilenetv1", IMAGENET),
    ("mobilenetv3_small_100", "mobilenetv3", IMAGENET),
    ("mobilenetv3_large_100", "mobilenetv3", IMAGENET),
    ("mobilenetv4_conv_small", "mobilenetv4", IMAGENET),
    ("mobilenetv4_conv_medium", "mobilenetv4", IMAGENET),
    ("efficientnet_lite0", "efficientnet", IMAGENET),
    ("efficientnet_b0.ra4_e3600_r224_in1k", "efficientnet", IMAGENET),
    ("ghostnet_100", "ghostnet", IMAGENET),
    ("mobileone_s1", "mobileone", IMAGENET),
    ("hgnetv2_b0", "hgnetv2", IMAGENET),
    ("resnet18", "resnet", IMAGENET),
    ("resnet34.ra4_e3600_r224_in1k", "resnet", IMAGENET),
    ("resnet50", "resnet", IMAGENET),
    ("regnety_004", "regnety", IMAGENET),
    ("regnety_016", "regnety", IMAGENET),
    ("regnety_032", "regnety", IMAGENET),
    ("densenet121", "densenet", IMAGENET),
    ("vgg16", "vgg", IMAGENET),
    ("vgg19", "vgg", IMAGENET),
    ("convnext_atto", "convnext", IMAGENET),
    ("convnext_pico", "convnext", IMAGENET),
    ("convnext_nano", "convnext", "ImageNet-12k"),
    ("convnext_tiny", "convnext", "ImageNet-12k"),
    ("convnext_small", "convnext", "ImageNet-12k"),
    ("convnextv2_tiny", "convnextv2", "ImageNet-22k"),
    ("tiny_vit_5m_224.dist_in22k_ft_in1k", "tiny_vit", "ImageNet-22k"),
    ("tiny_vit_11m_224.dist_in22k_ft_in1k", "tiny_vit", "ImageNet-22k"),
    ("swin_tiny_patch4_window7_224", "swin", IMAGENET),
    ("vit_tiny_patch16_224", "vit", "ImageNet-21k"),
    ("vit_small_patch16_224", "vit", "ImageNet-21k"),
    ("vit_base_patch16_224", "vit", "ImageNet-21k"),
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", "deit", "ImageNet-22k"),
    ("eva02_tiny_patch14_336", "eva02", "ImageNet-22k"),
    ("eva02_small_patch14_336", "eva02", "ImageNet-22k"),
    ("vit_base_patch32_clip_224", "clip", "LAION-2B, ImageNet-12k"),
    ("vit_base_patch16_clip_224", "clip", "LAION-2B, ImageNet-12k"),
    ("vit_base_patch32_clip_quickgelu_224.openai", "clip", "OpenAI's pictures with text"),
    ("vit_small_patch14_dinov2", "dinov2", "LVD-142M, no labels"),
    ("vit_base_patch14_dinov2", "dinov2", "LVD-142M, no labels"),
    ("vit_small_patch16_dinov3", "dinov3", "LVD-1689M, no labels"),
)
# DINOv2's own size of 518 costs nine times the arithmetic; its linear probes were published at 224.
OTHER_SIZES = {"vit_small_patch14_dinov2": 224, "vit_base_patch14_dinov2": 224}
SOURCES = (
    "timm, results/results-imagenet.csv as of August 2026, row of the same weights and size of pictures: classifier",
    "DINOv2's own list of models (Oquab et al., 2023; facebookresearch/dinov2, README): linear probe",
    "OpenCLIP, docs/openclip_classification_results.csv, OpenAI's CLIP (Radford et al., 2021): zero-shot",
)
ELSEWHERE = {
    "vit_small_patch14_dinov2": (81.1, "linear probe"),
    "vit_base_patch14_dinov2": (84.5, "linear probe"),
    "vit_base_patch32_clip_quickgelu_224.openai": (63.32, "zero-shot"),
    "vit_small_patch16_dinov3": (None, None),  # only other data sets' figures are published for this size of network
}


class WrittenValues(TorchDispatchMode):
    """Counts the numbers that operations write; what only looks at a tensor in another way writes none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        result = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if isinstance(result, Tensor) and not is_view:
            self.count += result.numel()
        return result


def examined(name: str, family: str, pretraining: str) -> dict[str, Any]:
    """Everything but the accuracy."""
    config = pretrained_config(name)
    own_size = int(config["input_size"][1])
    size = OTHER_SIZES.get(name, own_size)
    with torch.device("meta"):
        model = create_model(f"timm/{name}", in_channels=3, num_outputs=1, image_size=(size, size), seed=0).eval()
        summary = summarize(model, input_shape=(3, size, size))
        with torch.no_grad(), WrittenValues() as written:
            model.forward_head(model.forward_features(torch.empty(1, 3, size, size)), pre_logits=True)
    features = model.classifier.in_features
    return {
        "name": name,
        "weights": str(config["tag"]),
        "family": family,
        "pretraining": pretraining,
        "image_size": size,
        "own_size": own_size,
        "parameters": summary.parameters - features - 1,
        "multiply_adds": summary.multiply_adds - features,
        "written_values": written.count,
        "features": features,
        "licence": str(config["license"]),
    }


def accuracy(fact: dict[str, Any], table: dict[tuple[str, str], float]) -> tuple[float | None, str | None]:
    """Top-1 in percent and how it was got, from where it is published."""
    if fact["name"] in ELSEWHERE:
        return ELSEWHERE[fact["name"]]
    architecture = fact["name"].partition(".")[0]
    return table[f"{architecture}.{fact['weights']}", str(fact["image_size"])], "classifier"


def check(facts: list[dict[str, Any]]) -> int:
    """Say what differs between the file and timm as it is."""
    listed = {backbone.name: asdict(backbone) for backbone in listed_backbones()}
    wrong = [
        f"{f['name']} {key}: {value}" for f in facts for key, value in f.items() if listed[f["name"]][key] != value
    ]
    print("\n".join(wrong) or f"{len(facts)} backbones are as timm {timm().__version__} has them.")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--results", type=Path)
    what.add_argument("--check", action="store_true")
    given = parser.parse_args()
    facts = [examined(*choice) for choice in CHOSEN]
    if given.check:
        return check(facts)
    with given.results.open(encoding="utf-8", newline="") as file:
        table = {(row["model"], row["img_size"]): float(row["top1"]) for row in csv.DictReader(file)}
    for fact in facts:
        fact["top1"], fact["top1_by"] = accuracy(fact, table)
    assert all(set(fact) == set(Backbone.__dataclass_fields__) for fact in facts)
    content = {"timm": timm().__version__, "sources": list(SOURCES), "backbones": facts}
    TARGET.write_text(NOTE + yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
