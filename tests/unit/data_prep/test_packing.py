"""Packing: which pictures are accepted, how they are encoded, and how shards are planned and continued."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from support.datasets import SIZE, make_images, make_photographs, prepare_small

from data_prep import packing, pictures
from data_prep.annotation import REASONS
from data_prep.encoding import Packed, Refused, pack_image
from data_prep.packing import MARKER, pack
from data_prep.shared import Shared
from data_prep.storage import Storage

GREY = 128


def decoded(packed: Packed | Refused) -> Image.Image:
    assert isinstance(packed, Packed), packed
    image = Image.open(io.BytesIO(packed.jpeg))
    assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (packed.width, packed.height))
    return image


def brightness(packed: Packed | Refused) -> float:
    return float(np.asarray(decoded(packed), float).mean())


def colour(packed: Packed | Refused, x: float, y: float) -> tuple[int, int, int]:
    """Return the colour at a point given as fractions of the picture."""
    image = decoded(packed)
    return image.getpixel((int(x * image.width), int(y * image.height)))  # type: ignore[return-value]


def make_odd_pictures(folder: Path) -> dict[str, str]:
    """Write files that are each bad in another way. Returns name -> reason of the refusal."""
    good = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    for name, form in (("cut.jpg", "JPEG"), ("cut.png", "PNG"), ("cut.webp", "WEBP")):
        buffer = io.BytesIO()
        good.save(buffer, form)
        (folder / name).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (folder / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    outside = folder.parent / "outside.jpg"
    good.save(outside)
    (folder / "link.jpg").symlink_to(outside)
    Image.new("L", (3, 300_000)).save(folder / "thin.png")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    with (folder / "endless.jpg").open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)  # sparse
    return {
        "cut.jpg": "unreadable_image",
        "cut.png": "unreadable_image",
        "cut.webp": "unreadable_image",
        "empty.jpg": "unreadable_image",
        "text.jpg": "unreadable_image",
        "drawing.svg": "unreadable_image",
        "program.eps": "unreadable_image",
        "folder.jpg": "missing_image",
        "pipe.jpg": "unreadable_image",
        "device.jpg": "path_outside_root",
        "loop.jpg": "unreadable_image",
        "dangling.jpg": "missing_image",
        "link.jpg": "path_outside_root",
        "thin.png": "image_too_large",
        "bomb.png": "image_too_large",
        "endless.jpg": "image_too_large",
        "../outside.jpg": "path_outside_root",
        str(outside): "path_outside_root",
        "nul\0.jpg": "unreadable_image",
        "": "missing_image",
        "x" * 5000: "unreadable_image",
    }


def png_header(width: int, height: int) -> bytes:
    """Return a small PNG file whose header says that it is a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def test_every_bad_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    root = (tmp_path / "root").resolve()
    expected = make_odd_pictures(root)
    Image.new("RGB", (40, 50), "green").save(root / "good.jpg")
    names = ["good.jpg", *expected]
    images = pd.DataFrame({"image_id": range(len(names)), "path": names, "split": "train"})
    made = pack(images, root, Storage(tmp_path / "out"), SIZE, seed=0)
    assert made.sizes.to_numpy().tolist() == [[0, 40, 50]]
    reasons = dict(zip(made.refused["image_id"].map(names.__getitem__), made.refused["reason"], strict=True))
    assert reasons == expected
    assert set(reasons.values()) <= set(REASONS)


def test_a_device_below_the_root_is_not_opened() -> None:
    assert pack_image(Path("/dev"), "zero", SIZE) == Refused("unreadable_image", "zero: not a regular file")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey8.png", Image.new("L", (40, 50), GREY)),
        ("grey16.png", Image.fromarray(np.full((40, 50), GREY * 257, np.uint16))),
        ("grey16.tif", Image.fromarray(np.full((40, 50), GREY * 257, np.uint16))),
        ("grey32.tif", Image.fromarray(np.full((40, 50), GREY * 257, np.int32))),
        ("unit.tif", Image.fromarray(np.full((40, 50), GREY / 255, np.float32))),
        ("float.tif", Image.fromarray(np.full((40, 50), GREY, np.float32))),
        ("cmyk.jpg", Image.new("RGB", (50, 40), (GREY, GREY, GREY)).convert("CMYK")),
        ("cmyk.tif", Image.new("RGB", (50, 40), (GREY, GREY, GREY)).convert("CMYK")),
        ("one.png", Image.new("RGB", (1, 1), (GREY, GREY, GREY))),
        ("alpha.png", Image.new("RGBA", (50, 40), (0, 0, 0, 255 - GREY))),
        ("alpha.webp", Image.new("RGBA", (50, 40), (0, 0, 0, 255 - GREY))),
        ("grey_alpha.png", Image.new("LA", (50, 40), (0, 255 - GREY))),
    ],
)
def test_brightness_is_kept_in_every_mode(tmp_path: Path, name: str, image: Image.Image) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    assert brightness(pack_image(tmp_path.resolve(), name, SIZE)) == pytest.approx(GREY, abs=3)


