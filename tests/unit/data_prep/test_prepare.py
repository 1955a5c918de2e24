"""Preparing a dataset: from JPEG files to Parquet tables, with every row accounted for."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.datasets import NECKS, SIZE, TINY, make_photographs, prepare_small, recorded, sample_here

from data_prep import atomic, packing, tables
from data_prep import dataset as dataset_module
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.staging import atomic_dataset, replaced_folder, staging_folder
from data_prep.synthetic.samples import sample


def rejects_of(dataset: Dataset) -> dict[str, str]:
    """Return file name -> reason."""
    table = pq.read_table(dataset.path / "rejects.parquet").to_pylist()
    return {Path(row["detail"].split(":")[0]).name: row["reason"] for row in table}


def test_the_tables_have_the_documented_columns(dataset: Dataset) -> None:
    for name, schema in {
        "images.parquet": tables.IMAGES,
        "labels.parquet": tables.LABELS,
        "retrieval.parquet": tables.RETRIEVAL,
        "regions.parquet": tables.REGIONS,
        "rejects.parquet": tables.REJECTS,
        "triplets/split=train/epoch=1/part-00000.parquet": tables.TRIPLETS,
        "packed/split=test/part-00000.parquet": tables.PACKED,
    }.items():
        assert pq.read_schema(dataset.path / name).equals(schema), name


def test_the_drawn_dataset_is_prepared_without_rejects(dataset: Dataset) -> None:
    info = dataset.info
    assert len(dataset.labels) == len(dataset.images) == sum(info.images.values()) == 540
    assert (info.rows_in, info.repeats) == (1080, 540)  # the raw files say the same as the split files
    assert info.rejects == {}
    assert [len(a.values) for a in info.attributes] == [6, 9, 8, 6, 5, 5, 10, 5]
    assert dataset.regions is not None
    assert set(dataset.labels["image_id"]) == set(dataset.regions["image_id"])
    retrieval = dataset.retrieval("test")
    assert (retrieval["role"] == "query").sum() == info.queries["test"] > 0
    assert not set(retrieval[retrieval["role"] == "query"]["image_id"]) & set(
        retrieval[retrieval["role"] == "candidate"]["image_id"]
    )


def test_labels_and_pictures_match_the_annotation(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    dataset = prepare_small(root, tmp_path / "out")
    merged = dataset.labels.merge(dataset.images, on=["image_id", "split"])
    assert len(merged) == 100
    for path, attribute, value in zip(merged["path"], merged["attribute"], merged["value"], strict=True):
        assert (attribute, value) == (7, int(Path(path).stem) % 5)
    of_train = merged[merged["split"] == "train"].iloc[::17]
    images = ImageStore(dataset, "train", SIZE).read(of_train["image_id"].to_numpy())
    for image, path in zip(images, of_train["path"], strict=True):
        original = Image.open(root / path)
        left = (original.width * SIZE // original.height - SIZE) // 2
        expected = original.resize((SIZE * 50 // 40, SIZE), Image.Resampling.LANCZOS).crop((left, 0, left + SIZE, SIZE))
        difference = np.abs(np.asarray(expected, int) - image.permute(1, 2, 0).numpy()).mean()
        assert difference < 12, "noise survives JPEG only roughly, but another picture would differ by about 60"


def test_preparing_twice_gives_equal_tables(dataset: Dataset, drawn: Path, tmp_path: Path) -> None:
    assert prepare_small(drawn, tmp_path / "again", **TINY).info == dataset.info
    other = prepare_small(drawn, tmp_path / "other", **TINY | {"seed": 6})
    assert other.info.digest != dataset.info.digest


def test_bad_pictures_become_rejects(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    folder = root / "train1" / "Images" / "neck_design_labels"
    (folder / "000.jpg").unlink()
    (folder / "001.jpg").write_bytes(b"")
    (folder / "002.jpg").write_text("this is no picture")
    whole = (folder / "003.jpg").read_bytes()
    (folder / "003.jpg").write_bytes(whole[: len(whole) // 2])
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(whole)
    (folder / "004.jpg").unlink()
    (folder / "004.jpg").symlink_to(outside)
    label_file = root / "train1" / "Annotations" / "label.csv"
    climbing = "Images/../../../outside.jpg,neck_design_labels,ynnnn\n"
    label_file.write_text(label_file.read_text() + climbing)

    dataset = prepare_small(root, tmp_path / "out")
    assert rejects_of(dataset) == {
        "000.jpg": "missing_image",
        "001.jpg": "unreadable_image",
        "002.jpg": "unreadable_image",
        "003.jpg": "unreadable_image",
        "004.jpg": "path_outside_root",
        "outside.jpg": "path_outside_root",
    }
    assert dataset.info.rows_in == 101 == len(dataset.labels) + 6
    lines = pq.read_table(dataset.path / "rejects.parquet").column("line").to_pylist()
    assert sorted(lines) == [1, 2, 3, 4, 5, 101]


@pytest.mark.parametrize(
    "lost", ["packed/split=train", "packed/split=test/part-00000.parquet", "triplets", "labels.parquet"]
)
@pytest.mark.parametrize("how", ["deleted", "torn"])
def test_a_dataset_with_a_lost_or_torn_file_is_refused_when_opened(
    dataset: Dataset, tmp_path: Path, lost: str, how: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    for file in [copy / lost] if lost.endswith(".parquet") else list((copy / lost).rglob("*.parquet")):
        if how == "deleted":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"\.parquet: missing or damaged; run `agman prep` again"):
        Dataset(copy)


def test_each_worker_holds_only_the_images_it_asks_for(dataset: Dataset) -> None:
    ids = dataset.images[dataset.images["split"] == "train"]["image_id"].to_numpy()
    store = ImageStore(dataset, "train", SIZE, wanted=ids[:7])
    assert sorted(store.image_ids) == sorted(ids[:7])
    assert store.read(ids[[3, 3, 0]]).shape == (3, 3, SIZE, SIZE)
    assert torch.equal(store.read(ids[[3]]), ImageStore(dataset, "train", SIZE).read(ids[[3]]))
    with pytest.raises(KeyError, match="was not loaded"):
        store.read(ids[[8]])


@pytest.mark.parametrize("part", [0.0, 0.4])
def test_images_beyond_the_buffer_are_read_from_their_shards(
    tmp_path: Path, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD", 20)
    monkeypatch.setattr(packing, "ROW_GROUP", 5)
    dataset = prepare_small(make_photographs(tmp_path / "raw", n=60), tmp_path / "out")
    whole = ImageStore(dataset, "train", SIZE)
    size = os.fstat(whole._file.fileno()).st_size
    monkeypatch.setattr(dataset_module, "BUFFER", int(part * size))
    bounded = ImageStore(dataset, "train", SIZE, threads=2)
    assert os.fstat(bounded._file.fileno()).st_size <= part * size
    assert (bounded._shard >= 0).any() and (bounded._shard == dataset_module.COPIED).any() == (part > 0)
    np.testing.assert_array_equal(bounded.image_ids, whole.image_ids)
    assert torch.equal(bounded.read(whole.image_ids[::-1]), whole.read(whole.image_ids[::-1]))
    bounded._opened.cache_clear()
    shutil.rmtree(dataset.path)
    with pytest.raises(InputError, match=r"train/part-\d{5}.parquet: missing or damaged"):
        bounded.read(whole.image_ids)


def test_after_a_full_disk_the_same_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    undisturbed = prepare_small(root, tmp_path / "other").info

    def disk_full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.write.write_table", disk_full)
        with pytest.raises(
            InputError, match=r"no space left.*kept in .*\.out\.partial, and the same command continues"
        ):
            prepare_small(root, tmp_path / "out")
    with pytest.raises(InputError, match="was stopped half-way; the same `agman prep` again continues it"):
        Dataset(tmp_path / "out")
    titles: list[str] = []
    assert prepare_small(root, tmp_path / "out", progress=recorded(titles)).info == undisturbed
    assert titles == ["pictures looked at", "images packed (continuing: 20 of 20 images already packed)"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "raw"]


KILLED = """
import os, signal
from pathlib import Path
from data_prep import packing
from data_prep.prepare import prepare

