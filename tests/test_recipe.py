from __future__ import annotations

from pathlib import Path

import pytest

from netloom.errors import RecipeError
from netloom.recipe import Recipe, describe_recipes, load_recipe, parse_overrides, recipe_names
from netloom.workflows.builders import kept_by


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_survive_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    path = tmp_path / "copy.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_every_recipe_is_described_on_one_line() -> None:
    assert [r["name"] for r in describe_recipes()] == list(recipe_names())
    assert all("\n" not in r["description"] for r in describe_recipes())


def test_all_mistakes_are_told_at_once_with_did_you_mean() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping(
            {
                "model": "lenet5",
                "filters": [8],
                "epocs": 3,
                "learning_rate": -1,
                "early_stopping": {"patiense": 3},
                "optimizer": "adm",
            }
        )
    message = str(caught.value)
    assert message.startswith("5 mistakes")
    assert "Did you mean 'epochs'?" in message
    assert "Did you mean 'patience'?" in message
    assert "learning_rate" in message
    assert "greater than 0" in message
    assert "filters: lenet5 has no such option" in message
    assert "'adam'" in message


def test_unknown_model_and_impossible_model_option() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'lenet5'"):
        Recipe.from_mapping({"model": "lenet"})
    with pytest.raises(RecipeError, match="activation"):
        Recipe.from_mapping({"activation": "rellu"})


def test_combinations_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="nesterov"):
        Recipe.from_mapping({"optimizer": "sgd", "nesterov": True})
    with pytest.raises(RecipeError, match="momentum"):
        Recipe.from_mapping({"optimizer": "adam", "momentum": 0.9})


def test_overrides_reach_into_groups_and_turn_them_off() -> None:
    overrides = parse_overrides(
        ["epochs=3", "learning_rate=1e-4", "early_stopping.patience=2", "reduce_on_plateau=null", "filters=16-32-64"]
    )
    recipe = load_recipe("cifar10-conv2-improved", overrides)
    assert recipe.epochs == 3
    assert recipe.learning_rate == 1e-4
    assert recipe.early_stopping is not None
    assert recipe.early_stopping.patience == 2
    assert recipe.reduce_on_plateau is None
    assert recipe.filters == [16, 32, 64]
    turned_on = load_recipe("cifar10-conv2", {"augmentation.rotation": 5})
    assert turned_on.augmentation is not None
    assert turned_on.augmentation.rotation == 5


def test_a_file_extends_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: cifar10-conv2\nepochs: 2\n", encoding="utf-8")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.epochs, recipe.filters) == ("mine", 2, [10])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "key: value"), ("!!python/object:os.system {}", "not valid YAML")],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_circles_and_missing_recipes(tmp_path: Path) -> None:
    path = tmp_path / "circle.yaml"
    path.write_text(f"extends: {path}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="Did you mean 'cifar10-conv2'"):
        load_recipe("cifar10-conv")
    with pytest.raises(RecipeError, match="expected key=value"):
        parse_overrides(["epochs"])


def test_recipes_are_frozen_and_replaced() -> None:
    recipe = load_recipe("digits")
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3  # type: ignore[misc]
    assert recipe.replace(epochs=3).epochs == 3
    assert recipe.replace(augmentation=None).augmentation is None


def test_another_model_leaves_the_options_that_it_does_not_have() -> None:
    assert load_recipe("photos").head_pooling is not None
    changed = load_recipe("photos", {"model": "resnet20"})
    assert (changed.model, changed.head_pooling, changed.filters) == ("resnet20", None, None)
    assert changed.augmentation == load_recipe("photos").augmentation
    with pytest.raises(RecipeError, match="filters: resnet20 has no such option"):
        load_recipe("photos", {"model": "resnet20", "filters": [8]})


def test_a_recipe_file_for_another_model_than_the_one_it_extends(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: photos\nmodel: resnet20\n", encoding="utf-8")
    assert load_recipe(path).model == "resnet20"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schedule": "cosine"}, "schedule: is a group of keys; set one of them, such as schedule.kind"),
        ({"image_size": "48x64"}, "image_size: .*integer.* or .*list, found '48x64'"),
        ({"image_size": 10**6}, "image_size: .*less than or equal to 10000"),
        ({"class_weight": {"[a]": -1}}, "class_weight"),
        ({"l1": 1e300}, "l1: .*less than or equal to 1000000"),
    ],
)
def test_one_key_is_told_in_one_line(values: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        Recipe.from_mapping(values)
    assert "pydantic" not in str(caught.value)
    assert str(caught.value).count("\n") == (2 if "class_weight" in values else 1)


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({"dense_units": [0] * 100_000, "name": ["x" * 10**6]})
    assert len(str(caught.value)) < 2000


def test_values_given_on_the_command_line_have_no_aliases() -> None:
    with pytest.raises(RecipeError, match="aliases"):
        parse_overrides(["filters=[&a [1], *a]"])


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, "validation_loss"),
        ({"monitor": "validation_accuracy"}, "validation_accuracy"),
        ({"early_stopping": {"patience": 3}, "monitor": "validation_accuracy"}, "validation_accuracy"),
        ({"early_stopping": {"patience": 3}, "keep": "last"}, None),
        ({"early_stopping": {"monitor": "train_loss"}}, "validation_loss"),
    ],
)
def test_keep_and_monitor_decide_whose_weights_are_kept(changes: dict[str, object], kept: str | None) -> None:
    assert kept_by(load_recipe("photos", changes)) == kept


