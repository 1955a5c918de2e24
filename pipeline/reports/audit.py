"""The page and the table of `agman audit`: labels that look wrong, for a person to keep, change or drop."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep import atomic
from data_prep.dataset import Dataset
from pipeline.evaluation.audit import ALONE, CONTRADICTED, KINDS, NEAR_DUPLICATE, Audit, AuditedAttribute
from pipeline.reports.html import render
from pipeline.reports.model.pictures import Pictures

TABLE, PAGE = "findings.parquet", "audit.html"
SHOWN = {NEAR_DUPLICATE: 50, CONTRADICTED: 200, ALONE: 30}
"""Most findings of each kind on the page: a picture takes some 10 kB."""
TITLES = {
    NEAR_DUPLICATE: "A near-duplicate has another label",
    CONTRADICTED: "The model contradicts the label",
    ALONE: "Like no other picture",
}
SIDE, SMALL = 320, 144
"""Side in pixels of a finding's picture, and of the examples."""
PAIRS = 30
"""Most pairs of values on the page."""


@dataclass(frozen=True)
class Shown:
    """One picture with its path."""

    picture: str
    """data: URI."""
    path: str


@dataclass(frozen=True)
class Finding:
    """One finding on the page."""

    title: str
    picture: Shown
    split: str
    attribute: str
    label: str
    suggestion: str | None
    score: float
    data: str
    """JSON object of image, attribute, label and suggestion, for the script."""
    other: Shown | None
    examples: list[Shown]


@dataclass(frozen=True)
class _AuditPage:
    """Content of the template."""

    audit: Audit
    model: str
    labels: int
    wrong: int
    """Estimated number of wrong labels."""
    findings: list[Finding]
    left_out: int
    attributes: list[AuditedAttribute]
    values: str
    """JSON object: attribute -> names of its values."""
    script: str
    hash: str
    """Hash of the script; the page runs no other."""
    pairs: int = PAIRS


@dataclass(frozen=True)
class Written:
    """Files of an audit."""

    page: Path
    table: Path
    shown: int
    """Findings on the page; the table has all."""


def check_audit_folder(out: Path, dataset: Dataset, overwrite: bool) -> None:
    """Raise InputError if the findings must not be written to `out`, as `write_audit` does."""
    atomic.check_output(out.resolve(), TABLE, overwrite, (dataset.storage.local,), (TABLE, PAGE))


def write_audit(audit: Audit, model: str, out: Path, *, overwrite: bool = False) -> Written:
    """Write the table and the page of an audit into the folder `out`, complete or not at all. Raises InputError."""
    check_audit_folder(out, audit.dataset, overwrite)
    rows = audit.findings.to_pylist()
    shown = [row for kind in KINDS for row in [one for one in rows if one["kind"] == kind][: SHOWN[kind]]]
    inputs = (audit.dataset.storage.local,)
    with atomic.output_folder(out, marker=TABLE, overwrite=overwrite, inputs=inputs) as staging:
        pq.write_table(audit.findings, staging / TABLE)
        (staging / PAGE).write_text(render("audit.html.j2", _page(audit, model, shown)), encoding="utf-8")
    return Written(out / PAGE, out / TABLE, len(shown))


def _page(audit: Audit, model: str, shown: list[dict[str, Any]]) -> _AuditPage:
    script = (files("pipeline.reports") / "templates" / "audit.js").read_text(encoding="utf-8")
    return _AuditPage(
        audit=audit,
        model=model,
        labels=sum(one.labels for one in audit.attributes),
        wrong=round(sum(one.wrong for one in audit.attributes)),
        findings=_findings(audit.dataset, shown),
        left_out=len(audit.findings) - len(shown),
        attributes=list(audit.attributes),
        values=json.dumps({one.name: one.values for one in audit.dataset.info.attributes}),
        script=script,
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _findings(dataset: Dataset, shown: list[dict[str, Any]]) -> list[Finding]:
    pictures = _Thumbnails(dataset, [path for row in shown for path in (row["image"], row["other"], *row["examples"])])
    return [
        Finding(
            title=TITLES[row["kind"]],
            picture=pictures.of(row["image"], SIDE),
            split=row["split"],
            attribute=row["attribute"],
            label=row["label"],
            suggestion=row["suggestion"],
            score=row["score"],
            data=json.dumps({name: row[name] for name in ("image", "attribute", "label", "suggestion")}),
            other=pictures.of(row["other"], SMALL) if row["other"] else None,
            examples=[pictures.of(path, SMALL) for path in row["examples"]],
        )
        for row in shown
    ]


class _Thumbnails:
    """Small copies of some pictures, whole and on white where they are not square."""

    def __init__(self, dataset: Dataset, paths: Iterable[str | None]):
        images = dataset.images[dataset.images["path"].isin(set(paths))]
        columns = (images[name].tolist() for name in ("path", "image_id", "split"))
        self._image_of: dict[str, tuple[int, str]] = {
            path: (image_id, split) for path, image_id, split in zip(*columns, strict=True)
        }
        self._pictures = {
            str(split): Pictures(dataset, str(split), rows["image_id"].to_numpy(), fit="pad")
            for split, rows in images.groupby("split")
        }

    def of(self, path: str, side: int) -> Shown:
        """Return a picture at most `side` pixels wide."""
        image_id, split = self._image_of[path]
        return Shown(self._pictures[split].uri(image_id, side), path)
