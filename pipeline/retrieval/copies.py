"""Copies in a gallery: groups of pictures that agree in their design attributes, and the same photographs apart.

Two pictures agree if their cosine is at least the given similarity under every design attribute
(`pipeline.retrieval.alike`). Whether two pictures are one photograph is told by their perceptual hashes
(`data_prep.near_duplicates`).

Shape suffixes: K pairs, A design attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.near_duplicates import look_at_files, near_pairs
from data_prep.progress import Progress, silent
from pipeline.retrieval.alike import AlikePairs, alike_pairs, grouped, next_limit
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.values import CHUNK, tagger_of

MOST = 100_000
"""Maximum number of pairs."""
COUNTS = (10, 100, 1_000, 10_000, MOST)
"""Numbers of pairs for which `limits` finds the similarity."""


@dataclass(frozen=True)
class Group:
    """A picture, and pictures that agree with it."""

    number: int
    """Its number in the table, from 1."""
    rows: list[int]
    """Rows of the gallery; the first one agrees with each other one, which are ordered by falling similarity."""
    cosines: np.ndarray
    """Cosines of every other picture with the first one, float64 (pictures - 1)×A."""
    same_photograph: bool


@dataclass(frozen=True)
class Copies:
    """Pairs that agree, and their groups."""

    gallery: Gallery
    attributes: tuple[str, ...]
    """Design attributes."""
    differs: tuple[str, ...]
    """Attributes, or columns of the catalogue, in which the two pictures of a pair have different values."""
    min_similarity: float
    pairs: AlikePairs
    same: np.ndarray
    """bool K: whether the two pictures are one photograph."""
    group: np.ndarray
    """int64 K: number of the pair's group, from 1."""
    groups: list[Group]
    """Groups of different photographs first, both ordered by their most similar pair."""
    unreadable: frozenset[int]
    """Rows of the pairs whose pictures cannot be read now: nothing tells whether they are the same photograph."""

    def table(self) -> pa.Table:
        """Return a row for every pair, ordered by group, with the pairs of the group's first picture at first."""
        first, second = self.pairs.rows.T
        centres = np.array([group.rows[0] for group in self.groups], np.int64)[self.group - 1]
        swapped = second == centres
        image, other = np.where(swapped, first, second), np.where(swapped, second, first)
        order = np.lexsort((image, other, -self.pairs.similarity, other != centres, self.group))
        unknown = np.logical_or(*np.isin(self.pairs.rows, [*self.unreadable]).T)
        rows = np.unique(self.pairs.rows)
        names = pa.array([one.path for one in self.gallery.describe(rows.tolist())], pa.string())
        image, other = np.searchsorted(rows, image[order]), np.searchsorted(rows, other[order])
        columns = {
            "group": pa.array(self.group[order]),
            "image": names.take(pa.array(image)),
            "image_of_comparison": names.take(pa.array(other)),
            "similarity": pa.array(self.pairs.similarity[order]),
        }
        cosines = {f"cosine/{name}": pa.array(self.pairs.cosines[order, i]) for i, name in enumerate(self.attributes)}
        return pa.table(columns | cosines | {"same_photograph": pa.array(self.same[order], mask=unknown[order])})

    def values(self, name: str, rows: Sequence[int]) -> list[str]:
        """Return what the rows have in a column, or what the model names for them under an attribute; [] if unknown."""
        if name not in self.gallery.info.attributes:
            return ["" if cell is None else str(cell) for cell in self._column(name).take(pa.array(rows)).to_pylist()]
        tagger = self.gallery.tagger
        if not tagger or name not in tagger.namers:
            return []
        return [tagger.namers[name].values[number] for number in named_values(self.gallery, name, rows)]

    def _column(self, name: str) -> pa.ChunkedArray:
        assert self.gallery.columns is not None
        return self.gallery.columns[name]


@dataclass(frozen=True)
class Limit:
    """A similarity, and what it gives."""

    min_similarity: float
    pairs: int
    pictures: int
    groups: int
    largest: int
    """Number of pictures of the largest group."""


def find_copies(
    gallery: Gallery,
    min_similarity: float,
    attributes: Sequence[str] = (),
    differs: Sequence[str] = (),
    progress: Progress = silent,
) -> Copies:
    """Find all pairs whose cosine is at least `min_similarity` under every design attribute, and group them.

    Raises InputError for what `limits` raises it for, a similarity out of range, or more than MOST pairs.

    Args:
        gallery: gallery.
        min_similarity: above 0, at most 1.
        attributes: design attributes; by default all but `differs`.
        differs: attributes, or columns of the catalogue, in which the two pictures of a pair must have different
            values; those of an attribute are what the model names, and empty cells are one value.
        progress: callback for progress bars.
    """
    if not 0 < min_similarity <= 1:  # NaN neither
        raise InputError(f"--min-similarity {min_similarity:g}: must be above 0 and at most 1")
    design = _design(gallery, attributes, differs)
    pairs = _pairs(gallery, design, differs, min_similarity, progress)
    if pairs.least > min_similarity:
        fewer = f"from {pairs.least:.4f} on, they are {len(pairs.rows):,}"
        raise InputError(
            f"--min-similarity {min_similarity:g}: gives more than {MOST:,} pairs; "
            f"{f'raise it: {fewer}' if len(pairs.rows) else 'the model finds as many pictures equal'}"
        )
    rows, place = np.unique(pairs.rows, return_inverse=True)
    look = look_at_files(lambda number: gallery.picture(int(rows[number])), len(rows), progress)
    near = {(one, other) for one, other, _ in near_pairs(look).tolist()}
    same = np.array([(one, other) in near for one, other in place.reshape(-1, 2).tolist()], bool)
    group = np.zeros(len(same), np.int64)
    groups: list[Group] = []
    for kind in (False, True):
        group[same == kind], found = _groups(pairs, np.flatnonzero(same == kind), kind, 1 + len(groups))
        groups += found
    unreadable = frozenset(rows[look.short_side == 0].tolist())
    return Copies(gallery, design, tuple(differs), min_similarity, pairs, same, group, groups, unreadable)


