"""`agman promote` and `agman rollback`: which version of a registered model is the champion, and why.

Challenger and champion are scored on the same split. The challenger is promoted if it beats chance, no attribute's
score falls by more than a tolerance, and the score over all queries rises beyond noise: the 95 % interval of the paired
bootstrap over queries lies above 0. Without a champion it has to beat chance. (MLflow's `validate_evaluation_results`
compares two numbers with a threshold. It knows no queries, so it cannot tell a gain from noise.) Every decision is
recorded as tags on both versions.

The alias moves last and in one request: the champion of a command that is killed before is the old one, whatever tags
and descriptions say by then; the same command again completes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from agman import RetrievalModel
from agman.bootstrap import Interval, intervals
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.evaluation.evaluate import evaluate
from pipeline.registry.judgement import Verdict, judge
from pipeline.registry.loading import load, shown
from pipeline.registry.model_card import Tested
from pipeline.registry.models import CHALLENGER, champion_of, update_card
from pipeline.registry.names import PUBLISHED
from pipeline.registry.standing import (
    BECAUSE,
    CHAMPION,
    DECISION,
    RESTORED,
    SINCE,
    decision_text,
    describe_champion,
    describe_decision,
    now,
)
from pipeline.registry.versions import alternatives
from pipeline.tracking.origin import user_name
from pipeline.tracking.runs import answering, connect

TOLERANCE = 0.01
"""MAP that an attribute may lose."""
PREVIOUS = "previous_champion"
"""Tag of a champion: the version that it replaced."""


@dataclass(frozen=True)
class Decision:
    """A decision on a version."""

    name: str
    version: str
    champion: str | None
    """Version that it was compared with; None if there was no champion."""
    promoted: bool
    forced: bool
    reason: str
    metric: str
    challenger_scores: dict[str, Interval]
    chance: dict[str, float]
    """Chance in the same form."""
    queries: dict[str, int]
    """Number of queries (or triplets) of every attribute."""
    verdict: Verdict

    @property
    def metrics(self) -> dict[str, Any]:
        """Decision and differences as `--json` prints them."""
        metrics: dict[str, Any] = {
            "promoted": self.promoted,
            "forced": self.forced,
            "reason": self.reason,
            "version": int(self.version),
            "champion": None if self.champion is None else int(self.champion),
            "metric": self.metric,
            "score": self.challenger_scores[""].mean,
            "chance": self.chance[""],
        }
        for name, one in self.verdict.differences.items():
            end = f"/{name}" if name else ""
            bounds = {"difference": one.mean, "difference_low": one.low, "difference_high": one.high}
            metrics |= {f"{key}{end}": value for key, value in bounds.items()}
        return metrics


def promote(
    model: str,
    dataset: Dataset,
    *,
    split: str = "test",
    tolerance: float = TOLERANCE,
    force: str | None = None,
    progress: Progress = silent,
) -> Decision:
    """Compare a model with the champion, record the decision, and move the alias if the model is better.

    Datasets without queries are judged by triplet accuracy. Raises InputError for what a user can correct, and
    JobFailed if the store stops answering.

    Args:
        model: NAME (its challenger), models:/NAME@ALIAS or models:/NAME/VERSION.
        dataset: dataset to score both on.
        split: split of the dataset.
        tolerance: score that an attribute may lose, as a fraction.
        force: reason to promote the model whatever the scores are.
        progress: callback for progress bars.
    """
    if force is not None and not force.strip():
        raise InputError("--force: give the reason; it is recorded")
    client = connect()
    with answering():
        name, version = _resolve(client, model)
        champion = champion_of(client, name)
        if version == champion:
            _remove_challenger(client, name, version)  # a command that was killed may have left it
            describe_champion(client, name)
            raise InputError(f"{model}: version {version} is {name}'s champion already")
        mine = _loaded(name, version, dataset)
        theirs = None if champion is None else _loaded_champion(name, champion, dataset, forced=force is not None)
        challenger = evaluate(*mine, dataset, split, progress=progress).scores
        before = evaluate(*theirs, dataset, split, progress=progress).scores if theirs else None
        verdict = judge(before, challenger, tolerance)
        overruled = not verdict.better or (champion is not None and theirs is None)
        decision = Decision(
            name=name,
            version=version,
            champion=champion,
            promoted=bool(force) or verdict.better,
            forced=force is not None and overruled,
            reason=force or verdict.reason,
            metric=challenger.metric,
            challenger_scores=intervals(challenger.of),
            chance=challenger.mean_chance,
            queries={name: len(one) for name, one in challenger.of.items()},
            verdict=verdict,
        )
        if champion_of(client, name) != champion:
            raise JobFailed(f"{name}: the champion has changed meanwhile, nothing is decided; give the command again")
        _record(client, decision, dataset, split, tolerance)
        if decision.promoted:
            client.set_registered_model_alias(name, CHAMPION, version)
            _remove_challenger(client, name, version)
        describe_champion(client, name)
    return decision


def rollback(name: str, reason: str) -> tuple[str, str]:
    """Give the champion's alias back to the version that had it before.

    Returns the new champion's version and the old one's. Raises InputError if no version had it before.
    """
    client = connect()
    name = name.removeprefix("models:/").partition("@")[0].partition("/")[0]
    with answering():
        champion = _registered(client, name).aliases.get(CHAMPION)
        if champion is None:
            raise InputError(f"{name}: has no champion to roll back")
        champion = str(champion)
        before = client.get_model_version(name, champion).tags.get(PREVIOUS)
        if before is None:
            raise InputError(
                f"{name}: version {champion} replaced no other champion, so there is nothing to go back to"
            )
        try:
            client.get_model_version(name, before)
        except MlflowException as error:
            _raise_if_silent(error)
            raise InputError(f"{name}: version {before}, which version {champion} replaced, is gone") from None
        date = now()
        _tag(client, name, champion, {"rolled_back": date, "rolled_back.to": before, "rolled_back.reason": reason})
        facts = {"result": RESTORED, "date": date, "against": champion, "reason": reason} | _by()
        because = {SINCE: date, BECAUSE: f"version {champion} was rolled back: {reason}"}
        _tag(client, name, before, {DECISION + key: value for key, value in facts.items()} | because)
        client.set_registered_model_alias(name, CHAMPION, before)
        for version in (before, champion):
            describe_decision(client, name, version)
        describe_champion(client, name)
    return before, champion


def _registered(client: MlflowClient, name: str) -> RegisteredModel:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        _raise_if_silent(error)
        hint = alternatives(client, f"models:/{name}@{CHAMPION}")
        raise InputError(f"{name}: no such registered model{hint}") from None


def _raise_if_silent(error: MlflowException) -> None:
    """Raise `error` again, unless it says that something does not exist."""
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error


def _resolve(client: MlflowClient, model: str) -> tuple[str, str]:
    """Return the registered name and the version that a user means. Raises InputError if there is none."""
    if model.startswith("runs:/") or "://" in model or model.endswith(PUBLISHED):
        raise InputError(f"{shown(model)}: only registered models are promoted: NAME, or models:/NAME/VERSION")
    asked, _, alias = model.removeprefix("models:/").partition("@")
    name, _, number = asked.partition("/")
    registered = _registered(client, name)
    if number:
        try:
            return name, str(client.get_model_version(name, number).version)
        except MlflowException as error:
            _raise_if_silent(error)
            hint = alternatives(client, f"models:/{name}/{number}")
            raise InputError(f"{model}: no version {number}{hint}") from None
    alias = alias or CHALLENGER
    if alias not in registered.aliases:
        hint = alternatives(client, f"models:/{name}@{alias}")
        raise InputError(f"{model}: no alias {alias!r}{hint}")
    return name, str(registered.aliases[alias])


def _loaded(name: str, version: str, dataset: Dataset) -> tuple[RetrievalModel, dict[str, Any]]:
    """Load a version, and its description. Raises InputError if it cannot be scored on the dataset."""
    network, description = load(f"models:/{name}/{version}", dataset.info.attribute_names)
    dataset.require_image_size(description["image_size"], f"{name} version {version}")
    return network, description


def _loaded_champion(
    name: str, version: str, dataset: Dataset, forced: bool
) -> tuple[RetrievalModel, dict[str, Any]] | None:
    """Load the champion; return None if it cannot be scored and the promotion is forced."""
    try:
        return _loaded(name, version, dataset)
    except InputError as error:  # its files may be gone, or its attributes or its pictures' size may differ
        if not forced:
            raise
        say(f"note: the champion, version {version}, cannot be scored ({error})")
        return None


def _record(client: MlflowClient, decision: Decision, dataset: Dataset, split: str, tolerance: float) -> None:
    """Tag both versions with the decision, and rewrite the card of the one that was judged."""
    name, info = decision.name, dataset.info
    facts = {
        "date": now(),
        "reason": decision.reason,
        "metric": decision.metric,
        "score": f"{decision.challenger_scores[''].mean:.4f}",
        "chance": f"{decision.chance['']:.4f}",
        "dataset": info.name,
        "dataset_digest": info.digest,
        "split": split,
        "tolerance": f"{tolerance:g}",
    } | _by()
    for attribute, one in decision.verdict.differences.items():
        end = f".{attribute}" if attribute else ""
        facts[f"difference{end}"] = f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
    scores = decision.challenger_scores
    tested = Tested(decision.metric, scores, decision.chance, info.name, info.digest, split, facts["date"])
    update_card(client, name, decision.version, tested)

    result = "forced" if decision.forced else "promoted" if decision.promoted else "refused"
    mine = facts | {"result": result, "against": decision.champion or "none"}
    if decision.forced and not decision.verdict.better:
        mine["although"] = decision.verdict.reason
    previous = {PREVIOUS: decision.champion} if decision.promoted and decision.champion is not None else {}
    tags = {DECISION + key: value for key, value in mine.items()} | previous
    if decision.promoted:
        tags |= {SINCE: facts["date"], BECAUSE: decision_text(tags)}
    _tag(client, name, decision.version, tags)
    describe_decision(client, name, decision.version)
    if decision.champion is not None:
        theirs = facts | {"result": "replaced" if decision.promoted else "kept", "against": decision.version}
        _tag(client, name, decision.champion, {DECISION + key: value for key, value in theirs.items()})
        describe_decision(client, name, decision.champion)


def _by() -> dict[str, str]:
    """Return who decides, if the machine knows."""
    name = user_name()
    return {"by": name} if name else {}


def _tag(client: MlflowClient, name: str, version: str, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def _remove_challenger(client: MlflowClient, name: str, version: str) -> None:
    """Remove the challenger's alias from a version that is the champion."""
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
