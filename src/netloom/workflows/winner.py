"""The winner of a search: trained anew with seeds that the search has not seen, each training tested once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from netloom.data.splits import Split
from netloom.errors import RecipeError, TrainingError
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.tuning.study import TrialRecord
from netloom.workflows import builders
from netloom.workflows.prepare import PreparedData
from netloom.workflows.runs import Run, load
from netloom.workflows.search import Search
from netloom.workflows.search_options import FinalPart
from netloom.workflows.training_job import Kind, Member, TrainingJob, is_job, resume_job, start_job

_FINAL = "final"


def check_final_part(recipe: Recipe, split: Split, final_on: FinalPart, *, n_seeds: int) -> None:
    """See, before anything is searched, that the winner of such a recipe could be trained on `final_on`.

    Raises:
        RecipeError: It could not.
    """
    if final_on == "train":
        return
    what = f"--final-on {final_on}"
    if n_seeds == 0:
        raise RecipeError(
            f"{what} says how the winner is trained, and --final-seeds 0 trains none. Leave out one of them."
        )
    if recipe.per_class is not None:
        raise RecipeError(
            f"{what} would train the winner on the whole validation part, too, not on {recipe.per_class} pictures of "
            "each class. Leave out one of the two."
        )
    if not len(split.validation):
        raise RecipeError(f"{what} needs a validation part to add, and there is none. Leave it out.")
    try:
        builders.check_monitors(recipe.replace(keep="last", early_stopping=None), split.with_validation_trained())
    except RecipeError as error:
        raise RecipeError(f"{what} trains the winner without a validation part. {error}") from error


def train_winner(search: Search, best: TrialRecord, recipe: Recipe) -> list[Run]:
    """The winner, trained with fresh seeds; each training is tested once.

    On training and validation part together nothing is left to choose an epoch by: it is trained for as many epochs as
    the trial's kept weights had, and the last are kept.

    Args:
        search: Whose winner it is.
        best: The winning trial.
        recipe: With its values.

    Raises:
        TrainingError: A training failed; the search can be gone on with.
    """
    n = search.manifest.final_seeds
    if n == 0:
        return []
    final, split = _as_trained(search, best, recipe)
    announcement = [
        f"Training the best recipe anew, with {n} {'seed' if n == 1 else 'seeds'} that the search has not seen"
    ]
    if split is not search.pictures.data.split:
        announcement += _how_long(recipe, final, split)
    first = search.recipe.seed + 1
    members = [
        Member(f"seed-{seed}", final.replace(seed=seed), split, {"seed": seed}) for seed in range(first, first + n)
    ]
    return train_anew(search, "seeds", members, name=_FINAL, announcement=announcement)


def train_anew(
    search: Search,
    kind: Kind,
    members: Sequence[Member],
    *,
    name: str,
    announcement: Sequence[str],
) -> list[Run]:
    """Bring trainings of the winner to their end, under the plan of the trials; those that are there are gone on with.

    Args:
        search: Whose winner it is.
        kind: Of their job.
        members: Of the job, one or more.
        name: Of the job's folder, which is in the study's.
        announcement: What a person is told where they begin.

    Raises:
        TrainingError: A training failed; the search can be gone on with.
    """
    data = search.pictures.prepared_for(members[0].recipe, members[0].split)
    job = _begun(search, kind, members[0], data, name)
    if job is None:
        for line in announcement:
            search.reporter.say(line)
        job = start_job(
            kind,
            members,
            data,
            out=search.folder,
            name=name,
            details={},
            jobs=search.jobs,
            device=search.manifest.plan.device,
            plan=search.manifest.plan,
            model=search.model,
            reporter=Reporter(quiet=True),
        )
    failures = job.train(search.reporter, go_on_with=search.how_to_go_on())
    if failures:
        which, reason = next(iter(failures.items()))
        raise TrainingError(
            f"The best recipe could not be trained anew: {which}: {reason.rstrip('.')}. The search is whole; go on "
            f"with: {search.how_to_go_on()}"
        )
    return list(job.runs)


def note_tested(search: Search, best: TrialRecord, runs: Sequence[Run]) -> None:
    """Tell other drivers of the study that this winner has met the test pictures."""
    if runs and search.manifest.driver is not None:
        search.study.note_tested(_as_known(search, best.number))


def earlier_winners(search: Search, best: TrialRecord | None, runs: Sequence[Run]) -> int:
    """Other winners that have met the test pictures, beside `runs`.

    They are of this search when it was shorter, and of other drivers that share its study.
    """
    if not runs or best is None:
        return 0
    others = [f for f in search.folder.glob(f"*-{_FINAL}*") if f.resolve() != runs[0].path.parent.resolve()]
    here = sum(any("test" in Run(run).result for run in folder.glob("seed-*")) for folder in others)
    if search.manifest.driver is None:
        return here
    return max(here, len(search.study.tested() - {_as_known(search, best.number)}))


def _as_known(search: Search, number: int) -> str:
    """A winner's name in the study: the same recipe trained on other parts is another classifier."""
    return f"trial {number} on {search.manifest.final_on}"


