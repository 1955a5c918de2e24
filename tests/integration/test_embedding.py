"""`agman embed`, `agman index` and `agman search`: pictures embedded by Ray workers, compared with the library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from support.commands import agman_exit_code
from support.galleries import jpeg, random_model
from support.registered import register_random

import agman
import pipeline
from agman.embedder import Embedder
from data_prep.dataset import Dataset
from data_prep.errors import InputError, StorageError
from data_prep.shared import Shared
from data_prep.storage import Storage
from pipeline.registry.loading import load
from pipeline.retrieval import embed
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.image_sources import Source, find_source
from pipeline.retrieval.search import embedder_of, search

NAMES = ["collar", "skirt", "sleeve"]
PICTURES = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(agman.save_model(tmp_path_factory.mktemp("model") / "checkpoint", *random_model(NAMES)))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES readable files in two folders, two unreadable ones, and a file that is no picture by its name."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(PICTURES):
        file = root / ("a" if number % 2 else "b/c") / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number, (82, 74)))
    (root / "a" / "broken.jpg").write_bytes(jpeg(0)[:-100])
    (root / "a" / "text.png").write_text("no picture")
    (root / "read.me").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def gallery(model: str, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """A gallery whose model was given by a relative path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(model).parent)
        return embed_images(Path(model).name, photographs, tmp_path_factory.mktemp("galleries") / "g", workers=1)


def test_the_galleries_embeddings_are_those_of_python_bit_for_bit(
    gallery: Gallery, model: str, photographs: Path
) -> None:
    """In batches of the same size: sums of another size may be added in another order."""
    expected = gallery.block(0, len(gallery))
    pictures = [photographs / name for name in gallery.images]
    for opened in (agman.load(model), pipeline.load(model)):
        assert np.array_equal(opened.embed(pictures), expected)


def worker(model: str, source: Source, staging: Path) -> embed._Worker:
    """Return a worker in this process."""
    network, description = load(model)
    embed.begin(staging, "", len(source.pictures), len(NAMES), network.embedding_dim)
    return embed._Worker((network, description, "fp32"), Storage(staging), source.root, source.column, 1)


def embed_here(model: str, images: Path, out: Path) -> Gallery:
    """Make a gallery of one shard in this process."""
    source = find_source(images)
    _, error = worker(model, source, out).embed(0, 0, source.pictures)
    assert error is None
    embed.finish(out, embed._info(model, Embedder(*load(model)), source), 1, source)
    return Gallery.open(out)


def test_every_picture_is_a_row_or_a_reject(gallery: Gallery, photographs: Path) -> None:
    rejects = pq.read_table(gallery.folder / "rejects.parquet").to_pylist()
    assert [one["image"] for one in rejects] == ["a/broken.jpg", "a/text.png"]
    assert rejects[0]["detail"].startswith("the picture is truncated (")
    assert rejects[1]["detail"] == "not a picture that can be read (not a picture, or not of a format that is read)"
    assert len(gallery) + len(rejects) == PICTURES + 2
    assert gallery.info.rejects == {"not a picture that can be read": 1, "the picture is truncated": 1}
    assert pq.read_table(gallery.folder / "skipped.parquet").to_pylist() == [
        {"file": "read.me", "detail": ".me is no picture's file ending"}
    ]
    assert list(gallery.images) == sorted(gallery.images) and gallery.images[0] == "a/01.jpg"
    assert gallery.picture(0) == (photographs / "a" / "01.jpg").read_bytes()
    assert {one.name for one in gallery.folder.iterdir()} == {
        "gallery.json", "images.parquet", "rejects.parquet", "skipped.parquet", "source.parquet",
        "vectors",
    }  # fmt: skip


