"""A database that one process alone writes to: read from memory, written by a thread of its own.

Optuna's own reads what this process has written before every look at a study: 64 to 76 ms of CPU time for a trial that
reports five times, all of which a worker waits for. Here it is 13 to 31 ms, most of them in the thread, and a worker
waits for 3 to 8 (`benchmarks/search_overhead.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from netloom.errors import RunError


class OwnDatabase(InMemoryStorage):
    """Trials in memory, and every change of them in a database, in the same order, a moment later.

    After a crash the database lacks the last moments. That is as if the crash had come so much earlier: what a trial
    has reached lies in its own folder, and is told again.

    Args:
        database: Open; no other process writes to it.
        lock: An open file whose lock says so; closed in the end.
        path: Of the database, for messages.
    """

    def __init__(self, database: RDBStorage, lock: IO[bytes], path: Path) -> None:
        super().__init__()
        self._database, self._lock_file, self._path = database, lock, path
        self._study_ids: dict[int, int] = {}
        self._trial_ids: dict[int, int] = {}  # of the database, by those in memory; used by the thread only
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="netloom-write")
        self._error: RunError | None = None
        for study in database.get_all_studies():
            own = super().create_new_study(study.directions, study.study_name)
            self._study_ids[own] = study._study_id
            for key, value in study.user_attrs.items():
                super().set_study_user_attr(own, key, value)
            for key, value in study.system_attrs.items():
                super().set_study_system_attr(own, key, value)
            for trial in database.get_all_trials(study._study_id):
                self._trial_ids[super().create_new_trial(own, trial)] = trial._trial_id

    def close(self) -> None:
        """Write what is waiting, and end the connections to the database; further changes are refused.

        Raises:
            RunError: Something could not be written.
        """
        self._writer.shutdown()
        self._database.scoped_session.remove()
        self._database.engine.dispose()
        self._lock_file.close()
        if self._error is not None:
            raise self._error

    def _later(self, change: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self._writer.submit(self._write, change)

    def _write(self, change: Callable[[], None]) -> None:
        if self._error is not None:  # nothing may follow what is missing
            return
        try:
            change()
        except Exception as error:
            cause: Any = error.__cause__ or error
            what = str(getattr(cause, "orig", None) or cause).strip().splitlines()
            self._error = RunError(
                f"{self._path} could not be written: {what[0] if what else cause}. Free some "
                "space if the disk is full; what was written before is unharmed, and can be gone on with."
            )
            self._error.__cause__ = error

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Written at once."""
        own = super().create_new_study(directions, study_name)
        self._study_ids[own] = self._database.create_new_study(directions, self.get_study_name_from_id(own))
        return own

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Written later."""
        super().set_study_user_attr(study_id, key, value)
        self._later(lambda: self._database.set_study_user_attr(self._study_ids[study_id], key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Written later."""
        super().set_study_system_attr(study_id, key, value)
        self._later(lambda: self._database.set_study_system_attr(self._study_ids[study_id], key, value))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Written later."""
        own = super().create_new_trial(study_id, template_trial)

        def change() -> None:
            self._trial_ids[own] = self._database.create_new_trial(self._study_ids[study_id], template_trial)

        self._later(change)
        return own

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Written later."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._later(
            lambda: self._database.set_trial_param(
                self._trial_ids[trial_id], param_name, param_value_internal, distribution
            )
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Written later."""
        changed = super().set_trial_state_values(trial_id, state, values)
        if changed:

            def change() -> None:
                self._database.set_trial_state_values(self._trial_ids[trial_id], state, values)

            self._later(change)
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Written later."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._later(
            lambda: self._database.set_trial_intermediate_value(self._trial_ids[trial_id], step, intermediate_value)
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Written later."""
        super().set_trial_user_attr(trial_id, key, value)
        self._later(lambda: self._database.set_trial_user_attr(self._trial_ids[trial_id], key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Written later."""
        super().set_trial_system_attr(trial_id, key, value)
        self._later(lambda: self._database.set_trial_system_attr(self._trial_ids[trial_id], key, value))
