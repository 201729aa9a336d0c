"""What a report says gives the same again does so, to the letter; where nothing would, it names no command."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.runtime import ExecutionPlan

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 8,
    "epochs": 1,
    "augmentation": None,
    "precision": "float32",
    "shards": 0,
}
OWN = {key: value for key, value in QUICK.items() if key != "filters"}


def network(in_channels: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(in_channels * 12 * 12, num_outputs))


def told_by(folder: Path) -> str:
    """The command or call of a report."""
    page = (folder / "report.html").read_text(encoding="utf-8").partition('id="made"')[2]
    assert "netloom train" not in page
    found = re.search(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def follow(call: str, **given: Any) -> Any:
    """Do what was told, to the letter."""
    return eval(call, {"netloom": netloom, **given})  # noqa: S307 - the very words that were told


def assert_same_weights(run: Path, again: Path) -> None:
    assert run != again
    one, other = ((path / "weights.safetensors").read_bytes() for path in (run, again))
    assert one == other


@pytest.mark.parametrize(("scheme", "name"), [({"folds": 2}, "fold-2"), ({"holdout": 0.3, "repeats": 2}, "repeat-2")])
def test_a_fold_is_repeated_by_its_cross_validation(
    photos: Path, tmp_path: Path, scheme: dict[str, Any], name: str
) -> None:
    found = netloom.cross_validate(photos, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK, **scheme)
    command = shlex.split(told_by(found.path / name))
    assert command[:3] == ["netloom", "cv", str(photos)]
    result = CliRunner().invoke(app, [*command[1:], "--jobs", "1", "--out", str(tmp_path / "again"), "-q"])
    assert result.exit_code == 0, result.output
    (again,) = (tmp_path / "again").glob(f"*/{name}")
    assert_same_weights(found.path / name, again)


def test_a_fold_away_from_the_others_tells_no_command(photos: Path, tmp_path: Path) -> None:
    found = netloom.cross_validate(photos, folds=2, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    alone = tmp_path / "alone"
    shutil.copytree(found.path / "fold-1", alone)
    netloom.resume(alone, epochs=2, quiet=True)
    page = (alone / "report.html").read_text(encoding="utf-8").partition('id="made"')[2]
    assert "fold 1 (2 folds)" in page
    assert not re.search("<code>netloom", page)


def test_a_network_of_the_users_own_is_repeated_from_python(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = netloom.train(photos, model=network, plan=PLAN, out=tmp_path / "one", quiet=True, settings=OWN)
    folds = netloom.cross_validate(
        photos, folds=2, jobs=1, model=network, plan=PLAN, out=tmp_path / "folds", quiet=True, settings=OWN
    )
    monkeypatch.chdir(tmp_path)
    assert_same_weights(run.path, follow(told_by(run.path), model=network).path)
    again = follow(told_by(folds.path / "fold-2"), model=network)
    assert_same_weights(folds.path / "fold-2", again.path / "fold-2")


def test_the_command_on_the_page_of_a_search_has_its_pictures(photos: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "my photos"), "zip", photos))
    found = netloom.tune(
        archive,
        space={"dropout": "0..0.5"},
        sampler="random",
        n_trials=1,
        final_seeds=0,
        jobs=1,
        plan=PLAN,
        out=tmp_path,
        quiet=True,
        settings=QUICK,
    )
    page = (found.path / "report.html").read_text(encoding="utf-8")
    (command,) = re.findall(r"<pre><code>(netloom train .*?)</code></pre>", page)
    _, _, source, _, recipe = shlex.split(html.unescape(command))
    assert Path(source).samefile(archive)
    assert netloom.load_recipe(recipe) == found.best_recipe


def how_to_get_the_same(run: netloom.Run) -> str:
    """The words of a report, without the command."""
    section = run.report_path.read_text(encoding="utf-8").partition('id="made"')[2].partition("</section>")[0]
    return html.unescape(section)


def test_an_extension_is_told_where_it_changes_the_result(photos: Path, tmp_path: Path) -> None:
    def extended(**settings: Any) -> netloom.Run:
        run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, **settings})
        assert run.result["departures"] == []
        return netloom.resume(run.path, epochs=2, quiet=True)

    exact = extended(schedule=None)
    assert exact.result["departures"] == []
    assert "gives another result" not in how_to_get_the_same(exact)
    recomputed = extended(schedule={"kind": "cosine"})
    told = "It was extended from 1 to 2 epochs: the cosine schedule depends on the length."
    assert recomputed.result["departures"] == [told]
    assert f"{told} A training in one go gives another result." in how_to_get_the_same(recomputed)
    again = netloom.resume(recomputed.path, epochs=3, quiet=True)
    assert again.result["departures"] == [told, told.replace("1 to 2", "2 to 3")]


def test_a_training_that_a_time_limit_ended_says_so(photos: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 500, "time_limit_minutes": 1e-6}
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings=settings)
    assert run.result["epochs"] == 1
    assert "depends on the machine's speed" in how_to_get_the_same(run)