def test_embeddings_equal_those_of_single_pictures(gallery: Gallery, model: str, photographs: Path) -> None:
    embedder = Embedder(*load(model))
    for row in (0, 13, len(gallery) - 1):
        alone = embedder.embed([embedder.read((photographs / gallery.images[row]).read_bytes())])[0]
        for number in range(len(NAMES)):
            vector = np.load(gallery.folder / "vectors" / f"attribute-{number:02d}.npy")[row]
            assert np.allclose(vector, alone[number], atol=1e-5)


def test_a_query_finds_itself_first_and_scores_add_up(gallery: Gallery, photographs: Path) -> None:
    hits = search(gallery, embedder_of(gallery), (photographs / "b" / "c" / "04.jpg").read_bytes(), NAMES[:2], top=5)
    assert hits[0].image == "b/c/04.jpg" and hits[0].score == pytest.approx(2, abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.score == pytest.approx(sum(hit.cosines), abs=1e-5) for hit in hits)


def test_a_prepared_dataset_is_embedded_by_two_workers(
    model: str, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gallery = embed_images(model, dataset.path, tmp_path / "g", workers=2)
    assert capfd.readouterr() == ("", "")  # Ray warns of actors with large arguments
    assert sorted(map(int, gallery.images)) == sorted(dataset.images["image_id"])
    assert gallery.info.source == "dataset"
    assert gallery.picture(3) is not None
    row = 7
    image = int(gallery.images[row])
    (label,) = dataset.labels[dataset.labels["image_id"] == image].to_dict("records")
    attribute = dataset.info.attributes[label["attribute"]]
    path = dataset.images.set_index("image_id")["path"][image]
    assert gallery.describe([row]) == [(path, {attribute.name: attribute.values[label["value"]]})]
    assert gallery.row_of(tmp_path / "photographs" / path) == row
    assert gallery.row_of(tmp_path / Path(path).name) is None
    assert gallery.path(row).startswith(f"{dataset.path}/packed/split=")


def test_parquet_files_are_embedded(model: str, tmp_path: Path) -> None:
    cells = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(3)] + [{"bytes": None, "path": ""}]
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"image": cells, "text": list("abcd")}), tmp_path / "files" / "train.parquet")
    gallery = embed_here(model, tmp_path / "files", tmp_path / "g")
    assert list(gallery.images) == [f"train.parquet#{row}" for row in range(3)]
    assert gallery.info.rejects == {"the file is empty": 1}
    assert gallery.picture(2) == jpeg(2)


def test_the_same_command_opens_an_existing_gallery(gallery: Gallery, model: str, photographs: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in gallery.folder.rglob("*") if file.is_file()}
    copy = shutil.copytree(model, Path(model).with_name("copy"))
    assert embed_images(str(copy), photographs, gallery.folder).info == gallery.info
    assert before == {file: file.stat().st_mtime_ns for file in gallery.folder.rglob("*") if file.is_file()}


def test_an_interrupted_embedding_continues_to_the_same_gallery(
    model: str, photographs: Path, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "SHARD", 11)

    def interrupt(title: str, total: int):  # type: ignore[no-untyped-def]
        return lambda done: (_ for _ in ()).throw(KeyboardInterrupt) if done == 11 else None

    with pytest.raises(KeyboardInterrupt):
        embed_images(model, photographs, tmp_path / "g", progress=interrupt)
    staging = tmp_path / ".g.partial"
    done = len(list((staging / "_partial").glob("names-*.parquet")))
    assert done and not (tmp_path / "g").exists()
    for number in range(3):  # only the attempts of one command count
        (staging / "_partial" / f"shard-{number:05d}.tries").write_text("4")
    titles: list[str] = []
    advances: list[int] = []
    again = embed_images(
        model,
        photographs,
        tmp_path / "g",
        progress=lambda title, total: titles.append(title) or advances.append,  # type: ignore[func-returns-value, arg-type, return-value]
    )
    assert titles[0].startswith("pictures embedded (continuing: ")
    assert len(advances) == 1 + 3 - done, "only the shards that were not complete are embedded"
    assert not staging.exists() and again.info == gallery.info.model_copy(update={"model": model})
    for number in range(len(NAMES)):
        one, other = (np.load(g.folder / "vectors" / f"attribute-{number:02d}.npy") for g in (again, gallery))
        assert np.allclose(one, other, atol=1e-6)


