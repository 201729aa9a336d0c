from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import sys
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netloom.data.fingerprint import fingerprint_files
from netloom.data.imageset import load_image_set
from netloom.data.location import (
    StreamedTarMember,
    TarMember,
    UnreadablePictureError,
    read_bytes,
    stream_tar,
)
from netloom.data.sources import Source, open_pictures, open_source
from netloom.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value % 256, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(value))
    return path


def write_tar(path: Path, names: list[str], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for value, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(png(value))
            archive.addfile(member, io.BytesIO(png(value)))
    return path


def table(source: Source) -> list[tuple[str, str, str | None]]:
    return [(s.id, source.class_names[s.label], s.split) for s in source.samples]


CLASSES = ["cat/1.png", "cat/deep/er/2.png", "dog/1.png", "dog/2.png"]
CLASSES_TABLE = [(name, name[:3], None) for name in CLASSES]
PARTS = ["Train/b/1.png", "Train/a/1.png", "VALID/a/2.png", "valid/b/1.png", "testing/a/3.png"]
PARTS_TABLE = [
    ("Train/a/1.png", "a", "train"),
    ("Train/b/1.png", "b", "train"),
    ("VALID/a/2.png", "a", "validation"),
    ("testing/a/3.png", "a", "test"),
    ("valid/b/1.png", "b", "validation"),
]


def make(form: str, folder: Path, names: list[str]) -> Path:
    if form == "folder":
        return write_folder(folder / "photos", names)
    if form == "zip":
        return write_zip(folder / "photos.zip", names)
    modes = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    return write_tar(folder / f"photos{form}", names, modes[form])


FORMS = ["folder", "zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("names", "expected"), [(CLASSES, CLASSES_TABLE), (PARTS, PARTS_TABLE)])
def test_every_form_gives_the_same_samples_and_bytes(
    form: str, names: list[str], expected: list, tmp_path: Path
) -> None:
    place = make(form, tmp_path, names)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(place))
    assert table(source) == expected
    assert (source.name, source.rejected) == ("photos", ())
    assert source.kind == ("folder" if form == "folder" else "archive")
    content = {s.id: read_bytes(s.location) for s in source.samples if s.location}
    assert content == {name: png(value) for value, name in enumerate(names)}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["zip", ".tar", ".tar.gz"])
def test_top_folders_of_archives_are_taken_off(form: str, tmp_path: Path) -> None:
    names = ["./README.txt", "data/v2/LICENSE", *(f"data/v2/{name}" for name in CLASSES)]
    source = open_source(make(form, tmp_path, names))
    assert table(source) == CLASSES_TABLE


def test_a_training_part_alone_is_no_top_folder(tmp_path: Path) -> None:
    source = open_source(make("zip", tmp_path, ["top/train/a/1.png", "top/train/b/1.png"]))
    assert [s.split for s in source.samples] == ["train", "train"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a", "B", "가나", "Z"], ["B", "Z", "a", "b", "가나"]),
        (["10", "9", "0", "2"], ["0", "2", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["<b>", "고양이"], ["<b>", "고양이"]),
    ],
)
def test_classes_are_by_code_point_and_integers_by_value(names: list[str], expected: list[str], tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "p", [f"{name}/1.png" for name in names]))
    assert list(source.class_names) == expected


def test_decomposed_hangul_is_the_same_class(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "고양이")
    assert apart != "고양이"
    names = [f"train/{apart}/1.png", "train/개/1.png", "test/고양이/사진.png"]
    source = open_source(write_folder(tmp_path / "p", names))
    assert source.class_names == ("개", "고양이")
    assert {s.id for s in source.samples} == {unicodedata.normalize("NFC", name) for name in names}


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
def test_undecodable_names_can_be_shown_and_opened(tmp_path: Path) -> None:
    source_folder = write_folder(tmp_path / "p", ["a/1.png", "b/1.png"])
    (source_folder / "b").rename(source_folder / os.fsdecode(b"b\xff"))
    source = open_source(source_folder)
    "".join([*source.class_names, *(s.id for s in source.samples)]).encode()
    assert all(read_bytes(s.location).startswith(b"\x89PNG") for s in source.samples if s.location)


