"""Pictures that exceed the memory that a process may use."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

N, SIDE = 9000, 96  # 249 MB
ALLOWED_BYTES = 64 << 20  # beside what Python and torch have taken
_SCRIPT = """
import hashlib, resource, sys
from pathlib import Path

import numpy as np
import torch

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.data.imageset import ImageSet
from netloom.data import mapping
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan
from netloom.training.loop import fit

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(432, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for group in optimizer.param_groups:
    group["base_lr"] = 0.01
limited = sys.argv[1] == "limited"
if limited:
    status = Path("/proc/self/status").read_text()
    taken = int(status.split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + {allowed}, resource.RLIM_INFINITY))
    # Python and torch have taken more than the pictures need: only what is left counts here.
    mapping.memory_limit_bytes = lambda: {allowed}
    try:
        np.load("pixels.npy")
    except MemoryError:
        pass
    else:
        raise AssertionError("the pictures fit the memory")
pixels = mapping.map_pixels(Path("pixels.npy")) if limited else np.load("pixels.npy")
assert pixels.flags.writeable != limited
image_set = ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 2)
def batches(indices, **options):
    scaling = InputScaling.standardizing(image_set.images, np.arange(1000))
    targets = {{"label": image_set.targets}}
    return ImageBatches(image_set.images, targets, indices, batch_size=32, scaling=scaling, **options)
flips = Augmenter(AugmentationSpec(horizontal_flip=True), seed=1)
state = fit(
    model,
    train=batches(np.arange(8000), shuffle=True, seed=5, augmenter=flips),
    validation=batches(np.arange(8000, 9000)),
    heads=[Head(name="label", kind="softmax", class_names=("a", "b"))],
    optimizer=optimizer,
    plan=ExecutionPlan("cpu", 1, "float32"),
    epochs=2,
    seed=1,
)
figures = [[row[key] for key in ("train_loss", "validation_loss", "train_accuracy")] for row in state.history]
weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
print(figures, hashlib.sha256(weights).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_training_gives_the_same_bits_as_in_memory(tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.Philox(1))
    pixels = np.frombuffer(generator.bytes(N * SIDE * SIDE * 3), dtype=np.uint8).reshape(N, SIDE, SIDE, 3)
    np.save(tmp_path / "pixels.npy", pixels)
    before = hashlib.sha256((tmp_path / "pixels.npy").read_bytes()).hexdigest()
    (tmp_path / "script.py").write_text(_SCRIPT.format(allowed=ALLOWED_BYTES))
    outputs = []
    for way in ("unlimited", "limited"):
        command = [sys.executable, "script.py", way]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert len(outputs[0].split()[-1]) == 64
    assert outputs[0] == outputs[1]
    assert hashlib.sha256((tmp_path / "pixels.npy").read_bytes()).hexdigest() == before
