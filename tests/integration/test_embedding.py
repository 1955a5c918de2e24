"""`agman embed`, `agman index` and `agman search`: real pictures through real Ray workers, against the library."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.commands import agman_exit_code

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.inference.embedder import Embedder, PictureError
from pipeline.registry import models as registry
from pipeline.retrieval import embed as embedding
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.image_sources import find_source
from pipeline.retrieval.search import embedder_of, search

NAMES = ["collar", "skirt", "sleeve"]
SIDE, PICTURES = 32, 30


def jpeg(seed: int, size: tuple[int, int] = (41, 37)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size[0] * 2, size[1] * 2)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of random weights."""
    torch.manual_seed(1)
    network = agman.build("agman", n_attributes=len(NAMES), backbone="resnet18", embedding_dim=8)
    description = {"attributes": NAMES, "image_size": SIDE, "training": {}, "dataset_digest": None, "run_id": None}
    return str(agman.save_model(tmp_path_factory.mktemp("model") / "checkpoint", network, description))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES good ones in two folders, two bad ones, and a file that is none."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(PICTURES):
        file = root / ("a" if number % 2 else "b/c") / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    (root / "a" / "broken.jpg").write_bytes(jpeg(0)[:300])
    (root / "a" / "text.png").write_text("no picture")
    (root / "read.me").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def gallery(model: str, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return embed_images(model, photographs, tmp_path_factory.mktemp("galleries") / "g", workers=1)


def test_every_picture_is_a_row_or_a_reject(gallery: Gallery, photographs: Path) -> None:
    rejects = pq.read_table(gallery.folder / "rejects.parquet").to_pylist()
    assert [one["image"] for one in rejects] == ["a/broken.jpg", "a/text.png"]
    assert all(one["detail"].startswith("not a picture that can be read") for one in rejects)
    assert len(gallery) + len(rejects) == PICTURES + 2
    assert gallery.info.rejects == {"not a picture that can be read": 2}
    assert list(gallery.images) == sorted(gallery.images) and gallery.images[0] == "a/01.jpg"
    assert gallery.picture(0) == (photographs / "a" / "01.jpg").read_bytes()
    assert {one.name for one in gallery.folder.iterdir()} == {
        "gallery.json", "images.parquet", "rejects.parquet", "embeddings", "vectors",
    }  # fmt: skip


def test_embeddings_are_the_model_s_own_one_picture_at_a_time(gallery: Gallery, model: str, photographs: Path) -> None:
    network, description = registry.load(model)
    embedder = Embedder(network, description)
    table = pa.concat_tables([pq.read_table(file) for file in sorted((gallery.folder / "embeddings").iterdir())])
    for row in (0, 13, len(gallery) - 1):
        with Image.open(photographs / gallery.images[row]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        alone = embedder.embed([embedder.read((photographs / gallery.images[row]).read_bytes())])[0]
        assert pixels.shape == (74, 82, 3)
        for number, name in enumerate(NAMES):
            vector = np.load(gallery.folder / "vectors" / f"attribute-{number:02d}.npy")[row]
            assert np.allclose(vector, alone[number], atol=1e-5)
            assert table[name][row].as_py() == vector.tolist()
    assert table["image"].to_pylist() == list(gallery.images)


def test_a_query_finds_itself_first_and_scores_add_up(gallery: Gallery, model: str, photographs: Path) -> None:
    hits = search(gallery, embedder_of(gallery), (photographs / "b" / "c" / "04.jpg").read_bytes(), NAMES[:2], top=5)
    assert hits[0].image == "b/c/04.jpg" and hits[0].score == pytest.approx(2, abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.score == pytest.approx(sum(hit.cosines), abs=1e-5) for hit in hits)


def test_a_prepared_dataset_and_parquet_files_are_embedded_too(model: str, dataset: Dataset, tmp_path: Path) -> None:
    of_dataset = embed_images(model, dataset.path, tmp_path / "of-dataset", workers=2)
    assert sorted(map(int, of_dataset.images)) == sorted(dataset.images["image_id"])
    assert of_dataset.info.source == "dataset"
    picture = of_dataset.picture(3)
    assert picture is not None
    cells = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(3)] + [{"bytes": None, "path": ""}]
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"image": cells, "text": list("abcd")}), tmp_path / "files" / "train.parquet")
    of_files = embed_images(model, tmp_path / "files", tmp_path / "of-files")
    assert list(of_files.images) == [f"train.parquet#{row}" for row in range(3)]
    assert of_files.info.rejects == {"there is nothing in it": 1}
    assert of_files.picture(2) == jpeg(2)


def test_tables_without_pictures_beside_picture_files_hide_none(photographs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photographs, tmp_path / "pictures")
    alone = find_source(folder)
    pq.write_table(pa.table({"path": ["a.jpg"], "attribute": ["sleeve"]}), folder / "regions.parquet")
    assert (source := find_source(folder)).kind == "folder" and source.fingerprint == alone.fingerprint
    pq.write_table(pa.table({"image": [jpeg(1)]}), folder / "pictures.parquet")
    with pytest.raises(InputError, match=r"regions\.parquet: no column of pictures' bytes"):
        find_source(folder)


