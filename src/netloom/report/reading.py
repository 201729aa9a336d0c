"""What the curves of a training say in words: best epoch, overfitting, underfitting, trouble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from netloom.report.history import column
from netloom.report.wording import percent, points

FloatArray = npt.NDArray[np.float64]

_PART_NAMES = {"train": "training", "validation": "validation"}
_AGAINST_OVERFITTING = (
    "Against overfitting help, in this order: more pictures, augmentation, dropout or weight decay, a smaller network."
)
_UNSTEADY = (
    "Validation loss turned up though training loss did not go on falling, which is no overfitting: the training is "
    "unsteady. A lower learning rate, or one that falls towards the end, usually helps."
)

# A validation loss this far above its lowest is a rise, not the noise of a few hundred pictures.
_RISE = 0.05
# The same where it lies below the training loss, which is then another quantity: that of mixed, weighted or augmented
# pictures, whose own noise makes validation wobble.
_CLEAR_RISE = 0.2
# A gap in accuracy that a person would call large: validation parts of 1,000 pictures and more
# place accuracy within about 3 points.
_LARGE_GAP = 0.05
# Training that removed less of its first loss than this has not learned.
_HARDLY_MOVED = 0.05
# A loss that still fell by this share over the last fifth of the epochs has not flattened.
_STILL_FALLING = 0.03
# Below this accuracy, on training and validation pictures alike, flat curves without a gap mean too small or too
# restrained a network. Mixed and augmented training pictures are harder, so that their accuracy alone tells little.
_FITS_WELL = 0.9


class _Curves(NamedTuple):
    """Columns of the history, float64 `[epochs]`, NaN where missing."""

    epoch: FloatArray
    train_loss: FloatArray
    validation_loss: FloatArray
    train_accuracy: FloatArray
    validation_accuracy: FloatArray
    learning_rate: FloatArray


def read_curves(history: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Sentences that tell what the curves of a training show and what to try next.

    Args:
        history: A row per epoch with `epoch` and any of `train_loss`, `validation_loss`,
            `train_accuracy`, `validation_accuracy` (0..1), `learning_rate`; a value may be
            missing, None or NaN.
    """
    if not history:
        return ["No epoch was completed, so there are no curves to read."]
    curves = _Curves(*(column(history, name) for name in _Curves._fields))
    if broken := _not_a_number(history):
        return [broken]
    if len(history) < 3:
        return [_so_far(curves), "Curves say something from three epochs on."]
    if np.isnan(curves.validation_loss).any():
        return [_training_only(curves), *_not_learning(curves)]
    return [
        _best_epoch(curves),
        *_judge(curves),
        *_easier_validation(curves),
        *_lowered_rates(curves),
    ]


def read_unfreezing(unfreezing: Sequence[tuple[int, Sequence[str]]], frozen: Sequence[str]) -> list[str]:
    """Sentences that tell which parts of a pretrained network trained when; none where all always did.

    Args:
        unfreezing: The first epoch that stages trained in, and their names, from the top.
        frozen: Names of the stages that did not train, from input to output.
    """
    if not unfreezing:
        return [f"The head alone was trained: {_listed(frozen)} stayed as {_they(frozen)} came."] if frozen else []
    first, later = unfreezing[0][0], [epoch for epoch, _ in unfreezing if epoch > 1]
    if not later and not frozen:
        return []
    alone = f"The head was trained alone in {'epoch 1' if first == 2 else f'epochs 1 to {first - 1}'}. "
    lines = ("", " (dotted line)", " (dotted lines)")[min(2, len(later))]
    steps = ", ".join(f"{_listed(names)} from epoch {epoch} on" for epoch, names in unfreezing)
    rest = f" {_listed(frozen, capital=True)} stayed as {_they(frozen)} came." if frozen else ""
    return [f"{alone if first > 1 else ''}In front of the head trained {steps}{lines}.{rest}"]


def _listed(names: Sequence[str], *, capital: bool = False) -> str:
    """`block5`, `block5 and block4`, `block5 to stem (7 stages)`."""
    if len(names) <= 2:
        return " and ".join(names)
    return f"{'The' if capital else 'the'} {len(names)} stages {names[0]} to {names[-1]}"


