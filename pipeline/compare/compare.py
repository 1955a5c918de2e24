"""`agman compare`: the systems of the papers' tables, and AG-MAN without single components, under equal conditions.

Every training is one of `agman train`'s, on Ray, with the same triplets, seeds, epochs, batches and learning rate. Its
best checkpoint by validation is scored on test once. A comparison is identified by its dataset and its settings
without the systems: after a kill or a stop the same command continues it, and keeps what is trained and scored.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agman.bootstrap import Difference, differences_of_trainings, intervals
from agman.pooled import PooledFeatures
from agman.registry import options_of
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.common.console import bar_of, say, say_above
from pipeline.common.errors import JobFailed
from pipeline.common.files import read_json, write_json
from pipeline.common.lock import locked
from pipeline.common.signals import saying_how_to_go_on
from pipeline.compare.systems import BASE, SYSTEMS
from pipeline.config.schema import TrainConfig, make_config
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.expectations import expectations
from pipeline.evaluation.validation import METRIC
from pipeline.registry.loading import load
from pipeline.tracking.runs import OpenRun, Run, answering, metric_history, open_run
from pipeline.training.build import NOT_DECISIVE, check
from pipeline.training.jobs import COMPARISON
from pipeline.training.train import train

SPLIT = "test"
AGAIN = "the same command goes on"
MODELS_OWN = ("embedding_dim", "sa_kernel", "mask", "rounds")
"""Settings that only some models have; the others are built without them."""


@dataclass(frozen=True)
class Scored:
    """Test scores of one training, or the reason why there are none."""

    system: str
    seed: int
    metrics: dict[str, float]
    """Metrics as `evaluate` returns them."""
    average_precision: dict[str, list[float]]
    """Attribute -> AP of its queries, in the dataset's order."""
    history: list[tuple[int, float]]
    """(step, validation MAP) pairs."""
    seconds: float
    failed: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All trainings of a comparison."""

    dataset: str
    digest: str
    drawn: bool
    attributes: list[str]
    """Attributes that have queries."""
    queries: dict[str, int]
    """Attribute -> number of test queries."""
    chance: dict[str, float]
    """Attribute -> test MAP of a random ranking; over all queries under ""."""
    valid_chance: float
    """Validation MAP of a random ranking."""
    settings: dict[str, Any]
    scored: list[Scored]
    folder: Path
    run: Run

    @property
    def systems(self) -> list[str]:
        """Keys of the trained systems, in the tables' order."""
        return [key for key in SYSTEMS if any(one.system == key for one in self.scored)]

    def of(self, system: str) -> list[Scored]:
        """Return the system's trainings that did not fail."""
        return [one for one in self.scored if one.system == system and one.failed is None]

    def of_seeds(self, system: str, name: str) -> list[float]:
        """Return a metric of each training of the system that did not fail."""
        key = f"{SPLIT}/{name}"
        return [one.metrics[key] for one in self.of(system) if key in one.metrics]

    def difference(self, system: str) -> Difference | None:
        """Return the system's MAP minus AG-MAN's, with the bootstrap's interval over queries and seeds."""
        if system == BASE or not self.of(system) or not self.of(BASE):
            return None
        base, other = ({name: self._scores(key, name) for name in self.attributes} for key in (BASE, system))
        return differences_of_trainings(base, other)[""]

    @property
    def metrics(self) -> dict[str, float]:
        """Chance, and of each system the mean MAP over its trainings, their deviation, and bounds of 95 % intervals.

        `SYSTEM/test/map_low` and `…_high` bound the mean for other queries, `SYSTEM/difference_low` and `…_high` the
        difference from AG-MAN for other queries and seeds.
        """
        found = {f"{SPLIT}/chance": self.chance[""]}
        for system in self.systems:
            if not (values := self.of_seeds(system, "map")):
                continue
            over = intervals({name: self._scores(system, name).mean(0) for name in self.attributes})[""]
            name = f"{system}/{SPLIT}/map"
            found |= {name: statistics.fmean(values), f"{name}_low": over.low, f"{name}_high": over.high}
            if len(values) > 1:
                found[f"{name}_deviation"] = statistics.stdev(values)
            if one := self.difference(system):
                bounds = {"difference": one.mean, "difference_low": one.low, "difference_high": one.high}
                found |= {f"{system}/{key}": value for key, value in bounds.items()}
        return found

    def _scores(self, system: str, attribute: str) -> torch.Tensor:
        return torch.tensor([one.average_precision.get(attribute, []) for one in self.of(system)]).double()


