"""Labels from a CSV file: one line for each picture."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from netloom.data.layout import PART_NAMES, Arranged, check_classes, order_classes
from netloom.data.location import FileLocation
from netloom.data.samples import Rejected, Sample
from netloom.errors import DataError, did_you_mean
from netloom.progress import printable

_REQUIRED = ("image_path", "label")
_OPTIONAL = ("split", "group", "weight")
_MISTAKES_SHOWN = 10
_LARGEST_WEIGHT = 1_000_000  # a larger one overflows the gradients rather than says anything of a picture


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]


def read_label_table(path: Path) -> Arranged:
    """Read columns image_path, label and optionally split, group, weight; others are ignored.

    The delimiter is a comma, semicolon or tab, the encoding UTF-8 with or without byte order mark.
    Paths are relative to the folder of the table. Pictures that are not there are rejected.

    Raises:
        DataError: A column is missing, cells are wrong (up to ten are named with their lines), no
            picture is there, or no classifier can be trained on the classes.
    """
    rows = _read_rows(path)
    _refuse_mistakes(path, rows)
    samples: list[tuple[str, Sample]] = []
    rejected: list[Rejected] = []
    for row in rows:
        place = _picture_path(row, path.parent)
        if os.path.lexists(place):
            samples.append((printable(row.cells["label"]), _sample(row, place)))
        else:
            rejected.append(Rejected(_id(row), "file not found"))
    if not samples:
        raise DataError(
            f"None of the {len(rejected):,} pictures that {path} lists is there, for example "
            f"{rejected[0].path!r}. Paths are taken relative to {path.parent}."
        )
    names = order_classes(label for label, _ in samples)
    number = {name: index for index, name in enumerate(names)}
    numbered = [replace(sample, label=number[label]) for label, sample in samples]
    check_classes(names, numbered, where=str(path))
    if not any(sample.weight for sample in numbered if sample.split in (None, "train")):
        raise DataError(f"Every training picture of {path} has the weight 0, so nothing could be learned from them.")
    return Arranged(names, numbered, rejected)


def _read_rows(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}). Save it as “CSV UTF-8”.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = _columns(path, next(reader, []))
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                padded = cells + [""] * (len(columns) - len(cells))
                by_name = dict.fromkeys((*_REQUIRED, *_OPTIONAL), "")
                by_name.update(zip(columns, map(str.strip, padded)))  # noqa: B905 - extra cells drop
                rows.append(_Row(reader.line_num, by_name))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    if not rows:
        raise DataError(f"{path} lists no pictures: there is no line after the column names.")
    return rows


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [cell.strip().casefold() for cell in header]
    missing = [name for name in _REQUIRED if name not in columns]
    twice = [name for name in (*_REQUIRED, *_OPTIONAL) if columns.count(name) > 1]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]}; remove or rename one of them.")
    if missing:
        found = ", ".join(repr(cell.strip()) for cell in header) or "nothing"
        hints = "".join(did_you_mean(name, set(columns) - {""}) for name in missing)
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}; its first line has "
            f"{found}.{hints} Needed are image_path and label; split, group and weight may follow."
        )
    return columns


def _refuse_mistakes(path: Path, rows: list[_Row]) -> None:
    mistakes: list[str] = []
    first_line: dict[str, int] = {}
    splits_given = any(row.cells["split"] for row in rows)
    for row in rows:
        mistakes += (f"line {row.line}: {mistake}" for mistake in _mistakes_of(row, splits_given))
        earlier = first_line.setdefault(_id(row), row.line)
        if earlier != row.line and _id(row):
            mistakes.append(f"line {row.line}: {_id(row)!r} is in line {earlier} already")
    if mistakes:
        more = len(mistakes) - _MISTAKES_SHOWN
        raise DataError(
            "\n  ".join(
                [
                    f"{path} has {len(mistakes):,} mistake{'s' if len(mistakes) > 1 else ''}:",
                    *mistakes[:_MISTAKES_SHOWN],
                    *([f"and {more:,} more"] if more > 0 else []),
                ]
            )
        )


def _mistakes_of(row: _Row, splits_given: bool) -> list[str]:
    cells = row.cells
    mistakes = [f"{name} is empty" for name in _REQUIRED if not cells[name]]
    if splits_given and cells["split"].casefold() not in PART_NAMES:
        mistakes.append(
            f"split is {cells['split']!r}, expected train, validation or test."
            f"{did_you_mean(cells['split'], PART_NAMES)}"
        )
    if cells["weight"] and _weight(cells["weight"]) is None:
        mistakes.append(f"weight is {cells['weight']!r}, expected a number from 0 to {_LARGEST_WEIGHT:,}")
    return mistakes


def _weight(cell: str) -> float | None:
    try:
        weight = float(cell)
    except ValueError:
        return None
    return weight if 0 <= weight <= _LARGEST_WEIGHT else None


def _id(row: _Row) -> str:
    return printable(row.cells["image_path"].replace("\\", "/"))


def _picture_path(row: _Row, folder: Path) -> str:
    """The file a row means.

    Tables made on Windows have backslashes for slashes. Hangul and accents may be composed in the table and taken apart
    in the files' names, as macOS writes them, or the other way round.
    """
    cell = row.cells["image_path"]
    spellings = [cell, cell.replace("\\", "/")]
    spellings += [unicodedata.normalize(form, spellings[1]) for form in ("NFC", "NFD") if not cell.isascii()]
    paths = [str(folder / spelling) for spelling in spellings]
    return next(filter(os.path.lexists, paths), paths[1])


def _sample(row: _Row, path: str) -> Sample:
    return Sample(
        id=_id(row),
        label=-1,
        split=PART_NAMES.get(row.cells["split"].casefold()),
        group=printable(row.cells["group"]) or None,
        weight=_weight(row.cells["weight"] or "1") or 0.0,
        location=FileLocation(path),
    )