packing.SHARD = 10
calls = []

def progress(title, total):
    return advance if "packed" in title else lambda done: None

def advance(done):
    calls.append(done)
    if len(calls) == 4:  # the first call is for the images of earlier preparations
        os.kill(os.getpid(), signal.SIGKILL)

prepare("fashionai", Path("raw"), Path("out"), triplets=20, epochs=2, image_size=32, progress=progress)
"""


def test_a_killed_preparation_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_photographs(tmp_path / "raw")
    monkeypatch.setattr(packing, "SHARD", 10)
    undisturbed = prepare_small(root, tmp_path / "other").info
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    shards = sorted(staging_folder(tmp_path / "out").glob("packed/*/*.parquet"))
    written = {shard.name: shard.stat().st_mtime_ns for shard in shards if "train" in shard.parent.name}
    assert len(shards) == 3
    titles: list[str] = []
    assert prepare_small(root, tmp_path / "out", progress=recorded(titles)).info == undisturbed
    assert titles == ["pictures looked at", "images packed (continuing: 30 of 100 images already packed)"]
    train = tmp_path / "out" / "packed" / "split=train"
    assert {name: (train / name).stat().st_mtime_ns for name in written} == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "raw"]


def test_nothing_is_left_of_a_preparation_that_cannot_be_done(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    for picture in root.rglob("*.jpg"):
        picture.write_text("no picture")
    with pytest.raises(
        InputError,
        match=r"all annotation rows .20. are rejected for one reason, unreadable_image \(.*\), the first in train1/.*:",
    ):
        prepare_small(root, tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_only_one_process_prepares_a_dataset(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    with (
        atomic_dataset(tmp_path / "out"),
        pytest.raises(InputError, match="is being prepared by another process"),
        atomic_dataset(tmp_path / "out"),
    ):
        pass
    assert prepare_small(root, tmp_path / "b").info.images["train"]


def test_an_existing_dataset_is_kept_unless_asked(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=50)
    before = prepare_small(root, tmp_path / "out").info
    with pytest.raises(InputError, match="--overwrite"):
        prepare_small(root, tmp_path / "out", seed=9)
    assert Dataset(tmp_path / "out").info == before
    assert prepare_small(root, tmp_path / "out", seed=9, overwrite=True).info.seed == 9


def test_an_annotation_without_rows_is_refused(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=5)
    label_file = root / "train1" / "Annotations" / "label.csv"
    label_file.write_text("")
    with pytest.raises(InputError, match=r"label\.csv: the annotation is empty"):
        prepare_small(root, tmp_path / "out")
    label_file.write_text("junk\n")
    with pytest.raises(InputError, match=r"\(1\) are rejected for one reason, bad_line .*label\.csv line 1: junk"):
        prepare_small(root, tmp_path / "out")


@pytest.mark.parametrize("out", ["raw", ".", "raw/..", "link"])
def test_overwriting_refuses_folders_that_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"contains .*, which is in use"):
        prepare_small(root, Path(out), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_replaces_only_output_of_the_same_command(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    for command in (
        lambda: prepare_small(root, precious.parent, overwrite=True),
        lambda: sample("fashionai", precious.parent, images=8, size=SIZE, overwrite=True),
    ):
        with pytest.raises(InputError, match="was not made by this command"):
            command()
    assert precious.read_text() == "years of work"


def test_drawing_does_not_overwrite_a_prepared_dataset(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(dataset.path, copy)
    with pytest.raises(InputError, match="was not made by this command"):
        sample("fashionai", copy, images=8, size=SIZE, overwrite=True)
    assert Dataset(copy).info == dataset.info


def test_a_failed_overwrite_keeps_the_old_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_photographs(tmp_path / "raw", n=50)
    before = prepare_small(root, tmp_path / "new" / "out").info

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.prepare.digest_of", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same command continues"):
            prepare_small(root, tmp_path / "new" / "out", seed=9, overwrite=True)
    assert Dataset(tmp_path / "new" / "out").info == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".out.partial", "out"]
    assert prepare_small(root, tmp_path / "new" / "out", seed=9, overwrite=True).info.seed == 9
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_kill_between_the_last_two_renames_loses_nothing(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    before = prepare_small(root, tmp_path / "out").info
    (tmp_path / "out").rename(replaced_folder(tmp_path / "out"))
    with pytest.raises(InputError, match="--overwrite"):
        prepare_small(root, tmp_path / "out")
    assert Dataset(tmp_path / "out").info == before


def test_hidden_folders_of_killed_preparations_are_removed(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(dataset.path, out)
    shutil.copytree(dataset.path, staging_folder(out))  # complete, except for the rename
    shutil.copytree(dataset.path, replaced_folder(out))
    (replaced_folder(out) / "dataset.json").unlink()  # half deleted
    root = make_photographs(tmp_path / "raw", n=20)
    prepare_small(root, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def content_of(folder: Path) -> dict[str, bytes | str | None]:
    """Return every path below a folder, with its bytes or the target of a link."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("there", ["nothing", "a dataset"])