def compare(
    dataset: Dataset,
    config: TrainConfig,
    *,
    systems: Sequence[str] = (),
    seeds: int = 3,
    workers: int = 1,
    storage: Path = Path("runs"),
) -> Comparison:
    """Train and score systems with seeds 0 to `seeds` - 1.

    A training that fails is noted with its reason, and the others go on. Raises InputError for what a user can
    correct, JobFailed if every training failed, and KeyboardInterrupt after Ctrl-C or SIGTERM; the same command
    continues.

    Args:
        dataset: dataset with queries in the valid and test splits.
        config: settings of every training.
        systems: keys of SYSTEMS; by default all, but for pretrained features only if there are pretrained weights.
        seeds: trainings of each system.
        workers: DDP workers of each training.
        storage: folder of the trainings' state.
    """
    chosen = systems or [key for key, one in SYSTEMS.items() if one.trained or config.weights]
    systems = _checked(chosen, config, dataset, workers)
    settings = config.model_dump(exclude={*NOT_DECISIVE, "seed", "model"})
    identity = {"settings": settings, "dataset": dataset.info.digest, "workers": workers}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = storage.absolute() / f"{dataset.info.name}-compare-{digest[:8]}"
    note = Storage(folder / COMPARISON)
    with locked(folder, "--storage DIR"), ray_session(), answering():
        params = config.model_dump(exclude={"model", "seed"}) | {"systems": " ".join(systems), "seeds": seeds}
        begun = read_json(note).get("run_id")
        with (
            open_run(dataset.info, folder.name, params, resume=begun, job="compare") as parent,
            saying_how_to_go_on(AGAIN),
        ):
            parent.log_dataset(dataset)
            parent.log_dataset_page(dataset)
            write_json(note, {"run_id": parent.run_id})
            scored = _score_all(dataset, config, systems, range(seeds), workers, folder, parent)
            if all(one.failed for one in scored):
                raise JobFailed(f"every training failed; the first: {scored[0].failed}")
    expected, before = expectations(dataset, SPLIT), expectations(dataset, "valid")
    assert expected and before, "a comparison's dataset has queries in both splits"
    return Comparison(
        dataset=dataset.info.name,
        digest=dataset.info.digest,
        drawn=dataset.drawn,
        attributes=[one.name for one in expected.attributes],
        queries={one.name: one.queries for one in expected.attributes},
        chance={one.name: one.chance for one in expected.attributes} | {"": expected.over_all.chance},
        valid_chance=before.over_all.chance,
        settings=settings,
        scored=scored,
        folder=folder,
        run=Run(parent.uri, parent.run_id),
    )


def _checked(systems: Sequence[str], config: TrainConfig, dataset: Dataset, workers: int) -> list[str]:
    """Return the systems in the tables' order. Raises InputError if one cannot be trained."""
    for key in systems:
        if key not in SYSTEMS:
            raise InputError(f"--system {key}: no such system; {nearest(key, SYSTEMS)}")
        if not SYSTEMS[key].trained and config.weights is None:
            raise InputError(
                f"--system {key}: weights=none has no pretrained features; give weights, e.g. weights=auto"
            )
    if not dataset.info.queries["valid"] or not dataset.info.queries[SPLIT]:
        raise InputError(f"{dataset.path}: a comparison needs queries in the valid and test splits")
    for key in systems:
        check(config_of(config, key, 0), dataset, workers)
    return [key for key in SYSTEMS if key in systems]


def config_of(config: TrainConfig, system: str, seed: int) -> TrainConfig:
    """Return the common settings with the system's own, without those that its model does not have."""
    own = SYSTEMS[system].settings
    known = options_of(own["model"])
    common = {key: value for key, value in config.model_dump().items() if key not in MODELS_OWN or key in known}
    return make_config(common | {"without": None, "classify": None} | own | {"seed": seed})


def _score_all(
    dataset: Dataset,
    config: TrainConfig,
    systems: Sequence[str],
    seeds: range,
    workers: int,
    folder: Path,
    parent: OpenRun,
) -> list[Scored]:
    """Train and score seed after seed, so that the first results are a comparison already."""
    wanted = [(system, seed) for seed in seeds for system in systems]
    bar = bar_of("trainings", len(wanted))
    scored = []
    try:
        for system, seed in wanted:
            name = f"{system}-seed-{seed}"
            notes = Storage(folder / f"{name}.json")
            found = read_json(notes)
            if not found:
                say_above(f"{SYSTEMS[system].title}, seed {seed}")
                of_system = config_of(config, system, seed)
                if SYSTEMS[system].trained:
                    found = _score_one(dataset, of_system, name, workers, folder, parent)
                else:
                    found = _score_pretrained(dataset, of_system)
                if not found["failed"]:  # the same command trains a failed one again
                    write_json(notes, found)
            scored.append(Scored(system, seed, metrics=found.pop("figures"), **found))
            bar.update(1)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"scored: {len(scored)} of {counted(len(wanted), 'training')}; {AGAIN}") from stop
    finally:
        bar.close()
    return scored


def _score_pretrained(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Score the backbone's features as they are; return the record."""
    started = time.perf_counter()
    network = PooledFeatures(len(dataset.info.attributes), config.backbone, config.weights)
    description = {"image_size": config.image_size or dataset.info.image_size, "fit": dataset.info.fit}
    evaluation = evaluate(network, description, dataset, SPLIT)
    return _record(evaluation, [], time.perf_counter() - started)


def _record(evaluation: Evaluation, history: list[tuple[int, float]], seconds: float) -> dict[str, Any]:
    return {
        "figures": evaluation.metrics,
        "average_precision": {n: one.average_precision.tolist() for n, one in evaluation.results.items()},
        "history": history,
        "seconds": seconds,
        "failed": None,
    }


def _score_one(
    dataset: Dataset, config: TrainConfig, name: str, workers: int, folder: Path, parent: OpenRun
) -> dict[str, Any]:
    """Train and score one system, and return the record that is kept as JSON."""
    started = time.perf_counter()
    try:
        trained = train(dataset, config, workers=workers, storage=str(folder / "trainings"), name=name, parent=parent)
        network, description = load(str(trained.checkpoint), dataset.info.attribute_names)
        evaluation = evaluate(network, description, dataset, SPLIT)
    except JobFailed as error:
        say(f"note: {name} failed: {error}")
        return {"figures": {}, "average_precision": {}, "history": [], "seconds": 0.0, "failed": str(error)}
    trained.run.log_points([(description["step"], evaluation.metrics)])
    return _record(evaluation, metric_history(trained.run, METRIC), time.perf_counter() - started)
