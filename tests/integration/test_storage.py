"""Datasets in an object store, in fsspec's file systems, and in stores that fail."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.commands import Agman
from support.datasets import SIZE, make_photographs, prepare_small, recorded
from support.embedding import embed_here
from support.galleries import jpeg, random_model
from support.s3_server import Bucket

import agman
from data_prep import dataset as dataset_module
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError, StorageError
from data_prep.storage import Storage
from pipeline.cli.options import PATH_OR_URI
from pipeline.retrieval import embed
from pipeline.retrieval.gallery import Gallery


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs") / "raw", n=60)


def with_keys(uri: str) -> str:
    """Return the URI with credentials in it."""
    return uri.replace("s3://", "s3://access:sesame@")


def test_a_dataset_in_an_object_store_equals_the_local_one(
    bucket: Bucket, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = prepare_small(photographs, tmp_path / "out")
    remote = prepare_small(photographs, with_keys(bucket.uri("data")))
    assert remote.info == local.info
    assert [key for key in bucket.puts if not key.endswith("/")][-1] == "data/dataset.json", "it comes last"
    assert not [key for key in bucket.keys if "_partial" in key]
    assert str(remote.path) == "s3://bucket/data"
    for split in ("train", "test"):
        assert local.triplets(split).columns().keys() == remote.triplets(split).columns().keys()
        ids = local.images[local.images["split"] == split]["image_id"].to_numpy()
        pictures = ImageStore(local, split, SIZE).read(ids)
        assert torch.equal(ImageStore(remote, split, SIZE).read(ids), pictures)
        with monkeypatch.context() as patch:
            patch.setattr(dataset_module, "BUFFER", 0)
            assert torch.equal(ImageStore(remote, split, SIZE, threads=2).read(ids), pictures)
    again = Dataset(pickle.loads(pickle.dumps(remote.storage)))
    np.testing.assert_array_equal(again.triplets("train", 1).anchor, local.triplets("train", 1).anchor)
    with pytest.raises(InputError, match=r"s3://bucket/data: exists; .*--overwrite"):
        prepare_small(photographs, with_keys(bucket.uri("data")))
    assert prepare_small(photographs, with_keys(bucket.uri("data")), seed=3, overwrite=True).info.seed == 3


def test_an_upload_that_fails_leaves_no_dataset_and_can_be_continued(
    bucket: Bucket, photographs: Path, tmp_path: Path
) -> None:
    uri = with_keys(bucket.uri("data"))
    bucket.failing, bucket.code = "triplets/split=valid", 403
    with pytest.raises(
        StorageError, match=r"s3://bucket/data.*cannot be .*written.*the same command continues"
    ) as told_of:
        prepare_small(photographs, uri)
    assert "sesame" not in str(told_of.value)
    assert "\n" not in str(told_of.value)
    with pytest.raises(InputError, match=r"s3://bucket/data: its preparation was stopped half-way"):
        Dataset(uri)
    bucket.failing = None
    packed_before = [key for key in bucket.puts if key.startswith("data/packed/") and key.endswith(".parquet")]
    titles: list[str] = []
    continued = prepare_small(photographs, uri, progress=recorded(titles))
    assert titles == ["pictures looked at", "images packed (continuing: 60 of 60 images already packed)"]
    assert [key for key in bucket.puts if key.startswith("data/packed/") and key.endswith(".parquet")] == packed_before
    assert continued.info == prepare_small(photographs, tmp_path / "out").info


@pytest.mark.slow  # pyarrow tries for some seconds
def test_a_shard_that_cannot_be_uploaded_is_an_error_of_one_line(bucket: Bucket, photographs: Path) -> None:
    bucket.failing = "^data/packed/split=train"
    with pytest.raises(StorageError, match=r"s3://bucket/data/packed/split=train/part-00000.parquet: cannot be"):
        prepare_small(photographs, with_keys(bucket.uri("data")))
    assert not [key for key in bucket.keys if key.startswith("data/packed/split=train")]


def test_a_preparation_keeps_files_that_it_did_not_make(bucket: Bucket, photographs: Path) -> None:
    bucket.write("killed/_partial/fingerprint", b"of a run that was killed before its first shard")
    assert prepare_small(photographs, with_keys(bucket.uri("killed"))).info.images["train"]
    bucket.write("data/thesis.tex", b"years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not made by this command"):
            prepare_small(photographs, with_keys(bucket.uri("data")), overwrite=overwrite)
    bucket.write("data/dataset.json", b"{}")
    prepare_small(photographs, with_keys(bucket.uri("data")), overwrite=True)
    assert bucket.read("data/thesis.tex") == b"years of work"


def test_a_gallery_and_its_columns_come_from_an_object_store(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agman_here: Agman
) -> None:
    """Pictures and prices are two Parquet tables there; a condition leaves what the prices say."""
    monkeypatch.setattr(embed, "embed_shards", embed_here)
    model = agman.save_model(tmp_path / "model", *random_model(["collar", "skirt"]))
    names = [f"{number:02d}" for number in range(5)]
    bucket.write("pictures/0.parquet", parquet(id=names, image=[jpeg(number) for number in range(5)]))
    bucket.write("prices.parquet", parquet(sku=[*names[:4], "99"], price=[10, 60, 20, 30, 1], brand=[*"XXYXX"]))
    columns = ("--columns", bucket.uri("prices.parquet"))
    done = agman_here("embed", model, "--images", bucket.uri("pictures"), "--out", "g", *columns)
    assert done.code == 0, done.err
    (tmp_path / "query.jpg").write_bytes(jpeg(2))
    asked = ("search", "g", "--query", "query.jpg", "--attribute", "collar", "--json")
    found = agman_here(*asked, "--where", "brand = 'X' and price < 50")
    assert found.code == 0, found.err
    hits = {hit["image"]: hit["columns"]["price"] for hit in json.loads(found.out.splitlines()[-1])["hits"]}
    assert hits == {"00": 10, "03": 30}
    bucket.write("prices.parquet", parquet(sku=names, price=[70, 70, 20, 30, 40], brand=[*"XXYXX"]))
    assert agman_here("embed", "--into", "g", "--images", bucket.uri("pictures"), *columns).code == 0
    assert Gallery.open(tmp_path / "g").rows_where("brand = 'X' and price < 50").tolist() == [3, 4]
    gone = agman_here("embed", "--into", "g", "--columns", bucket.uri("gone.parquet"))
    assert gone.code == 2 and len(gone.err.splitlines()) == 1 and "gone.parquet" in gone.err


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize("form", ["file://{}", "local://{}"])
def test_uris_of_local_folders(photographs: Path, tmp_path: Path, form: str) -> None:
    plain = prepare_small(photographs, tmp_path / "plain")
    dataset = prepare_small(photographs, form.format(tmp_path / "out"))
    assert dataset.info == plain.info == Dataset(tmp_path / "out").info
    assert len(ImageStore(dataset, "test", SIZE)) == plain.info.images["test"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nothing://somewhere/x", "nothing://somewhere/x.*: cannot be opened"),
        ("s3://", "s3://: has no path"),
        (Path("s3://bucket/x"), "give a URI as a string"),
    ],
)
def test_a_wrong_or_unreachable_uri_is_one_line_without_secrets(
    photographs: Path, uri: str | Path, message: str
) -> None:
    for use in (Dataset, lambda place: prepare_small(photographs, place)):
        with pytest.raises(InputError, match=message) as refused:
            use(uri)
        assert "\n" not in str(refused.value)
        assert "sesame" not in str(refused.value)


def test_an_unreachable_store_is_one_line_without_secrets() -> None:
    with pytest.raises(InputError, match=r"s3://b/x/dataset\.json: cannot be read or written") as refused:
        Dataset("s3://me:sesame@b/x?scheme=http&region=r&endpoint_override=127.0.0.1:9")
    assert "\n" not in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_a_file_system_of_fsspec() -> None:
    place = Storage("memory://folder") / "a"
    (place / "b" / "one").write_bytes(b"1")
    with (place / "two").atomic_file() as file:
        file.write_bytes(b"22")
    assert place.files() == {"b/one": 1, "two": 2}
    assert (place / "b" / "one").read_bytes() == b"1"
    with (place / "two").open() as opened:
        assert (opened.size(), opened.read()) == (2, b"22")
    with pytest.raises(FileNotFoundError):
        (place / "three").read_bytes()
    (place / "b").delete()
    (place / "two").delete()
    assert not place.files()


def test_storage_shows_no_credentials(tmp_path: Path) -> None:
    place = Storage("s3://me:sesame@bucket/folder?secret_key=open") / "images.parquet"
    assert str(place) == "s3://bucket/folder/images.parquet"
    assert "sesame" not in repr(place)
    here = Storage(tmp_path) / "a" / "b.bin"
    here.write_bytes(b"1234")
    assert pickle.loads(pickle.dumps(here)).read_bytes() == b"1234"
    assert Storage(tmp_path).files() == {"a/b.bin": 4}
    with pytest.raises(ZeroDivisionError), here.atomic_file() as file:
        file.write_bytes(b"half")
        raise ZeroDivisionError
    assert here.read_bytes() == b"1234"
    assert Storage(tmp_path).files() == {"a/b.bin": 4}
    Storage(tmp_path / "a").delete()
    assert not here.exists()


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///tmp/a#b", "/tmp/a#b"),
        ("file:///tmp/a?b", "/tmp/a?b"),
        ("file:///tmp/a%20b%23c?d#e", "/tmp/a b#c?d#e"),
        ("file://localhost/tmp/a", "/tmp/a"),
        ("FILE:///tmp/a", "/tmp/a"),
        ("local:///tmp/a", "/tmp/a"),
    ],
)
def test_local_uris_keep_the_whole_path(uri: str, path: str) -> None:
    assert Storage(uri).local == Path(path)


@pytest.mark.parametrize("make", [Storage, Dataset])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file://tmp/x", r"^file://tmp/x: file:// URIs have three slashes: file:///tmp/x$"),
        ("local://tmp/x", r"local:// URIs have three slashes: local:///tmp/x"),
        ("file://", "has no path"),
        ("s3://?region=x", "^s3://: has no path"),
        ("://bucket/x", "neither a path nor a URI"),
        ("1s3://bucket/x", "neither a path nor a URI"),
        (" s3://me:sesame@bucket/x?secret_key=sesame", "neither a path nor a URI"),
        ("some folder/s3://me:ses/sesame@bucket/x", "neither a path nor a URI"),
        ("simplecache:s3://bucket/x", "neither a path nor a URI"),
    ],
)
def test_a_wrong_uri_is_never_used_as_a_folder(make: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        make(text)
    assert "sesame" not in str(refused.value)
    assert PATH_OR_URI.convert(text, None, None) == text, "the command does not change it"


def test_chained_uris_are_opened_by_fsspec(photographs: Path) -> None:
    uri = "simplecache::memory://chained"
    assert PATH_OR_URI.convert(uri, None, None) == uri
    place = Storage("memory://chained") / "a"
    place.write_bytes(b"1234")
    chained = Storage(uri) / "a"
    assert chained.local is None
    assert (chained.read_bytes(), str(chained)) == (b"1234", "simplecache::memory://chained/a")
    with chained.open() as file:
        assert file.read() == b"1234"
    assert pickle.loads(pickle.dumps(Storage(uri))).files() == {"a": 4}
    place.delete()
    assert (
        str(Storage("zip://inner::simplecache::s3://me:pw@b/x.zip?token=t")) == "zip://inner::simplecache::s3://b/x.zip"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "s3://me:p%40ss@b/x?secret_key=a%2Fb",
        "simplecache::s3://me:p%40ss@b/x?secret_key=a%2fb&region=eu",
        "s3://me:p@ss@b/x?token=a%2Fb",
        "s3://b/x?whatever=a%2Fb&sas=p%40ss",
        "s3://me:p@ss@b/x?sas=a/b",
    ],
)
def test_errors_hide_secrets_in_every_spelling(uri: str) -> None:
    said = f"some region eu: no {uri}, ('p@ss' or p%40ss or p%40SS, a/b a%2Fb a%2fb)"
    shown = Storage(uri)._without_secrets(OSError(said))
    assert shown.startswith("some region eu: no ")
    for secret in ("p@ss", "p%40ss", "a/b", "a%2fb"):
        assert secret not in shown.lower()
    assert not {"@", "?"} & set(str(Storage(uri)))


def test_an_unquoted_slash_in_a_key_is_not_shown() -> None:
    assert str(Storage("s3://me:ses/ame@bucket/x@y")) == "s3://bucket/x@y"
    assert str(Storage("hdfs://host:8020/x@y")) == "hdfs://host:8020/x@y"
