"""Galleries; exact search, compared with a plain reference; the approximate index."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.full_disk import NAMESPACE, needs_namespace
from support.galleries import NAMES, make_gallery, unit

from data_prep.errors import InputError
from pipeline.retrieval import exact
from pipeline.retrieval.exact import nearest_rows
from pipeline.retrieval.faiss_index import OVERSAMPLES, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery


def plain(matrices: list[np.ndarray], queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute all scores at once in float64, round them to float32, and sort them stably."""
    total = sum(queries[:, a].astype(float) @ matrix.astype(float).T for a, matrix in enumerate(matrices))
    scores = np.asarray(total).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize("asked", [1, 2, 3])
@pytest.mark.parametrize("chunk", [5, 97, 16_384])
def test_search_is_exact_for_every_chunk_size(asked: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CHUNK", chunk)
    monkeypatch.setattr(exact, "QUERIES", 3)
    rows = unit(389, 3, 13)
    rows[200:280] = rows[:80]  # equal rows in other chunks, at other indices
    rows[300] += np.float32(3e-8)  # rows that float32 sums can hardly tell apart
    matrices = [np.ascontiguousarray(rows[:, a]) for a in range(asked)]
    queries = np.concatenate([unit(7, asked, 13, seed=1), rows[[0, 79, 201, 300], :asked]])
    scores, found = nearest_rows(matrices, queries, 11)
    expected_scores, expected = plain(matrices, queries, 11)
    assert scores.dtype == np.float32
    assert np.array_equal(found, expected)
    assert np.array_equal(scores, expected_scores)
    assert found[7, :2].tolist() == [0, 200]


def test_equal_rows_are_ordered_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CHUNK", 31)
    row = unit(1, 7)
    scores, found = nearest_rows([np.repeat(row, 500, axis=0)], unit(2, 1, 7, seed=3), 17)
    assert found.tolist() == [list(range(17))] * 2
    assert (scores == scores[:, :1]).all()


def test_the_error_of_approximate_scores_is_within_the_bound() -> None:
    rows, queries = unit(4_000, 512), unit(5, 2, 512, seed=5)
    matrices = [rows, rows[::-1].copy()]
    rough = exact._rough(matrices, queries)
    true = sum(queries[:, a].astype(float) @ matrices[a].astype(float).T for a in range(2))
    worst = np.abs(rough - true).max()
    assert 0 < worst < exact.rounding_error(512, np.ones(2))


def test_a_gallery_is_searched_by_names_of_attributes(tmp_path: Path) -> None:
    embeddings = unit(23, 3, 5)
    gallery = Gallery.open(make_gallery(tmp_path / "g", embeddings))
    assert (len(gallery), gallery.images[3], gallery.images[20:]) == (23, "003.png", ["020.png", "021.png", "022.png"])
    queries = unit(2, 3, 5, seed=2)
    scores, rows = gallery.search(queries, ["sleeve", "collar"], top=4)
    expected = plain([embeddings[:, 2], embeddings[:, 0]], queries[:, [2, 0]], 4)
    assert np.array_equal(scores, expected[0])
    assert np.array_equal(rows, expected[1])
    each = gallery.cosines(queries[0], ["sleeve", "collar"], rows[0])
    assert np.allclose(each.sum(axis=0), scores[0], atol=1e-6)
    assert gallery.search(queries, ["sleeve", "collar"], top=100)[1].shape == (2, 23)


@pytest.mark.parametrize("approximate", [False, True])
def test_cosines_are_added_by_their_weights(tmp_path: Path, approximate: bool) -> None:
    embeddings = unit(389, 3, 5)
    gallery = Gallery.open(make_gallery(tmp_path / "g", embeddings))
    if approximate:
        gallery.build_index()
    queries = unit(7, 3, 5, seed=2)
    weighted = queries.astype(float) * np.array([1, 0, 2.5])[:, None]
    expected_scores, expected = plain([embeddings[:, 2], embeddings[:, 0]], weighted[:, [2, 0]], 6)
    scores, rows = gallery.search(queries, {"sleeve": 2.5, "collar": 1}, 6, approximate)
    assert (rows == expected).mean() >= (0.9 if approximate else 1)
    assert np.allclose(scores, expected_scores, atol=0.1 if approximate else 1e-6)
    (small,), (large,) = (gallery.search(queries[:1], {"sleeve": w}, 6, approximate)[1] for w in (0.001, 1000))
    assert (small == large).all()
    for weight in (0, -1, np.nan, np.inf, 1e-300, 1e39):
        with pytest.raises(InputError, match=r"attribute sleeve=.*: a weight must be a positive number"):
            gallery.search(queries, {"sleeve": weight})


def test_no_score_exceeds_the_sum_of_the_weights(tmp_path: Path) -> None:
    embeddings = unit(50, 2, 512)
    assert (np.linalg.norm(embeddings.astype(float), axis=2) > 1).any()
    gallery = Gallery.open(make_gallery(tmp_path / "g", embeddings))
    assert gallery.search(embeddings, NAMES[:2], 1)[0].max() == 2
    for row in range(50):
        assert gallery.cosines(embeddings[row], NAMES[:2], np.arange(50)).max() <= 1


def test_invalid_queries_are_refused(tmp_path: Path) -> None:
    gallery = Gallery.open(make_gallery(tmp_path / "g", unit(9, 3, 5)))
    with pytest.raises(InputError, match="unknown attribute 'colar'; did you mean 'collar'"):
        gallery.search(unit(1, 3, 5), ["colar"])
    with pytest.raises(InputError, match="'skirt' is given twice"):
        gallery.search(unit(1, 3, 5), ["skirt", "skirt"])
    with pytest.raises(InputError, match="no attribute given; known: collar, skirt, sleeve"):
        gallery.search(unit(1, 3, 5), [])
    for queries in (unit(1, 1, 5), unit(1, 2, 5), unit(1, 3, 4), unit(3, 5)):  # 1: already picked, perhaps wrongly
        with pytest.raises(ValueError, match="queries must be Q×3×5, embeddings under all attributes of the gallery"):
            gallery.search(queries, ["skirt"])
    for factor in (2, np.nan):
        with pytest.raises(ValueError, match="unit length"):
            gallery.search(unit(1, 3, 5) * np.float32(factor), ["skirt"])
    with pytest.raises(InputError, match="gives a vector of length 0 under skirt"):
        gallery.search(unit(1, 3, 5) * np.float32([[1], [0], [1]]), ["collar", "skirt"])


def test_damaged_galleries_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a gallery"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="the gallery is empty"):
        Gallery.open(make_gallery(tmp_path / "empty", unit(0, 2, 5)))
    folder = make_gallery(tmp_path / "g", unit(9, 2, 5))
    description = (folder / "gallery.json").read_text()
    (folder / "gallery.json").write_text(description.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(InputError, match="schema version 9, this agman reads 1"):
        Gallery.open(folder)
    (folder / "gallery.json").write_text("{}")
    with pytest.raises(InputError, match=r"damaged or of another version \(model"):
        Gallery.open(folder)
    (folder / "gallery.json").write_text(description)
    vectors = folder / "vectors" / "attribute-01.npy"
    vectors.write_bytes(vectors.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged"):
        Gallery.open(folder)
    vectors.unlink()
    with pytest.raises(InputError, match="damaged"):
        Gallery.open(folder)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_pictures_never_come_from_outside_the_source(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    (tmp_path / "pictures-not").mkdir()
    (tmp_path / "pictures-not" / "a.png").write_bytes(png(1))
    (root / "000.png").write_bytes(png(0))
    (root / "002.png").symlink_to(tmp_path / "secret.png")
    (root / "003.png").symlink_to(root / "000.png")
    (root / "004.png").write_text("not a picture")
    (root / "out").symlink_to(tmp_path)
    folder = make_gallery(tmp_path / "g", unit(10, 1, 5), root=str(root))
    names = ["000.png", "001.png", "002.png", "003.png", "004.png"]
    names += ["../secret.png", str(tmp_path / "secret.png"), "out/secret.png", "../pictures-not/a.png", "."]
    pq.write_table(
        pa.table({"image": names, "file": names, "row": pa.nulls(10, pa.int64())}),
        folder / "images.parquet",
    )
    gallery = Gallery.open(folder)
    shown = [gallery.picture(row) for row in range(10)]
    assert shown == [png(0), None, None, png(0), None, None, None, None, None, None]


def test_an_index_takes_as_many_candidates_as_a_sum_of_attributes_needs(tmp_path: Path) -> None:
    """The attributes are independent: what is best in the sum is seldom among the best under one of them."""
    gallery = Gallery.open(make_gallery(tmp_path / "g", unit(3000, 3, 16)))
    done, totals = Counter[str](), dict[str, int]()

    def progress(title: str, total: int):  # type: ignore[no-untyped-def]
        totals[title] = total
        return lambda count: done.update({title: count})

    measured = gallery.build_index(progress).measured
    assert done == totals == {"vectors indexed": 9000, "search settings tried": 16}
    assert measured.oversample > OVERSAMPLES[0] and measured.recall >= 0.97
    queries = np.stack([sample_queries(gallery.matrix(number), 100, 7) for number in range(3)], axis=1)
    exact, found = (gallery.search(queries, NAMES, 10, approximate)[1] for approximate in (False, True))
    assert recall_of(found, exact) >= 0.95
    assert Gallery.open(gallery.folder).index.measured == measured


def test_an_index_of_more_clusters_than_lists_visits_few_lists(tmp_path: Path) -> None:
    """Centres then stand between clusters, and a row in a wrong list is not found by visiting more of them."""
    noise = unit(10_000, 1, 32)
    gallery = Gallery.open(make_gallery(tmp_path / "g", np.repeat(unit(500, 1, 32), 20, axis=0) + 0.5 * noise))
    measured = gallery.build_index().measured
    assert measured.recall >= 0.97 and measured.lists < 500 and measured.probes <= measured.lists // 4
    index = faiss.read_index(str(gallery.folder / "index" / "attribute-00.faiss"))
    lists, matrix = index.invlists, gallery.matrix(0)
    nearest = (matrix @ index.quantizer.reconstruct_n(0, index.nlist).T).argmax(axis=1)
    own = {one: faiss.rev_swig_ptr(lists.get_ids(one), lists.list_size(one)) for one in range(index.nlist)}
    assert all((nearest[rows] == one).all() for one, rows in own.items())


def test_an_interrupted_index_continues_with_the_attribute_it_was_at(tmp_path: Path) -> None:
    gallery = Gallery.open(make_gallery(tmp_path / "g", unit(300, 3, 8)))
    advances: list[int] = []

    def interrupt(title: str, total: int):  # type: ignore[no-untyped-def]
        def advance(done: int) -> None:
            advances.append(done)
            if len(advances) == 2:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        gallery.build_index(interrupt)
    with pytest.raises(InputError, match="has no approximate index"):
        _ = Gallery.open(gallery.folder).index
    first = gallery.folder / "index.partial" / "attribute-00.faiss"
    written = first.stat().st_ino
    measured = gallery.build_index().measured
    assert (gallery.folder / "index" / "attribute-00.faiss").stat().st_ino == written, "it is not built again"
    assert not first.parent.exists() and Gallery.open(gallery.folder).index.measured == measured
    assert recall_of(*(gallery.search(unit(9, 3, 8, seed=1), NAMES, 10, way)[1] for way in (True, False))) >= 0.9


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
gallery, disk = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
subprocess.run(["cp", "-a", gallery, disk], check=True)
into, ballast, room = Path(disk, "g"), Path(disk, "ballast"), os.statvfs(disk)
ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 120_000))  # an index of the gallery has 3 x 90,000 bytes
from pipeline.cli import run
print(run(["index", str(into)]), sorted(file.name for file in (into / "index.partial").iterdir()))
first = (into / "index.partial" / "attribute-00.faiss").stat().st_ino
ballast.unlink()
print(run(["index", str(into)]), (into / "index" / "attribute-00.faiss").stat().st_ino == first)
"""


@needs_namespace
def test_an_index_on_a_full_disk_is_one_line_and_continues(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    folder = make_gallery(tmp_path / "g", unit(3000, 3, 16))
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", FULL_DISK, folder, tmp_path / "disk"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == ["2 ['attribute-00.faiss']", "0 True"], done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if "No space left on device" in line]
    assert len(errors) == 1 and "the same command continues" in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def test_an_approximate_index_reports_its_recall_and_scores_exactly(tmp_path: Path) -> None:
    folder = make_gallery(tmp_path / "g", unit(30, 3, 8))
    gallery = Gallery.open(folder)
    with pytest.raises(InputError, match="has no approximate index; `agman index"):
        gallery.search(unit(1, 3, 8), NAMES[:1], approximate=True)
    measured = gallery.build_index().measured
    assert measured.rows == 30 and measured.recall >= 0.95
    queries = np.stack([np.load(folder / "vectors" / f"attribute-{n:02d}.npy")[:4] for n in range(3)], axis=1)
    scores, rows = Gallery.open(folder).search(queries, ["sleeve", "collar"], 3, approximate=True)
    exact_scores, exact_rows = gallery.search(queries, ["sleeve", "collar"], 3)
    assert (rows == exact_rows).mean() >= 0.9
    assert np.array_equal(scores[rows == exact_rows], exact_scores[rows == exact_rows])
    (folder / "index" / "attribute-01.faiss").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged"):
        Gallery.open(folder).search(queries, ["sleeve", "collar"], 3, approximate=True)
