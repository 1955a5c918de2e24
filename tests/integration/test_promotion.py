"""Champion and challenger: the registry's aliases, tags and cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from support.commands import agman_exit_code
from support.registered import register_random
from support.scores import scores

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.registry import promotion
from pipeline.registry.loading import find_model
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


@pytest.fixture(autouse=True)
def ana(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the user."""
    monkeypatch.setenv("AGMAN_USER", "ana")


def of_model(client: MlflowClient) -> str:
    return str(client.get_registered_model(NAME).description)


def champion(client: MlflowClient) -> str:
    return str(client.get_registered_model(NAME).aliases["champion"])


def test_decisions_move_the_aliases_and_are_recorded(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = versions(1), versions(3), versions(2)

    def aliases() -> dict[str, str]:
        return {alias: str(number) for alias, number in client.get_registered_model(NAME).aliases.items()}

    assert aliases() == {"champion": first, "challenger": third}

    same = promote(f"models:/{NAME}/{second}", dataset)
    assert not same.promoted and "" in same.verdict.differences
    assert aliases()["champion"] == first
    kept, refused = (client.get_model_version(NAME, number).tags for number in (first, second))
    assert (refused["decision.result"], refused["decision.against"]) == ("refused", first)
    assert (kept["decision.result"], kept["decision.against"]) == ("kept", second)
    assert refused["decision.dataset_digest"] == dataset.info.digest and refused["decision.split"] == "test"
    assert f"noise: {dataset.info.queries['test']}, at least" in refused["decision.reason"]
    assert refused["decision.chance"] == f"{same.chance['']:.4f}"

    card = client.get_model_version(NAME, second).description
    assert "\n\nTrained by ana" in card
    assert f"## Decision\n\nNot promoted on {refused['decision.date']} by ana, against version {first}: too few" in card
    assert (
        f"Kept as champion on {kept['decision.date']} by ana, against"
        in client.get_model_version(NAME, first).description
    )
    page = of_model(client)
    assert (
        f"| version | **{first}** |" in page and "why it won | the first version that beats chance: MAP 25.00" in page
    )
    assert (
        f"| last decision | Kept as champion on {kept['decision.date']} by ana, against version {second}: too" in page
    )
    assert "`agman promote`" in page and "| trained by | ana |" in page and "trained on | **tiny** (digest" in page
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
    assert f"| version | **{third}** |" in of_model(client) and "wanted by marketing, although too few" in of_model(
        client
    )

    with pytest.raises(InputError, match="champion already"):
        promote(f"models:/{NAME}@champion", dataset)
    assert agman_exit_code("rollback", NAME, "--reason", "complaints", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"champion": int(first), "rolled_back": int(third)}
    assert aliases() == {"champion": first}
    assert client.get_model_version(NAME, third).tags["rolled_back.reason"] == "complaints"
    assert f"to version {first}: complaints." in client.get_model_version(NAME, third).description
    assert client.get_model_version(NAME, first).tags["decision.result"] == "restored"
    assert f"| why it won | version {third} was rolled back: complaints |" in of_model(client)


def better_by(gain: float, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Replace the scores: every second model that is scored, the champion, is worse than the first by `gain`."""
    asked = 0

    def score(*arguments: object, **options: object) -> SimpleNamespace:
        nonlocal asked
        asked += 1
        if asked % 2:
            return SimpleNamespace(scores=scores(gain=gain))
        meanwhile()
        return SimpleNamespace(scores=scores())

    monkeypatch.setattr(promotion, "evaluate", score)


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
    assert decision.promoted and decision.forced and decision.verdict.differences == {}
    assert champion(client) == version
    assert rollback(NAME, "a try") == (before, version)


def test_sizes_are_compared_before_a_picture_is_embedded(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, before, load = versions(10), champion(client), promotion.load

    def larger(model: str, attributes: list[str]) -> tuple[object, dict[str, object]]:
        network, description = load(model, attributes)
        return network, description | ({"image_size": 96} if model.endswith(f"/{before}") else {})

    monkeypatch.setattr(promotion, "load", larger)
    monkeypatch.setattr(promotion, "evaluate", lambda *_, **__: pytest.fail("embedded"))
    said = f"{NAME} version {before} takes 96 px; prepare the dataset again with --image-size 96"
    with pytest.raises(InputError, match=said):
        promote(f"models:/{NAME}/{version}", dataset)


def test_equal_weights_are_one_version(
    store: Path, dataset: Dataset, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = register_random(dataset, store, 11), register_random(dataset, store, 11)
    assert (again.uri, again.alias) == (first.uri, first.alias) and first.note == ""
    assert again.note == f"equal weights are registered already, as version {first.version}"
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1)
    newest = runs[0]
    assert newest.data.tags["model_uri"] == first.uri and newest.outputs.model_outputs == []
    assert find_model(f"runs:/{newest.info.run_id}").name == find_model(first.uri).name
    assert register_random(dataset, store, 11, image_size=16).version != first.version


def test_the_first_version_at_chance_is_no_champion(dataset: Dataset, tracking_store: str, tmp_path: Path) -> None:
    made = register_random(dataset, tmp_path, 1, doubt="at chance: MAP 50.03")
    assert made.alias == "challenger" and made.note.startswith(
        "not made champion, at chance: MAP 50.03; `agman promote"
    )
    client = MlflowClient(tracking_store)
    version = client.get_model_version(NAME, str(made.version))
    assert (
        version.tags["doubt"] == "at chance: MAP 50.03" and "Nothing shows that it beats chance" in version.description
    )
    decision = promote(NAME, dataset)
    assert not decision.promoted and decision.champion is None and "too few queries" in decision.reason
    assert "champion" not in client.get_registered_model(NAME).aliases
    forced = promote(NAME, dataset, force="a try")
    assert forced.promoted and forced.forced and champion(client) == str(made.version)


def test_a_version_says_who_trained_what_on_which_data(
    versions: Callable[[int], str], client: MlflowClient, dataset: Dataset
) -> None:
    tags = client.get_model_version(NAME, versions(12)).tags
    assert {key: tags[key] for key in ("model", "backbone", "dataset", "dataset_digest", "trained_by")} == {
        "model": "agman",
        "backbone": "tiny",
        "dataset": "tiny",
        "dataset_digest": dataset.info.digest,
        "trained_by": "ana",
    }
    assert client.get_registered_model(NAME).tags == {"dataset": "tiny"}


def test_what_people_write_on_the_models_page_stays(
    versions: Callable[[int], str], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.update_registered_model(NAME, "Ours.\n\n## Contact\n\nana")
    versions(13)
    page = of_model(client)
    assert page.startswith("Ours.\n\n## Champion\n\n") and page.endswith("## Contact\n\nana\n")

    def refuse(*arguments: object) -> None:
        raise MlflowException("the store has gone")

    monkeypatch.setattr(MlflowClient, "update_registered_model", refuse)
    assert versions(14)  # is registered all the same


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
