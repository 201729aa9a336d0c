"""Sentences about curves whose story is known because they were made to tell it."""

from __future__ import annotations

import numpy as np
import pytest

from netloom.report.reading import read_curves, read_unfreezing


def history(train_loss, validation_loss=None, **columns):
    """Rows for curves given as sequences, epochs counted from 1."""
    columns = {"train_loss": train_loss, **columns}
    if validation_loss is not None:
        columns["validation_loss"] = validation_loss
    return [
        {"epoch": epoch + 1, **{name: values[epoch] for name, values in columns.items()}}
        for epoch in range(len(train_loss))
    ]


def test_overfitting_is_told_with_the_epoch_the_losses_and_the_gap():
    epochs = np.arange(20)
    train = 0.7 - 0.03 * epochs
    # Together with training up to epoch 8, then up by as much as training goes down.
    validation = np.where(epochs < 8, train, 0.7 - 0.03 * 7 + 0.03 * (epochs - 7))
    told = read_curves(
        history(
            train,
            validation,
            train_accuracy=np.linspace(0.5, 0.98, 20),
            validation_accuracy=np.linspace(0.5, 0.71, 20),
        )
    )
    assert told[0] == (
        "Validation loss was lowest, 0.490, in epoch 8 of 20; 12 epochs later it was 73% higher (0.850)."
    )
    assert told[1] == (
        "It overfits: after epoch 8 training loss went on falling, from 0.490 to 0.130, while "
        "validation loss turned up. The gap between the two has been growing since about epoch 10."
    )
    assert told[2] == (
        "In the last epoch it was right on 98.0% of the training pictures and 71.0% of the "
        "validation pictures, a gap of 27.0 points."
    )
    assert told[3].startswith("Against overfitting help")


def test_a_wild_epoch_is_not_overfitting():
    train = np.geomspace(1, 0.2, 20)
    validation = train + 0.02
    validation[12] += 1
    accuracy = 1 - train / 2
    told = read_curves(history(train, validation, train_accuracy=accuracy, validation_accuracy=accuracy))
    assert not any("overfits" in sentence for sentence in told)


def test_still_learning():
    losses = np.linspace(1, 0.5, 10)
    told = read_curves(history(losses, losses + 0.01))
    assert told == [
        "Validation loss was lowest, 0.510, in epoch 10, the last one.",
        "It was still learning at the end: over the last 2 epochs validation loss fell from 0.621 "
        "to 0.510. More epochs would probably help.",
    ]


def test_underfitting_is_a_flat_curve_with_many_training_mistakes():
    losses = np.r_[np.linspace(2.3, 1.4, 10), np.full(20, 1.4)]
    told = read_curves(
        history(
            losses,
            losses + 0.01,
            train_accuracy=np.full(30, 0.48),
            validation_accuracy=np.full(30, 0.47),
        )
    )
    assert any(s.startswith("It underfits: even of the training pictures only 48.0%") for s in told)
    assert any(s.endswith("a gap of 1.0 points.") for s in told)


def test_mixed_training_pictures_are_no_underfitting():
    """Most of them count as wrong for a network that knows them well; validation pictures are whole."""
    losses = np.r_[np.linspace(2.2, 1.2, 40), np.full(20, 1.2)]
    told = read_curves(
        history(
            losses,
            np.r_[np.linspace(2.0, 0.1, 40), np.full(20, 0.1)],
            train_accuracy=np.full(60, 0.72),
            validation_accuracy=np.full(60, 0.98),
        )
    )
    assert not any("underfits" in sentence for sentence in told)
    assert "It does better on the validation pictures: no sign of overfitting." in told
    assert (
        "In the last epoch it was right on 72.0% of the training pictures and 98.0% of the validation pictures, 26.0 "
        "points more." in told
    )


def test_a_training_loss_that_still_falls_has_not_flattened():
    validation = np.r_[np.linspace(2.0, 0.8, 20), np.linspace(0.8, 0.832, 10)]
    told = read_curves(
        history(
            np.linspace(2.0, 0.5, 30),
            validation,
            train_accuracy=np.linspace(0.3, 0.82, 30),
            validation_accuracy=np.linspace(0.3, 0.79, 30),
        )
    )
    assert told == [
        "Validation loss was lowest, 0.800, in epoch 20 of 30; 10 epochs later it stood at 0.832, hardly different.",
        "Over the last 6 epochs training loss went on falling, from 0.810 to 0.500, and validation loss did not: more "
        "epochs alone would hardly help.",
        "In the last epoch it was right on 82.0% of the training pictures and 79.0% of the validation pictures, a gap "
        "of 3.0 points.",
    ]


def test_memorizing_without_a_perfect_fit_is_not_underfitting_too():
    """The advice of one is the opposite of the other's."""
    losses = np.r_[np.linspace(1, 0.5, 10), np.full(10, 0.5)]
    told = read_curves(
        history(losses, losses + 0.1, train_accuracy=np.full(20, 0.85), validation_accuracy=np.full(20, 0.75))
    )
    assert any("validation loss has not turned up" in sentence for sentence in told)
    assert not any("underfits" in sentence for sentence in told)


def test_memorizing_is_a_gap_in_accuracy_without_a_rise_of_the_loss():
    validation = np.r_[np.linspace(1, 0.6, 10), np.full(10, 0.6)]
    told = read_curves(
        history(
            np.linspace(1, 0.1, 20),
            validation,
            train_accuracy=np.linspace(0.5, 0.97, 20),
            validation_accuracy=np.full(20, 0.8),
        )
    )
    assert any("validation loss has not turned up" in sentence for sentence in told)
    assert any("a gap of 17.0 points" in sentence for sentence in told)
    assert not any("overfits" in sentence for sentence in told)


