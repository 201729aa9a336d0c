"""What the features of a network of photographs are worth on small pictures, for docs/cookbook.md.

    python -m benchmarks.backbone_limits --weights mobilenetv1_100.safetensors [--sources S ...] [--sizes N ...]

`netloom transfer SOURCE --backbone mobilenetv1_100 --mode features --set image_size=N`: objects of 32x32 pixels and
handwritten digits of 28x28, enlarged to sizes that the network can read. Sources are found in `NETLOOM_DATA` or
downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.netloom_command import BACKBONE, run_command, scores_of_test
from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=["cifar10", "mnist"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 224])
    arguments = parser.parse_args()
    for source in arguments.sources:
        for size in arguments.sizes:
            others = OtherWork()
            line = ["transfer", source, "--backbone", BACKBONE, "--weights", str(arguments.weights)]
            line += ["--mode", "features", "--set", f"image_size={size}"]
            with tempfile.TemporaryDirectory() as scratch:
                result, seconds = run_command([*line, "--out", f"{scratch}/runs"], Path(scratch) / "cache")
            test = scores_of_test(result)
            one = {"test": test, "train_n": result["train_n"], "seconds": seconds}
            print(source, size, f"{test['accuracy']:.2%} in {seconds:.0f} s", flush=True)
            save("backbone_limits", {f"{source}, {size}": [one]}, {"backbone": BACKBONE}, others)


if __name__ == "__main__":
    main()
