"""When torch's compiler is imported, which takes a second: where steps are traced, and not to make an optimizer."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from typing import Any

import torch

from netloom.memory import without_garbage_collection

_COMPILER = "torch._dynamo"
# Where torch keeps what it calls in place of a function that is not to be compiled, from its first call on.
_INSTEAD = "__dynamo_disable"
_METHODS_NOT_COMPILED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def import_compiler() -> None:
    """Import it, without looking for garbage meanwhile, of which there is none: a quarter faster."""
    with without_garbage_collection(), contextlib.suppress(ImportError):  # who needs it says what is missing
        importlib.import_module(_COMPILER)


def optimizers_without_compiler() -> None:
    """Let optimizers be made and saved without it, as long as nobody has imported it.

    torch imports it at the first call of these methods, only to tell it that they are not to be compiled.
    """
    if _COMPILER not in sys.modules:
        for name in _METHODS_NOT_COMPILED:
            _call_plainly(vars(torch.optim.Optimizer).get(name))


def _call_plainly(method: Any) -> None:
    plain = getattr(method, "__wrapped__", None)
    if plain is None or hasattr(plain, _INSTEAD):
        return

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return plain(*args, **kwargs)
        delattr(plain, _INSTEAD)  # torch puts its own there
        return method(*args, **kwargs)

    setattr(plain, _INSTEAD, call)