def test_hidden_files_and_leftovers_are_ignored_and_others_are_candidates(tmp_path: Path) -> None:
    junk = [".DS_Store", "cat/Thumbs.db", "cat/._1.png", "__MACOSX/cat/1.png", ".git/a/b"]
    candidates = ["cat/notes.txt", "dog/film.mp4", "dog/noextension"]
    source = open_source(write_folder(tmp_path / "p", [*CLASSES, *junk, *candidates, "README.md", "loose.JPG"]))
    assert [s.id for s in source.samples] == sorted([*CLASSES, *candidates])
    assert [(r.path, r.reason) for r in source.rejected] == [("loose.JPG", "outside the class folders")]


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges on Windows")
def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", ["1.png", "2.png"])
    root = write_folder(tmp_path / "p", ["cat/1.png"])
    (root / "dog").symlink_to(elsewhere)
    (root / "cat/loop").symlink_to(root)
    (elsewhere / "back").symlink_to(root / "cat")
    (root / "cat/self").symlink_to(root / "cat/self")
    source = open_source(root)
    ids = [s.id for s in source.samples]
    assert ids[:2] == ["cat/1.png", "cat/self"]
    assert {"dog/1.png", "dog/2.png"} <= set(ids)
    assert "link to a folder read already" in {r.reason for r in source.rejected}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", CLASSES)
    os.mkfifo(root / "cat/pipe")
    source = open_source(root)
    assert "cat/pipe" in [s.id for s in source.samples]
    assert len(source.fingerprint()) == 32


def test_no_path_of_an_archive_is_trusted(tmp_path: Path) -> None:
    bad = {
        "/etc/cat/1.png": "an absolute path in an archive",
        "C:/cat/1.png": "an absolute path in an archive",
        "cat/../../1.png": "a path that leads out of its archive",
        "cat\\3.png": "a path with backslashes in an archive",
    }
    for form in ("zip", ".tar", ".tar.gz"):
        source = open_source(make(form, tmp_path, [*CLASSES, *bad]))
        assert table(source) == CLASSES_TABLE
        assert {r.path: r.reason for r in source.rejected} == bad


