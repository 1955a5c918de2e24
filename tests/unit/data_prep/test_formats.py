"""Random annotation files of every format, written and read back; and random junk, every line of it accounted for.

The same for ASEN's split files, list_attr_img.txt and the triplet lists is in the modules of their layouts.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.datasets import SIZE, records, sample_here, write_files

from data_prep import encoding, pictures
from data_prep.annotation import Annotation, Row, frame_of
from data_prep.dataset import Dataset
from data_prep.layouts import darn, deepfashion, fashionai, folders, zappos50k
from data_prep.prepare import LAYOUTS, prepare
from data_prep.request import Request, TableOptions
from data_prep.synthetic.writers import COLUMNS, write_deepfashion, write_fashionai
from data_prep.tables import Attribute

Folder = Callable[[], Path]
word = st.text("abcdefgh ÄéЖ_-", min_size=1, max_size=10).filter(lambda name: name.strip() == name)
line_end = st.sampled_from(["\n", "\r\n", "\r"])
one_line = st.binary(max_size=40).filter(lambda line: not set(line) & {10, 13})
# A first line of semicolons or tabs is refused as another kind of table.
junk = st.lists(one_line.filter(lambda line: b"," in line or max(map(line.count, b";\t")) < 2), max_size=20)


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return lambda: tmp_path_factory.mktemp("format")


def filled(lines: list[bytes]) -> set[int]:
    """Return the numbers of the lines that are not blank."""
    return {number for number, line in enumerate(lines, start=1) if line.decode(errors="replace").strip()}


def recorded(annotation: Annotation) -> set[int]:
    """Return the numbers of the lines that became a row or a reject."""
    return {row.line for row in records(annotation.rows)} | {reject.line for reject in annotation.rejects}


@given(
    labels=st.dictionaries(word, st.tuples(st.integers(0, 7), st.integers(0, 4)), max_size=25),
    maybe=st.booleans(),
    end=line_end,
)
def test_label_csv(new_folder: Folder, labels: dict[str, tuple[int, int]], maybe: bool, end: str) -> None:
    root = new_folder()
    rows = frame_of(
        Row(f"train1/Images/x/{name}.jpg", attribute, value, "", "", "", 0)
        for name, (attribute, value) in labels.items()
    )
    write_fashionai(root, rows)
    for file in root.rglob("Annotations/label.csv"):
        text = file.read_text().replace("\n", end)
        file.write_bytes((text.replace("ny", "my") if maybe else text).encode())
    read = fashionai.read_raw(root)
    assert read.rejects == []
    assert [row[:3] for row in records(read.rows)] == [row[:3] for row in records(rows)]


@given(lines=junk)
def test_junk_in_label_csv(new_folder: Folder, lines: list[bytes]) -> None:
    root = new_folder()
    (root / "Annotations").mkdir()
    (root / "Annotations/label.csv").write_bytes(b"\n".join(lines))
    assert recorded(fashionai.read_raw(root)) == filled(lines)


@given(
    cells=st.lists(
        st.tuples(*[st.lists(st.text('ab1/" ,-', min_size=1, max_size=5).map(str.strip), max_size=2)] * 4), max_size=15
    ),
    dashed=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_meta_data_csv(
    new_folder: Folder, cells: list[tuple[list[str], list[str], list[str], list[str]]], dashed: bool, end: str
) -> None:
    """Quotes, commas, several values in a cell, empty cells, either spelling of the CID."""
    root = new_folder()
    expected = set()
    with (root / "meta-data.csv").open("w", newline="") as out:
        writer = csv.writer(out, lineterminator=end)
        writer.writerow(COLUMNS)
        for number, values in enumerate(cells):
            path = f"Shoes/X/B/{number}.{number}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
            category, closure, gender, heel = (";".join(of_cell) for of_cell in values)
            cid = f"{number}{'-' if dashed else '.'}{number}"
            writer.writerow([cid, category, "X", heel, "", closure, gender, "", ""])
            expected |= {(path, a, value) for a, of_cell in enumerate(values) for value in of_cell if value}
    read = zappos50k.read_table(root / "meta-data.csv", root)
    named = {(row.path, row.attribute, read.attributes[row.attribute].values[row.value]) for row in records(read.rows)}
    assert named == expected
    assert {reject.reason for reject in read.rejects} <= {"no_value"}


@given(lines=junk)
def test_junk_in_meta_data_csv(new_folder: Folder, lines: list[bytes]) -> None:
    root = new_folder()
    (root / "meta-data.csv").write_bytes(b"\n".join([",".join(COLUMNS).encode(), *lines]))
    assert recorded(zappos50k.read_table(root / "meta-data.csv", root)) == {number + 1 for number in filled(lines)}


marks = st.lists(st.sets(st.integers(0, 25), max_size=4), max_size=8)


@given(parts=st.tuples(marks, marks, marks).filter(any), end=line_end, last=st.booleans())
def test_anno_fine(
    new_folder: Folder, parts: tuple[list[set[int]], list[set[int]], list[set[int]]], end: str, last: bool
) -> None:
    root = new_folder()
    (root / "Anno_fine").mkdir()
    columns = [(a, v) for a, values in enumerate(deepfashion.FINE.values()) for v in range(len(values))]
    expected, empty = set(), 0
    for part, images in zip(("train", "val", "test"), parts, strict=True):
        paths = [f"img/{part} {i}.jpg" for i in range(len(images))]
        bits = [" ".join("1" if i in ones else "0" for i in range(26)) for ones in images]
        for name, lines in ((f"{part}.txt", paths), (f"{part}_attr.txt", bits)):
            (root / "Anno_fine" / name).write_bytes((end.join(lines) + end * last).encode())
        split = deepfashion.SPLIT_OF[part]
        expected |= {(path, *columns[i], split) for path, ones in zip(paths, images, strict=True) for i in ones}
        empty += sum(not ones for ones in images)
    read = deepfashion.read(Request(root))
    assert {row[:4] for row in records(read.rows)} == expected
    assert [reject.reason for reject in read.rejects] == ["no_value"] * empty


@given(
    images=st.dictionaries(word, st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True), max_size=12),
    kinds=st.permutations([0, 0, 1, 2, 2, 3, 4]),
)
def test_raw_coarse_files(new_folder: Folder, images: dict[str, list[int]], kinds: list[int]) -> None:
    """list_attr_cloth, list_attr_img and list_eval_partition are read as they were written."""
    root = new_folder()
    meaning = deepfashion.ranked(kinds)
    sizes = [kinds.count(kind) for kind in range(5)]
    schema = [
        Attribute(name=name, values=tuple(f"{name} value {i}" for i in range(size)))
        for name, size in zip(deepfashion.TYPE_NAMES, sizes, strict=True)
    ]
    rows = frame_of(
        Row(f"img/{name.replace(' ', '_')}.jpg", *meaning[column], ("train", "valid", "test")[len(name) % 3], "", "", 0)
        for name, columns in images.items()
        for column in columns
    )
    write_deepfashion(root, rows, schema, meaning)
    read = deepfashion.read(Request(root))
    assert list(read.attributes) == schema
    assert read.rejects == []
    assert {row[:4] for row in records(read.rows)} == {row[:4] for row in records(rows)}


ENDS = ("jpg", "JPEG", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "heic")
NAMES = [f"{number}.{end}" for number in range(4) for end in ENDS]


def write_layout(layout: str, root: Path) -> None:
    """Write annotation of two values and pictures in every format."""
    folder = {
        "fashionai": "train1/Images/neck_design_labels",
        "deepfashion": "img/Dress",
        "zappos50k": "ut-zap50k-images/Shoes/Oxfords/Co",
        "darn": "pic",
        "table": "pictures",
    }[layout]
    (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (SIZE, SIZE), (5 * number, 255 - 5 * number, 0)).save(root / folder / name)
    values = [number % 2 for number in range(len(NAMES))]
    pairs = list(zip(NAMES, values, strict=True))
    if layout == "fashionai":
        lines = [f"Images/neck_design_labels/{name},neck_design_labels,{('ynnnn', 'nnnny')[v]}" for name, v in pairs]
        file = root / "train1/Annotations/label.csv"
    elif layout == "deepfashion":
        write_files(root / "Anno", list_attr_cloth="2\nname type\nfloral 1\nplain 1\n")
        lines = ["40", "names", *(f"{folder}/{name} {1 - v} {v}" for name, v in pairs)]
        file = root / "Anno/list_attr_img.txt"
    elif layout == "zappos50k":
        # A CID names one picture, whatever its format.
        for number, name in enumerate(NAMES):
            (root / folder / name).rename(root / folder / f"{number}.1.{name.rpartition('.')[2]}")
        cells = [f"{number}-1,{('Shoes', 'Boots')[v]},,," for number, v in enumerate(values)]
        lines, file = ["CID,Category,HeelHeight,Closure,Gender", *cells], root / "meta-data.csv"
    elif layout == "darn":
        write_files(root, filenames_train="".join(f"{folder}/{name}\n" for name in NAMES))
        lines, file = [f"{number} 0 {v}" for number, v in enumerate(values)], root / "label_train.txt"
    else:
        lines, file = ["file,kind", *(f"{folder}/{name},{'ab'[v]}" for name, v in pairs)], root / "table.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("heic", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_every_format_in_every_layout(
    tmp_path: Path, layout: str, heic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pillow-heif, one line says what HEIC needs."""
    pytest.importorskip("pillow_heif")
    write_layout(layout, tmp_path / "root")
    if not heic:
        for module in (pictures, encoding):
            monkeypatch.setattr(module, "FORMATS", tuple(name for name in pictures.FORMATS if name != "HEIF"))
        ends = tuple(end for end in pictures.SUFFIXES if end not in pictures.HEIC)
        for module in (pictures, folders):
            monkeypatch.setattr(module, "SUFFIXES", ends)
    table = TableOptions(table=tmp_path / "root/table.csv", image="file", attributes=("kind",))
    options = {"table": table} if layout == "table" else {}
    prepare(layout, tmp_path / "root", tmp_path / "out", image_size=SIZE, triplets=5, epochs=1, **options)  # type: ignore[arg-type]
    dataset = Dataset(tmp_path / "out")
    found = dataset.images["path"].str.rpartition(".")[2].value_counts().to_dict()
    assert found == {end: 4 for end in ENDS if heic or end != "heic"}
    if heic:
        assert dataset.info.rejects == {}
    else:
        rejects = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
        assert {reject["detail"].partition(": ")[2] for reject in rejects} == {pictures.HEIC_MISSING}
        assert dataset.info.rejects == {"unreadable_image": 4}


