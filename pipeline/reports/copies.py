"""The page of `agman copies`: the groups' pictures side by side, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep import atomic
from data_prep.pictures import open_picture, upright_rgb
from pipeline.common.errors import without_credentials
from pipeline.reports.charts import jpeg
from pipeline.reports.html import render
from pipeline.retrieval.copies import Copies, Group
from pipeline.retrieval.gallery import Gallery

TABLE, PAGE = "copies.parquet", "copies.html"
GROUPS = 100
"""Groups of either kind on the page."""
PICTURES = 12
"""Pictures of a group on the page."""
SIDE = 200
"""Longer side of a picture in pixels."""


@dataclass(frozen=True)
class Tile:
    """A picture of a group."""

    picture: str | None
    """data: URI; None if it cannot be read now."""
    name: str
    similarity: float | None
    """Least cosine with the group's first picture; None for that one."""


@dataclass(frozen=True)
class Trait:
    """Values that the model names under an attribute for the pictures of a group."""

    attribute: str
    values: str
    """Different values with a stroke between them; empty without prototypes."""
    least: float | None
    """Least cosine of any picture with the first one; None for an attribute that is not a design attribute."""


@dataclass(frozen=True)
class Card:
    """A group as it is shown."""

    number: int
    tiles: list[Tile]
    more: int
    """Number of pictures that are not shown."""
    agree: list[Trait]
    differ: list[Trait]


@dataclass(frozen=True)
class CopiesPage:
    """Content of the template."""

    name: str
    tiles: dict[str, int]
    sections: list[tuple[str, str, int, list[Card]]]
    """Anchor, title, number of groups and the groups that are shown."""
    unreadable: int
    facts: dict[str, str]


def check_copies_out(out: Path, gallery: Gallery, overwrite: bool) -> None:
    """Raise InputError if `write_copies` must not write there."""
    atomic.check_output(out.resolve(), TABLE, overwrite, (gallery.folder,), (TABLE, PAGE))


def write_copies(copies: Copies, out: Path, overwrite: bool = False) -> Path:
    """Write the table and the page into the folder `out`, both or none, and return the page's path.

    Raises InputError if the folder exists, unless `overwrite` and this function has made it, or cannot be written.
    """
    check_copies_out(out, copies.gallery, overwrite)
    with atomic.output_folder(out, marker=TABLE, overwrite=overwrite, inputs=(copies.gallery.folder,)) as staging:
        pq.write_table(copies.table(), staging / TABLE)
        (staging / PAGE).write_text(render("copies.html.j2", _page(copies)), encoding="utf-8")
    return out / PAGE


def _page(copies: Copies) -> CopiesPage:
    of_kind = {kind: [one for one in copies.groups if one.same_photograph is kind] for kind in (False, True)}
    info = copies.gallery.info
    return CopiesPage(
        name=copies.gallery.folder.resolve().name,
        tiles={
            "pictures": len(copies.gallery),
            "pairs that agree": int((~copies.same).sum()),
            "their groups": len(of_kind[False]),
            "pairs of one photograph": int(copies.same.sum()),
        },
        sections=[
            (anchor, title, len(groups), [_card(copies, one) for one in groups[:GROUPS]])
            for anchor, title, groups in (
                ("copies", "Pictures that agree", of_kind[False]),
                ("same", "The same photograph", of_kind[True]),
            )
        ],
        unreadable=len(copies.unreadable),
        facts={
            "least similarity": f"{copies.min_similarity:g}",
            "attributes that agree": ", ".join(copies.attributes),
            **({"attributes that differ": ", ".join(copies.differs)} if copies.differs else {}),
            "model": info.model,
            "weights": info.model_digest[:12],
            "pictures": without_credentials(info.root),
        },
    )


def _card(copies: Copies, group: Group) -> Card:
    shown = group.rows[:PICTURES]
    names = [one.path for one in copies.gallery.describe(shown)]
    similarity = [None, *group.cosines.min(axis=1).tolist()]
    known = dict.fromkeys((*copies.differs, *copies.gallery.info.attributes))
    others = {name: _values(copies, name, group.rows) for name in known if name not in copies.attributes}
    return Card(
        group.number,
        [Tile(_thumbnail(copies.gallery, row), *one) for row, *one in zip(shown, names, similarity, strict=False)],
        len(group.rows) - len(shown),
        [
            Trait(name, _values(copies, name, group.rows), float(group.cosines[:, i].min()))
            for i, name in enumerate(copies.attributes)
        ],
        [Trait(name, values, None) for name, values in others.items() if values],
    )


def _values(copies: Copies, name: str, rows: list[int]) -> str:
    return " / ".join(dict.fromkeys(copies.values(name, rows)))


def _thumbnail(gallery: Gallery, row: int) -> str | None:
    data = gallery.picture(row)
    try:
        with open_picture(data or b"") as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            return jpeg(np.asarray(upright_rgb(image)), SIDE)
    except Exception:  # a damaged picture can raise nearly anything
        return None