@pytest.mark.parametrize(
    "foreign",
    [
        ".out.old/thesis.tex",
        ".out.old/dataset.json",
        ".out.partial/thesis.tex",
        ".out.partial/dataset.json",
        ".out.partial/thesis.writing",
        ".out.partial",
        ".out.agman-replaced/thesis.tex",
        ".out.agman-replaced",
        ".out.lock/thesis.tex",
        ".out.lock/",
        ".out.lock",
        ".out.partial -> elsewhere",
        ".out.agman-replaced -> elsewhere",
        ".out.lock -> elsewhere/thesis.tex",
    ],
)
def test_files_of_others_beside_the_dataset_are_kept(
    dataset: Dataset, tmp_path: Path, there: str, foreign: str
) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    home = tmp_path / "home"
    (home / "elsewhere").mkdir(parents=True)
    (home / "elsewhere" / "thesis.tex").write_text("")
    if there == "a dataset":
        shutil.copytree(dataset.path, home / "out")
    name, _, target = foreign.partition(" -> ")
    (home / name).parent.mkdir(exist_ok=True)
    if target:
        (home / name).symlink_to(home / target)
    elif name.endswith("/"):
        (home / name).mkdir()
    else:
        (home / name).write_text("{}")
    before = content_of(home)
    if ".old" in name:  # nothing of ours has this name
        prepare_small(root, home / "out", overwrite=True)
        assert (home / name).read_text() == "{}"
        return
    with pytest.raises(InputError, match=r"/\.out\.\S+: is in the way, and .* this command; move it") as refused:
        prepare_small(root, home / "out", overwrite=True)
    assert "\n" not in str(refused.value)
    assert content_of(home) == before


