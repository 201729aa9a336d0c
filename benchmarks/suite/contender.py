"""One measurement in a process of its own: reads a job, prints its figures as the last line of the output.

    python -m benchmarks.suite.contender '{"library": "pytorch", "benchmark": "train", …}'
    python -m benchmarks.suite.contender --versions

The second form prints the versions of what each library is made of, as far as it is installed.

Nothing heavy is imported before the process is bound to its processors, since libraries start their threads for those
that they see.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from benchmarks.suite import clock
from benchmarks.suite.errors import NotAvailableError

MARK = "figures: "
_LIBRARIES = {
    "netloom": ("with_netloom", ("netloom", "torch", "numpy", "pillow")),
    "pytorch": ("with_pytorch", ("torch", "torchvision", "numpy", "pillow")),
    "keras-tensorflow": ("with_keras", ("keras", "tensorflow", "tensorflow-cpu", "numpy")),
    "keras-torch": ("with_keras", ("keras", "torch", "numpy")),
    "lightning": ("with_lightning", ("lightning", "torch")),
    "fastai": ("with_fastai", ("fastai", "fastcore", "torch", "torchvision", "pillow")),
    "onnxruntime": ("with_onnxruntime", ("onnxruntime", "onnx", "torch")),
}


def bind(processors: list[int] | None) -> None:
    """Keep this process, its threads and its children on these processors, where the system can."""
    if processors is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)


def versions() -> dict[str, dict[str, str]]:
    """For each library the versions of Python and of those of its packages that are there."""
    python = {"python": platform.python_version()}
    return {library: python | _installed(packages) for library, (_, packages) in _LIBRARIES.items()}


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of a job, or why there are none.

    Returns:
        What `EpochClock.figures` gives, with `parameters`, `device` and `note`; or `{"missing": reason}` where the
        library is not installed, or not for this device.
    """
    module, _ = _LIBRARIES[job["library"]]
    if job["library"].startswith("keras-"):
        os.environ["KERAS_BACKEND"] = job["library"].removeprefix("keras-")
    try:
        if job["library"] == "keras-tensorflow":
            importlib.import_module("tensorflow")
        library = importlib.import_module(f"benchmarks.suite.libraries.{module}")
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed"}
    try:
        figures: dict[str, Any] = getattr(library, job["benchmark"])(job)
    except NotAvailableError as error:
        return {"missing": str(error)}
    return figures


def main() -> None:
    clock.process_started()
    if sys.argv[1] == "--versions":
        print(MARK + json.dumps(versions()))
        return
    job = json.loads(sys.argv[1])
    bind(job["processors"])
    print(MARK + json.dumps(run(job)), flush=True)


if __name__ == "__main__":
    main()
