from __future__ import annotations

import subprocess
import sys

import netloom


def test_public_names_are_these_and_all_resolve() -> None:
    expected = (
        "Callback ImageSet NetloomError Recipe Run Study audit augment_preview backbones compare cross_validate "
        "evaluate load load_recipe load_study lr_find maximize predict pretrain resume resume_cross_validation "
        "resume_pretraining resume_tune summary train transfer tune"
    )
    assert netloom.__all__ == expected.split()
    for name in netloom.__all__:
        assert getattr(netloom, name) is not None


def test_functions_are_not_hidden_by_folders() -> None:
    code = (
        "import netloom, netloom.workflows.train, netloom.training.loop\n"
        "assert callable(netloom.train) and callable(netloom.evaluate) and callable(netloom.audit)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_netloom_and_its_help_does_not_import_torch() -> None:
    code = (
        "import sys, netloom, netloom.cli\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(netloom.cli.app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
