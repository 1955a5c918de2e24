"""`agman promote` and `agman rollback`: which version of a registered model is the champion, and why.

Challenger and champion are scored on the same split. The challenger is promoted if the score of no attribute falls by
more than a tolerance, and the score over all queries rises beyond noise: the 95 % interval of the paired bootstrap
over queries lies above 0. (MLflow's own `validate_evaluation_results` compares two numbers with a threshold; it
knows no queries, so it cannot tell a gain from noise.) Every decision stands as tags on both versions.

The alias moves last and in one write: a command that is killed before has decided nothing, and can be given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch import Tensor

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.registry import model_card
from pipeline.registry import models as registry
from pipeline.registry.models import CHALLENGER, CHAMPION
from pipeline.tracking import runs as tracking

TOLERANCE = 0.01
"""MAP that any attribute may lose."""
PREVIOUS = "previous_champion"
"""Tag of a champion: the version that it replaced."""
DECISION = "decision."
"""Tags of the last decision that a version was part of begin so."""

Scores = Mapping[str, Tensor]
"""Attribute -> the score of each of its queries (AP), or triplets (1 if right)."""


@dataclass(frozen=True)
class Verdict:
    """What the scores say."""

    better: bool
    reason: str
    differences: dict[str, agman.Difference]
    """Challenger minus champion, of every attribute; over all queries under ""."""


@dataclass(frozen=True)
class Decision:
    """What was decided on a version."""

    name: str
    version: str
    champion: str | None
    """The version that it was compared with; None if there was no champion."""
    promoted: bool
    forced: bool
    reason: str
    metric: str
    challenger_scores: dict[str, agman.Interval]
    verdict: Verdict | None
    """None without a champion, or where --force passes over one that cannot be scored."""

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "promoted": self.promoted,
            "forced": self.forced,
            "reason": self.reason,
            "version": int(self.version),
            "champion": None if self.champion is None else int(self.champion),
            "metric": self.metric,
        }
        if self.verdict:
            for name, one in self.verdict.differences.items():
                end = f"/{name}" if name else ""
                figures |= {f"difference{end}": one.mean}
                figures |= {f"difference_low{end}": one.low, f"difference_high{end}": one.high}
        return figures


def judge(champion: Scores, challenger: Scores, tolerance: float, seed: int = 0) -> Verdict:
    """Whether the challenger is better, from both models' scores of the same queries in the same order.

    Raises ValueError where they are not of the same queries.
    """
    differences = agman.paired_differences(champion, challenger, seed)
    over_all = differences[""]
    fallen = {name: one.mean for name, one in differences.items() if name and one.mean < -tolerance}
    interval = f"{100 * over_all.mean:+.2f} [{100 * over_all.low:+.2f}, {100 * over_all.high:+.2f}]"
    if fallen:
        worst = min(fallen, key=fallen.__getitem__)
        return Verdict(
            False, f"{worst} falls by {-100 * fallen[worst]:.2f}, more than {100 * tolerance:.2f}", differences
        )
    if not over_all.beyond_noise:
        return Verdict(False, f"the gain {interval} is not beyond noise", differences)
    return Verdict(
        True, f"better by {interval}, and no attribute falls by more than {100 * tolerance:.2f}", differences
    )


def promote(
    model: str,
    dataset: Dataset,
    *,
    split: str = "test",
    tolerance: float = TOLERANCE,
    force: str | None = None,
    progress: Progress = silent,
) -> Decision:
    """Compare `model` with the champion on `split`, record the decision, and move the alias if it is for the model.

    `model`: NAME (its challenger), models:/NAME@ALIAS or models:/NAME/VERSION. Without a champion it is promoted.
    `force` is the reason to promote it whatever the scores say. Datasets without queries are judged by triplet
    accuracy. Raises InputError for what a user can mend, JobFailed where the store stops answering.
    """
    if force is not None and not force.strip():
        raise InputError("--force: give the reason; it is recorded")
    client = tracking.connect()
    with tracking.answering():
        name, version = _version(client, model)
        champion = _champion(client, name)
        if version == champion:
            _take_challenger_away(client, name, version)  # a command that was killed may have left it
            raise InputError(f"{model}: version {version} is {name}'s champion already")
        challenger_scored = _scored(name, version, dataset, split, progress)
        metric, challenger = _scores(challenger_scored)
        verdict = None
        if champion is not None:
            before = _champion_scores(name, champion, dataset, split, progress, force)
            verdict = judge(before, challenger, tolerance) if before else None
        decision = Decision(
            name=name,
            version=version,
            champion=champion,
            promoted=bool(force) or verdict is None or verdict.better,
            forced=force is not None and champion is not None and not (verdict and verdict.better),
            reason=force or (verdict.reason if verdict else "there was no champion"),
            metric=metric,
            challenger_scores=agman.intervals(challenger),
            verdict=verdict,
        )
        if _champion(client, name) != champion:
            raise JobFailed(f"{name}: the champion has changed meanwhile, nothing is decided; give the command again")
        _record(client, decision, dataset, split, tolerance)
        if decision.promoted:
            client.set_registered_model_alias(name, CHAMPION, version)
            _take_challenger_away(client, name, version)
    return decision


def rollback(name: str, reason: str) -> tuple[str, str]:
    """Give the champion's alias back to the version that had it before; returns (version now, version before).

    Raises InputError if there is none.
    """
    client = tracking.connect()
    name = name.removeprefix("models:/").partition("@")[0].partition("/")[0]
    with tracking.answering():
        aliases = _registered(client, name).aliases
        if CHAMPION not in aliases:
            raise InputError(f"{name}: has no champion to roll back")
        now = str(aliases[CHAMPION])
        before = client.get_model_version(name, now).tags.get(PREVIOUS)
        if before is None:
            raise InputError(f"{name}: version {now} replaced no other champion, so there is nothing to go back to")
        try:
            client.get_model_version(name, before)
        except MlflowException as error:
            _not_there(error)
            raise InputError(f"{name}: version {before}, which version {now} replaced, is gone") from None
        _tag(client, name, now, {"rolled_back": _today(), "rolled_back.to": before, "rolled_back.reason": reason})
        client.set_registered_model_alias(name, CHAMPION, before)
    return before, now


def _registered(client: mlflow.MlflowClient, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        _not_there(error)
        raise InputError(
            f"{name}: no such registered model{registry.there_is(client, f'models:/{name}@{CHAMPION}')}"
        ) from None


def _not_there(error: MlflowException) -> None:
    """Raises `error` again unless it says that something is not there: the store may just be silent."""
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error


def _champion(client: mlflow.MlflowClient, name: str) -> str | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else str(version)


def _version(client: mlflow.MlflowClient, model: str) -> tuple[str, str]:
    """Registered name and version behind what a user gave. Raises InputError."""
    if model.startswith("runs:/") or ("://" in model or model.endswith(registry.PUBLISHED)):
        raise InputError(f"{registry.shown(model)}: only registered models are promoted: NAME, or models:/NAME/VERSION")
    asked = model.removeprefix("models:/")
    name, _, alias = asked.partition("@")
    name, _, number = name.partition("/")
    registered = _registered(client, name)
    if number:
        try:
            found: ModelVersion = client.get_model_version(name, number)
        except MlflowException as error:
            _not_there(error)
            raise InputError(
                f"{model}: no version {number}{registry.there_is(client, f'models:/{name}/{number}')}"
            ) from None
        return name, str(found.version)
    alias = alias or CHALLENGER
    if alias not in registered.aliases:
        raise InputError(f"{model}: no alias {alias!r}{registry.there_is(client, f'models:/{name}@{alias}')}")
    return name, str(registered.aliases[alias])


def _scored(name: str, version: str, dataset: Dataset, split: str, progress: Progress) -> Evaluation:
    network, description = registry.load(f"models:/{name}/{version}", dataset.info.attribute_names)
    return evaluate(network, description, dataset, split, progress=progress)


def _champion_scores(
    name: str, champion: str, dataset: Dataset, split: str, progress: Progress, force: str | None
) -> Scores | None:
    """None where it cannot be scored and `force` says to go on: its files may be gone, or its attributes others."""
    try:
        return _scores(_scored(name, champion, dataset, split, progress))[1]
    except InputError as error:
        if force is None:
            raise
        say(f"note: the champion, version {champion}, cannot be scored ({error})")
        return None


def _scores(scored: Evaluation) -> tuple[str, Scores]:
    """The metric's name, and the scores."""
    if scored.results:
        return "MAP", {name: one.average_precision for name, one in scored.results.items()}
    return "triplet accuracy", {name: one.correct.double() for name, one in scored.triplets.items()}