def _they(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "they"


def _not_a_number(history: Sequence[Mapping[str, float | None]]) -> str:
    # A validation loss that never was a number is one that was not measured.
    measured = not np.isnan(column(history, "validation_loss")).all()
    for row in history:
        for part in ("train", "validation") if measured else ("train",):
            value = row.get(f"{part}_loss")
            if value is not None and not np.isfinite(value):
                return (
                    f"In epoch {row['epoch']:.0f} the {_PART_NAMES[part]} loss was no longer a "
                    "number: training diverged. A lower learning rate usually cures it."
                )
    return ""


def _so_far(curves: _Curves) -> str:
    epochs = "one epoch" if len(curves.epoch) == 1 else f"{len(curves.epoch)} epochs"
    values = [
        f"{name} loss {column_[-1]:.3f}"
        for name, column_ in (
            ("training", curves.train_loss),
            ("validation", curves.validation_loss),
        )
        if np.isfinite(column_[-1])
    ]
    return f"After {epochs}: {', '.join(values) or 'no loss recorded'}."


def _best_epoch(curves: _Curves) -> str:
    loss, best = curves.validation_loss, int(np.argmin(curves.validation_loss))
    where = f"Validation loss was lowest, {loss[best]:.3f}, in epoch {curves.epoch[best]:.0f}"
    if best == len(loss) - 1:
        return f"{where}, the last one."
    where += f" of {curves.epoch[-1]:.0f}"
    change = loss[-1] / loss[best] - 1 if loss[best] > 0 else 0.0
    ended = f"; {len(loss) - 1 - best} epochs later" if best < len(loss) - 2 else "; an epoch later"
    if change < _RISE:
        return f"{where}{ended} it stood at {loss[-1]:.3f}, hardly different."
    return f"{where}{ended} it was {change:.0%} higher ({loss[-1]:.3f})."


def _training_only(curves: _Curves) -> str:
    return (
        f"Training loss went from {curves.train_loss[0]:.3f} to {curves.train_loss[-1]:.3f} in "
        f"{len(curves.epoch)} epochs. Without a validation part nothing can be said about "
        "overfitting."
    )


def _judge(curves: _Curves) -> list[str]:
    gap = _gap_in_words(curves)
    if np.isnan(curves.train_loss).any():
        return gap
    if not_learning := _not_learning(curves):
        return [*not_learning, *gap]
    if overfitting := _overfitting(curves):
        return [*overfitting, *gap, _AGAINST_OVERFITTING]
    if _rose(curves):
        return [_UNSTEADY, *gap]
    if memorizing := _memorizing(curves):
        return [*memorizing, *gap, _AGAINST_OVERFITTING, *_still_learning(curves)]
    found = _still_learning(curves) or _underfitting(curves) or _learning_alone(curves)
    return [*(found or [_no_overfitting(curves)]), *gap]


def _not_learning(curves: _Curves) -> list[str]:
    first, last = curves.train_loss[0], np.mean(curves.train_loss[-2:])
    if not last > first * (1 - _HARDLY_MOVED) or curves.train_accuracy[-1] >= _FITS_WELL:
        return []
    return [
        f"The network is not learning: training loss only went from {first:.3f} to {last:.3f}. "
        "Try another learning rate, ten times lower and ten times higher, and check the labels."
    ]


def _late(curves: _Curves) -> float:
    """The validation loss at the end; a single wild epoch there does not count."""
    return float(min(np.median(curves.validation_loss[-3:]), curves.validation_loss[-1]))


def _rose(curves: _Curves) -> bool:
    """Whether validation loss turned up for good."""
    late = _late(curves)
    least = _RISE if late >= curves.train_loss[-1] else _CLEAR_RISE
    return late > (1 + least) * float(curves.validation_loss.min())


def _overfitting(curves: _Curves) -> list[str]:
    best = int(np.argmin(curves.validation_loss))
    if not _rose(curves) or curves.train_loss[-1] >= curves.train_loss[best]:
        return []
    onset = _onset(_smooth(curves.validation_loss - curves.train_loss))
    return [
        f"It overfits: after epoch {curves.epoch[best]:.0f} training loss went on falling, from "
        f"{curves.train_loss[best]:.3f} to {curves.train_loss[-1]:.3f}, while validation loss "
        "turned up. The gap between the two has been growing since about epoch "
        f"{curves.epoch[onset]:.0f}.",
    ]


def _onset(gap: FloatArray) -> int:
    """Index of the first epoch after which the gap has left its lowest level for good.

    "Left" is a tenth of the later growth, so that a slow wobble before the rise does not count.
    """
    lowest = int(np.argmin(gap))
    level = gap[lowest] + 0.1 * (gap[-1] - gap[lowest])
    return min(int(np.flatnonzero(gap <= level)[-1]) + 1, len(gap) - 1)


def _memorizing(curves: _Curves) -> list[str]:
    gap = float(np.mean((curves.train_accuracy - curves.validation_accuracy)[-3:]))
    if not gap > _LARGE_GAP:
        return []
    hardly = _late(curves) > (1 + _RISE) * float(curves.validation_loss.min())
    turned = "has hardly turned up" if hardly else "has not turned up"
    return [f"It knows the training pictures better than new ones, though validation loss {turned}."]


def _no_overfitting(curves: _Curves) -> str:
    if curves.validation_accuracy[-1] > curves.train_accuracy[-1] + _LARGE_GAP:
        return "It does better on the validation pictures: no sign of overfitting."
    return "Training and validation stay together: no sign of overfitting."


def _gap_in_words(curves: _Curves) -> list[str]:
    train, validation = curves.train_accuracy[-1], curves.validation_accuracy[-1]
    if np.isnan(train) or np.isnan(validation):
        return []
    gap = f"a gap of {points(train - validation)}" if train >= validation else f"{points(validation - train)} more"
    return [
        f"In the last epoch it was right on {percent(train)} of the training pictures and "
        f"{percent(validation)} of the validation pictures, {gap}."
    ]


def _still_learning(curves: _Curves) -> list[str]:
    n_last = _last_fifth(curves)
    before, after = curves.validation_loss[-n_last - 1], curves.validation_loss[-1]
    best_at_the_end = int(np.argmin(curves.validation_loss)) >= len(curves.epoch) - 2
    if not best_at_the_end or _is_flat(before, after):
        return []
    return [
        f"It was still learning at the end: over the last {n_last} epochs validation loss fell "
        f"from {before:.3f} to {after:.3f}. More epochs would probably help."
    ]


def _underfitting(curves: _Curves) -> list[str]:
    accuracy = np.fmax(curves.train_accuracy[-1], curves.validation_accuracy[-1])
    before, after = curves.train_loss[-_last_fifth(curves) - 1], curves.train_loss[-1]
    if not (accuracy < _FITS_WELL and _is_flat(before, after)):
        return []
    which = "training" if accuracy == curves.train_accuracy[-1] else "validation"
    return [
        f"It underfits: even of the {which} pictures only {percent(accuracy)} are right, and the curves have "
        "flattened. A larger network, larger pictures or less regularization could do better."
    ]


def _learning_alone(curves: _Curves) -> list[str]:
    n_last = _last_fifth(curves)
    before, after = curves.train_loss[-n_last - 1], curves.train_loss[-1]
    best = int(np.argmin(curves.validation_loss))
    if _is_flat(before, after) or best >= len(curves.epoch) - n_last:
        return []
    return [
        f"Over the last {n_last} epochs training loss went on falling, from {before:.3f} to {after:.3f}, and "
        "validation loss did not: more epochs alone would hardly help."
    ]


def _last_fifth(curves: _Curves) -> int:
    return max(2, len(curves.epoch) // 5)


def _is_flat(before: float, after: float) -> bool:
    """Whether a loss did not fall by so much that more epochs would change it; NaN is not flat."""
    return bool(after >= before * (1 - _STILL_FALLING))


def _easier_validation(curves: _Curves) -> list[str]:
    if not np.nanmean(curves.validation_loss < curves.train_loss) > 0.8:
        return []
    return [
        "Validation loss is below training loss, which is normal with dropout, augmentation, mixed pictures, label "
        "smoothing or class weights: they make the training loss another and mostly a higher one, and validation has "
        "none of them."
    ]


def _lowered_rates(curves: _Curves) -> list[str]:
    rates = curves.learning_rate
    lowered = curves.epoch[1:][np.diff(rates) < -1e-12]
    # A schedule that moves in most epochs is not news; single steps are.
    if not 0 < len(lowered) <= min(5, (len(rates) - 1) // 2):
        return []
    epochs = ", ".join(f"{epoch:.0f}" for epoch in lowered)
    return [f"The learning rate was lowered to {rates[-1]:.2g} in steps, at epoch {epochs}."]


def _smooth(values: FloatArray) -> FloatArray:
    """Running median of three: a single wild epoch is not a trend. The ends stay."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0))
