"""States of a gallery: readers find one or the other, and hold what they have opened."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.galleries import add_prototypes, make_gallery, unit

from agman.tagger import TAGGER
from data_prep.errors import InputError
from pipeline.retrieval.gallery import Gallery, describe, write_rows
from pipeline.retrieval.states import FILES, TAGGER_FILE, following, remove_unused


def write(folder: Path, rows: int) -> None:
    """Let a new state count, all of whose vectors are unit vector number `rows` % 3; remove what nobody reads."""
    info = Gallery.open(folder).info
    info = info.model_copy(update={"state": following(info.state), "images": rows})
    (folder / info.state).mkdir()
    names = [f"{rows} {row}" for row in range(rows)]
    images = pa.table({"image": names, "file": names, "row": pa.nulls(rows)})
    write_rows(folder / info.state, info, images, [np.tile(np.eye(3, dtype=np.float32)[rows % 3], (rows, 2, 1))])
    describe(folder, info)
    remove_unused(folder, info.state)


def test_only_the_state_that_counts_is_indexed(tmp_path: Path) -> None:
    folder = make_gallery(tmp_path / "g", unit(9, 2, 3))
    before = Gallery.open(folder)
    write(folder, 5)
    with pytest.raises(InputError, match="has been updated since it was opened; open it again"):
        before.build_index()
    Gallery.open(folder).build_index()


def test_readers_never_see_half_of_a_state(tmp_path: Path) -> None:
    folder = make_gallery(tmp_path / "g", unit(9, 2, 3))
    write(folder, 1)
    stop, seen, wrong = threading.Event(), set(), []

    def reader() -> None:
        while not stop.is_set():
            try:
                gallery = Gallery.open(folder)
                seen.add(len(gallery))
                vectors = np.unique(np.concatenate([gallery.matrix(0), gallery.matrix(1)]), axis=0)
                ok = np.array_equal(vectors, [np.eye(3)[len(gallery) % 3]])
                if not ok or gallery.images[0] != f"{len(gallery)} 0":
                    wrong.append(len(gallery))
            except InputError as error:
                wrong.append(str(error))

    readers = [threading.Thread(target=reader) for _ in range(3)]
    for one in readers:
        one.start()
    for rows in range(2, 80):
        write(folder, rows)
    stop.set()
    for one in readers:
        one.join()
    assert wrong == [] and len(seen) > 10
    gc.collect()
    remove_unused(folder, "state-000079")
    assert {one.name for one in folder.iterdir()} == {"gallery.json", "state-000079"}


def test_a_state_stays_until_its_last_reader_is_gone(tmp_path: Path) -> None:
    folder = make_gallery(tmp_path / "g", unit(9, 2, 3))
    add_prototypes(folder, {"skirt": ("long", "short")}, 3)
    assert TAGGER_FILE == TAGGER and {one.name for one in folder.iterdir()} - {*FILES} == {"gallery.json"}
    first, again = Gallery.open(folder), Gallery.open(folder)
    write(folder, 2)
    write(folder, 3)
    assert {one.name for one in folder.iterdir()} & {*FILES} and not (folder / "state-000001").exists()
    assert first.tagger and first.tagger.namers.keys() == {"skirt"}  # read only now
    del first
    remove_unused(folder, "state-000002")
    assert (folder / "vectors").exists() and len(again) == 9
    del again
    remove_unused(folder, "state-000002")
    assert {one.name for one in folder.iterdir()} == {"gallery.json", "state-000002"}


@pytest.mark.parametrize("state", ["../elsewhere", "state-1", "state-000001/..", "/tmp"])
def test_a_state_lies_in_its_gallery(tmp_path: Path, state: str) -> None:
    folder = make_gallery(tmp_path / "g", unit(9, 2, 3))
    description = (folder / "gallery.json").read_text()
    (folder / "gallery.json").write_text(description.replace('"state": ""', f'"state": "{state}"'))
    with pytest.raises(InputError, match=r"damaged or of another version \(state"):
        Gallery.open(folder)
