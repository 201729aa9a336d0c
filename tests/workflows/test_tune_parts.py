"""What a search is made of, without any training."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import balanced_accuracy_score, f1_score

from netloom.errors import RecipeError
from netloom.inference import Prediction
from netloom.models.backbones import timm
from netloom.models.heads import Head
from netloom.models.pretrained import digest_of
from netloom.progress import Reporter
from netloom.recipe import load_recipe
from netloom.tuning.samplers import create_pruner, create_sampler, describe_sampler
from netloom.tuning.space import Dimension, arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import in_memory, open_storage, sqlite_url, with_absolute_path
from netloom.tuning.study import SearchStudy, TrialRecord
from netloom.workflows.first_trials import OF_USER, checked_first, enqueue_first, parse_first
from netloom.workflows.interruption import quoted
from netloom.workflows.search import Cluster, Search
from netloom.workflows.spaces import space_for
from netloom.workflows.starting_weights import settle
from netloom.workflows.trial_scores import ClassFigures
from netloom.workflows.trial_task import TrialPictures, recipe_of_trial
from netloom.workflows.winner import earlier_winners, note_tested

SPACE = {"learning_rate": "1e-4..1e-2:log", "optimizer": "adam,sgd", "momentum": "0.5,0.9 if optimizer=sgd"}


def dimensions_of(space: dict[str, Any]) -> tuple[Dimension, ...]:
    return arrange([parse_dimension(key, values, lambda key, value: None) for key, values in space.items()])


def new_study(sampler: str, dimensions: tuple[Dimension, ...], storage: Any = None) -> SearchStudy:
    return SearchStudy.create(
        in_memory() if storage is None else storage,
        "a study",
        dimensions,
        direction="maximize",
        sampler=create_sampler(sampler, dimensions, seed=0, init_points=2, n_trials=9),
        pruner=create_pruner("none", epochs=1),
        driver=None if storage is None else "a driver",
    )[0]


def test_a_winner_that_another_driver_tested_is_counted(tmp_path: Path) -> None:
    dimensions = dimensions_of(SPACE)
    url = sqlite_url(tmp_path / "shared.db")

    def driver(name: str, best: int) -> tuple[Any, TrialRecord, list[Any]]:
        manifest = SimpleNamespace(driver=name, final_on="train")
        study = new_study("random", dimensions, open_storage(url, shared=True))
        runs = [SimpleNamespace(path=tmp_path / name / "1-final" / "seed-1")]
        record = TrialRecord(best, "complete", 0.5, {}, {}, "sampler")
        return SimpleNamespace(folder=tmp_path / name, manifest=manifest, study=study), record, runs

    drivers = [driver(*each) for each in (("first", 3), ("second", 3), ("third", 7))]
    found = []
    for search, best, runs in drivers:
        note_tested(search, best, runs)
        found.append(earlier_winners(search, best, runs))
    assert found == [0, 0, 1]  # the second had the winner of the first
    search, best, runs = drivers[0]
    assert earlier_winners(search, best, runs) == 1  # should it be gone on with
    assert earlier_winners(search, None, []) == 0
    for search, *_ in drivers:
        search.study.close()


def test_trials_of_a_narrower_study_are_completed_by_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    study = new_study("random", dimensions_of(SPACE))
    of_recipe = {"learning_rate": 1e-3, "optimizer": "sgd", "momentum": 0.9}
    earlier = [[("study earlier", {"learning_rate": 5e-3}), ("study earlier", {"optimizer": "adam"})]]
    enqueue_first(study, "random", dimensions_of(SPACE), of_recipe, earlier, Reporter())
    asked = [study.ask().overrides for _ in range(3)]
    assert asked[0] == of_recipe
    assert asked[1] == {"learning_rate": 5e-3, "optimizer": "sgd", "momentum": 0.9}
    assert asked[2] == {"learning_rate": 1e-3, "optimizer": "adam"}
    assert [r.origin for r in study.records()] == ["recipe", "study earlier", "study earlier"]
    told = capsys.readouterr().err
    assert "learning_rate, momentum, optimizer is as in the recipe in the trials of study earlier" in told


def test_a_user_says_what_is_tried_first(capsys: pytest.CaptureFixture[str]) -> None:
    dimensions = dimensions_of({**SPACE, "filters": "32-64,64-128", "dense_units": ["64", "128"]})
    parsed = parse_first(["learning_rate=2e-3  filters=64-128 momentum=0.5 dense_units=128", " optimizer=adam "])
    first = checked_first(parsed, dimensions)
    assert first == [
        {"learning_rate": 2e-3, "filters": "64-128", "momentum": 0.5, "dense_units": "128"},
        {"optimizer": "adam"},
    ]
    study = new_study("random", dimensions)
    of_recipe = {"learning_rate": 1e-3, "optimizer": "sgd", "momentum": 0.9, "filters": "32-64", "dense_units": "64"}
    enqueue_first(study, "random", dimensions, of_recipe, [[(OF_USER, values) for values in first]], Reporter())
    asked = [study.ask().overrides for _ in range(3)]
    assert asked[:2] == [of_recipe, {**of_recipe, **first[0]}]
    assert asked[2] == {"learning_rate": 1e-3, "optimizer": "adam", "filters": "32-64", "dense_units": "64"}
    assert [r.origin for r in study.records()] == ["recipe", "user", "user"]
    for text, words in (
        ("dropot=1", "dropot, which is not searched"),
        ("learning_rate=1", "lies outside of"),
        ("learning_rate", "expected KEY=VALUE"),
        ("filters=[32", "not valid YAML"),
    ):
        with pytest.raises(RecipeError, match=words):
            checked_first(parse_first([text]), dimensions)


def test_a_grid_takes_from_earlier_studies_its_own_combinations_alone(capsys: pytest.CaptureFixture[str]) -> None:
    dimensions = dimensions_of({"learning_rate": "0.1,0.2,0.3", "kind": "a,b"})
    study = new_study("grid", dimensions)
    rates = dimensions_of({"learning_rate": "0.1..0.5", "kind": "a,b"})
    ranges = new_study("grid", rates)
    earlier = [[("study earlier", {"learning_rate": 0.2, "kind": "b"})]]
    enqueue_first(study, "grid", dimensions, {"learning_rate": 0.3, "kind": "a"}, earlier, Reporter())
    assert [tuple(study.ask().overrides.values()) for _ in range(6)] == [
        *((0.3, "a"), (0.2, "b")),
        *((0.1, "a"), (0.1, "b"), (0.2, "a"), (0.3, "b")),
    ]
    assert "not tried" not in capsys.readouterr().err
    within = [[("study earlier", {"learning_rate": 0.23, "kind": "b"})]]
    enqueue_first(ranges, "grid", rates, {"learning_rate": 0.1, "kind": "a"}, within, Reporter())
    assert "1 of the best trials of study earlier are not tried: it is none of the grid" in capsys.readouterr().err
    assert all(ranges.ask().overrides["learning_rate"] != 0.23 for _ in range(10))


@pytest.mark.parametrize(
    ("objective", "reference"),
    [
        ("validation_macro_f1", lambda true, found: f1_score(true, found, average="macro")),
        ("validation_balanced_accuracy", balanced_accuracy_score),
    ],
)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_figures_in_which_all_classes_count_the_same(objective: Any, reference: Any, kind: Any) -> None:
    """Reference: scikit-learn."""
    classes = ("a", "b") if kind == "sigmoid" else ("a", "b", "c")
    head = Head(kind=kind, class_names=classes)
    generator = np.random.default_rng(3)
    targets = generator.choice(len(classes), 90, p=[0.9, 0.1] if kind == "sigmoid" else [0.8, 0.15, 0.05])
    outputs = torch.from_numpy(generator.normal(size=(90, head.num_outputs))).float()
    callback, state = ClassFigures(objective, head, targets), SimpleNamespace(history=[{"epoch": 1.0}])
    prediction = Prediction(torch.nn.Identity())

    def one_pass() -> None:
        for prediction.outputs in ({"label": part} for part in outputs.split(40)):
            callback.on_predict_batch_end(prediction)

    callback.on_validation_start(state)
    one_pass()
    callback.on_validation_end(state)
    one_pass()  # of something else
    callback.on_epoch_end(state)
    predictions = head.probabilities(outputs).argmax(dim=1).numpy()
    assert state.history == [{"epoch": 1.0, objective: pytest.approx(reference(targets, predictions))}]


@pytest.mark.skipif(os.name == "nt", reason="the shells of Windows quote otherwise")
def test_how_to_go_on_is_a_command_that_a_shell_takes() -> None:
    def how(folder: str, *, storage: str | None = None, **options: Any) -> str:
        search = Search(
            folder=Path(folder),
            manifest=SimpleNamespace(storage=storage),
            pictures=SimpleNamespace(data=SimpleNamespace(facts=SimpleNamespace(source_location="photos"))),
            model=None,
            **{
                **dict.fromkeys(("study", "splits", "recipe", "jobs", "reporter", "cluster", "asked_jobs")),
                **options,
            },
        )
        return search.how_to_go_on()

    assert how("runs/a-study") == "netloom tune --resume runs/a-study"
    assert shlex.split(how("my runs/it's $1")) == ["netloom", "tune", "--resume", "my runs/it's $1"]
    cluster = Cluster("host:6379", 0)
    assert how("a", asked_jobs=3, cluster=cluster) == "netloom tune --resume a --ray host:6379 --jobs 3"
    assert how("a", storage="postgresql://host/x") == "netloom tune --resume a --storage URL"
    assert quoted(Path("plain")) == "plain"


def test_a_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path("sqlite:///shared.db") == sqlite_url(tmp_path / "shared.db")
    for url in (sqlite_url(tmp_path / "x.db"), "sqlite://", "postgresql://u:p%40ss@host/name", "nonsense"):
        assert with_absolute_path(url) == url


def test_the_page_says_how_many_trials_were_random() -> None:
    words = "Bayesian search with Gaussian processes"
    assert describe_sampler("gp", 50, at_random=9) == f"{words}; 9 of 50 trials at random"
    assert describe_sampler("random", 50, at_random=49) == "random search"


GREY = [TrialPictures({}, SimpleNamespace(), SimpleNamespace(image_size=(8, 8), channels=1))]  # type: ignore[arg-type]


def test_each_backbone_of_a_search_is_settled_by_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two was trained with TensorFlow's padding."""
    monkeypatch.setenv("NETLOOM_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    for name, said in (("test_efficientnet", {"padding": "same"}), ("test_resnet", None)):
        tensors = timm().create_model(name, num_classes=0).state_dict()
        save_file(tensors, tmp_path / "weights" / f"{name}.safetensors", metadata=said)
    base = settle(load_recipe("transfer-features", {"model": "timm/test_efficientnet"}))
    assert base.padding == "same"
    other = recipe_of_trial(base, {"model": "timm/test_resnet"}, GREY)
    assert other.padding is None
    assert other.transfer is not None
    assert other.transfer.weights_sha256 == digest_of(tmp_path / "weights" / "test_resnet.safetensors")
    assert recipe_of_trial(other, {"model": "timm/test_efficientnet"}, GREY).padding == "same"
    assert recipe_of_trial(base, {"learning_rate": 0.1}, GREY) == base.replace(learning_rate=0.1)


def test_a_network_that_starts_from_chance_says_the_pictures_that_it_learned_from() -> None:
    """Not those that it was made for: the search has decoded them as its recipe has them."""
    recipe = recipe_of_trial(load_recipe("digits"), {"model": "timm/test_resnet"}, GREY)
    assert (recipe.image_size, recipe.color) == ((8, 8), "grey")
    base = load_recipe("digits")
    assert recipe_of_trial(base, {"learning_rate": 0.1}, GREY) == base.replace(learning_rate=0.1)


def test_a_search_over_modes_gives_each_trial_the_keys_of_its_own() -> None:
    recipe = load_recipe("transfer-frozen", {"transfer.weights": "random"})
    space = ["transfer.mode=features,finetune", "transfer.head_epochs=2,3", "transfer.classifier=knn,network"]
    space_for(space, recipe)
    values = {"transfer.head_epochs": 2, "transfer.classifier": "knn"}
    for mode, found in (("features", ("knn", None)), ("finetune", ("logistic", 2))):
        transfer = recipe_of_trial(recipe, {"transfer.mode": mode, **values}, GREY).transfer
        assert transfer is not None
        assert (transfer.classifier, transfer.head_epochs) == found