def test_drawing_keeps_files_of_others_beside_its_folder(tmp_path: Path) -> None:
    for name in (f".out.partial-{os.getpid()}", f".out.old-{os.getpid()}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    before = content_of(tmp_path)
    with pytest.raises(ZeroDivisionError), atomic.output_folder(tmp_path / "out", marker="x", overwrite=False) as aside:
        (aside / "x").write_text("")
        raise ZeroDivisionError
    assert content_of(tmp_path) == before
    for overwrite in (False, True):
        with atomic.output_folder(tmp_path / "out", marker="x", overwrite=overwrite) as aside:
            (aside / "x").write_text("")
    assert content_of(tmp_path) == before | {str(tmp_path / "out"): None, str(tmp_path / "out" / "x"): b""}


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path) -> None:
    with atomic.output_folder(tmp_path / "out", marker="x", overwrite=False) as aside:
        (aside / "x").write_text("years of work")
    before = content_of(tmp_path)
    with pytest.raises(FileNotFoundError), atomic.output_folder(tmp_path / "out", marker="x", overwrite=True) as aside:
        aside.rmdir()
    assert content_of(tmp_path) == before


def test_a_name_too_long_for_the_staging_folders_is_an_error_of_one_line(tmp_path: Path) -> None:
    for length in (201, 245, 300):
        with (
            pytest.raises(InputError, match="the name is longer than 200 bytes"),
            atomic_dataset(tmp_path / ("x" * length)),
        ):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file/x", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path, out: str) -> None:
    root = make_photographs(tmp_path / "raw", n=20)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare_small(root, tmp_path / out)


