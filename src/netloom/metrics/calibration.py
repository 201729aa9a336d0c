"""Whether confidences mean what they say: of answers given with 80% confidence, 80% right."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from netloom.randomness import derive_seed

FloatArray = npt.NDArray[np.floating[Any]]


class ReliabilityBins(NamedTuple):
    """Answers grouped by confidence into B bins `(edges[b], edges[b + 1]]`."""

    edges: npt.NDArray[np.float64]
    """`[B + 1]`, from 0 to 1."""
    counts: npt.NDArray[np.int64]
    """Answers per bin, `[B]`."""
    confidence: npt.NDArray[np.float64]
    """Mean confidence per bin, `[B]` in 0..1; NaN for an empty bin."""
    accuracy: npt.NDArray[np.float64]
    """Share of right answers per bin, `[B]` in 0..1; NaN for an empty bin."""

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy, 0..1, weighted by counts; NaN without answers.

        Source: as `reliability_bins`.
        """
        n = int(self.counts.sum())
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / n) if n else math.nan


def reliability_bins(confidences: FloatArray, correct: npt.NDArray[np.bool_], *, n_bins: int = 15) -> ReliabilityBins:
    """Group answers into `n_bins` bins of equal width by confidence.

    Args:
        confidences: Probability given to the predicted class, `[N]` in 0..1.
        correct: Whether the prediction was right, `[N]`.
        n_bins: 15 is the number the paper below reports with.

    Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017,
    section 2.

    Raises:
        ValueError: The arrays differ in shape, or a confidence is not within 0..1.
    """
    if confidences.ndim != 1 or confidences.shape != correct.shape:
        raise ValueError(
            "confidences and correct must be two vectors of one length; "
            f"found shapes {confidences.shape} and {correct.shape}."
        )
    if not np.all((confidences >= 0) & (confidences <= 1)):
        raise ValueError("confidences must be probabilities from 0 to 1.")
    edges = np.linspace(0, 1, n_bins + 1)
    bins = _bin_of(confidences, edges)
    counts = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, weights=confidences, minlength=n_bins) / counts
        accuracy = np.bincount(bins, weights=correct, minlength=n_bins) / counts
    return ReliabilityBins(edges, counts, confidence, accuracy)


def calibration_error_by_chance(
    confidences: FloatArray,
    *,
    n_bins: int = 15,
    confidence: float = 0.95,
    n_resamples: int = 500,
    seed: int = 0,
) -> float:
    """The calibration error that an honest classifier would stay below, by the luck of N answers.

    The expected calibration error is never negative, so it is above zero even for honest
    confidences, the more the fewer answers there are. This is what to compare it with: each answer
    is drawn to be right with the probability it claims, and the error of each such draw is
    measured.

    Source: consistency resampling of Bröcker and Smith, "Increasing the reliability of reliability
    diagrams", Weather and Forecasting 22, 2007; for this error: Vaicenavicius et al., "Evaluating
    model calibration in classification", AISTATS 2019.

    Args:
        confidences: Probability given to the predicted class, `[N]` in 0..1.
        n_bins: As given to `reliability_bins`.
        confidence: Share of calibrated classifiers that stay below.
        n_resamples: Number of draws.
        seed: The same seed gives the same figure.

    Raises:
        ValueError: There is no answer.
    """
    if confidences.size == 0:
        raise ValueError("The calibration error needs at least one answer; found none.")
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "calibration")))
    bins = _bin_of(confidences, np.linspace(0, 1, n_bins + 1))
    errors = np.empty(n_resamples)
    for draw in range(n_resamples):
        excess = (generator.random(len(confidences)) < confidences) - confidences
        # A bin's count cancels: its weight times its mean excess is the sum of its excesses over N.
        errors[draw] = np.abs(np.bincount(bins, weights=excess)).sum() / len(confidences)
    return float(np.quantile(errors, confidence))


def _bin_of(confidences: FloatArray, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Bin index per confidence; the lowest bin also takes confidence 0."""
    return np.maximum(np.searchsorted(edges, confidences, side="left") - 1, 0)