def limits(
    gallery: Gallery, attributes: Sequence[str] = (), differs: Sequence[str] = (), progress: Progress = silent
) -> list[Limit]:
    """Return the lowest similarities, of four digits, that give no more than COUNTS pairs, highest first.

    Raises InputError for an unknown attribute or one given twice, for an attribute of `differs` without prototypes, a
    gallery of one picture, or if the model finds too many pictures equal.
    """
    design = _design(gallery, attributes, differs)
    pairs = _pairs(gallery, design, differs, 0.0, progress)
    if pairs.least > 0 and not len(pairs.rows):
        raise InputError(f"{gallery.folder}: the model finds more than {MOST:,} pairs of pictures equal")
    similarity = pairs.similarity
    counts = {min(count, len(similarity)) for count in COUNTS} - {0}
    found = []
    for limit in sorted({next_limit(similarity[count - 1]) for count in counts}, reverse=True):
        if count := int((similarity >= limit).sum()):
            rows = pairs.rows[:count]
            group, centres = grouped(rows)
            members = np.unique(np.stack([np.repeat(group, 2), rows.ravel()], axis=1), axis=0)
            largest = int(np.bincount(members[:, 0]).max())
            found.append(Limit(limit, count, len(np.unique(rows)), len(centres), largest))
    return found


def named_values(gallery: Gallery, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the number of the most probable value of each of the rows, int64.

    Raises InputError for an attribute without prototypes.
    """
    (number,) = gallery.numbers([name])
    namer = tagger_of(gallery).namers.get(name)
    if namer is None:
        raise InputError(f"--differs {name}: no labelled training picture under {name}, so no value is known")
    rows, matrix = np.asarray(rows), gallery.matrix(number)
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    return np.concatenate([namer.probabilities(torch.from_numpy(matrix[some])).argmax(dim=1).numpy() for some in parts])


def _design(gallery: Gallery, attributes: Sequence[str], differs: Sequence[str]) -> tuple[str, ...]:
    """Return the design attributes. Raises InputError for wrong names."""
    if len(gallery) < 2:
        raise InputError(f"{gallery.folder}: holds one picture; copies are found among two or more")
    known = [*gallery.info.attributes, *(gallery.columns.column_names if gallery.columns is not None else ())]
    if unknown := [name for name in differs if name not in known]:
        raise InputError(f"--differs {unknown[0]}: neither an attribute nor a column; {nearest(unknown[0], known)}")
    design = tuple(attributes) or tuple(name for name in gallery.info.attributes if name not in differs)
    gallery.numbers(design)
    if both := [name for name in design if name in differs]:
        raise InputError(f"--differs {both[0]}: is given with --attribute too; pictures cannot agree and differ in it")
    return design


def _pairs(
    gallery: Gallery, design: Sequence[str], differs: Sequence[str], least: float, progress: Progress
) -> AlikePairs:
    matrices = [gallery.matrix(number) for number in gallery.numbers(design)]
    return alike_pairs(matrices, least, MOST, [_differing(gallery, name) for name in differs], progress)


def _differing(gallery: Gallery, name: str) -> np.ndarray:
    """Return a number for each row, equal for equal values of an attribute or column."""
    if name in gallery.info.attributes:
        return named_values(gallery, name, np.arange(len(gallery)))
    assert gallery.columns is not None
    cells = gallery.columns[name].combine_chunks().dictionary_encode(null_encoding="encode")
    return cells.indices.to_numpy()


def _groups(pairs: AlikePairs, of: np.ndarray, same: bool, first: int) -> tuple[np.ndarray, list[Group]]:
    """Return the groups' number for the pairs `of`, counted from `first`, and the groups."""
    rows = pairs.rows[of]
    group, centres = grouped(rows)
    centre = np.array(centres, np.int64)[group]
    with_first: list[list[int]] = [[] for _ in centres]  # most similar first, as all pairs are
    for pair in np.flatnonzero((rows == centre[:, None]).any(axis=1)).tolist():
        with_first[group[pair]].append(pair)
    groups = [
        Group(
            first + number,
            [centres[number], *(rows[own].sum(axis=1) - centres[number]).tolist()],
            pairs.cosines[of[own]],
            same,
        )
        for number, own in enumerate(with_first)
    ]
    return group + first, groups