def test_links_and_devices_in_archives_are_left_out(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", CLASSES, "w")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("d", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"cat/{name}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    reasons = {r.path: r.reason for r in open_source(path).rejected}
    assert reasons == {
        "cat/s": "a link in an archive",
        "cat/h": "a link in an archive",
        "cat/d": "not a regular file in its archive",
    }


def test_links_and_encrypted_members_of_a_zip_are_left_out(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.zip", CLASSES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("cat/secret.png", b"x")
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")  # the last entry of the directory is secret.png
    content[directory + 8] |= 1
    path.write_bytes(bytes(content))
    reasons = {r.path: r.reason for r in open_source(path).rejected}
    assert reasons == {"cat/link": "a link in an archive", "cat/secret.png": "encrypted with a password"}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_members_with_one_name_one_is_used(tmp_path: Path) -> None:
    for form in ("zip", ".tar", ".tar.gz"):
        source = open_source(make(form, tmp_path, [*CLASSES, "cat/1.png"]))
        assert table(source) == CLASSES_TABLE
        assert [r.path for r in source.rejected] == ["cat/1.png"]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("cp949", "고양이"),
        ("cp949", "똠방각하와펲시맨"),  # its first syllable is outside KS X 1001
        ("utf-8", "고양이"),
        ("cp437", "café"),
        ("cp437", "Ménagère"),
    ],
)
def test_names_without_the_utf8_flag_are_read_as_they_were_meant(encoding: str, name: str, tmp_path: Path) -> None:
    stored = name.encode(encoding).decode("cp437")
    path = write_zip(tmp_path / "p.zip", [f"{stored}/1.png", "x/1.png"])
    content = path.read_bytes()
    utf8, legacy = stored.encode("utf-8"), name.encode(encoding)
    with zipfile.ZipFile(path, "w") as archive:  # same length of name, so that offsets stay
        archive.writestr("?" * len(legacy) + "/1.png", png(0))
        archive.writestr("x/1.png", png(1))
    content = path.read_bytes()
    assert utf8 not in content
    path.write_bytes(content.replace(b"?" * len(legacy), legacy))
    source = open_source(path)
    assert name in source.class_names
    assert all(read_bytes(s.location).startswith(b"\x89PNG") for s in source.samples if s.location)


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    write_folder(folder, ["pics/1.png", "pics/2.png", "사진/셋.png", "pics/4.png"])
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder / "labels.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_of_labels(delimiter: str, encoding: str, newline: str, tmp_path: Path) -> None:
    lines = [
        "image_path,Label,split,group,weight,remark",
        "pics/1.png,고양이,train,p1,0.5,first",
        "pics\\2.png,개,Training,,,",
        "사진/셋.png,개,VAL,p2,2,",
        "pics/gone.png,개,test,p3,1,",
        "pics/4.png, 고양이 ,test",
        "",
    ]
    path = write_csv(tmp_path, newline.join(lines).replace(",", delimiter), encoding)
    source = open_source(path)
    assert (source.kind, source.name) == ("csv", "labels")
    assert [(s.id, source.class_names[s.label], s.split, s.group, s.weight) for s in source.samples] == [
        ("pics/1.png", "고양이", "train", "p1", 0.5),
        ("pics/2.png", "개", "train", None, 1.0),
        ("사진/셋.png", "개", "validation", "p2", 2.0),
        ("pics/4.png", "고양이", "test", None, 1.0),
    ]
    assert [(r.path, r.reason) for r in source.rejected] == [("pics/gone.png", "file not found")]
    assert read_bytes(source.samples[1].location) == png(1)


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_table_may_spell_names_otherwise_than_the_file_system(written: str, stored: str, tmp_path: Path) -> None:
    """macOS takes Hangul apart in files' names; spreadsheets compose it."""
    names = ["사진/하나.png", "사진/둘.png", "사진/셋.png"]
    write_folder(tmp_path, [unicodedata.normalize(stored, name) for name in names])
    rows = [f"{name},{label},환자" for name, label in zip(names, "aba", strict=True)]
    rows[1] = unicodedata.normalize("NFD", rows[1])
    rows[2] = unicodedata.normalize("NFC", rows[2]).replace("/", "\\")
    text = "\n".join(["image_path,label,group", unicodedata.normalize(written, rows[0]), *rows[1:]])
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    source = open_source(tmp_path / "labels.csv")
    assert source.rejected == ()
    assert [sample.id for sample in source.samples] == names
    assert [read_bytes(sample.location) for sample in source.samples if sample.location] == [png(i) for i in range(3)]
    assert {sample.group for sample in source.samples} == {"환자"}


def test_all_mistakes_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    rows = ["pics/1.png,a,trian,1", "pics/2.png,,test,1", "pics/1.png,b,test,-1", "x,b,,nan"]
    path = write_csv(tmp_path, "image_path,label,split,weight\n" + "\n".join(rows))
    with pytest.raises(DataError) as error:
        open_source(path)
    message = str(error.value)
    assert "line 2: split is 'trian'" in message
    assert "Did you mean 'train'?" in message
    assert "line 3: label is empty" in message
    assert "line 4: weight is '-1'" in message
    assert "line 4: 'pics/1.png' is in line 2 already" in message
    assert "line 5: split is ''" in message
    assert "line 5: weight is 'nan'" in message