def test_recipes_that_stop_early_keep_the_best_epoch() -> None:
    stopping = [r for r in map(load_recipe, recipe_names()) if r.early_stopping is not None]
    assert {r.name for r in stopping} == {"cifar10-conv2-improved", "cifar10-vgg-early-stopping"}
    assert all(kept_by(r) == r.early_stopping.monitor == "validation_loss" for r in stopping)


@pytest.mark.parametrize(
    ("mode", "key", "value", "of"),
    [
        ("frozen", "classifier", "knn", "features"),
        ("finetune", "views", 2, "features"),
        ("features", "unfreeze", 1, "finetune"),
        ("frozen", "gradual", True, "finetune"),
        ("features", "head_epochs", 3, "finetune"),
        ("frozen", "depth_rate", 0.5, "finetune"),
        ("features", "batch_norm", "trained", "finetune"),
    ],
)
def test_keys_of_another_mode_of_transfer_are_refused(mode: str, key: str, value: object, of: str) -> None:
    with pytest.raises(RecipeError, match=rf"transfer\.{key}: is of mode {of}; mode {mode} does not look at it"):
        load_recipe(f"transfer-{mode}", {f"transfer.{key}": value})


def test_another_mode_leaves_the_keys_of_the_old_one_behind(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: transfer-finetune\ntransfer: {unfreeze: 2, head_epochs: 3, new_rate: 5}\n")
    other = tmp_path / "other.yaml"
    other.write_text(f"extends: {mine}\ntransfer: {{mode: frozen}}\n")
    for recipe in (load_recipe(other), load_recipe(mine, {"transfer.mode": "frozen"})):
        assert recipe.transfer is not None
        assert (recipe.transfer.mode, recipe.transfer.unfreeze, recipe.transfer.head_epochs) == ("frozen", "all", None)
        assert recipe.transfer.new_rate == 5
    back = load_recipe(mine, {"transfer.mode": "features", "transfer.classifier": "knn"})
    assert back.transfer is not None
    assert back.transfer.classifier == "knn"
    with pytest.raises(RecipeError, match=r"transfer\.unfreeze: is of mode finetune"):
        load_recipe(mine, {"transfer.mode": "frozen", "transfer.unfreeze": 1})


def test_another_backbone_does_not_inherit_the_padding_of_the_weights() -> None:
    settled = load_recipe("transfer-features", {"padding": "same"})
    assert load_recipe(settled, {"model": settled.model}).padding == "same"
    assert load_recipe(settled, {"model": "timm/test_resnet"}).padding is None
    assert load_recipe(settled, {"model": "timm/mobilenetv3_small_100", "padding": "same"}).padding == "same"
    assert load_recipe(settled, {"model": "convnet"}).padding is None
