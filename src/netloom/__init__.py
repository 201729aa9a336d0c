"""netloom: from labelled pictures to a classifier you can trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netloom.data.imageset import ImageSet as ImageSet
    from netloom.errors import NetloomError as NetloomError
    from netloom.recipe import Recipe as Recipe
    from netloom.recipe import load_recipe as load_recipe
    from netloom.training.callbacks import Callback as Callback
    from netloom.tuning.maximize import maximize as maximize
    from netloom.workflows.augment_preview import augment_preview as augment_preview
    from netloom.workflows.backbones import backbones as backbones
    from netloom.workflows.compare import compare as compare
    from netloom.workflows.cross_validate import cross_validate as cross_validate
    from netloom.workflows.cross_validate import resume_cross_validation as resume_cross_validation
    from netloom.workflows.evaluate import evaluate as evaluate
    from netloom.workflows.inspect import audit_source as audit  # noqa: F401
    from netloom.workflows.lr_find import lr_find as lr_find
    from netloom.workflows.predict import predict as predict
    from netloom.workflows.pretrain import pretrain as pretrain
    from netloom.workflows.pretrain import resume_pretraining as resume_pretraining
    from netloom.workflows.runs import Run as Run
    from netloom.workflows.runs import load as load
    from netloom.workflows.study import Study as Study
    from netloom.workflows.study import load_study as load_study
    from netloom.workflows.summarize import summary as summary
    from netloom.workflows.train import resume as resume
    from netloom.workflows.train import train as train
    from netloom.workflows.transfer import transfer as transfer
    from netloom.workflows.tune import resume_tune as resume_tune
    from netloom.workflows.tune import tune as tune

# Public names and where they live. They are imported when first used, so that `netloom --help` and the processes
# that decode pictures never import torch.
_PUBLIC = {
    "Callback": ("netloom.training.callbacks", "Callback"),
    "ImageSet": ("netloom.data.imageset", "ImageSet"),
    "NetloomError": ("netloom.errors", "NetloomError"),
    "Recipe": ("netloom.recipe", "Recipe"),
    "Study": ("netloom.workflows.study", "Study"),
    "Run": ("netloom.workflows.runs", "Run"),
    "audit": ("netloom.workflows.inspect", "audit_source"),
    "augment_preview": ("netloom.workflows.augment_preview", "augment_preview"),
    "backbones": ("netloom.workflows.backbones", "backbones"),
    "compare": ("netloom.workflows.compare", "compare"),
    "cross_validate": ("netloom.workflows.cross_validate", "cross_validate"),
    "evaluate": ("netloom.workflows.evaluate", "evaluate"),
    "load": ("netloom.workflows.runs", "load"),
    "load_recipe": ("netloom.recipe", "load_recipe"),
    "load_study": ("netloom.workflows.study", "load_study"),
    "lr_find": ("netloom.workflows.lr_find", "lr_find"),
    "maximize": ("netloom.tuning.maximize", "maximize"),
    "predict": ("netloom.workflows.predict", "predict"),
    "pretrain": ("netloom.workflows.pretrain", "pretrain"),
    "resume": ("netloom.workflows.train", "resume"),
    "resume_cross_validation": ("netloom.workflows.cross_validate", "resume_cross_validation"),
    "resume_pretraining": ("netloom.workflows.pretrain", "resume_pretraining"),
    "summary": ("netloom.workflows.summarize", "summary"),
    "resume_tune": ("netloom.workflows.tune", "resume_tune"),
    "train": ("netloom.workflows.train", "train"),
    "transfer": ("netloom.workflows.transfer", "transfer"),
    "tune": ("netloom.workflows.tune", "tune"),
}
__all__ = [*sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'netloom' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