def _record(client: mlflow.MlflowClient, decision: Decision, dataset: Dataset, split: str, tolerance: float) -> None:
    """On both versions, and in the card of the one that was judged."""
    name, info = decision.name, dataset.info
    facts = {
        "date": _today(),
        "reason": decision.reason,
        "metric": decision.metric,
        "dataset": info.name,
        "dataset_digest": info.digest,
        "split": split,
        "tolerance": f"{tolerance:g}",
    }
    if decision.verdict:
        for attribute, one in decision.verdict.differences.items():
            end = f".{attribute}" if attribute else ""
            facts[f"difference{end}"] = f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
    result = "forced" if decision.forced else "promoted" if decision.promoted else "refused"
    tested = model_card.Tested(
        decision.metric, decision.challenger_scores, info.name, info.digest, split, facts["date"]
    )
    registry.write_card(client, name, decision.version, tested)
    mine = {"result": result, "against": decision.champion or "none"}
    tags = {DECISION + key: value for key, value in (facts | mine).items()}
    if decision.promoted and decision.champion is not None:
        tags[PREVIOUS] = decision.champion
    _tag(client, name, decision.version, tags)
    if decision.champion is not None:
        theirs = {"result": "replaced" if decision.promoted else "kept", "against": decision.version}
        _tag(client, name, decision.champion, {DECISION + key: value for key, value in (facts | theirs).items()})


def _tag(client: mlflow.MlflowClient, name: str, version: str, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def _take_challenger_away(client: mlflow.MlflowClient, name: str, version: str) -> None:
    """The champion is nobody's challenger."""
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
