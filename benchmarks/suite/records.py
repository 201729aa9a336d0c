"""Result files: what was measured in one setting, case by case."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite.errors import OtherSettingError
from benchmarks.suite.machine import same_machine
from benchmarks.suite.plans import Case
from netloom.files import write_json

Entry = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What is measured: the code, and the versions of what it runs on.

    Attributes:
        commit: Of netloom and the benchmarks; None where it is not known.
        versions: By contender.
    """

    commit: str | None
    versions: Mapping[str, Mapping[str, str]]


@dataclass
class Results:
    """The result file of one benchmark.

    Attributes:
        path: Written after every case.
        setting: What all cases of a file have in common.
        cases: All that the benchmark has in this setting, in the order of the file.
        entries: What is measured of them so far.
    """

    path: Path
    setting: dict[str, Any]
    cases: Sequence[Case]
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, setting: dict[str, Any], cases: Sequence[Case]) -> Results:
        """What the file holds already of these cases; nothing where there is none.

        Raises:
            OtherSettingError: It was measured in another setting.
        """
        results = cls(path, setting, cases)
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            found = {key: value for key, value in earlier.items() if key != "cases"}
            if other := _other_keys(found, setting):
                raise OtherSettingError(
                    f"{path} was measured in another setting ({_differences(other, found, setting)}). "
                    "Keep these figures apart (--out FOLDER), or remove that file."
                )
            results.entries = [entry for entry in earlier["cases"] if entry["case"] in cases]
            if gone := len(earlier["cases"]) - len(results.entries):
                print(f"{path}: {gone} rows that are no longer measured give way to the next result", file=sys.stderr)
        return results

    def find(self, case: Case) -> Entry | None:
        """What is recorded of a case."""
        return next((entry for entry in self.entries if entry["case"] == case), None)

    def check_contenders(self, cases: Sequence[Case], names: Collection[str]) -> None:
        """Contenders of one case are measured in turn, so that no part of them can be replaced.

        Raises:
            OtherSettingError: Some that are recorded of these cases are not among `names`.
        """
        lost = {name for case in cases for name in (self.find(case) or {"contenders": ()})["contenders"]} - set(names)
        if lost:
            raise OtherSettingError(
                f"{self.path} has figures of {', '.join(sorted(lost))}, measured in turn with the others, which this "
                "call would lose. Keep its own apart (--out FOLDER), or measure all contenders."
            )

    def put(self, entry: Entry) -> None:
        """Take a case's figures instead of earlier ones, and write the file."""
        kept = [other for other in self.entries if other["case"] != entry["case"]]
        self.entries = sorted([*kept, entry], key=lambda one: self.cases.index(one["case"]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**self.setting, "cases": self.entries})


def is_current(entry: Entry, source: Source, names: Collection[str]) -> bool:
    """Whether a case's figures are those of the same code, contenders and versions."""
    versions = {name: source.versions.get(name) for name in names}
    return (entry["commit"], set(entry["contenders"]), entry["versions"]) == (source.commit, set(names), versions)


def _other_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two settings do not have in common."""
    other = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    if "machine" in found and "machine" in wanted and same_machine(found["machine"], wanted["machine"]):
        other = [key for key in other if key != "machine"]
    return other


def _differences(keys: Sequence[str], found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return ", ".join(
        f"another {key}" if isinstance(wanted.get(key), dict) else f"{key} {found.get(key)}, not {wanted.get(key)}"
        for key in keys
    )