def test_a_complete_gallery_is_only_renamed(
    gallery: Gallery, model: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = tmp_path / ".g.partial"  # a command was killed just before the rename
    shutil.copytree(gallery.folder, staging)
    (staging / "lock").touch()
    monkeypatch.setattr(embed, "embed_shards", lambda *_: pytest.fail("embeds again"))
    assert len(embed_images(model, photographs, tmp_path / "g")) == PICTURES
    assert [one.name for one in tmp_path.iterdir()] == ["g"]
    assert {one.name for one in (tmp_path / "g").iterdir()} == {one.name for one in gallery.folder.iterdir()}


def test_an_older_gallery_is_restored_after_a_kill_between_two_renames(
    gallery: Gallery, model: str, photographs: Path, tmp_path: Path
) -> None:
    shutil.copytree(gallery.folder, tmp_path / ".g.replaced-0123abcd")
    assert len(embed_images(model, photographs, tmp_path / "g")) == PICTURES
    assert [one.name for one in tmp_path.iterdir()] == ["g"]


def test_a_diverged_model_makes_no_gallery(photographs: Path, tmp_path: Path) -> None:
    network, description = random_model(NAMES)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    diverged = str(agman.save_model(tmp_path / "diverged", network, description))
    with pytest.raises(StorageError, match="gives NaN or infinity for some of the pictures from a/01"):
        embed_images(diverged, photographs, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_vectors_of_length_0_are_rejects(photographs: Path, tmp_path: Path) -> None:
    network, description = random_model(NAMES)
    blind = str(agman.save_model(tmp_path / "blind", network, description))
    source = find_source(photographs)
    one = worker(blind, source, tmp_path / "g")
    embedded = one.embedder.embed

    def without_the_third(squares):  # type: ignore[no-untyped-def]
        vectors = embedded(squares)
        vectors[2, 1] = 0
        return vectors

    one.embedder.embed = without_the_third
    assert one.embed(0, 0, source.pictures) == (PICTURES + 2, None)
    embed.finish(tmp_path / "g", embed._info(blind, Embedder(*load(blind)), source), 1, source)
    gallery = Gallery.open(tmp_path / "g")
    rejects = pq.read_table(gallery.folder / "rejects.parquet").to_pylist()
    assert [(one["image"], one["detail"]) for one in rejects if "length" in one["detail"]] == [
        ("a/05.jpg", "the model gives a vector of length 0")
    ]
    assert len(gallery) + len(rejects) == PICTURES + 2 and gallery.images[2] == "a/07.jpg"


def test_a_parquet_file_that_changes_is_reported(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["x", "y"], "jpeg": [jpeg(1), jpeg(2)]}), folder / "a.parquet")
    source = find_source(folder)
    pq.write_table(pa.table({"id": ["x"], "jpeg": [jpeg(1)]}), folder / "a.parquet")
    _, error = worker(model, source, tmp_path / "staging").embed(0, 0, source.pictures)
    assert error and "tables/a.parquet: cannot be read (" in error and "has no row 1" in error


def test_a_shard_on_which_workers_die_is_given_up(model: str, photographs: Path, tmp_path: Path) -> None:
    source = find_source(photographs / "b")
    one = worker(model, source, tmp_path)
    Storage(tmp_path / "_partial" / "shard-00000.tries").write_bytes(str(embed.TRIES).encode())
    _, error = one.embed(0, 0, source.pictures)
    assert error == f"pictures c/00.jpg to c/28.jpg: {embed.TRIES} workers died of them"


