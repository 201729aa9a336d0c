"""From JPEG files to the features of a pretrained network: netloom, a plain PyTorch loop, Keras on TensorFlow.

    python -m benchmarks.features ARCHIVE --weights mobilenetv1_100.safetensors [--peers PYTHON] [--rounds 3] [--only …]

MobileNet v1 at 224x224, without its classifier, over all pictures of a zip archive of one folder per class (within one
per part, or not). Contenders, each in a process of its own, taking turns:

- `netloom`: what `netloom transfer --mode features` does until it has the features: reads the archive, decodes,
  audits and resizes all pictures, hashes them, runs the network and keeps pictures and features in empty caches;
- `pytorch`: timm's network in float32 and evaluation mode, torchvision's ImageFolder with Resize, CenterCrop, ToTensor
  and Normalize, a DataLoader with batches of 32, without worker processes and with one for each processor;
- `keras`: MobileNet as Keras has it (`weights=None`: they are downloaded, and do not change the time), pictures by
  `image_dataset_from_directory` with prefetching, `predict`; only with `--peers`, a Python with keras and tensorflow.

The peers get the files unpacked. Time is from the first look at the pictures to the last feature, without imports and
without building the network. Pictures a second are all pictures over that time; of netloom also those of the network's
pass alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save

_NETLOOM = """
import json, sys, time
from netloom.progress import Reporter
from netloom.workflows import builders
from netloom.workflows.fitting import Fitting
from netloom.workflows.prepare import prepare_data
from netloom.workflows.train import recipe_for
from netloom.torchvision_shim import torchvision
torchvision()
import timm
archive, weights = sys.argv[1:]
recipe = recipe_for(archive, "transfer-features", {"model": "timm/mobilenetv1_100", "transfer.weights": weights})
started = time.perf_counter()
data = prepare_data(archive, recipe, Reporter(quiet=True))
heads = builders.build_heads(recipe, data.facts.class_names)
network = builders.build_model(recipe, in_channels=data.facts.channels, num_outputs=heads[0].num_outputs,
                            image_size=data.facts.image_size)
scaling = builders.build_scaling(recipe, data.image_set.images, data.split.train)
fitting = Fitting.prepare(recipe, network, heads, data.image_set, data.split, scaling=scaling, device="cpu")
plan = fitting.choose_plan()
decoded = time.perf_counter()
fitting.extract(plan)
now = time.perf_counter()
n = len(fitting.known[0].features)
assert tuple(data.image_set.images.shape[1:]) == (3, 224, 224)
print(json.dumps({"n": n, "seconds": now - started, "network_seconds": now - decoded}))
"""

_PYTORCH = """
import json, sys, time
import torch
from netloom.torchvision_shim import torchvision
datasets, transforms = torchvision().datasets, torchvision().transforms
import timm
from safetensors.torch import load_file
folders, weights, workers = sys.argv[1].split(":"), sys.argv[2], int(sys.argv[3])
model = timm.create_model("mobilenetv1_100", num_classes=0).eval()
model.load_state_dict({k: v for k, v in load_file(weights).items() if not k.startswith("classifier.")})
mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
transform = transforms.Compose([
    transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)])
started = time.perf_counter()
n = 0
with torch.no_grad():
    for folder in folders:
        pictures = datasets.ImageFolder(folder, transform)
        for inputs, _ in torch.utils.data.DataLoader(pictures, batch_size=32, num_workers=workers):
            n += len(model(inputs).numpy())
print(json.dumps({"n": n, "seconds": time.perf_counter() - started}))
"""

_KERAS = """
import json, sys, time
import keras, tensorflow as tf
folders = sys.argv[1].split(":")
model = keras.applications.MobileNet(input_shape=(224, 224, 3), include_top=False, pooling="avg", weights=None)
inputs = keras.Input((224, 224, 3))
model = keras.Model(inputs, model(keras.layers.Rescaling(1 / 127.5, -1)(inputs)))
started = time.perf_counter()
n = 0
for folder in folders:
    pictures = keras.utils.image_dataset_from_directory(
        folder, image_size=(224, 224), batch_size=32, shuffle=False, verbose=False)
    n += len(model.predict(pictures.prefetch(tf.data.AUTOTUNE), verbose=0))
print(json.dumps({"n": n, "seconds": time.perf_counter() - started}))
"""


def measure(line: list[str], cache: Path) -> dict[str, Any]:
    """What a contender prints about itself."""
    environment = {
        **os.environ,
        "NETLOOM_CACHE": str(cache),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{line[0]} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def folders_of(root: Path) -> list[Path]:
    """The folders that hold one folder per class."""
    return sorted({file.parent.parent for file in root.rglob("*.jpg")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with keras and tensorflow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders whose names begin so; all without it")
    arguments = parser.parse_args()
    weights = str(arguments.weights.resolve())
    others = OtherWork()
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        with zipfile.ZipFile(arguments.archive) as archive:
            archive.extractall(pictures)
        folders = ":".join(map(str, folders_of(pictures)))
        contenders = {"netloom": [sys.executable, "-c", _NETLOOM, str(arguments.archive.resolve()), weights]}
        for workers in (0, os.cpu_count() or 1):
            contenders[f"pytorch, {workers} workers"] = [sys.executable, "-c", _PYTORCH, folders, weights, str(workers)]
        if arguments.peers:
            contenders["keras"] = [arguments.peers, "-c", _KERAS, folders]
        if arguments.only:
            contenders = {n: line for n, line in contenders.items() if n.startswith(tuple(arguments.only))}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for number in range(arguments.rounds):
            for name, line in contenders.items():
                found[name].append(measure(line, Path(scratch) / f"cache{number}"))
                print(number, name, f"{found[name][-1]['n'] / found[name][-1]['seconds']:.1f} pictures/s", flush=True)
    save("features", found, {"backbone": "mobilenetv1_100", "image_size": 224}, others)


if __name__ == "__main__":
    main()