def test_dark_pictures_of_16_bits_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 50), 200, np.uint16)).save(tmp_path / "dark.png")
    assert brightness(pack_image(tmp_path.resolve(), "dark.png", SIZE)) < 3


def test_transparency_becomes_white_and_the_first_frame_is_used(tmp_path: Path) -> None:
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    ImageDraw.Draw(palette).rectangle((20, 0, 40, 40), fill=1)
    palette.save(tmp_path / "palette.png", transparency=0)
    packed = pack_image(tmp_path.resolve(), "palette.png", SIZE)
    assert min(colour(packed, 0.2, 0.5)) > 240
    assert colour(packed, 0.8, 0.5)[2] > 200 > 60 > colour(packed, 0.8, 0.5)[0]
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue", "lime")]
    for name in ("moving.gif", "moving.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, green, blue = colour(pack_image(tmp_path.resolve(), name, SIZE), 0.5, 0.5)
        assert red > 200 > 60 > max(green, blue), name


@pytest.mark.parametrize("form", ["jpg", "tif", "png", "webp"])
def test_boxes_are_cut_from_the_upright_picture(tmp_path: Path, form: str) -> None:
    """The upright picture is red above blue; the file is rotated, and large enough to be decoded at half scale."""
    upright = Image.new("RGB", (480, 640), "blue")
    upright.paste("red", (0, 0, 480, 160))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[pictures.EXIF_ORIENTATION] = 6
    lying.save(tmp_path / f"turned.{form}", exif=exif)
    root, name = tmp_path.resolve(), f"turned.{form}"
    uncut = pack_image(root, name, SIZE)
    assert isinstance(uncut, Packed)
    assert (uncut.source_width, uncut.source_height) == (480, 640)
    assert (uncut.width, uncut.height) == (SIZE, round(SIZE * 4 / 3))
    assert colour(uncut, 0.5, 0.1)[0] > 200 > colour(uncut, 0.5, 0.9)[0]
    upper = pack_image(root, name, SIZE, (100.0, 0.0, 200.0, 150.0))
    assert colour(upper, 0.5, 0.9)[0] > 200
    lower = pack_image(root, name, SIZE, (100.0, 170.0, 420.0, 9e9))
    assert colour(lower, 0.5, 0.05)[2] > 200
    assert isinstance(lower, Packed)
    assert (lower.width, lower.height) == (SIZE, round(SIZE * 470 / 320))
    for box in ((500.0, 0, 600, 100), (10, 10, 10, 50), (50, 50, 20, 20), (0, 0, float("nan"), 9), (3, 3, 3.5, 9)):
        refused = pack_image(root, name, SIZE, box)
        assert isinstance(refused, Refused)
        assert refused.reason == "bad_box"


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000)
    Image.new("RGB", (40, 30)).save(tmp_path / "big.jpg")
    refused = pack_image(tmp_path.resolve(), "big.jpg", SIZE)
    assert refused == Refused("image_too_large", "big.jpg: 40x30")


def test_a_jpeg_that_already_fits_keeps_its_bytes(tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), "green").save(tmp_path / "fits.jpg", quality=70)
    packed = pack_image(tmp_path.resolve(), "fits.jpg", SIZE)
    assert isinstance(packed, Packed)
    assert packed.jpeg == (tmp_path / "fits.jpg").read_bytes()


