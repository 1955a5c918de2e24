"""Champion and challenger: the decision as a function of scores, and the registry's aliases, tags and cards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from support.commands import agman_exit_code
from support.datasets import SIZE

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.registry import model_card, promotion
from pipeline.registry import models as registry
from pipeline.registry.promotion import judge, promote, rollback
from pipeline.tracking import runs as tracking

NAME = "agman-tiny"


def scores(gain: float = 0.0, fall: float = 0.0, noise: float = 0.0) -> dict[str, torch.Tensor]:
    """Of 200 and 50 queries; `gain` on all, `fall` on the second attribute's, `noise` about both."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.rand(size, generator=generator, dtype=torch.float64) * 0.5 for size in (200, 50)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (200, 50)]
    first, second = (gain + noise * (one - one.mean()) for one in drawn)
    return {"collar": base[0] + first, "skirt": base[1] + second - fall}


@pytest.mark.parametrize(
    ("challenger", "better", "reason"),
    [
        (scores(gain=0.02), True, r"better by \+2\.00 \[\+2\.00, \+2\.00\], and no attribute falls by more than 1\.00"),
        (scores(gain=0.02, fall=0.025), True, "better by"),  # the second attribute loses 0.5 points
        (scores(gain=0.02, fall=0.035), False, r"skirt falls by 1\.50, more than 1\.00"),
        (scores(), False, "is not beyond noise"),
        (scores(gain=0.002, noise=0.2), False, "is not beyond noise"),
        (scores(gain=-0.005), False, "is not beyond noise"),
    ],
)
def test_the_verdict(challenger: dict[str, torch.Tensor], better: bool, reason: str) -> None:
    verdict = judge(scores(), challenger, tolerance=0.01)
    assert verdict.better == better and re.search(reason, verdict.reason), verdict.reason
    assert list(verdict.differences) == ["collar", "skirt", ""]


def test_scores_of_other_queries_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="the same queries"):
        judge(scores(), {"collar": torch.rand(7)}, tolerance=0.01)


@pytest.fixture(scope="module")
def versions(store: Path, dataset: Dataset) -> Callable[[int], str]:
    """Registers a model of random weights of this seed; gives its version."""

    def register(seed: int) -> str:
        torch.manual_seed(seed)
        names = dataset.info.attribute_names
        network = agman.build("agman", n_attributes=len(names), backbone="resnet18", embedding_dim=16)
        run = tracking.start(dataset.info, f"training {seed}", {})
        run.log({"valid/map": 0.25, f"valid/map/{names[0]}": 0.125}, step=7)
        facts = {"layout": "fashionai", "drawn": True, "values": [len(one.values) for one in dataset.info.attributes]}
        description = {"attributes": names, "image_size": SIZE, "step": 7, "run_id": run.run_id, "data": facts}
        description |= {"dataset": "tiny", "dataset_digest": dataset.info.digest}
        description |= {"training": {"margin": 0.2, "weights": None}}
        folder = agman.save_model(store / f"model-{seed}", network, description)
        return str(registry.register(folder, "tiny", run).version)

    return register


def test_champions_come_and_go(
    versions: Callable[[int], str], dataset: Dataset, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(tracking.tracking_uri())
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
    """From now on every second model that is scored, the champion, is that much worse than the first."""
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
    versions: Callable[[int], str], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking.tracking_uri())
    version = versions(5)
    before = str(client.get_registered_model(NAME).aliases["champion"])
    better_by(0.02, monkeypatch)
    decision = promote(NAME, dataset)
    assert decision.promoted and not decision.forced and decision.champion == before
    assert str(client.get_registered_model(NAME).aliases["champion"]) == version
    now, old = (client.get_model_version(NAME, number).tags for number in (version, before))
    assert (now["decision.result"], now["previous_champion"], old["decision.result"]) == (
        "promoted",
        before,
        "replaced",
    )
    assert rollback(NAME, "a try") == (before, version)


def test_a_champion_that_changes_meanwhile_is_not_replaced(
    versions: Callable[[int], str], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking.tracking_uri())
    other, version = versions(6), versions(7)
    before = str(client.get_registered_model(NAME).aliases["champion"])
    better_by(0.02, monkeypatch, lambda: client.set_registered_model_alias(NAME, "champion", other))
    with pytest.raises(JobFailed, match="the champion has changed meanwhile"):
        promote(NAME, dataset)
    assert str(client.get_registered_model(NAME).aliases["champion"]) == other
    assert "decision.result" not in client.get_model_version(NAME, version).tags
    client.set_registered_model_alias(NAME, "champion", before)


def test_a_champion_that_is_lost_can_be_replaced_by_force(
    versions: Callable[[int], str], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking.tracking_uri())
    version = versions(8)
    before = str(client.get_registered_model(NAME).aliases["champion"])
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
    assert str(client.get_registered_model(NAME).aliases["champion"]) == version
    assert rollback(NAME, "a try") == (before, version)


def test_what_cannot_be_promoted(versions: Callable[[int], str], dataset: Dataset) -> None:
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
    versions: Callable[[int], str], dataset: Dataset, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking.tracking_uri())
    before = {str(one.version) for one in client.search_model_versions(f"name='{NAME}'")}
    models = len(client.search_logged_models([client.get_experiment_by_name("tiny").experiment_id]))

    def refuse(self: MlflowClient, *arguments: object, **options: object) -> None:
        raise tracking.MlflowException("the store has gone")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuse)
    with pytest.raises(tracking.MlflowException, match="gone"):
        versions(4)
    assert {str(one.version) for one in client.search_model_versions(f"name='{NAME}'")} == before
    assert len(client.search_logged_models([client.get_experiment_by_name("tiny").experiment_id])) == models


def test_a_card_is_plain_text_whatever_names_hold() -> None:
    description = {"attributes": ["a|b", "<img src=x>"], "image_size": 32, "training": {"weights": "IMAGENET1K_V1"}}
    build = {"name": "agman", "backbone": "resnet50", "embedding_dim": 8}
    card = model_card.write_card("agman-x", build, description, {}, {})
    assert "a\\|b" in card and "<img" not in card and "ImageNet" not in card and "IMAGENET1K_V1" in card
    long = card + "line\n" * 3_000
    assert len(model_card.as_description(long)) <= model_card.DESCRIPTION_LENGTH
