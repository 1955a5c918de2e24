"""The states of a gallery that a replica answers for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.galleries import embed_folder, jpeg, random_model

import agman
from agman.embedder import Embedder
from data_prep.errors import InputError
from pipeline.retrieval.gallery import DESCRIPTION, Gallery, describe, write_rows
from pipeline.serving.engines import Engines


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    model = agman.save_model(tmp_path / "model", *random_model(["collar", "skirt"]))
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    return embed_folder(model, tmp_path / "pictures", tmp_path / "g")


def switch(gallery: Gallery, state: str, rows: int) -> None:
    """Let a state of the gallery's last rows count."""
    info = gallery.info.model_copy(update={"images": rows, "state": state})
    (gallery.folder / state).mkdir()
    write_rows(gallery.folder / state, info, gallery.table.slice(5 - rows), [gallery.block(5 - rows, 5)])
    describe(gallery.folder, info)


def test_rows_are_those_of_the_state_that_is_named(gallery: Gallery) -> None:
    engines = Engines(gallery, Embedder(*agman.load_model(gallery.info.model), device="cpu"))
    first = engines.of(None)
    assert (first.facts["state"], first.facts["pictures"]) == ("01234567", 5)
    switch(gallery, "state-000001", 3)
    second = engines.of("01234567-000001")  # looks for it, because another replica has seen it before
    assert engines.current is second and second.facts["pictures"] == 3
    assert engines.of("01234567") is first and engines.of(None) is second
    assert (first.gallery.images[0], second.gallery.images[0]) == ("0.jpg", "2.jpg")
    assert first.picture(0)[0] == jpeg(0) and second.picture(0)[0] == jpeg(2)
    switch(gallery, "state-000002", 4)
    engines.follow()
    assert engines.of("01234567-000001") is second
    with pytest.raises(InputError, match="the gallery has been updated since that answer; search again"):
        engines.of("01234567")


def test_what_cannot_be_served_changes_nothing(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    engines = Engines(gallery, Embedder(*agman.load_model(gallery.info.model), device="cpu"))
    first, file = engines.current, gallery.folder / DESCRIPTION
    description = json.loads(file.read_text())
    for change, said in (
        ({"model_digest": "0"}, "is of another model now"),
        ({"images": 7}, "damaged (a file has not 7"),
    ):
        file.write_text(json.dumps(description | change))
        engines.follow()
        engines.follow()
        assert engines.current is first
        assert capsys.readouterr().err.count(said) == 1  # not once a second
    file.unlink()
    engines.follow()
    assert engines.current is first and capsys.readouterr().err == ""
