"""Rendering of the HTML templates."""

from __future__ import annotations

from typing import Any

import jinja2

from data_prep.words import counted
from pipeline.common.console import printable
from pipeline.evaluation.few import marked, meaning_for, query_count


def render(template: str, page: Any) -> str:
    """Render a template of pipeline/reports/templates; the template sees the content as `page`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["x100"] = lambda share, digits=2: f"{100 * share:.{digits}f}"
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["printable"] = printable
    environment.filters["counted"] = counted
    environment.filters["query_count"] = query_count
    environment.filters["marked"] = marked
    environment.filters["meaning_for"] = meaning_for
    return environment.get_template(template).render(page=page)
