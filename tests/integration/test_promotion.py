"""Champion and challenger: the registry's aliases, tags and cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from support.commands import agman_exit_code
from support.registered import register_random
from support.scores import scores

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.registry import promotion
from pipeline.registry.promotion import promote, rollback
from pipeline.tracking.runs import tracking_uri

NAME = "agman-tiny"


@pytest.fixture(scope="module")
def versions(store: Path, dataset: Dataset) -> Callable[[int], str]:
    """Register a model with random weights of this seed, and return its version."""
    return lambda seed: str(register_random(dataset, store, seed).version)


@pytest.fixture
def client(store: Path) -> MlflowClient:
    return MlflowClient(tracking_uri())


def champion(client: MlflowClient) -> str:
    return str(client.get_registered_model(NAME).aliases["champion"])


def test_decisions_move_the_aliases_and_are_recorded(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = versions(1), versions(1), versions(2)  # the second is the first again

    def aliases() -> dict[str, str]:
        return {alias: str(number) for alias, number in client.get_registered_model(NAME).aliases.items()}

    assert aliases() == {"champion": first, "challenger": third}

    same = promote(f"models:/{NAME}/{second}", dataset)
    assert not same.promoted and same.verdict and same.verdict.differences[""].mean == 0
    assert aliases()["champion"] == first
    kept, refused = (client.get_model_version(NAME, number).tags for number in (first, second))
    assert (refused["decision.result"], refused["decision.against"]) == ("refused", first)
    assert (kept["decision.result"], kept["decision.against"]) == ("kept", second)
    assert refused["decision.dataset_digest"] == dataset.info.digest and refused["decision.split"] == "test"
    assert refused["decision.difference"] == "+0.0000 [+0.0000, +0.0000]"
    assert "not beyond noise" in refused["decision.reason"]

    card = client.get_model_version(NAME, second).description
    attribute = dataset.info.attribute_names[0]
    measured = same.challenger_scores[attribute]
    shown = f"{100 * measured.mean:.2f} [{100 * measured.low:.2f}, {100 * measured.high:.2f}]"
    assert f"| {attribute} | " in card and shown in card and "12.50" in card
    assert "A program drew the pictures" in card and "random weights" in card

    with pytest.raises(InputError, match="nothing to go back to"):
        rollback(NAME, "a try")
    assert agman_exit_code("promote", NAME, "--data", dataset.path, "--force", "wanted by marketing", "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["promoted"] and figures["version"] == int(third) and figures["champion"] == int(first)
    assert aliases() == {"champion": third}
    forced = client.get_model_version(NAME, third).tags
    assert forced["decision.reason"] == "wanted by marketing" and forced["previous_champion"] == first
    assert forced["decision.result"] == ("forced" if figures["forced"] else "promoted")

    with pytest.raises(InputError, match="champion already"):
        promote(f"models:/{NAME}@champion", dataset)
    assert agman_exit_code("rollback", NAME, "--reason", "complaints", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"champion": int(first), "rolled_back": int(third)}
    assert aliases() == {"champion": first}
    assert client.get_model_version(NAME, third).tags["rolled_back.reason"] == "complaints"


def better_by(gain: float, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Replace the scores: every second model that is scored, the champion, is worse than the first by `gain`."""
    asked = 0

    def score(evaluation: object) -> tuple[str, dict[str, torch.Tensor]]:
        nonlocal asked
        asked += 1
        if asked % 2:
            return "MAP", scores(gain=gain)
        meanwhile()
        return "MAP", scores()

    monkeypatch.setattr(promotion, "_scores", score)


def test_a_better_challenger_is_promoted_by_its_scores(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = versions(5)
    before = champion(client)
    better_by(0.02, monkeypatch)
    decision = promote(NAME, dataset)
    assert decision.promoted and not decision.forced and decision.champion == before
    assert champion(client) == version
    now, old = (client.get_model_version(NAME, number).tags for number in (version, before))
    assert (now["decision.result"], now["previous_champion"], old["decision.result"]) == (
        "promoted",
        before,
        "replaced",
    )
    assert rollback(NAME, "a try") == (before, version)


def test_a_champion_that_changes_meanwhile_is_not_replaced(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, version = versions(6), versions(7)
    before = champion(client)
    better_by(0.02, monkeypatch, lambda: client.set_registered_model_alias(NAME, "champion", other))
    with pytest.raises(JobFailed, match="the champion has changed meanwhile"):
        promote(NAME, dataset)
    assert champion(client) == other
    assert "decision.result" not in client.get_model_version(NAME, version).tags
    client.set_registered_model_alias(NAME, "champion", before)


def test_a_champion_that_is_lost_can_be_replaced_by_force(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = versions(8)
    before = champion(client)
    load = promotion.load

    def lost(model: str, attributes: list[str]) -> object:
        if model.endswith(f"/{before}"):
            raise InputError(f"{model}: its files are gone")
        return load(model, attributes)

    monkeypatch.setattr(promotion, "load", lost)
    with pytest.raises(InputError, match="files are gone"):
        promote(NAME, dataset)
    with pytest.raises(InputError, match="--force: give the reason"):
        promote(NAME, dataset, force=" ")
    decision = promote(NAME, dataset, force="its files are gone")
    assert decision.promoted and decision.forced and decision.verdict is None
    assert champion(client) == version
    assert rollback(NAME, "a try") == (before, version)


def test_models_that_cannot_be_promoted(versions: Callable[[int], str], dataset: Dataset) -> None:
    versions(3)
    for model, said in {
        "agman-tinny": "no such registered model; did you mean 'agman-tiny'?",
        f"models:/{NAME}@winner": "no alias 'winner'; there are @",
        f"models:/{NAME}/999": "no version 999; there are",
        "runs:/abc": "only registered models are promoted",
        "s3://bucket/folder": "only registered models are promoted",
    }.items():
        with pytest.raises(InputError, match=said.replace("?", r"\?")):
            promote(model, dataset)
    with pytest.raises(InputError, match="no such registered model"):
        rollback("nothing", "a try")


def test_a_registration_that_fails_leaves_nothing(
    versions: Callable[[int], str], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {str(one.version) for one in client.search_model_versions(f"name='{NAME}'")}
    models = len(client.search_logged_models([client.get_experiment_by_name("tiny").experiment_id]))

    def refuse(self: MlflowClient, *arguments: object, **options: object) -> None:
        raise MlflowException("the store has gone")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuse)
    with pytest.raises(MlflowException, match="gone"):
        versions(4)
    assert {str(one.version) for one in client.search_model_versions(f"name='{NAME}'")} == before
    assert len(client.search_logged_models([client.get_experiment_by_name("tiny").experiment_id])) == models