def exif_of(position: bool = False, turned: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[pictures.EXIF_ORIENTATION] = turned
    exif[0x010F] = "a camera"
    if position:
        exif.get_ifd(0x8825)[1] = "N"
    return exif


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, b"\0" * 60_000_000),
        ({}, b"\0" * (3 * SIZE * SIZE + 4096)),
        ({"exif": exif_of()}, b""),
        ({"exif": exif_of(position=True)}, b""),
        ({"xmp": b"<x:xmpmeta>where it was taken</x:xmpmeta>"}, b""),
    ],
)
def test_a_jpeg_with_data_besides_the_picture_is_encoded_again(
    tmp_path: Path, options: dict[str, object], added: bytes
) -> None:
    with (tmp_path / "fits.jpg").open("wb") as file:
        Image.new("RGB", (SIZE, SIZE), "green").save(file, "JPEG", quality=70, **options)  # type: ignore[arg-type]
        file.write(added)
    packed = pack_image(tmp_path.resolve(), "fits.jpg", SIZE)
    assert isinstance(packed, Packed)
    assert len(packed.jpeg) < 2_000
    image = decoded(packed)
    assert not image.getexif()
    assert not {"exif", "xmp", "comment"} & image.info.keys()
    assert colour(packed, 0.5, 0.5)[1] == pytest.approx(128, abs=4)


def test_packed_pictures_carry_no_comment_or_camera(tmp_path: Path) -> None:
    noted = Image.new("RGB", (90, 80), "green")
    noted.save(tmp_path / "noted.jpg", comment="taken at home" * 1000, exif=exif_of(position=True))
    noted.save(tmp_path / "noted.webp", exif=exif_of(position=True))
    for name in ("noted.jpg", "noted.webp"):
        assert decoded(pack_image(tmp_path.resolve(), name, SIZE)).info.keys() <= {
            "jfif", "jfif_version", "jfif_unit", "jfif_density"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 300, "unreadable_image"),
        ("x" * 300 + "/y.jpg", "unreadable_image"),
        ("a/" * 2_500_000, "unreadable_image"),
        ("x" * 5_000_000, "unreadable_image"),
        ("../" + "x" * 5_000_000, "unreadable_image"),
        ("../" + "x" * 300, "path_outside_root"),
        ("../outside" + "/x" * 1_000, "path_outside_root"),
        ("missing" + "/x" * 1_000, "missing_image"),
        ("nul\0" + "x" * 1_000, "unreadable_image"),
    ],
)
def test_a_path_of_any_length_is_a_reject_with_a_short_detail(tmp_path: Path, path: str, reason: str) -> None:
    refused = pack_image(tmp_path.resolve(), path, SIZE)
    assert isinstance(refused, Refused)
    assert refused.reason == reason
    assert len(refused.detail) <= 300
    assert refused.detail.startswith(path[:200])
    assert str(tmp_path) not in refused.detail