def _as_trained(search: Search, best: TrialRecord, recipe: Recipe) -> tuple[Recipe, Split]:
    """What the winner's trainings follow, and on which parts."""
    split = search.pictures.data.split
    if search.manifest.final_on == "train":
        return recipe, split
    epochs = _kept_epochs(best)
    shorter = {}
    if recipe.schedule is not None and recipe.schedule.warmup_epochs > epochs:
        shorter = {"schedule.warmup_epochs": epochs}
    final = recipe.replace(epochs=epochs, keep="last", early_stopping=None, **shorter)
    joined = split.with_validation_trained()
    try:
        builders.check_monitors(final, joined)
    except RecipeError as error:
        raise TrainingError(
            f"The best recipe cannot be trained on {search.manifest.final_on}. {error} The search is whole; go on "
            f"with: {search.how_to_go_on(final_on='train')}"
        ) from error
    return final, joined


def _kept_epochs(best: TrialRecord) -> int:
    """How long the trial trained until the weights that scored it; of folds, the median."""
    kept = best.outcome.get("kept_epoch")
    found = [kept] if kept is not None else list(best.outcome.get("kept_epochs") or ())
    if not found:
        raise TrainingError(
            f"Trial {best.number} does not say which epoch it kept, so it is not known how long to train its recipe "
            "without a validation part. Go on with --final-on train."
        )
    return max(1, round(float(statistics.median(found))))


def _how_long(recipe: Recipe, final: Recipe, split: Split) -> list[str]:
    lines = [
        f"  on {len(split.train):,} pictures, of training and validation part together, for {final.epochs} epochs: as "
        "many as the winning trial's kept weights had, since no validation part is left to choose by"
    ]
    if final.epochs != recipe.epochs:
        lines += [
            f"  note: {what} on the length and is recomputed for {final.epochs} epochs"
            for what in builders.depending_on_length(final)
        ]
    if final.schedule is not None and recipe.schedule is not None and final.schedule != recipe.schedule:
        lines.append(f"  note: the warm-up of {recipe.schedule.warmup_epochs:g} epochs ends with these")
    return lines


def _begun(search: Search, kind: Kind, first: Member, data: PreparedData, name: str) -> TrainingJob | None:
    """The trainings of this very winner that an earlier call has begun."""
    for folder in sorted(search.folder.glob(f"*-{name}*")):
        if not is_job(folder, kind):
            continue
        begun = load(folder / first.name)
        same_parts = len(begun.split["validation"]) == len(first.split.validation)
        if same_parts and begun.recipe == first.recipe:
            return resume_job(
                folder,
                kind,
                source=data.image_set,
                jobs=search.jobs,
                model=search.model,
                reporter=search.reporter,
            )
    return None
