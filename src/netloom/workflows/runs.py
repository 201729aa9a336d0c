"""A trained run to work with: its files, its model, its predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from netloom.errors import RunError
from netloom.run import RunFolder
from netloom.training.checkpoint import load_weights
from netloom.workflows.builders import CustomModel, build_network


class Run(RunFolder):
    """A run, from `netloom.train` or `netloom.load`.

    Args:
        path: The run's folder.
        model: The network, or the function making it, where the run trained one of the user's own.
    """

    def __init__(self, path: str | Path, *, model: CustomModel | None = None) -> None:
        super().__init__(path)
        self.custom_model = model

    def model(self) -> nn.Module:
        """The network with its kept weights, on the CPU in evaluation mode.

        Raises:
            RunError: The weights are missing or damaged.
            ModelError: The network was the user's own and was not given.
        """
        if not self.weights_path.is_file():
            raise RunError(f"{self.path} has no weights yet; its training did not finish an epoch.")
        model, _ = build_network(self.recipe, self.data, self.custom_model)
        load_weights(model.cpu(), self.weights_path)
        return model.eval()

    def evaluate(
        self, source: str | Path | None = None, *, part: str | None = None, device: str = "auto"
    ) -> dict[str, Any]:
        """Scores on a part of the run's own data or on other labelled pictures; see `workflows.evaluate`."""
        from netloom.workflows.evaluate import evaluate

        return evaluate(self, source, part=part, device=device)

    def predict(
        self, paths: str | Path | Iterable[str | Path], *, top: int = 1, device: str = "auto"
    ) -> list[dict[str, Any]]:
        """The likeliest classes of pictures; see `workflows.predict`."""
        from netloom.workflows.predict import predict

        return predict(self, paths, top=top, device=device)


def load(run: str | Path | RunFolder, *, model: CustomModel | None = None) -> Run:
    """Open an existing run.

    Args:
        run: Its folder.
        model: The network, or the function making it, where the run trained one of the user's own.

    Raises:
        RunError: There is no run there.
    """
    if isinstance(run, Run) and model is None:
        return run
    path = run.path if isinstance(run, RunFolder) else run
    return Run(RunFolder.open(path).path, model=model)


def load_classifier(run: str | Path | RunFolder, *, model: CustomModel | None = None) -> Run:
    """Open an existing run that tells classes apart.

    Args:
        run: Its folder.
        model: As for `load`.

    Raises:
        RunError: There is no run there, or it was trained without labels.
    """
    opened = load(run, model=model)
    if not opened.data.class_names:
        raise RunError(
            f"{opened.path} was trained without labels (netloom pretrain), so that it knows no classes. Make a "
            f"classifier of it first: netloom transfer SOURCE --backbone {opened.path}"
        )
    return opened
