"""Rows of an evaluation's pairs by attribute."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.dataset import Dataset
from data_prep.tables import Attribute
from pipeline.evaluation.evaluate import Evaluation


def of_attributes(evaluation: Evaluation, dataset: Dataset) -> Iterator[tuple[Attribute, np.ndarray, np.ndarray]]:
    """Yield each attribute that has queries, with the rows of its queries and the rows of its candidates."""
    numbers, is_query = evaluation.pairs["attribute"].to_numpy(), (evaluation.pairs["role"] == "query").to_numpy()
    for number, attribute in enumerate(dataset.info.attributes):
        if attribute.name in evaluation.results:
            of_attribute = numbers == number
            yield attribute, np.flatnonzero(of_attribute & is_query), np.flatnonzero(of_attribute & ~is_query)