def test_all_labels_of_an_image_stay_in_one_split(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    label_file = root / "train1" / "Annotations" / "label.csv"
    second = label_file.read_text().replace(",neck_design_labels,", ",collar_design_labels,")
    label_file.write_text(label_file.read_text() + second)
    dataset = prepare_small(root, tmp_path / "out")
    assert len(dataset.labels) == 200
    assert (dataset.labels.groupby("image_id")["split"].nunique() == 1).all()
    drawn = dataset.triplets("train")
    ImageStore(dataset, "train", SIZE).read(np.concatenate([drawn.anchor, drawn.positive, drawn.negative]))


def test_sampling_again_draws_the_same_files(tmp_path: Path) -> None:
    """In another process, and in this one."""
    for name, draw in (("a", sample), ("b", sample_here)):
        draw("fashionai", tmp_path / name, images=16, size=SIZE, seed=4)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len([f for f in files if f.suffix == ".jpg"]) == 16
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_existing_annotation_is_drawn_row_for_row(tmp_path: Path) -> None:
    annotation = tmp_path / "annotation" / "valid" / "Annotations"
    annotation.mkdir(parents=True)
    text = "".join(f"Images/neck_design_labels/{i}.jpg,neck_design_labels,{NECKS[i % 5]}\r\n" for i in range(50))
    (annotation / "label.csv").write_bytes(text.encode())
    drawn = sample_here("fashionai", tmp_path / "drawn", size=SIZE, split_files=tmp_path / "annotation")
    assert drawn.images == drawn.labels == 50
    assert (tmp_path / "drawn/valid/Annotations/label.csv").read_bytes() == text.encode()
    assert prepare_small(tmp_path / "drawn", tmp_path / "out").info.images == {
        "train": 40,
        "valid": 5,
        "test": 5,
    }


@pytest.mark.parametrize("path", ["../../evil/Images/x.jpg", "/tmp/evil-agman-test/Images/x.jpg"])
@pytest.mark.parametrize("form", ["raw", "split"])
def test_annotation_that_leaves_the_folder_is_not_drawn(tmp_path: Path, path: str, form: str) -> None:
    annotation = tmp_path / "a" / "annotation"
    (annotation / "Annotations").mkdir(parents=True)
    if form == "raw":
        (annotation / "Annotations" / "label.csv").write_text(f"{path},neck_design_labels,ynnnn\n")
    else:
        (annotation / "filenames_train.txt").write_text(f"{path}\n")
        (annotation / "label_train.txt").write_text("0 7 0\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="leaves the dataset's folder"):
        sample("fashionai", tmp_path / "a" / "drawn", size=SIZE, split_files=annotation)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/evil-agman-test").exists()


def test_too_many_rejects_stop_the_job_before_packing(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=100)
    pictures = sorted(root.rglob("*.jpg"))
    for picture in pictures[:11]:
        picture.unlink()
    titles: list[str] = []
    with pytest.raises(InputError, match=r"11 of 100 labels rejected \(11 missing_image\).*--max-rejects 0\.1"):
        prepare_small(root, tmp_path / "out", progress=recorded(titles))
    assert titles == ["pictures looked at"]
    assert not (tmp_path / "out").exists()
    dataset = prepare_small(root, tmp_path / "out", max_rejects=0.11)
    assert dataset.info.rejects == {"missing_image": 11}
    assert len(dataset.labels) == 89
    assert dataset.info.lost == {}, "the split is made of the pictures that are there"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_too_many_rejects_while_packing_keep_packed_images(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=100)
    pictures = sorted(root.rglob("*.jpg"))

    def pictures_vanish(title: str, total: int) -> Callable[[int], None]:
        if title == "images packed":
            for picture in pictures[:11]:
                picture.unlink()
        return lambda done: None

    with pytest.raises(InputError, match=r"11 of 100 labels rejected .*what is packed so far is kept"):
        prepare_small(root, tmp_path / "out", progress=pictures_vanish)
    assert (staging_folder(tmp_path / "out") / "packed").is_dir()


def test_rows_outside_the_split_are_no_damage(drawn: Path, tmp_path: Path) -> None:
    """With split files of test only, nine tenths of the raw labels are in no split."""
    root = tmp_path / "root"
    shutil.copytree(drawn, root)
    for file in [*root.glob("*_train.txt"), *root.glob("*_valid.txt")]:
        file.unlink()
    info = prepare_small(root, tmp_path / "out").info
    assert set(info.rejects) == {"not_in_split"}
    assert info.rows_in == 540 + info.images["test"] == 2 * info.images["test"] + info.rejects["not_in_split"]


def test_errors_that_need_no_packing_come_before_packing(tmp_path: Path) -> None:
    """No triplets, or a damaged file of regions: nothing is packed."""
    root = make_photographs(tmp_path / "raw", n=20)
    titles: list[str] = []
    (root / "drawn_regions.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"drawn_regions\.parquet: is damaged"):
        prepare_small(root, tmp_path / "out", progress=recorded(titles))
    (root / "drawn_regions.parquet").unlink()
    label_file = root / "train1" / "Annotations" / "label.csv"
    label_file.write_text("".join(line.rsplit(",", 1)[0] + ",ynnnn\n" for line in label_file.read_text().splitlines()))
    with pytest.raises(InputError, match="no training triplet can be drawn"):
        prepare_small(root, tmp_path / "out", progress=recorded(titles))
    assert titles == ["pictures looked at"]  # for the second: before the split, which decides on triplets
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_regions_of_missing_images_are_left_out(drawn: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(drawn, root)
    for picture in sorted(root.rglob("*.jpg"))[:5]:
        picture.unlink()
    dataset = prepare_small(root, tmp_path / "out")
    assert dataset.regions is not None
    assert set(dataset.regions["image_id"]) == set(dataset.images["image_id"])
    assert len(dataset.images) == 535


def test_a_dataset_without_training_images_has_no_training_triplets(drawn: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(drawn, root)
    for file in root.glob("*_train.txt"):
        file.unlink()
    info = prepare_small(root, tmp_path / "out").info
    assert (info.triplets, info.triplet_epochs) == (0, 0)
    assert len(Dataset(tmp_path / "out").triplets("test")) == 4
