"""Fill the report of a run with what is known of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.evaluation.holdout import Evaluation
from netloom.models.registry import describe_models
from netloom.report.data import ChoiceFacts, Mistake, ModelFacts, ReportData, SourceFacts, TrainingFacts, TriedMode
from netloom.report.report import render_report
from netloom.report.wording import counted
from netloom.run import RunFolder
from netloom.workflows import builders
from netloom.workflows.repetition import how_to_repeat

_MISTAKES_SHOWN = 24
_HOW_SPLIT = {
    "given": "The source brought its three parts.",
    "stratified": "The parts were drawn at random, each class in proportion.",
}
_HOW_TESTED = {
    "flip": "a picture and its mirror image",
    "flip_shift": "a picture and its mirror image, in place and shifted by one pixel",
}


def write_report(folder: RunFolder, image_set: ImageSet, split: Split, test: Evaluation | None) -> None:
    """Write `report.html` of a run.

    Args:
        folder: With its result already written.
        image_set: The pictures, for the mistakes shown.
        split: The parts of `image_set`.
        test: The result on the test part; None for a run that did not get there.
    """
    result, facts, recipe = folder.result, folder.data, folder.recipe
    repetition = how_to_repeat(folder, split)
    report = ReportData(
        title=facts.source_name,
        run_name=folder.name,
        created=time.strftime("%Y-%m-%d %H:%M"),
        status=result["status"],
        status_detail=result.get("reason") or "",
        class_names=facts.class_names,
        source=_source(folder, image_set, split),
        model=ModelFacts(
            name=result["model"],
            description=_description(recipe.model),
            parameters=result["parameters"],
            trainable_parameters=result["trainable_parameters"],
            input_shape=(facts.channels, *facts.image_size),
        ),
        choice=_choice(folder.mode_choice),
        training=TrainingFacts(
            history=() if builders.is_solved_at_once(recipe) else folder.history,
            best_epoch=result["kept_epoch"],
            stopped=_sentence(result["stop_reason"]),
            seconds=result["train_seconds"],
            images_per_second=result["train_images_per_second"],
            solved=_how_solved(result) if builders.is_solved_at_once(recipe) else (),
            tried=_what_was_tried(result),
            # Runs of earlier versions have neither.
            unfreezing=[(step["epoch"], step["stages"]) for step in result.get("unfreezing", ())],
            frozen=result.get("frozen_stages", ()),
            averaged=recipe.transfer is not None,
        ),
        test=None if test is None else test.scores,
        tests=result["tests"],
        test_notes=split.test_notes,
        mistakes=() if test is None else _mistakes(image_set, split, test),
        recipe_yaml=recipe.to_yaml(),
        environment=environment_facts(folder),
        command=repetition.command,
        command_note=repetition.note,
        notes=[
            *split.notes,
            *_how_few(split),
            *_how_often_tested(result["tests"]),
            *_how_tested(recipe.test_time_augmentation, tested=test is not None),
        ],
    )
    folder.write_report(render_report(report))


def complete_report(folder: RunFolder, image_set: ImageSet, split: Split) -> None:
    """Write the report of a run that was killed between its result and its report, if it is so.

    The test part is not looked at again: what the network answered is in the run.

    Args:
        folder: Of a finished run.
        image_set: The pictures, for the mistakes shown.
        split: The parts of `image_set`.

    Raises:
        RunError: The stored answers are missing or damaged, or the report cannot be written.
    """
    if folder.report_path.is_file():
        return
    probabilities, targets = folder.test_predictions()
    test = Evaluation.of(
        probabilities,
        targets,
        train_targets=image_set.targets.numpy()[split.train],
        class_names=folder.data.class_names,
        groups=folder.test_groups(),
    )
    write_report(folder, image_set, split, test)


_CLASSIFIERS = {
    "logistic": "A logistic regression was fitted to those of",
    "knn": "A picture's class is voted by those nearest to it among",
}


def _how_solved(result: Mapping[str, Any]) -> list[str]:
    """How a classifier was fitted to features, as sentences."""
    features, classifier = result.get("features"), result.get("classifier")
    if features is None or classifier is None:
        return ["The training did not get as far as its classifier."]
    views = classifier["views"]
    seen = f" and {counted(views, 'augmented view')} of each of them" if views else ""
    return [
        f"The network was left as it was: it gives {features['numbers']:,} features of each picture. "
        f"{_CLASSIFIERS[classifier['kind']]} the {result['train_n']:,} training pictures{seen}.",
        classifier["how"],
    ]


def _choice(told: Mapping[str, Any]) -> ChoiceFacts | None:
    """How the mode was chosen, as a run keeps it."""
    if not told:
        return None
    names = [f.name for f in fields(TriedMode)]
    tried = [TriedMode(**{name: step.get(name) for name in names}) for step in told["steps"]]
    return ChoiceFacts(chosen=told["chosen"], reason=told["reason"], tried=tried, notes=told.get("notes", ()))


def _what_was_tried(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    classifier = result.get("classifier") or {}
    name = "neighbours" if classifier.get("kind") == "knn" else "C"
    return [
        (f"{name} = {candidate[name]:g}", candidate["log_loss"], candidate["accuracy"])
        for candidate in classifier.get("candidates", ())
    ]


def _how_few(split: Split) -> list[str]:
    if split.per_class is None:
        return []
    return [
        f"It was trained on {split.per_class:,} pictures of each class, drawn from the training part by split_seed "
        f"{split.seed}; the others were not used. Validation and test are whole, so that scores can be compared with "
        "those of trainings on more."
    ]


def _how_often_tested(tests: int) -> list[str]:
    if tests <= 1:
        return []
    return [
        f"The test part was looked at {tests} times, with training in between. Where an earlier score had a say in "
        "going on, this one is too good: test once more on pictures that nobody has looked at (netloom evaluate RUN "
        "SOURCE)."
    ]


def _how_tested(test_time_augmentation: str, *, tested: bool) -> list[str]:
    if not tested or test_time_augmentation == "none":
        return []
    versions = _HOW_TESTED[test_time_augmentation]
    return [
        f"Test results are averages over versions of each picture: the outputs for {versions}. The curves show "
        "validation on the picture alone."
    ]


def _source(folder: RunFolder, image_set: ImageSet, split: Split) -> SourceFacts:
    facts = folder.data
    targets, k = image_set.targets.numpy(), len(facts.class_names)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    weights = builders.sample_weights(folder.recipe, image_set, split.train)
    return SourceFacts(
        name=facts.source_name,
        location=facts.source_location,
        class_counts={
            part: np.bincount(targets[indices], minlength=k).tolist() for part, indices in parts.items() if len(indices)
        },
        class_weights=() if weights is None else _by_class(weights.cpu().numpy()[split.train], targets[split.train], k),
        split_method=_HOW_SPLIT.get(split.method, f"Parts: {split.method}."),
        rejected=[(item["path"], item["reason"]) for item in facts.audit.get("rejected", [])],
        warnings=facts.audit.get("warnings", []),
    )


def _by_class(weights: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], num_classes: int) -> tuple[float, ...]:
    """What a training picture of each class weighs on average; NaN for a class without any."""
    counts = np.bincount(targets, minlength=num_classes)
    sums = np.bincount(targets, weights=weights, minlength=num_classes)
    return tuple(np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0).tolist())


def _mistakes(image_set: ImageSet, split: Split, test: Evaluation) -> list[Mistake]:
    """The wrong answers given with most confidence."""
    wrong = np.flatnonzero(test.predictions != test.targets)
    confidence = test.probabilities.max(axis=1)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES_SHOWN]
    return [
        Mistake(
            picture=image_set.images[int(split.test[i])].numpy(),
            true_name=test.class_names[test.targets[i]],
            predicted_name=test.class_names[test.predictions[i]],
            confidence=float(confidence[i]),
            sample_id=image_set.ids[int(split.test[i])],
        )
        for i in chosen
    ]


def _description(model: str) -> str:
    found = {m.name: m.description for m in describe_models()}
    return found.get(model, "")


def _sentence(text: str | None) -> str:
    return "" if not text else f"{text[0].upper()}{text[1:]}."


def environment_facts(folder: RunFolder) -> Mapping[str, str]:
    """Label and value of what a run was executed with."""
    environment: dict[str, Any] = folder.environment
    plan = folder.plan
    return {
        "Device": f"{plan.device}, {plan.describe_threads()}",
        "Precision": f"{plan.precision}: {plan.reason}",
        "Processor": f"{environment['processor']} ({environment['cpu_capability']})",
        "System": environment["system"],
        **{f"{name} version": version for name, version in environment["versions"].items()},
    }
