"""Updates of a gallery, compared with one that is embedded anew: kills, readers, two writers, what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import agman_exit_code
from support.datasets import make_photographs, prepare_small
from support.embedding import embed_here
from support.full_disk import NAMESPACE, needs_namespace
from support.galleries import WIDTH, add_prototypes, jpeg, random_model

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.retrieval import embed
from pipeline.retrieval.columns import Catalogue, read_catalogue
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery, describe
from pipeline.retrieval.image_sources import find_source
from pipeline.retrieval.picture_embedder import PictureEmbedder
from pipeline.retrieval.update import Updated, update_gallery

NAMES = ["collar", "skirt"]
PICTURES = 12


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "embed_shards", embed_here)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(agman.save_model(tmp_path_factory.mktemp("model") / "checkpoint", *random_model(NAMES)))


@pytest.fixture(scope="module")
def made(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, one of them unreadable, and a gallery of them with an index."""
    root = tmp_path_factory.mktemp("made")
    (root / "photographs").mkdir()
    for number in range(PICTURES):
        (root / "photographs" / f"{number:02d}.jpg").write_bytes(jpeg(number))
    (root / "photographs" / "broken.jpg").write_text("no picture")
    gallery = embed_images(model, root / "photographs", root / "g")
    gallery.build_index()
    add_prototypes(gallery.folder, {"skirt": ("long", "short")}, WIDTH, gallery.info.model_digest)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that a test may change."""
    return copied(made, tmp_path / "copy")


def copied(made: Path, to: Path) -> Path:
    """Copy `made`; files keep their times, as the update looks at them."""
    copy = Path(shutil.copytree(made, to))
    info, source = Gallery.open(copy / "g").info, find_source(copy / "photographs")
    print_ = embed.fingerprint(source, info.model_digest, info.image_size, info.precision)
    describe(copy / "g", info.model_copy(update={"root": str(source.root), "fingerprint": print_}))
    return copy


def change(photographs: Path) -> None:
    """Add three pictures, one of them unreadable, replace one, delete one."""
    (photographs / "00-first.jpg").write_bytes(jpeg(100))
    (photographs / "20.jpg").write_bytes(jpeg(101))
    (photographs / "21.jpg").write_text("no picture")
    (photographs / "03.jpg").write_bytes(jpeg(102, (50, 40)))
    (photographs / "05.jpg").unlink()


def counts(updated: Updated) -> dict[str, int]:
    return {name: getattr(updated, name) for name in ("added", "replaced", "removed", "unchanged", "missing")}


def assert_same(one: Gallery, other: Gallery) -> None:
    """Assert that two galleries hold the same in all files, apart from the number of pictures in a batch."""
    assert list(one.images) == list(other.images)
    fields = {"rejects", "skipped", "images", "fingerprint", "attributes", "model_digest", "root"}
    assert one.info.model_dump(include=fields) == other.info.model_dump(include=fields)
    for number in range(len(NAMES)):
        np.testing.assert_allclose(one.matrix(number), other.matrix(number), atol=1e-6)
    for name in ("images.parquet", "rejects.parquet", "skipped.parquet", "source.parquet"):
        assert pq.read_table(one.files / name).equals(pq.read_table(other.files / name)), name


def embedded_pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that names each picture which is embedded from now on."""
    named: list[str] = []
    embedded = PictureEmbedder.embed

    def recorded(self: PictureEmbedder, pictures: pa.Table) -> Any:
        named.extend(pictures["image"].to_pylist())
        return embedded(self, pictures)

    monkeypatch.setattr(PictureEmbedder, "embed", recorded)
    return named