@pytest.mark.parametrize(
    ("train", "lowest", "last"),
    [((2.1, 1.0), 0.54, 0.82), ((0.65, 0.35), 0.21, 0.31)],
    ids=["mixed pictures", "class weights"],
)
@pytest.mark.parametrize("gap", [-0.05, 0.1])
def test_a_clear_rise_is_overfitting_below_the_training_loss_too(train, lowest, last, gap):
    """The training loss is of mixed or weighted pictures, and lies above that of validation throughout."""
    validation = np.r_[np.linspace(train[0] * 0.9, lowest, 12), np.linspace(lowest, last, 18)]
    told = read_curves(
        history(
            np.r_[np.linspace(train[0], train[1] * 1.02, 12), np.linspace(train[1] * 1.02, train[1], 18)],
            validation,
            train_accuracy=np.full(30, 0.8),
            validation_accuracy=np.full(30, 0.8 - gap),
        )
    )
    assert told[1].startswith("It overfits: after epoch 12 training loss went on falling")
    others = ("underfits", "no sign of overfitting", "has not turned up")
    assert not any(other in sentence for sentence in told for other in others)


def test_a_rise_of_both_losses_is_no_overfitting():
    losses = np.r_[np.linspace(1, 0.3, 10), np.linspace(0.3, 0.6, 10)]
    told = read_curves(history(losses, losses + 0.02))
    assert told[1].startswith("Validation loss turned up though training loss did not go on falling")
    assert not any("overfits" in sentence or "no sign" in sentence for sentence in told)


def test_no_sign_of_overfitting_and_easier_validation():
    train = np.r_[np.linspace(0.7, 0.2, 10), np.full(10, 0.2)]
    accuracy = np.full(20, 0.95)
    told = read_curves(history(train, train * 0.9, train_accuracy=accuracy, validation_accuracy=accuracy))
    assert "Training and validation stay together: no sign of overfitting." in told
    assert any(sentence.startswith("Validation loss is below training loss") for sentence in told)


def test_not_learning():
    losses = 0.693 + 0.001 * np.sin(np.arange(12))
    told = read_curves(history(losses, losses, train_accuracy=np.full(12, 0.5)))
    assert told[1].startswith("The network is not learning: training loss only went from 0.693")


def test_a_fitted_network_that_stays_put_is_learned_already():
    losses = np.full(12, 0.05)
    told = read_curves(history(losses, losses, train_accuracy=np.full(12, 0.99)))
    assert not any("not learning" in sentence for sentence in told)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_named_with_its_epoch(value):
    told = read_curves(history([0.7, 0.9, value], [0.7, 0.8, 0.9]))
    assert told == [
        "In epoch 3 the training loss was no longer a number: training diverged. "
        "A lower learning rate usually cures it."
    ]


def test_learning_rate_steps_are_named_and_smooth_schedules_are_not():
    losses = np.linspace(1, 0.5, 12)
    steps = [1e-3] * 4 + [2e-4] * 5 + [4e-5] * 3
    told = read_curves(history(losses, losses, learning_rate=steps))
    assert told[-1] == "The learning rate was lowered to 4e-05 in steps, at epoch 5, 10."
    cosine = 1e-3 * (1 + np.cos(np.pi * np.arange(12) / 12))
    told = read_curves(history(losses, losses, learning_rate=cosine))
    assert not any("in steps" in line for line in told)
    told = read_curves(history(losses[:3], losses[:3], learning_rate=[1e-3, 5e-4, 1e-6]))
    assert not any("learning rate was lowered" in sentence for sentence in told)


def test_without_validation_nothing_is_claimed_about_overfitting():
    told = read_curves(history([1.0, 0.5, 0.2, 0.1]))
    assert told == [
        "Training loss went from 1.000 to 0.100 in 4 epochs. Without a validation part nothing "
        "can be said about overfitting."
    ]


def test_a_validation_loss_that_was_never_measured_is_no_divergence():
    assert read_curves(history([1.0, 0.5, 0.2], [np.nan] * 3))[0].startswith("Training loss went")


def test_short_histories():
    assert read_curves([]) == ["No epoch was completed, so there are no curves to read."]
    told = read_curves([{"epoch": 1, "train_loss": 0.7, "validation_loss": 0.6}])
    assert told[0] == "After one epoch: training loss 0.700, validation loss 0.600."
    told = read_curves(history([0.7, 0.6]))
    assert told[0] == "After 2 epochs: training loss 0.600."


@pytest.mark.parametrize(
    ("unfreezing", "frozen", "expected"),
    [
        ([], [], []),
        ([], ["stem", "block1"], ["The head alone was trained: stem and block1 stayed as they came."]),
        (
            [(2, ["block3"])],
            ["block1", "block2"],
            [
                "The head was trained alone in epoch 1. In front of the head trained block3 from epoch 2 on (dotted "
                "line). block1 and block2 stayed as they came."
            ],
        ),
        (
            [(3, ["block3", "block2"]), (4, ["block1"])],
            ["stem"],
            [
                "The head was trained alone in epochs 1 to 2. In front of the head trained block3 and block2 from "
                "epoch 3 on, block1 from epoch 4 on (dotted lines). stem stayed as it came."
            ],
        ),
        ([(1, ["block3", "block2", "block1"])], [], []),
        (
            [(1, ["block3", "block2", "block1"])],
            ["stem"],
            ["In front of the head trained the 3 stages block3 to block1 from epoch 1 on. stem stayed as it came."],
        ),
    ],
)
def test_what_was_unfrozen_when_is_said(unfreezing, frozen, expected):
    assert read_unfreezing(unfreezing, frozen) == expected
