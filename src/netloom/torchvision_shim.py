"""The only door to torchvision, which imports beside a CPU build of torch through it.

On a CPU build of torch, torchvision's common wheel cannot load its compiled operators, and `import
torchvision` then fails where it registers Python kernels for `nms` and `qnms`. Declaring those two
is enough for its transforms, models, data sets and for timm; the compiled parts (its JPEG decoder,
`nms` itself) stay unavailable.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any, cast

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declarations: list[Any] = []  # a declaration lives as long as its Library object


def _declare_missing_operators() -> None:
    library: Any = cast(Any, torch.library.Library)("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(name + _SIGNATURE)
    _declarations.append(library)


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision package, imported so that it works on CPU builds of torch too.

    Raises:
        ImportError: torchvision is not installed.
    """
    # Declaring first would be simpler, but then a wheel whose operators do load fails: a namespace
    # can be defined only once. Before the first import nothing tells which of the two wheels this
    # is.
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    _declare_missing_operators()
    return importlib.import_module("torchvision")