def test_a_machine_without_the_pictures_rejects_none(model: str, photographs: Path, tmp_path: Path) -> None:
    source = find_source(photographs / "b")
    shared = Shared(Storage(tmp_path), embed.FINGERPRINT, "plan", {"images": tmp_path / "elsewhere"})
    one = embed._RemoteWorker(shared, Storage(tmp_path), source.root, source.column, 1)
    _, error = one.embed(0, 0, source.pictures, [])
    assert error and error.startswith(f"{tmp_path / 'elsewhere'}: not there, or empty")
    assert not list(tmp_path.iterdir())


def test_a_gallery_finds_a_model_given_by_a_relative_path(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedder_of(Gallery.open(gallery.folder)).attributes == NAMES


def test_search_and_index_commands(gallery: Gallery, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = photographs / "a" / "05.jpg"
    asked = ("search", gallery.folder, "--query", query, "--attribute", "skirt=2", "--attribute", "collar")
    assert agman_exit_code(*asked, "--top", PICTURES, "--absolute", "--json") == 0
    printed = capsys.readouterr()
    hits = json.loads(printed.out.splitlines()[-1])["hits"]
    others = [name for name in gallery.images if name != "a/05.jpg"]
    assert sorted(hit["image"] for hit in hits) == others
    assert all(hit["score"] == pytest.approx(2 * hit["cosines"][0] + hit["cosines"][1], abs=1e-5) for hit in hits)
    assert [hit["path"] for hit in hits] == [str(photographs / hit["image"]) for hit in hits]
    assert str(photographs / hits[0]["image"]) in printed.err and "2 × skirt + collar" in printed.err
    copy = photographs.parent / "copy.jpg"  # not one of the gallery's files
    shutil.copy(query, copy)
    assert agman_exit_code(*asked[:2], "--query", copy, *asked[4:], "--top", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["hits"][0]["image"] == "a/05.jpg"
    assert agman_exit_code("index", gallery.folder, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recall"] >= 0.95
    shutil.rmtree(gallery.folder / "index")


def test_a_search_imports_only_what_it_needs(gallery: Gallery, photographs: Path) -> None:
    """These packages take seconds to import, and a search of a small gallery should take three in all."""
    asked = ["search", str(gallery.folder), "--query", str(photographs / "a" / "05.jpg"), "--attribute", "skirt"]
    slow = {"faiss", "matplotlib", "mlflow", "ray", "sklearn", "torchvision"}
    code = (
        f"import sys; from pipeline.cli import run; assert run({asked}) == 0; print(sorted({slow} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_invalid_queries_are_refused_in_one_line(
    gallery: Gallery, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big.png"
    Image.new("1", (10_000, 5_000)).save(big)
    cases = {
        ("--query", photographs / "read.me", "--attribute", "skirt"): "not a picture that can be read",
        ("--query", big, "--attribute", "skirt"): "too large (10000x5000 pixels, at most 40 megapixels)",
        ("--query", tmp_path / "none.jpg", "--attribute", "skirt"): "cannot be read (No such file",
        ("--query", photographs, "--attribute", "skirt"): "cannot be read (Is a directory)",
        ("--query", big, "--attribute", "skirt", "--attribute", "skirt=2"): "'skirt' is given twice",
        ("--query", big, "--attribute", "skirt=x"): "the weight must be a number, as in skirt=2",
        ("--query", big, "--attribute", "skirt=0"): "a weight must be a positive number",
        ("--query", big, "--attribute", "skrit"): "unknown attribute 'skrit'; did you mean 'skirt'?",
    }
    for options, message in cases.items():
        assert agman_exit_code("search", gallery.folder, *options) == 2
        assert message in capsys.readouterr().err
    assert agman_exit_code("search", tmp_path, "--query", big, "--attribute", "skirt") == 2
    assert "not a gallery" in capsys.readouterr().err


def test_the_snippet_of_the_docs_searches_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = ["skirt_length", "coat_length", "lapel_design"]
    agman.save_model(tmp_path / "model", *random_model(names))
    Path("photographs").mkdir()
    for number in range(9):
        Path("photographs", f"{number}.jpg").write_bytes(jpeg(number))
    Path("coat.jpg").write_bytes(jpeg(100))
    found: dict[str, Any] = {}
    exec(snippet.replace("models:/agman-fashionai@champion", "model"), found)
    coat, lapel = (np.load(f"gallery/vectors/attribute-{n:02d}.npy") @ found["queries"][0, n] for n in (1, 2))
    assert found["rows"][0].tolist() == np.argsort(-(2 * lapel + coat)).tolist()
    assert found["scores"][0] == pytest.approx(np.sort(2 * lapel + coat)[::-1], abs=1e-6)
    printed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert printed == [f"{row}.jpg" for row in np.argsort(-lapel)[:5]]


def test_a_gallery_outlives_a_promotion(
    photographs: Path, dataset: Dataset, tracking_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 1 is the champion when it embeds; version 2 is the champion later."""
    first, second = (register_random(dataset, tmp_path, seed) for seed in (1, 2))
    champion = "models:/agman-tiny@champion"
    gallery = embed_images(champion, photographs / "b", tmp_path / "g")
    assert gallery.info.model == first.uri
    digest = embedder_of(gallery).digest
    client = MlflowClient(tracking_store)
    client.set_registered_model_alias("agman-tiny", "champion", second.version)
    assert embedder_of(gallery).digest == digest
    with pytest.raises(InputError, match="contains a gallery of models:/agman-tiny/1"):
        embed_images(champion, photographs / "b", tmp_path / "g")

    # Earlier versions recorded the alias, and not where the model's files are.
    file = tmp_path / "g" / "gallery.json"
    recorded = json.loads(file.read_text())
    assert Path(recorded.pop("checkpoint"), "model.safetensors").is_file()
    file.write_text(json.dumps(recorded | {"model": champion}))
    capsys.readouterr()
    assert embedder_of(Gallery.open(tmp_path / "g")).digest == digest
    said = f"note: {champion} is another version now; the gallery's is {first.uri}, which is used\n"
    assert capsys.readouterr().err == said
    client.delete_registered_model_alias("agman-tiny", "champion")
    assert embedder_of(Gallery.open(tmp_path / "g")).digest == digest
    client.delete_model_version("agman-tiny", str(first.version))
    with pytest.raises(InputError, match="with other weights than it has now"):
        embedder_of(Gallery.open(tmp_path / "g"))
    file.write_text(json.dumps(recorded | {"model": "models:/agman-other@champion"}))
    with pytest.raises(InputError, match=r"agman-other@champion: .* did you mean 'agman-tiny'\?"):
        embedder_of(Gallery.open(tmp_path / "g"))


def test_another_model_than_the_gallery_s_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    other = str(agman.save_model(tmp_path / "other", *random_model(NAMES, seed=2)))
    with pytest.raises(InputError, match="with other weights than"):
        embedder_of(gallery, other)


def test_refused_arguments_leave_nothing_behind(
    model: str, photographs: Path, gallery: Gallery, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"no picture can be embedded, 1 refused; x\.jpg"):
        embed_here(model, tmp_path / "bad", tmp_path / "staging")
    with pytest.raises(InputError, match=r"--images .*x\.jpg: is a file; give its folder"):
        embed_images(model, tmp_path / "bad" / "x.jpg", tmp_path / "g")
    with pytest.raises(InputError, match="contains a gallery of other pictures"):
        embed_images(model, photographs / "a", gallery.folder)
    with pytest.raises(InputError, match="is not empty and contains no gallery"):
        embed_images(model, photographs, tmp_path)
    (tmp_path / ".g.partial").mkdir()
    (tmp_path / ".g.partial" / "own").write_text("not ours")
    with pytest.raises(InputError, match=r"\.g\.partial: is in the way, and was not made by this command"):
        embed_images(model, photographs, tmp_path / "g")
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == [
        ".g.partial", ".g.partial/own", "bad", "bad/x.jpg",
    ]  # fmt: skip
