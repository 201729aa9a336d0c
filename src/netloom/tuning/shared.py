"""What drivers that share a study owe each other: signs of life, and one search."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import Trial, TrialState

from netloom.errors import NetloomError, RunError
from netloom.tuning.patience import SECONDS_UNTIL_TOLD, STORAGE_ERRORS
from netloom.tuning.storage import GRACE_SECONDS, missing_study

DRIVER = "netloom:driver"
OUTCOME = "netloom:outcome"
SPACE = "netloom:space"
_SECONDS_TO_END = 5
_SECONDS_FOR_FACTS = 60
_GIVEN_UP = "Its driver fell silent, and another driver of the study gave it up."


class Heartbeats:
    """Says that a driver's trials are alive, and gives up those of dead drivers.

    Args:
        study: Optuna's, shared.
        storage: Its database.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage) -> None:
        self._study, self._storage = study, storage
        self._last = float("-inf")
        self._nameless_since: dict[int, float] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Between two signs of life."""
        return float(self._storage.heartbeat_interval or 0)

    def send(self, alive: Sequence[Trial]) -> None:
        """Do both, if the last time is long enough ago."""
        with self._lock:
            if time.monotonic() - self._last < self.seconds:
                return
            self._last = time.monotonic()
            for trial in alive:
                self._storage.record_heartbeat(trial._trial_id)
            for trial_id in {*self._storage._get_stale_trial_ids(self._study._study_id), *self._nameless()}:
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # by yet another driver
                    self._storage.set_trial_user_attr(trial_id, OUTCOME, {"reason": _GIVEN_UP})
                    self._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)

    def _nameless(self) -> list[int]:
        """Trials whose driver died between making them and writing its name: no driver would go on with them."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic()
        nameless = {t._trial_id: now for t in running if DRIVER not in t.user_attrs}
        self._nameless_since = {trial: self._nameless_since.get(trial, since) for trial, since in nameless.items()}
        grace_seconds = self._storage.grace_period or GRACE_SECONDS
        return [trial for trial, since in self._nameless_since.items() if now - since > grace_seconds]

    @contextlib.contextmanager
    def beating(self, send: Any) -> Iterator[None]:
        """Call `send` in a thread of its own for the body, whatever the others are busy with.

        A database that cannot be reached costs one sign of life; those who need it wait for it themselves.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                with contextlib.suppress(*STORAGE_ERRORS):
                    send()
                ended.wait(self.seconds / 3)
            self._storage.remove_session()

        thread = threading.Thread(target=beat, name="netloom-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_SECONDS_TO_END)


def joined(storage: BaseStorage, name: str, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """The study of that name.

    Raises:
        RunError: The storage holds none.
    """
    try:
        return optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
    except KeyError:
        url = storage.url if isinstance(storage, RDBStorage) else "given"
        raise missing_study(name, url) from None


def facts_of(study: optuna.Study, say: Callable[[str], None]) -> Mapping[str, Any]:
    """What the driver that made the study wrote down, which may take it a moment; `say` tells of one that lasts.

    Raises:
        RunError: It has written nothing.
    """
    started, told = time.monotonic(), False
    while (facts := study.user_attrs.get(SPACE)) is None:
        waited = time.monotonic() - started
        if waited > _SECONDS_FOR_FACTS:
            raise RunError(
                f"The study {study.study_name!r} was not made by netloom, or its maker died at once. Give another name."
            )
        if waited >= SECONDS_UNTIL_TOLD and not told:
            told = True
            say(
                f"The study {study.study_name!r} does not say yet what it searches. Its maker is waited for, "
                f"{_SECONDS_FOR_FACTS} s at most"
            )
        time.sleep(0.05)
    assert isinstance(facts, Mapping)
    return facts


def see_that_they_agree(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> None:
    """Compare what the study was made of with what this driver would make it of.

    Raises:
        NetloomError: They differ.
    """
    differing = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    if differing:
        raise NetloomError(
            f"The study {name!r} exists with another {', '.join(differing)}. Drivers that share a study search the "
            "same space of the same recipe on the same pictures; give this search another --name."
        )