def test_darn_from_its_drawn_files(tmp_path: Path) -> None:
    """Attribute names with blanks, no last line end, several attributes in a training line."""
    root = tmp_path / "darn"
    sample_here("darn", root, images=100, size=SIZE, seed=3)
    for file in root.glob("*.txt"):
        file.write_text(file.read_text().removesuffix("\n"))
    elsewhere = tmp_path / "splits" / "DARN"
    elsewhere.mkdir(parents=True)
    for file in root.glob("*.txt"):
        shutil.move(file, elsewhere / file.name)
    prepare("darn", root, tmp_path / "out", split_files=tmp_path / "splits", triplets=40, epochs=1, image_size=SIZE)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.rejects == {}
    assert {a.name: len(a.values) for a in dataset.info.attributes} == darn.SIZES
    lines = (elsewhere / "label_train.txt").read_text().split("\n")
    assert (dataset.labels["split"] == "train").sum() == sum(len(line.split()) // 2 for line in lines)
    assert dataset.info.queries["test"] + dataset.info.candidates["test"] == (dataset.labels["split"] == "test").sum()


@given(
    images=st.dictionaries(
        word, st.tuples(st.integers(1, 4), st.tuples(*[st.integers(-50, 2_000)] * 4)), min_size=1, max_size=12
    ),
    blank=st.sampled_from([" ", "   ", "\t", " \t "]),
    end=line_end,
    last=st.booleans(),
)
def test_categories_and_boxes(
    new_folder: Folder, images: dict[str, tuple[int, tuple[int, int, int, int]]], blank: str, end: str, last: bool
) -> None:
    """list_category_cloth, list_category_img and list_bbox, with any blanks and line ends."""
    root = new_folder()
    of_path = {f"img/{name.replace(' ', '_')}.jpg": said for name, said in images.items()}
    rows = frame_of(Row(path, 0, 0, "train", "", "", 0) for path in of_path)
    meaning = deepfashion.ranked([0])
    write_deepfashion(root, rows, [Attribute(name=deepfashion.TYPE_NAMES[0], values=("dotted",))], meaning)

    def write_list(name: str, lines: list[str]) -> None:
        text = end.join([str(len(lines)), "a column", *lines]) + end * last
        (root / "Anno_coarse" / name).write_bytes(text.encode())

    write_list("list_category_cloth.txt", [f"Kind{number}{blank}1" for number in range(4)])
    write_list("list_category_img.txt", [f"{path}{blank}{category}" for path, (category, _) in of_path.items()])
    write_list("list_bbox.txt", [blank.join([path, *map(str, box)]) for path, (_, box) in of_path.items()])
    read = deepfashion.read(Request(root, categories=True, crop_boxes=True))
    assert read.rejects == []
    category = len(read.attributes) - 1
    named = {row.path: read.attributes[category].values[row.value] for row in records(read.rows) if row.attribute}
    assert named == {path: f"Kind{said[0] - 1}" for path, said in of_path.items()}
    boxes = read.images().set_index("path")[["x0", "y0", "x1", "y1"]]
    assert {path: tuple(map(int, box)) for path, *box in boxes.itertuples()} == {
        path: said[1] for path, said in of_path.items()
    }
