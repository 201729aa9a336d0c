"""The CIFAR-10 record's program on this machine: its text is changed where it must be, and nowhere else."""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.cifar10_fast import Setting, adapted, said, save_pictures
from PIL import Image

ON_CPU = Setting("cpu", "float32", compiled=False)

# What the program is made of, in its own words, as far as it is changed; trained is nothing.
IMITATION = """\
import os
import sys
with open(sys.argv[0]) as f:
    code = f.read()
from math import ceil

import torch
import torchvision
import torchvision.transforms as T

@torch.compile
def zeropower_via_newtonschulz5(G):
    X = G.bfloat16()
    return X

class CifarLoader:
    def __init__(self, path, train):
        data_path = os.path.join(path, "train.pt" if train else "test.pt")
        data = torch.load(data_path, map_location=torch.device("cuda"))
        self.images, self.labels, self.classes = data["images"], data["labels"], data["classes"]
        self.images = (self.images.half() / 255).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
        self.normalize = T.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __len__(self):
        return len(self.images)

class CifarNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 10, bias=False)
        for mod in self.modules():
            if isinstance(mod, torch.nn.BatchNorm2d):
                mod.float()
            else:
                mod.half()

    def forward(self, x, whiten_bias_grad=True):
        return self.head(x.mean((2, 3)))

def main(run, model):
    train_loader = CifarLoader("cifar10", train=True)
    total_train_steps = ceil(8 * len(train_loader))
    whiten_bias_train_steps, step = 1, 0
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    starter.record()
    for inputs in [train_loader.normalize(train_loader.images)]:
        if True:
            outputs = model(inputs, whiten_bias_grad=(step < whiten_bias_train_steps))
    with torch.no_grad():
        evaluated = model(inputs)
    if starter:
        ender.record()
        torch.cuda.synchronize()
    seconds = 1e-3 * starter.elapsed_time(ender)
    assert zeropower_via_newtonschulz5(model.head.weight.data).dtype == torch.float32
    print("DTYPES", outputs.dtype, evaluated.dtype, total_train_steps, torch.initial_seed())
    print("|  %s  |  eval  |  0.5000  |  0.2500  |  0.3125  |        %.4f  |" % (str(run).rjust(6), seconds))
    return 0.3125

if __name__ == "__main__":

    model = CifarNet().cuda().to(memory_format=torch.channels_last)
    model.compile(mode="max-autotune")

    main("warmup", model)
    accs = torch.tensor([main(run, model) for run in range(200)])
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32x32 pictures in two parts, of two classes, one red and one blue, as the program finds them."""
    source = tmp_path_factory.mktemp("source")
    for part, count in (("train", 10), ("test", 4)):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            folder = source / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shade = tuple(value and value + number + 20 * (part == "test") for value in colour)
                Image.new("RGB", (32, 32), shade).save(folder / f"{number}.png")
    folder = tmp_path_factory.mktemp("peer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        save_pictures(str(source), folder / "cifar10")
    return folder


def printed(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    program = folder / "airbench94_muon.py"
    program.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [program.name])
    state = torch.random.get_rng_state()
    runpy.run_path(program.name, run_name="__main__")
    torch.random.set_rng_state(state)
    return capsys.readouterr().out


def test_the_program_runs_once_on_a_cpu(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed(adapted(IMITATION, ON_CPU, seed=7, epochs=2), pictures, monkeypatch, capsys)
    assert output.splitlines()[0] == "DTYPES torch.float32 torch.float32 40 7"  # 2 epochs of 20 pictures
    assert output.count("eval") == 1
    found = said(output)
    assert found["accuracy"] == 0.3125
    assert 0 < found["seconds"] < 60


def test_bfloat16_is_autocast_around_float32_weights(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = adapted(IMITATION, Setting("cpu", "bfloat16", compiled=False), seed=0)
    # The update's own bfloat16 stays, which the imitation, made for float32, would mind.
    output = printed(text.replace("dtype == torch.float32", "dtype"), pictures, monkeypatch, capsys)
    assert output.splitlines()[0] == "DTYPES torch.float32 torch.bfloat16 160 0"


def test_on_a_gpu_runs_and_their_seed_alone_are_changed() -> None:
    text = adapted(IMITATION, Setting("cuda", "float16", compiled=True), seed=3)
    changed = [line[2:] for line in difflib.ndiff(IMITATION.splitlines(), text.splitlines()) if line[0] == "+"]
    assert changed == [
        "from netloom.torchvision_shim import torchvision; torchvision = torchvision()",
        "    torch.manual_seed(3)",
        "    accs = torch.tensor([main(run, model) for run in range(1)])",
    ]


def test_another_version_of_the_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 'X = G\.bfloat16\(\)' 1 times, found it 0 times"):
        adapted(IMITATION.replace("X = G.bfloat16()", "X = G.half()"), ON_CPU, seed=0)
    with pytest.raises(ValueError, match="no row of a last evaluation"):
        said("|  1  |  0  |  0.5000  |  0.2500  |          |        1.0000  |")


def test_the_program_gets_all_training_pictures_mixed_and_the_same_test_pictures(pictures: Path) -> None:
    train, test = (torch.load(pictures / "cifar10" / f"{part}.pt") for part in ("train", "test"))
    assert train["classes"] == test["classes"] == ["blue", "red"]
    for part, each, offset in ((train, 10, 0), (test, 4, 20)):
        images, labels = part["images"].numpy(), part["labels"].numpy()
        assert (images.dtype, images.shape) == (np.uint8, (2 * each, 32, 32, 3))
        for label, channel in ((0, 2), (1, 0)):
            shades = images[labels == label][:, 0, 0, channel]
            assert sorted(shades) == list(range(200 + offset, 200 + offset + each))
    assert 0 < int(train["labels"][:8].sum()) < 8  # the first are not of one class, as those of a folder are