def test_the_digest_with_bad_pictures_is_reproducible(tmp_path: Path) -> None:
    """Details contain neither memory addresses nor the path of the root."""
    digests = []
    for again in ("a", "b"):
        root = make_photographs(tmp_path / again / "raw", n=40)
        folder = root / "train1" / "Images" / "neck_design_labels"
        names = [name for name in make_odd_pictures(folder) if len(name) < 20 and name.endswith(("g", "p"))]
        names = [name for name in names if "\0" not in name and "outside" not in name and name != "link.jpg"]
        assert {"text.jpg", "cut.jpg", "empty.jpg", "dangling.jpg", "endless.jpg", "loop.jpg"} <= set(names)
        with (root / "train1" / "Annotations" / "label.csv").open("a") as file:
            for name in [*names, "missing.jpg", "x" * 300 + ".jpg"]:
                file.write(f"Images/neck_design_labels/{name},neck_design_labels,ynnnn\n")
        dataset = prepare_small(root, tmp_path / again / "out", max_rejects=1)
        assert sum(dataset.info.rejects.values()) == len(names) + 2
        details = pq.read_table(tmp_path / again / "out" / "rejects.parquet")["detail"].to_pylist()
        assert not [detail for detail in details if "0x" in detail or str(tmp_path) in detail]
        digests.append(dataset.info.digest)
    assert digests[0] == digests[1]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan several shards of few images."""
    monkeypatch.setattr(packing, "SHARD", 20)


def test_shards_are_even_shuffled_and_in_row_groups(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "root", 64)
    out = Storage(tmp_path / "out")
    made = pack(images, (tmp_path / "root").resolve(), out, SIZE, seed=1)
    shards = {name: pq.read_table(tmp_path / "out" / name)["image_id"].to_pylist() for name in made.sha256}
    assert [len(ids) for ids in shards.values()] == [13, 17, 17, 17]
    train = [i for name, ids in shards.items() if "train" in name for i in ids]
    assert sorted(train) == images[images["split"] == "train"]["image_id"].tolist()
    assert train != sorted(train)
    assert set(made.sizes["image_id"]) == set(range(64))
    monkeypatch.setattr(packing, "ROW_GROUP", 8)
    rows = packing._block(next(iter(packing._plan(images, seed=1))))
    packing._write_shard(rows, (tmp_path / "root").resolve(), out / "again.parquet", SIZE)
    assert pq.ParquetFile(tmp_path / "out" / "again.parquet").num_row_groups == 2
    assert pq.read_table(tmp_path / "out" / "again.parquet")["image_id"].to_pylist() == next(iter(shards.values()))


def test_packed_shards_are_kept_if_their_input_is_unchanged(tmp_path: Path, small_shards: None) -> None:
    root = (tmp_path / "root").resolve()
    images = make_images(tmp_path / "root", 64)
    out = Storage(tmp_path / "out")
    first = pack(images, root, out, SIZE, seed=1)
    files = {name: (tmp_path / "out" / name) for name in first.sha256}
    lost, torn, *kept = files
    files[lost].unlink()
    files[torn].write_bytes(files[torn].read_bytes()[:-1])
    (tmp_path / "out" / "packed" / f".half{packing.BEING_WRITTEN}").write_bytes(b"half a shard")
    (tmp_path / "out" / "images.parquet").write_bytes(b"of the stopped run")
    before = {name: files[name].stat().st_mtime_ns for name in kept}
    again = pack(images, root, out, SIZE, seed=1)
    assert again.sha256 == first.sha256
    pd.testing.assert_frame_equal(again.sizes, first.sizes)
    assert {name: files[name].stat().st_mtime_ns for name in kept} == before
    left = {name for name in out.files() if not name.endswith(".tries")}
    assert left == {*files, *(packing._record_of(name) for name in files), "_partial/fingerprint"}
    boxed = images.assign(x0=0.0, y0=0.0, x1=20.0, y1=20.0)
    for changed in (
        lambda: pack(images, root, out, SIZE, seed=2),
        lambda: pack(images, root, out, SIZE // 2, seed=2),
        lambda: pack(images.iloc[1:], root, out, SIZE // 2, seed=2),
        lambda: pack(boxed, root, out, SIZE // 2, seed=2),
    ):
        before = {name: file.stat().st_mtime_ns for name, file in files.items()}
        changed()
        assert all(file.stat().st_mtime_ns > before[name] for name, file in files.items() if file.exists())


def test_a_machine_without_the_images_packs_nothing_and_refuses_none(tmp_path: Path, small_shards: None) -> None:
    images = make_images(tmp_path / "root", 8)
    out = Storage(tmp_path / "out")
    (out / MARKER).write_bytes(b"plan")
    root = tmp_path / "elsewhere"
    shared = Shared(out, MARKER, "plan", {"images": root})
    (told,) = packing._pack_shard(packing._block(next(iter(packing._plan(images, 0)))), root, shared, SIZE).to_pylist()
    assert told["error"].startswith(f"{tmp_path / 'elsewhere'}: not there, or empty")
    assert list(out.files()) == [MARKER]


def test_a_shard_that_kills_its_workers_is_given_up(tmp_path: Path, small_shards: None) -> None:
    images = make_images(tmp_path / "root", 8)
    out = Storage(tmp_path / "out")
    shard = next(iter(packing._plan(images, seed=0)))
    for _ in range(packing.TRIES):
        assert packing.count_try(out / shard.record.replace(".json", ".tries"))
    (out / MARKER).write_bytes(b"plan")
    root = tmp_path / "root"
    shared = Shared(out, MARKER, "plan", {"images": root})
    told = packing._pack_shard(packing._block(shard), root, shared, SIZE).to_pylist()
    assert "4 workers died of it" in told[0]["error"]
    pack(images, (tmp_path / "root").resolve(), out, SIZE, seed=0)  # a new call counts anew