def test_an_update_equals_a_gallery_embedded_anew(
    place: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = embedded_pictures(monkeypatch)
    change(place / "photographs")
    with pytest.raises(InputError, match=r"photographs as it was; `agman embed --into .*/g` brings it up to date"):
        embed_images(model, place / "photographs", place / "g")
    updated = update_gallery(place / "g", remove_missing=True)
    assert named == ["00-first.jpg", "03.jpg", "20.jpg", "21.jpg"]
    assert counts(updated) == {"added": 2, "replaced": 1, "removed": 1, "unchanged": PICTURES - 2, "missing": 0}
    anew = embed_images(model, place / "photographs", tmp_path / "anew")
    assert_same(updated.gallery, anew)
    assert updated.gallery.info.rejects == {"not a picture that can be read": 2}
    assert updated.gallery.tagger and updated.gallery.tagger.namers.keys() == {"skirt"}
    queries = updated.gallery.block(0, 3)
    assert updated.gallery.index.measured.rows == len(anew)
    assert updated.gallery.search(queries, NAMES, 1, approximate=True)[1].ravel().tolist() == [0, 1, 2]
    named.clear()
    state = sorted(place.joinpath("g").rglob("*"))
    assert counts(update_gallery(place / "g")) == dict.fromkeys(counts(updated), 0) | {"unchanged": len(anew)}
    assert named == [] and sorted(place.joinpath("g").rglob("*")) == state
    assert embed_images(model, place / "photographs", place / "g").info == updated.gallery.info  # the same command


def test_missing_pictures_are_kept_unless_they_are_to_be_removed(place: Path) -> None:
    before = Gallery.open(place / "g")
    (place / "photographs" / "05.jpg").unlink()
    assert update_gallery(place / "g").gallery.info == before.info
    (place / "photographs" / "20.jpg").write_bytes(jpeg(101))
    updated = update_gallery(place / "g")
    assert counts(updated) == {"added": 1, "replaced": 0, "removed": 0, "unchanged": PICTURES - 1, "missing": 1}
    assert list(updated.gallery.images)[-2:] == ["20.jpg", "05.jpg"]
    assert np.array_equal(updated.gallery.matrix(1)[-1], before.matrix(1)[5])
    assert updated.gallery.info.fingerprint != before.info.fingerprint
    updated = update_gallery(place / "g", remove_missing=True)
    assert counts(updated) == {"added": 0, "replaced": 0, "removed": 1, "unchanged": PICTURES, "missing": 0}
    assert "05.jpg" not in list(updated.gallery.images)


def test_a_picture_that_can_no_longer_be_read_is_a_reject(place: Path) -> None:
    (place / "photographs" / "05.jpg").write_text("torn")
    updated = update_gallery(place / "g")
    assert counts(updated) == {"added": 0, "replaced": 0, "removed": 1, "unchanged": PICTURES - 1, "missing": 0}
    assert pq.read_table(updated.gallery.files / "rejects.parquet")["image"].to_pylist() == ["05.jpg", "broken.jpg"]
    (place / "photographs" / "broken.jpg").unlink()
    updated = update_gallery(place / "g")
    assert pq.read_table(updated.gallery.files / "rejects.parquet")["image"].to_pylist() == ["05.jpg"]


def test_a_reader_keeps_its_state_until_it_opens_the_next(place: Path) -> None:
    reader = Gallery.open(place / "g")
    before = [matrix.copy() for matrix in (reader.matrix(0), reader.matrix(1))]
    for number in (30, 31):
        (place / "photographs" / f"{number}.jpg").write_bytes(jpeg(number))
        update_gallery(place / "g")
    assert {one.name for one in place.joinpath("g").glob("state-*")} == {"state-000002"}  # nobody held the first
    assert reader.index.measured.rows == len(reader) == PICTURES  # opened only now
    assert all(np.array_equal(matrix, reader.matrix(number)) for number, matrix in enumerate(before))
    assert len(Gallery.open(place / "g")) == PICTURES + 2
    del reader
    (place / "photographs" / "32.jpg").write_bytes(jpeg(32))
    update_gallery(place / "g")
    left = {one.name for one in place.joinpath("g").iterdir()}
    assert left == {"gallery.json", "lock", "state-000003"}


KILLED = """
import os, signal, sys
from support.embedding import embed_here
from pipeline.retrieval import embed, faiss_index, update
embed.embed_shards = embed_here
for moment, gallery in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork():
        print(moment, -os.waitstatus_to_exitcode(os.wait()[1]))
        continue
    module = faiss_index if moment == "build_index" else update
    real = getattr(module, moment)
    def kill(*arguments):
        if moment == "write_rows":
            real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, moment, kill)
    update.update_gallery(gallery, remove_missing=True)
    sys.exit("not killed")
"""
MOMENTS = ("describe", "build_index", "write_rows")


def test_an_update_that_is_killed_leaves_the_old_state_and_continues(
    made: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports take seconds: one process makes them, and forks each process that is killed."""
    places = [copied(made, tmp_path / moment) for moment in MOMENTS]
    for place in places:
        change(place / "photographs")
    before = [Gallery.open(place / "g").info for place in places]
    killed = [str(word) for moment, place in zip(MOMENTS, places, strict=True) for word in (moment, place / "g")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *killed], capture_output=True, text=True, timeout=180, env=variables
    )
    assert done.stdout.splitlines() == [f"{moment} {signal.SIGKILL:d}" for moment in MOMENTS], done.stderr
    named = embedded_pictures(monkeypatch)
    for place, info in zip(places, before, strict=True):
        assert Gallery.open(place / "g").info == info and len(Gallery.open(place / "g")) == PICTURES
        named.clear()
        updated = update_gallery(place / "g", remove_missing=True)
        assert named == []  # the killed process has embedded them
        assert_same(updated.gallery, embed_images(model, place / "photographs", place / "anew"))
        assert [one.name for one in sorted(place.joinpath("g").iterdir())] == ["gallery.json", "lock", "state-000001"]


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
from support.embedding import embed_here
from pipeline.cli import run
from pipeline.retrieval import embed
from pipeline.retrieval.gallery import Gallery
disk, gallery, *typed = sys.argv[1:]
embed.embed_shards = embed_here
for room in map(int, os.environ["ROOM"].split()):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    made = Path(disk, "g")
    if gallery:
        subprocess.run(["cp", "-a", gallery, disk], check=True)
    free = os.statvfs(disk)
    Path(disk, "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - room))
    print(run(["embed", *typed, str(made)]), len(Gallery.open(made)) if made.exists() else 0, *made.glob("*state-*"))
    Path(disk, "ballast").unlink()
    print(run(["embed", *typed, str(made)]), len(Gallery.open(made)))
"""
ROOM = "8192 40960"
"""Bytes that are free on the disk: the first write fails, or a later one."""


def on_full_disks(tmp_path: Path, gallery: Path | None, *typed: object) -> list[str]:
    """Run `agman embed` on disks with each ROOM, and again with more; return the exit codes and numbers of rows."""
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", FULL_DISK, tmp_path / "disk", str(gallery or ""), *map(str, typed)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"ROOM": ROOM, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    errors = [line for line in done.stderr.splitlines() if "no space left" in line]
    assert len(errors) == 2 and all("the same command continues" in line for line in errors), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@needs_namespace
def test_a_full_disk_is_one_line_and_leaves_the_old_state(place: Path, tmp_path: Path) -> None:
    (place / "photographs" / "20.jpg").write_bytes(jpeg(101))
    said = on_full_disks(tmp_path, place / "g", "--into")
    assert {*said[::2]} <= {f"1 {PICTURES}", f"2 {PICTURES}"}  # in a worker, or in the command
    assert said[1::2] == [f"0 {PICTURES + 1}"] * 2


@needs_namespace
def test_a_full_disk_leaves_no_gallery(model: str, place: Path, tmp_path: Path) -> None:
    said = on_full_disks(tmp_path, None, model, "--images", place / "photographs", "--out")
    assert {*said[::2]} <= {"1 0", "2 0"}
    assert said[1::2] == [f"0 {PICTURES}"] * 2


def test_two_writers_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (place / "g" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert agman_exit_code("embed", "--into", place / "g") == 2
        assert f"{place / 'g'}: another process is at work there" in capsys.readouterr().err
        with pytest.raises(InputError, match="another process is at work there"):
            Gallery.open(place / "g").build_index()
    assert (
        agman_exit_code("embed", "--into", place / "g", "--json") == 0
    )  # the file of a killed writer locks nobody out
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["unchanged"] == PICTURES


def test_what_does_not_belong_to_the_gallery_is_refused(
    place: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(agman.save_model(tmp_path / "other", *random_model(NAMES, seed=2)))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "new.jpg").write_bytes(jpeg(7))
    before = sorted(place.joinpath("g").rglob("*"))
    cases = {
        ("--into", tmp_path): "not a gallery (no gallery.json)",
        ("--into", place / "g", "--images", tmp_path / "second"): f"the gallery's pictures are those of {place}",
        (other, "--into", place / "g"): f"with other weights than {other}; give that model",
        ("--into", place / "g", "--out", tmp_path / "new"): "give --out for a new gallery, or --into",
        ("--out", tmp_path / "new"): "--out needs MODEL and --images SOURCE",
    }
    for options, message in cases.items():
        assert agman_exit_code("embed", *options) == 2
        assert message in capsys.readouterr().err
    assert sorted(place.joinpath("g").rglob("*")) in (before, sorted([*before, place / "g" / "lock"]))
    shutil.rmtree(place / "photographs")
    assert agman_exit_code("embed", "--into", place / "g", "--remove-missing") == 2
    assert "photographs: does not exist" in capsys.readouterr().err
    (place / "photographs").mkdir()
    (place / "photographs" / "torn.jpg").write_text("torn")
    assert agman_exit_code("embed", "--into", place / "g", "--remove-missing") == 2
    assert "no picture would be left; the gallery is as it was" in capsys.readouterr().err
    assert len(Gallery.open(place / "g")) == PICTURES


def test_parquet_files_that_are_added_or_rewritten_are_embedded(model: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for part in range(2):
        cells = {"id": [f"p{part}-{n}" for n in range(3)], "image": [jpeg(10 * part + n) for n in range(3)]}
        pq.write_table(pa.table(cells), files / f"{part}.parquet")
    embed_images(model, files, tmp_path / "g")
    with pytest.raises(InputError, match="give them with --images"):
        update_gallery(tmp_path / "g")
    pq.write_table(pa.table({"id": ["p1-2", "p9"], "image": [jpeg(12), jpeg(90)]}), files / "1.parquet")
    pq.write_table(pa.table({"id": ["p2-0"], "image": [jpeg(20)]}), files / "2.parquet")
    updated = update_gallery(tmp_path / "g", images=files, remove_missing=True)
    assert counts(updated) == {"added": 2, "replaced": 1, "removed": 2, "unchanged": 3, "missing": 0}
    assert_same(updated.gallery, embed_images(model, files, tmp_path / "anew"))
    assert updated.gallery.picture(4) == jpeg(90)


def test_parquet_files_with_equal_ids_are_refused(model: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for part in range(2):
        cells = {"id": ["0", "1"], "image": [jpeg(10 * part + n) for n in range(2)]}
        pq.write_table(pa.table(cells), files / f"{part}.parquet")
    before = embed_images(model, files, tmp_path / "g")
    (files / "1.parquet").unlink()
    pq.write_table(pa.table({"id": ["0", "0"], "image": [jpeg(20), jpeg(21)]}), files / "2.parquet")
    with pytest.raises(InputError, match="several pictures are called 0, and an update knows them by their names"):
        update_gallery(tmp_path / "g", images=files, remove_missing=True)
    assert Gallery.open(tmp_path / "g").info == before.info


def prices(folder: Path, names: list[str], first: int = 0) -> Catalogue:
    (folder / "table.csv").write_text("file,price\n" + "".join(f"{name},{first + n}\n" for n, name in enumerate(names)))
    return read_catalogue(folder / "table.csv")


def test_columns_stay_with_their_pictures(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = embedded_pictures(monkeypatch)
    before = Gallery.open(place / "g")
    described = update_gallery(place / "g", columns=prices(tmp_path, list(before.images)[2:]))
    assert (described.described, named) == (PICTURES - 2, [])
    assert described.gallery.columns == pa.table({"price": [None, None, *range(PICTURES - 2)]})
    for file in ("vectors/attribute-01.npy", "index/index.json"):  # links, not copies
        assert (before.files / file).samefile(described.gallery.files / file)
    assert (
        update_gallery(place / "g", columns=prices(tmp_path, list(before.images)[2:])).gallery.info
        == described.gallery.info
    )
    change(place / "photographs")
    now = update_gallery(place / "g", remove_missing=True).gallery
    of_picture = dict(zip(now.images, now.columns["price"].to_pylist(), strict=True))  # type: ignore[index]
    assert of_picture == {f"{n:02d}.jpg": n - 2 if n > 1 else None for n in range(PICTURES) if n != 5} | {
        "00-first.jpg": None, "20.jpg": None,
    }  # fmt: skip
    assert now.search(now.block(0, 1), NAMES, 3, where="price = 1")[1].tolist() == [[list(now.images).index("03.jpg")]]
    renewed = update_gallery(place / "g", columns=prices(tmp_path, ["20.jpg"], first=7)).gallery
    assert renewed.columns["price"].drop_null().to_pylist() == [7]  # type: ignore[index]


def test_a_table_that_does_not_fit_changes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Gallery.open(place / "g").info
    for content, said in (("sku,price\n1,2\n", "no column has the pictures' names"), ("", "has no rows")):
        (tmp_path / "t.csv").write_text(content)
        assert agman_exit_code("embed", "--into", place / "g", "--columns", tmp_path / "t.csv") == 2
        assert said in capsys.readouterr().err
    assert Gallery.open(place / "g").info == before and not list(place.joinpath("g").glob("*state-*"))


def test_a_new_gallery_takes_columns(
    made: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices(tmp_path, ["03.jpg", "04.jpg"])
    asked = ("embed", model, "--images", made / "photographs", "--out", tmp_path / "new")
    for _ in range(2):
        assert agman_exit_code(*asked, "--columns", tmp_path / "table.csv", "--json") == 0
        printed = capsys.readouterr()
        assert f"columns price (a number), for 2 of {PICTURES} images" in printed.err
        assert json.loads(printed.out.splitlines()[-1])["described"] == 2
    assert agman_exit_code(*asked, "--columns", tmp_path / "nowhere.csv") == 2
    assert Gallery.open(tmp_path / "new").rows_where("price >= 0").tolist() == [3, 4]


def test_a_prepared_dataset_takes_columns_by_the_names_of_its_files(
    dataset: Dataset, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = embed_images(model, dataset.path, tmp_path / "g")
    named = embedded_pictures(monkeypatch)
    paths = dataset.images["path"].tolist()
    updated = update_gallery(tmp_path / "g", columns=prices(tmp_path, paths[:5]))
    assert (updated.described, named, len(updated.gallery)) == (5, [], len(gallery))
    assert {one.path for one in gallery.describe(updated.gallery.rows_where("price < 9").tolist())} == {*paths[:5]}
    rows = [row for path in paths if (row := gallery.row_named(path)) is not None]
    assert [one.path for one in gallery.describe(rows)] == paths and gallery.row_named("nowhere.jpg") is None


def test_a_dataset_that_is_prepared_again_keeps_neither_rows_nor_columns_of_other_pictures(
    model: str, tmp_path: Path
) -> None:
    """Image ids are numbers in the order of the files, so they move."""
    photographs = make_photographs(tmp_path / "photographs")
    prepare_small(photographs, tmp_path / "data")
    gallery = embed_images(model, tmp_path / "data", tmp_path / "g")
    paths = Dataset(tmp_path / "data").images["path"].tolist()
    update_gallery(tmp_path / "g", columns=prices(tmp_path, paths))
    raw = photographs / "train1" / "Annotations" / "label.csv"
    raw.write_text("".join(raw.read_text().splitlines(True)[3:]))
    prepare_small(photographs, tmp_path / "data", overwrite=True)
    with pytest.raises(InputError, match="its columns may be other pictures'; give --columns TABLE, too"):
        update_gallery(tmp_path / "g")
    updated = update_gallery(tmp_path / "g", columns=prices(tmp_path, paths)).gallery
    assert len(updated) == len(gallery) - 3
    names = [one.path for one in updated.describe(range(len(updated)))]
    assert updated.columns["price"].to_pylist() == [paths.index(name) for name in names]  # type: ignore[index]


def test_a_gallery_of_an_earlier_version_is_updated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no `source.parquet`."""
    (place / "g" / "source.parquet").unlink()
    named = embedded_pictures(monkeypatch)
    assert len(update_gallery(place / "g").gallery) == PICTURES and named == []
    assert (Gallery.open(place / "g").files / "source.parquet").exists()
    (Gallery.open(place / "g").files / "source.parquet").unlink()
    (place / "photographs" / "20.jpg").write_bytes(jpeg(101))
    updated = update_gallery(place / "g")
    assert len(named) == PICTURES + 2 and counts(updated)["replaced"] == PICTURES  # what has changed is not known