def test_ten_mistakes_are_shown(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "image_path,label\n" + "".join(f"{i}.png,\n" for i in range(14)))
    with pytest.raises(DataError, match="14 mistakes") as error:
        open_source(path)
    assert str(error.value).count("label is empty") == 10
    assert "and 4 more" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_pth,label\na,b\n", "no column image_path.*'image_pth'.*Did you mean 'image_pth'"),
        ("", "no column image_path and no column label"),
        ("image_path,label\n", "lists no pictures"),
        ("image_path,label\ngone/1.png,a\ngone/2.png,b\n", "None of the 2 pictures"),
        ("image_path,label\npics/1.png,a\npics/2.png,a\n", "one class only"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write_csv(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        open_source(write_csv(tmp_path, "image_path,label\n사진.png,개\n", "cp949"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no files"),
        ([".hidden"], "holds no files"),
        (["1.png", "2.png"], "2 pictures but no class folders.*CLASS/picture.jpg"),
        (["train/1.png"], "1 picture but no class folders"),
        (["a/1.png", "a/2.png"], "one class only, 'a'"),
        (["all/a/1.png", "all/b/2.png"], "name 'all' as the source"),
        (["a/1.png"], "holds one picture"),
        (["train/a/1.png", "train/b/1.png", "other/1.png"], "mixes the part folders 'train'.*'other'"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "no training pictures of 'c'"),
        (["val/a/1.png", "test/b/1.png"], "test and a validation part but no train part"),
    ],
)
def test_folders_that_cannot_be_used(names: list[str], message: str, tmp_path: Path) -> None:
    root = tmp_path / "p"
    root.mkdir()
    with pytest.raises(DataError, match=message):
        open_source(write_folder(root, names))


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "holiday", CLASSES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"There is no 'holidy'.*Did you mean 'holiday'\?"):
        open_source("holidy")
    with pytest.raises(DataError, match=r"Did you mean 'cifar10'\?"):
        open_source("cifar-10")
    with pytest.raises(DataError, match=r"no usable path|There is no"):
        open_source("a\0b")
    with pytest.raises(DataError, match="There is no ''"):
        open_source("")
    (tmp_path / "photos.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"no source of labelled pictures.*\.zip"):
        open_source("photos.rar")


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz"])
@pytest.mark.parametrize("damage", ["foreign", "cut"])
def test_damaged_archives(name: str, damage: str, tmp_path: Path) -> None:
    form = "zip" if name == "p.zip" else name[1:]
    path = make(form, tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(200)])
    content = path.read_bytes()
    path.write_bytes(b"hello" * 300 if damage == "foreign" else content[: len(content) // 2 + 77])
    with pytest.raises(DataError, match="cannot be read as an archive"):
        open_source(path)


@pytest.mark.parametrize("form", ["folder", "zip", ".tar.gz"])
def test_the_fingerprint_is_of_the_content(form: str, tmp_path: Path) -> None:
    first = make(form, tmp_path, CLASSES)
    fingerprint = open_source(first).fingerprint()
    assert open_source(first).fingerprint() == fingerprint
    copied = tmp_path / "elsewhere" / first.name
    copied.parent.mkdir()
    shutil.copytree(first, copied) if first.is_dir() else shutil.copy(first, copied)
    assert open_source(copied).fingerprint() == fingerprint
    other = tmp_path / "other"
    other.mkdir()
    assert open_source(make(form, other, CLASSES[::-1])).fingerprint() != fingerprint


def test_a_changed_file_is_seen_even_if_its_size_and_time_are_kept(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", CLASSES)
    file = root / "cat/1.png"
    before = open_source(root).fingerprint()
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert open_source(root).fingerprint() != before
    (root / "cat/1.png").rename(root / "cat/9.png")
    assert len({before, open_source(root).fingerprint()}) == 2


def test_labels_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    text = "image_path,label\npics/1.png,a\npics/2.png,b\n"
    one = open_source(write_csv(tmp_path, text)).fingerprint()
    other = open_source(write_csv(tmp_path, text.replace("g,a", "g,c"))).fingerprint()
    assert one == other


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that settled are known by their stamp: even unreadable they keep their fingerprint."""
    root = write_folder(tmp_path / "p", [f"{c}/{i}.png" for c in "ab" for i in range(500)])
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)  # long after they were written
    before = open_source(root).fingerprint()
    read = opened_pictures(monkeypatch)
    start = time.process_time()
    assert open_source(root).fingerprint() == before
    assert time.process_time() - start < 1  # 0.1 s; room for a slow machine
    assert read == []
    (root / "a/0.png").write_bytes(png(77))
    assert open_source(root).fingerprint() != before
    assert read == [str(root / "a/0.png")]


def opened_pictures(monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> list[str]:
    """Paths of pictures in the order in which they are opened from now on; the first opening of `failing` fails."""
    opened: list[str] = []
    original = os.open

    def watched(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith(".png"):
            opened.append(str(path))
            if opened.count(failing) == 1 and opened[-1] == failing:
                raise OSError(errno.EIO, "Input/output error")
        return original(path, *args, **options)

    monkeypatch.setattr(os, "open", watched)
    return opened


def test_a_passing_read_error_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the fingerprint and the pictures where nothing was remembered of the files."""
    root = write_folder(tmp_path / "p", CLASSES)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)  # long after they were written
    failing = str(root / "cat/1.png")
    with monkeypatch.context() as patched:
        opened_pictures(patched, failing=failing)
        ids, files = ["a"], [failing]
        failed = fingerprint_files(ids, files, memo="one")
    again, fresh = (fingerprint_files(ids, files, memo=memo) for memo in ("one", "another"))
    assert failed != again == fresh
    opened_pictures(monkeypatch, failing=failing)
    open_source(root).fingerprint()
    loaded = load_image_set(root)
    assert len(loaded.image_set) == len(CLASSES)
    assert loaded.rejected == []


@pytest.mark.data
def test_the_cats_and_dogs_of_the_real_zip(shared_data: Path) -> None:
    """Reference: the published counts of this copy (2,000 train, 1,000 validation, 1,000 test)."""
    source = open_source(shared_data / "cats_and_dogs_small.zip")
    assert source.class_names == ("cats", "dogs")
    splits = [s.split for s in source.samples]
    assert [splits.count(p) for p in ("train", "validation", "test")] == [2000, 1000, 1000]


def test_a_name_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~name` is the home of a user of that name; where there is none it is a name like any other."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="There is no '~nobody-of-this-name'"):
        open_source("~nobody-of-this-name")
    write_folder(tmp_path / "~nobody-of-this-name", CLASSES)
    assert open_source("~nobody-of-this-name").location == str(tmp_path / "~nobody-of-this-name")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_folder(tmp_path / "photos", CLASSES)
    assert open_source("~/photos").location == str(tmp_path / "photos")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_with_an_absurd_header_is_refused_at_once(tmp_path: Path, suffix: str, kind: bytes) -> None:
    """Python's tarfile would search hundreds of megabytes of digits for minutes."""
    path = tmp_path / f"bomb{suffix}"
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 300 * 1024**2
    opener = gzip.open if suffix == ".tar.gz" else open
    with opener(path, "wb") as file:
        file.write(header.tobuf())
        file.write(b"9" * 2**20)
    started = time.process_time()
    with pytest.raises(DataError, match=r"bomb"):
        open_source(path)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image_path,label,label\n0.png,a,b\n", "two columns label"),
        (
            "image_path,label,weight\n0.png,a,1e308\n1.png,b,1\n",
            r"weight is '1e308', expected a number from 0 to 1,000",
        ),
        ("image_path,label,weight\n0.png,a,nan\n1.png,b,1\n", "weight is 'nan'"),
        ("image_path,label,weight\n0.png,a,0\n1.png,b,0\n", "has the weight 0"),
    ],
)
def test_tables_that_nothing_can_be_learned_from(tmp_path: Path, text: str, told: str) -> None:
    path = write_csv(tmp_path, text)
    for i in range(2):
        Image.new("L", (2, 2)).save(path.parent / f"{i}.png")
    with pytest.raises(DataError, match=told):
        open_source(path)


@pytest.mark.skipif(os.name != "posix", reason="such names are not possible elsewhere")
def test_names_that_a_terminal_would_obey_are_escaped(tmp_path: Path) -> None:
    for name in ("red\x1b[31m", "two\nlines", "\u202ednuora"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "a.png")
    source = open_source(tmp_path)
    assert set(source.class_names) == {"red\\x1b[31m", "two\\nlines", "\\u202ednuora"}
    assert all(sample.id.isprintable() for sample in source.samples)


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size may be any number of 88 bits, in the base-256 form that GNU tar writes."""
    member = tarfile.TarInfo(name)
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = bytes([0o377 if size < 0 else 0o200]) + (size % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(kind: bytes, size: int) -> bytes:
    record = b"size=%d\n" % size
    record = b"%d %s" % (len(record) + 3, record)
    return tar_header("pax", len(record), kind) + record.ljust(512, b"\0")


NEGATIVE = {
    "the first member": tar_header("cat/0.png", -512),
    "a later member": tar_header("cat/0.png", 512) + b"\0" * 512 + tar_header("dog/0.png", -1536),
    "an extended header": tar_header("cat/0.png", -512, tarfile.XHDTYPE),
    "a long name": tar_header("cat/0.png", -512, tarfile.GNUTYPE_LONGNAME),
    "of one extended header": pax(tarfile.XHDTYPE, -2048) + tar_header("cat/0.png", 0),
    "of a global header": pax(tarfile.XGLTYPE, -512) + tar_header("cat/0.png", 0),
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("where", NEGATIVE)
def test_a_tar_with_a_negative_size_is_refused_at_once(tmp_path: Path, where: str, suffix: str) -> None:
    """Python's tarfile reads such a member over and over until the memory is full."""
    path = tmp_path / f"pictures{suffix}"
    opener = gzip.open if suffix == ".tar.gz" else open
    with opener(path, "wb") as file:
        file.write(NEGATIVE[where] + b"\0" * 1024)
    with pytest.raises(DataError, match=r"cannot be read as an archive: a (member|header) of -"):
        open_source(path)
    streamed = [StreamedTarMember(str(path), "dog/9.png", 3)]
    if suffix == ".tar.gz":
        [(_, error)] = stream_tar(str(path), streamed)
        assert "is damaged" in str(error)
    with pytest.raises(UnreadablePictureError, match="-512 bytes"):
        read_bytes(TarMember(str(path), 0, -512))


def test_a_tar_header_beyond_any_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "pictures.tar"
    path.write_bytes(tar_header("cat/0.png", 2**80) + b"\0" * 1024)
    with pytest.raises(DataError, match="cannot be read as an archive"):
        open_source(path)


def test_a_compressed_tar_that_unpacks_to_absurdly_much_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        member = tarfile.TarInfo("cat/0.png")
        member.size = 2**40
        file.write(member.tobuf() + b"\0" * 2**20)
    started = time.process_time()
    with pytest.raises(DataError, match="would unpack"):
        open_source(path)
    assert time.process_time() - started < 5


def test_pictures_without_classes_are_one_class(tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "flat", ["a.png", "b.png", "deep/er/c.png", "notes.txt", ".hidden.png"])
    found = open_pictures(flat)
    assert found.class_names == ("unlabelled",)
    assert [(s.id, s.split) for s in found.samples] == [("a.png", None), ("b.png", None), ("deep/er/c.png", None)]
    assert all(read_bytes(location) for location in found.locations)
    archive = tmp_path / "flat.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("a.png", "b.png"):
            file.write(flat / name, f"inside/{name}")
    assert [s.id for s in open_pictures(archive).samples] == ["inside/a.png", "inside/b.png"]


def test_parts_of_pictures_without_classes_are_known(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "parts", ["a.png", "Test/b.png", "val/c.png", "train/d.png"])
    parts = {s.id: s.split for s in open_pictures(source).samples}
    assert parts == {"a.png": "train", "Test/b.png": "test", "val/c.png": "validation", "train/d.png": "train"}


def test_classes_are_kept_where_there_are_some(tmp_path: Path) -> None:
    labelled = write_folder(tmp_path / "labelled", ["x/a.png", "y/b.png"])
    assert open_pictures(labelled).class_names == ("x", "y")
    assert open_pictures("digits").class_names == open_source("digits").class_names
    with pytest.raises(DataError, match=r"neither a folder, an archive"):
        open_pictures(tmp_path / "absent")
    table = tmp_path / "one.csv"
    table.write_text("image_path,label\nlabelled/x/a.png,x\nlabelled/y/b.png,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="one class only"):
        open_pictures(table)


def test_folders_beside_pictures_or_parts_are_no_classes(tmp_path: Path) -> None:
    """Albums with pictures beside them, and years beside a part: every picture is read, and that is said."""
    folder = write_folder(tmp_path / "albums", ["2019/a.png", "2020/b.png", "2020/in/c.png", "loose.png"])
    albums = open_pictures(folder)
    assert [s.id for s in albums.samples] == ["2019/a.png", "2020/b.png", "2020/in/c.png", "loose.png"]
    assert (albums.class_names, albums.rejected) == (("unlabelled",), ())
    assert albums.notes[0].startswith("1 picture lies beside the folders '2019', '2020', which are therefore not taken")
    names = ["2019/a.png", "2020/b.png", "test/c.png"]
    mixed = write_folder(tmp_path / "years", names)
    years = open_pictures(mixed)
    assert {s.id: s.split for s in years.samples} == {
        "2019/a.png": "train",
        "2020/b.png": "train",
        "test/c.png": "test",
    }
    archive = write_zip(tmp_path / "years.zip", [f"years/{name}" for name in names])
    assert {s.id: s.split for s in open_pictures(archive).samples} == {s.id: s.split for s in years.samples}
    with pytest.raises(DataError, match="mixes the part folders"):
        open_source(mixed)