def test_the_same_command_again_opens_what_is_there(gallery: Gallery, model: str, photographs: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in gallery.folder.rglob("*") if file.is_file()}
    assert embed_images(model, photographs, gallery.folder).info == gallery.info
    assert before == {file: file.stat().st_mtime_ns for file in gallery.folder.rglob("*") if file.is_file()}


def test_an_interrupted_embedding_goes_on_and_ends_the_same(
    model: str, photographs: Path, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", 11)

    def interrupt(title: str, total: int):  # type: ignore[no-untyped-def]
        return lambda done: (_ for _ in ()).throw(KeyboardInterrupt) if done == 11 else None

    with pytest.raises(KeyboardInterrupt):
        embed_images(model, photographs, tmp_path / "g", progress=interrupt)
    aside = tmp_path / ".g.partial"
    done = {file.name: file.stat().st_mtime_ns for file in (aside / "embeddings").glob("*.parquet")}
    assert done and not (tmp_path / "g").exists()
    titles: list[str] = []
    again = embed_images(
        model,
        photographs,
        tmp_path / "g",
        progress=lambda title, total: titles.append(title) or (lambda done: None),  # type: ignore[func-returns-value, arg-type, return-value]
    )
    assert titles[0].startswith("pictures embedded (continuing: ")
    after = {file.name: file.stat().st_mtime_ns for file in (again.folder / "embeddings").iterdir()}
    assert done.items() <= after.items() and len(after) == 3
    assert not aside.exists() and again.info == gallery.info
    for number in range(len(NAMES)):
        one, other = (np.load(g.folder / "vectors" / f"attribute-{number:02d}.npy") for g in (again, gallery))
        assert np.allclose(one, other, atol=1e-6)


def test_a_gallery_that_only_wants_its_place_gets_it(
    gallery: Gallery, model: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / ".g.partial"  # killed just before the rename
    shutil.copytree(gallery.folder, aside)
    (aside / "lock").touch()
    monkeypatch.setattr(embedding, "_run", lambda *_: pytest.fail("embeds again"))
    assert len(embed_images(model, photographs, tmp_path / "g")) == PICTURES
    assert [one.name for one in tmp_path.iterdir()] == ["g"]
    assert {one.name for one in (tmp_path / "g").iterdir()} == {one.name for one in gallery.folder.iterdir()}


def test_an_older_gallery_that_was_being_replaced_is_back(
    gallery: Gallery, model: str, photographs: Path, tmp_path: Path
) -> None:
    shutil.copytree(gallery.folder, tmp_path / ".g.replaced-0123abcd")
    assert len(embed_images(model, photographs, tmp_path / "g")) == PICTURES
    assert [one.name for one in tmp_path.iterdir()] == ["g"]


def test_only_deaths_in_one_command_use_up_the_tries(model: str, photographs: Path, tmp_path: Path) -> None:
    source = find_source(photographs)
    info = embedding._info(model, Embedder(*registry.load(model)), source)
    aside = tmp_path / ".g.partial"
    (aside / "_partial").mkdir(parents=True)
    (aside / "_partial" / "plan").write_text(info.fingerprint)
    (aside / "_partial" / "shard-00000.tries").write_text("4")
    assert len(embed_images(model, photographs, tmp_path / "g")) == PICTURES


def test_a_model_that_has_diverged_makes_no_gallery(photographs: Path, tmp_path: Path) -> None:
    network = agman.build("agman", n_attributes=len(NAMES), backbone="resnet18", embedding_dim=8)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    description = {"attributes": NAMES, "image_size": SIDE, "training": {}, "dataset_digest": None, "run_id": None}
    diverged = str(agman.save_model(tmp_path / "diverged", network, description))
    with pytest.raises(JobFailed, match="gives NaN or infinity for some of the pictures from a/01"):
        embed_images(diverged, photographs, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_parquet_files_that_change_are_one_line(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["x", "y"], "jpeg": [jpeg(1), jpeg(2)]}), folder / "a.parquet")
    run = embedding._run

    def shortened(*arguments: object) -> None:
        pq.write_table(pa.table({"id": ["x"], "jpeg": [jpeg(1)]}), folder / "a.parquet")
        run(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(embedding, "_run", shortened)
        with pytest.raises(JobFailed, match=r"tables/a\.parquet: cannot be read \(.*has no row 1"):
            embed_images(model, folder, tmp_path / "g")
    pq.write_table(pa.table({"id": ["z"], "image": [jpeg(3)]}), folder / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: its pictures are in 'image', .*before in 'jpeg'"):
        find_source(folder)


def test_a_gallery_finds_its_model_from_anywhere(
    model: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    made = embed_images(Path(model).name, photographs, tmp_path / "g")
    monkeypatch.chdir(tmp_path)
    assert embedder_of(Gallery.open(made.folder)).attributes == NAMES


def test_an_approximate_index_states_its_recall_and_scores_exactly(gallery: Gallery, tmp_path: Path) -> None:
    copy = Gallery.open(shutil.copytree(gallery.folder, tmp_path / "g"))
    with pytest.raises(InputError, match="has no approximate index; `agman index"):
        copy.search(np.eye(8, dtype=np.float32)[None, :1], NAMES[:1], approximate=True)
    measured = copy.build_index().measured
    assert measured.rows == PICTURES and measured.recall >= 0.95
    queries = np.stack([np.load(copy.folder / "vectors" / f"attribute-{n:02d}.npy")[:4] for n in (2, 0)], axis=1)
    scores, rows = Gallery.open(copy.folder).search(queries, ["sleeve", "collar"], 3, approximate=True)
    exact_scores, exact_rows = copy.search(queries, ["sleeve", "collar"], 3)
    assert (rows == exact_rows).mean() >= 0.9
    assert np.array_equal(scores[rows == exact_rows], exact_scores[rows == exact_rows])
    (copy.folder / "index" / "attribute-01.faiss").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged"):
        Gallery.open(copy.folder).search(queries, ["sleeve", "collar"], 3, approximate=True)


def test_the_commands(gallery: Gallery, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = photographs / "a" / "05.jpg"
    asked = ("search", gallery.folder, "--query", query, "--attribute", "skirt", "--attribute", "collar")
    assert agman_exit_code(*asked, "--top", "2", "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["hits"][0]["image"] == "a/05.jpg" and len(figures["hits"]) == 2
    assert agman_exit_code("index", gallery.folder, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recall"] >= 0.95
    shutil.rmtree(gallery.folder / "index")


def test_what_cannot_be_searched(
    gallery: Gallery, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big.png"
    Image.new("1", (10_000, 5_000)).save(big)
    cases = {
        ("--query", photographs / "read.me", "--attribute", "skirt"): "not a picture that can be read",
        ("--query", big, "--attribute", "skirt"): "too large (10000x5000 pixels, at most 40 megapixels)",
        ("--query", tmp_path / "none.jpg", "--attribute", "skirt"): "cannot be read (No such file",
        ("--query", big, "--attribute", "skrit"): "unknown attribute 'skrit'; did you mean 'skirt'?",
    }
    for options, said in cases.items():
        assert agman_exit_code("search", gallery.folder, *options) == 2
        assert said in capsys.readouterr().err
    assert agman_exit_code("search", tmp_path, "--query", big, "--attribute", "skirt") == 2
    assert "not a gallery" in capsys.readouterr().err


def test_another_model_than_the_gallery_s_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = agman.build("agman", n_attributes=3, backbone="resnet18", embedding_dim=8)
    other = str(agman.save_model(tmp_path / "other", network, {"attributes": NAMES, "image_size": SIDE}))
    with pytest.raises(InputError, match="by other weights than"):
        embedder_of(gallery, other)


def test_what_cannot_be_embedded_leaves_nothing(
    model: str, photographs: Path, gallery: Gallery, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture there"):
        embed_images(model, tmp_path / "empty", tmp_path / "g")
    with pytest.raises(InputError, match="not there"):
        embed_images(model, tmp_path / "nowhere", tmp_path / "g")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"none of the 1 pictures can be read; x\.jpg"):
        embed_images(model, tmp_path / "bad", tmp_path / "g")
    with pytest.raises(InputError, match="holds a gallery of other pictures"):
        embed_images(model, photographs / "a", gallery.folder)
    with pytest.raises(InputError, match="is not empty and holds no gallery"):
        embed_images(model, photographs, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"empty", "bad"}


def test_an_embedder_refuses_what_is_no_picture(model: str) -> None:
    embedder = Embedder(*registry.load(model))
    for data in (b"", b"text", jpeg(0)[:200]):
        with pytest.raises(PictureError, match="not a picture"):
            embedder.read(data)
    assert embedder.attention(embedder.read(jpeg(1)), ["skirt", "collar"]).sum((1, 2)) == pytest.approx(1)


@pytest.mark.slow
def test_a_killed_embedding_goes_on(model: str, tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(3 * embedding.SHARD):
        (root / f"{number:05d}.jpg").write_bytes(jpeg(number))
    program = Path(sys.executable).with_name("agman")
    command = [str(program), "embed", model, "--images", str(root), "--out", str(tmp_path / "g")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    killed = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    written = tmp_path / ".g.partial" / "embeddings"
    deadline = time.monotonic() + 180
    while not list(written.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {file.name: file.stat().st_mtime_ns for file in written.glob("*.parquet")}
    assert 0 < len(done) < 3 and not (tmp_path / "g").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert (
        done.items() <= {file.name: file.stat().st_mtime_ns for file in (tmp_path / "g/embeddings").iterdir()}.items()
    )
    undisturbed = embed_images(model, root, tmp_path / "undisturbed")
    assert list(Gallery.open(tmp_path / "g").images) == list(undisturbed.images)
    for number in range(len(NAMES)):
        name = f"vectors/attribute-{number:02d}.npy"
        assert np.array_equal(np.load(tmp_path / "g" / name), np.load(undisturbed.folder / name))
