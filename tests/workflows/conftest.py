from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from netloom.workflows import training_job
from picture_folders import write_folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Leaves nothing to measure, so that every training of a module has the same execution plan."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of three classes."""
    return write_folder(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture
def fold_2_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the second fold of any job cannot be written, since a folder has its name."""
    create = training_job.create_run

    def sabotaged(path: Path, *arguments: Any) -> Any:
        run = create(path, *arguments)
        if path.name == "fold-2":
            run.checkpoint_path.mkdir()
        return run

    monkeypatch.setattr(training_job, "create_run", sabotaged)
