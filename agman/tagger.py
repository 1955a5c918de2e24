"""The prototypes that name values, as one file beside a model's weights: `tagger.safetensors`. Nothing is pickled.

Shape suffixes: Q pictures, V values of one attribute, D embedding width, T thresholds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from agman.checkpoint import CheckpointError
from agman.tagging import Threshold, probabilities, prototype_scores

TAGGER = "tagger.safetensors"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Namer:
    """Prototypes and calibration of one attribute's values (`agman.tagging` has the equations)."""

    values: tuple[str, ...]
    counts: tuple[int, ...]
    """Number of labelled pictures behind every value's prototype; 0 for a value that is never named."""
    prototypes_vd: Tensor
    temperature: float | None = None
    """Temperature that was fitted on validation; None without labels there: the probabilities mean nothing then."""
    pictures: int = 0
    """Number of validation pictures that the temperature and the thresholds are from."""
    thresholds: tuple[Threshold, ...] = ()
    """Lowest confidence for each precision that validation reached, ordered by precision."""

    @property
    def known(self) -> list[str]:
        """Values that some labelled picture had, which alone are named."""
        return [value for value, count in zip(self.values, self.counts, strict=True) if count]

    def probabilities(self, embeddings_qd: Tensor) -> Tensor:
        """Return the probabilities of the values, Q×V float64."""
        return probabilities(prototype_scores(embeddings_qd, self.prototypes_vd), self.temperature or 1.0)

    def best(self, embeddings_qd: Tensor) -> list[tuple[str, float | None]]:
        """Return the most probable value of every picture and its probability, None if nothing calibrated it."""
        found, best = self.probabilities(embeddings_qd).max(1)
        known = found.tolist() if self.temperature is not None else [None] * len(found)
        return [(self.values[value], one) for value, one in zip(best.tolist(), known, strict=True)]

    def threshold(self, precision: float) -> Threshold | None:
        """Return the threshold with the largest coverage that gave at least this precision on validation.

        None if there is none, or if it gave fewer than 1/(1 - precision) answers, too few to show such a precision.
        """
        found = next((one for one in self.thresholds if one.precision >= precision), None)
        return found if found and precision <= self._shown(found) else None

    @property
    def highest_precision(self) -> float:
        """The highest precision that has a threshold; 0 without any."""
        return max((min(one.precision, self._shown(one)) for one in self.thresholds), default=0.0)

    def _shown(self, threshold: Threshold) -> float:
        """Return the highest precision that the answers from a threshold on can show."""
        return 1 - 1 / round(threshold.coverage * self.pictures)


@dataclass(frozen=True, slots=True)
class Tagger:
    """The prototypes of a model."""

    namers: dict[str, Namer]
    """Attribute -> its prototypes, for the attributes that had labelled pictures."""
    weights_digest: str
    """`agman.state.weights_digest` of the model whose embeddings the prototypes are."""
    dataset: str
    dataset_digest: str

    def to_bytes(self) -> bytes:
        """Return the content of the file TAGGER."""
        tensors, facts = {}, []
        for number, (name, namer) in enumerate(self.namers.items()):
            tensors[f"{number}.prototypes"] = namer.prototypes_vd.contiguous()
            steps = [[one.confidence, one.precision, one.coverage] for one in namer.thresholds]
            tensors[f"{number}.thresholds"] = torch.tensor(steps, dtype=torch.float64).reshape(-1, 3)
            own = {"name": name, "values": namer.values, "counts": namer.counts, "pictures": namer.pictures}
            facts.append(own | {"temperature": namer.temperature})
        of_all = {
            "schema": SCHEMA,
            "weights_digest": self.weights_digest,
            "dataset": self.dataset,
            "dataset_digest": self.dataset_digest,
            "attributes": facts,
        }
        return save(tensors, {"tagger": json.dumps(of_all)})


def read_tagger(folder: Path, weights_digest: str) -> Tagger | None:
    """Return the prototypes in a model's folder; None if it has none.

    Raises CheckpointError if the file is damaged, of another version, or of a model with other weights.
    """
    path = folder / TAGGER
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["tagger"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["schema"] != SCHEMA:
            raise ValueError(f"schema {facts['schema']}, this agman reads {SCHEMA}")
        namers = {
            one["name"]: Namer(
                tuple(one["values"]),
                tuple(one["counts"]),
                tensors[f"{number}.prototypes"],
                one["temperature"],
                one["pictures"],
                tuple(Threshold(*step) for step in tensors[f"{number}.thresholds"].tolist()),
            )
            for number, one in enumerate(facts["attributes"])
        }
        for one in namers.values():
            if not len(one.values) == len(one.counts) == len(one.prototypes_vd) or (
                one.thresholds and not one.pictures
            ):
                raise ValueError("its parts do not belong together")
        found = Tagger(namers, facts["weights_digest"], facts["dataset"], facts["dataset_digest"])
    except Exception as error:  # the readers raise nearly anything
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged or of another version ({said}); remove it") from error
    if found.weights_digest != weights_digest:
        raise CheckpointError(f"{path}: its prototypes are of other weights than the model's; remove it")
    return found
