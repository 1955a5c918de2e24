"""`agman tune` in the tests' Ray session: what a study leaves behind, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.exceptions import OutOfMemoryError
from ray.util import placement_group_table
from support.commands import agman_exit_code

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.cli.tune import show_study
from pipeline.common.errors import JobFailed
from pipeline.config.schema import TrainConfig, make_config
from pipeline.reports.study.page import write_study_report
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.trainer import Training, WorkerContext
from pipeline.tuning.ray_tune import MAX_KILLS, _Suggester
from pipeline.tuning.spaces import Space, find_space
from pipeline.tuning.study import front_of
from pipeline.tuning.trainable import _TrialSaver
from pipeline.tuning.tune import FRUITLESS_ROUNDS, StudyResult, tune

CONFIG = make_config(
    {
        "backbone": "tiny",
        "embedding_dim": 16,
        "batch_size": 12,
        "epochs": 3,
        "max_triplets": 12,
        "precision": "fp32",
        "threads": 1,
        "seed": 11,
    }
)
TRIALS = 3


def space(define: Any, **start: Any) -> Space:
    """Return a space of the test's own."""
    return Space("own", define, start, frozenset(["lr", "margin"]), "")


def children(result: StudyResult) -> list[Run]:
    client = MlflowClient(result.run.uri)
    parent = client.get_run(result.run.run_id)
    mine = f"tags.`mlflow.parentRunId` = '{result.run.run_id}'"
    return list(client.search_runs([parent.info.experiment_id], mine))


def trial_runs(result: StudyResult) -> dict[int, Run]:
    """Return the trials' runs by number; each trial has one."""
    runs = [run for run in children(result) if "trial" in run.data.tags]
    by_number = {int(run.data.tags["trial"]): run for run in runs}
    assert len(by_number) == len(runs)
    return by_number


@pytest.fixture(scope="module")
def result(ray_started: None, store: Path, dataset: Dataset) -> StudyResult:
    return tune(
        dataset,
        CONFIG,
        space=find_space("margins"),
        trials=TRIALS,
        concurrent=2,
        repeats=0,
        final_seeds=1,
        storage=store / "runs",
        name="first",
        write_report=write_study_report,
    )


def test_every_trial_is_recorded_once_in_every_place(result: StudyResult, store: Path) -> None:
    assert [trial.number for trial in result.trials] == list(range(TRIALS))
    assert result.trials[0].setting == {"margin": 0.2, "lr": 1e-4, "class_weight": 1.0}
    file = store / "runs" / "first" / "study.db"
    told = optuna.load_study(study_name="first", storage=f"sqlite:///{file}").trials
    runs = trial_runs(result)
    assert len(told) == len(runs) == TRIALS
    table = pd.read_parquet(store / "runs" / "first" / "report" / "trials.parquet").set_index("number")
    for trial in result.trials:
        run = runs[trial.number]
        assert run.info.run_id == trial.run_id == table.loc[trial.number, "run_id"]
        assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", trial.state)
        assert run.data.tags["reason"] == trial.reason != ""
        assert {key: float(run.data.params[key]) for key in trial.setting} == trial.setting
        assert (run.data.params["backbone"], run.data.params["epochs"]) == ("tiny", "3")
        points = MlflowClient(result.run.uri).get_metric_history(run.info.run_id, "valid/map")
        assert [(point.step, point.value) for point in points] == trial.history
        states = {"done": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
        assert told[trial.number].state is states[trial.state]
        if trial.state == "done":
            assert [epoch for epoch, _ in trial.history] == [1, 2, 3]
            assert told[trial.number].value == trial.best
        else:
            assert len(trial.history) < 3 and re.match(
                r"ASHA: MAP 0\.\d{4} \(chance 0\.\d{4}\) after epoch ", trial.reason
            )


def test_a_trial_saves_every_epoch_but_its_last(dataset: Dataset, tmp_path: Path) -> None:
    training = Training(CONFIG, dataset, WorkerContext())
    kept = Checkpoints(Storage(tmp_path), keep_best=CONFIG.epochs)
    saver = _TrialSaver(training, kept)
    training.run(saver=saver)
    saver.finish()
    assert training.epoch == CONFIG.epochs
    assert [checkpoint.epoch for checkpoint in kept.complete()] == list(range(1, CONFIG.epochs))


def test_the_best_setting_is_trained_in_full_scored_once_and_registered(result: StudyResult, dataset: Dataset) -> None:
    assert result.final and len(result.final.valid) == 1 and result.final.trial == result.best.number
    assert (result.final.alias, result.final.model_uri) == ("challenger", "models:/agman-tiny/1")
    assert set(result.final.test) >= {"test/map", "test/chance", "test/queries"}
    client = MlflowClient(result.run.uri)
    version = client.get_model_version("agman-tiny", "1")
    assert version.tags["search_run_id"] == result.run.run_id
    assert {a: int(v) for a, v in client.get_registered_model("agman-tiny").aliases.items()} == {"challenger": 1}
    (final,) = [run for run in children(result) if "trial" not in run.data.tags]
    assert version.run_id == final.info.run_id
    assert final.data.metrics["test/map"] == result.final.test["test/map"]
    best = max((trial for trial in result.trials if trial.state == "done"), key=lambda trial: trial.best)
    assert result.best.number == best.number
    assert {key: float(final.data.params[key]) for key in best.setting} == best.setting


def test_the_studys_run_has_the_plan_the_outcome_and_the_page(result: StudyResult, dataset: Dataset) -> None:
    client = MlflowClient(result.run.uri)
    run = client.get_run(result.run.run_id)
    assert run.info.status == "FINISHED"
    wanted = {"search/space": "margins", "search/scheduler": "asha", "search/seed": "0", "trials": str(TRIALS)}
    assert run.data.params.items() >= wanted.items()
    assert run.data.tags["dataset_digest"] == dataset.info.digest
    inputs = [one.inputs.dataset_inputs for one in (run, *children(result))]  # the trials' and the final training's too
    assert [[one.dataset.name for one in datasets] for datasets in inputs] == [[dataset.info.name]] * len(inputs)
    assert run.data.metrics["valid/map"] == result.best.best
    assert run.data.metrics["valid/chance"] == result.chance == result.metrics["valid/chance"]
    assert json.loads(run.data.tags["best_setting"]) == result.best.setting
    assert run.data.tags["best_run_id"] == result.best.run_id
    assert {one.data.tags["sweep"] for one in (run, *children(result))} == {run.info.run_name}
    assert client.get_model_version("agman-tiny", "1").tags["sweep"] == run.info.run_name
    note = run.data.tags["mlflow.note.content"]
    assert f"| best | trial {result.best.number}: `" in note and "| registered | `models:/agman-tiny/1` |" in note
    files = {Path(file.path).name for file in client.list_artifacts(result.run.run_id, "search")}
    assert files >= {"report.html", "trials.parquet", "trials.csv", "history.png", "parallel.png", "slices.png"}
    assert result.page.is_file()


def test_chance_is_shown_and_no_deviation_of_one_seed(result: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    show_study(result)
    said = "".join(capsys.readouterr())
    assert f"over 1 seed, chance {result.chance:.4f}" in said and "±" not in said
    assert re.search(rf"│ chance +│.*{result.chance:.4f} │", said)
    for trial in trial_runs(result).values():
        assert trial.data.metrics["valid/chance"] == pytest.approx(result.chance)


def test_nothing_is_left_of_the_trials(result: StudyResult, store: Path) -> None:
    assert not list((store / "runs" / "first").glob("trial-*"))
    assert not [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.mark.parametrize("lost", [["test", "registered"], ["registered"], ["0", "test", "registered"]])
def test_steps_that_a_killed_driver_did_not_note_are_not_repeated(
    result: StudyResult, store: Path, dataset: Dataset, lost: list[str]
) -> None:
    """It is killed after the training's end, after the scoring, or after registering: the notes lack what came last."""
    (notes,) = (store / "runs" / "first" / "final").glob("*.json")
    whole = json.loads(notes.read_text())
    assert set(whole) == {"0", "test", "registered"}
    notes.write_text(json.dumps({key: noted for key, noted in whole.items() if key not in lost}))
    options: dict[str, Any] = {"space": find_space("margins"), "concurrent": 2, "storage": store / "runs"}
    again = tune(dataset, CONFIG, trials=TRIALS, repeats=0, final_seeds=1, name="first", resume=True, **options)
    assert again.final == result.final
    assert json.loads(notes.read_text()) == whole
    assert len([child for child in children(again) if "trial" not in child.data.tags]) == 1
    assert [folder.name for folder in notes.parent.iterdir() if folder.is_dir()] == [f"{notes.stem}-seed-0"]
    client = MlflowClient(result.run.uri)
    (version,) = client.search_model_versions("name='agman-tiny'")
    assert version.tags["search_run_id"] == result.run.run_id
    assert len(client.get_metric_history(version.run_id, "test/map")) == 1
    assert client.get_run(version.run_id).info.status == "FINISHED"


def test_a_finished_study_is_resumed_to_more_trials_and_another_final_trial(
    result: StudyResult, store: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"space": find_space("margins"), "concurrent": 2, "storage": store / "runs"}
    options |= {"trials": TRIALS + 1, "name": "first", "resume": True}
    more = tune(dataset, CONFIG, final_seeds=0, **options)
    assert more.trials[:TRIALS] == result.trials
    assert len(more.trials) == len(trial_runs(more)) == TRIALS + 1
    assert more.run == result.run
    other = next(trial for trial in more.trials if trial.number != more.best.number)
    asked: list[TrainConfig] = []

    def stopped(dataset: Dataset, config: TrainConfig, **options: Any) -> None:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.tuning.tune.train", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"^all trials have ended; .* --resume goes on"):
        tune(dataset, CONFIG, final_seeds=1, final_trial=other.number, **options)
    assert asked == [make_config(CONFIG.model_dump() | other.setting | {"seed": 0})]


def test_failed_trials_are_recorded_with_the_reason_and_the_others_go_on(
    ray_started: None, store: Path, dataset: Dataset
) -> None:
    def define(trial: optuna.Trial) -> None:
        trial.suggest_categorical("lr", [1e30, 1e-4])

    config = CONFIG.model_copy(update={"max_triplets": 24, "epochs": 1})
    options: dict[str, Any] = {
        "search": "random",
        "against": ("latency_ms",),
        "final_seeds": 0,
        "storage": store / "runs",
    }
    own = space(define, lr=1e30)
    result = tune(dataset, config, space=own, trials=3, seed=1, name="failing", **options)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert {trial.number for trial in failed} == {t.number for t in result.trials if t.setting["lr"] == 1e30} >= {0}
    assert result.best.state == "done" and 0 < result.best.objectives[1] < 10_000, "the latency in milliseconds"
    runs = trial_runs(result)
    for trial in failed:
        assert trial.reason.startswith("step 2 (epoch 1): the loss or its gradient is not finite")
        file = store / "runs" / "failing" / f"trial-{trial.number:04d}" / "non-finite-step-2.json"
        assert str(file) in trial.reason and json.loads(file.read_text())["step"] == 2
        assert (runs[trial.number].info.status, runs[trial.number].data.tags["reason"]) == ("FAILED", trial.reason)


def test_a_study_whose_every_trial_fails_says_why(ray_started: None, store: Path, dataset: Dataset) -> None:
    def define(trial: optuna.Trial) -> None:
        trial.suggest_float("lr", 1e30, 1e31)

    config = CONFIG.model_copy(update={"max_triplets": 24, "epochs": 1})
    options: dict[str, Any] = {"name": "all-fail", "final_seeds": 0, "write_report": write_study_report}
    with pytest.raises(JobFailed, match=r"all 2 trials failed, see .*; . of them: step 2 .* is not finite"):
        tune(dataset, config, space=space(define), trials=2, storage=store / "runs", **options)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment
    assert (store / "runs" / "all-fail" / "report" / "report.html").is_file()
    left = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    assert not left


def test_ray_tune_that_gives_up_again_and_again_ends_the_study(
    ray_started: None,
    store: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def give_up(*arguments: object) -> int:
        raise RuntimeError("no nodes")

    monkeypatch.setattr("pipeline.tuning.tune.run_trials", give_up)
    with pytest.raises(JobFailed, match=r"no trial ends any more on Ray Tune; .*--resume"):
        tune(dataset, CONFIG, space=find_space("margins"), trials=2, storage=store / "runs", name="given-up")
    assert capsys.readouterr().err.count("Ray Tune gave up: no nodes") == FRUITLESS_ROUNDS


def test_a_trial_killed_for_memory_continues_until_it_was_killed_too_often(
    result: StudyResult,
    store: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray's memory monitor reports its kill by an error of the whole experiment, which names the Ray worker.

    The study begins with what another one has learnt, which makes no trial its own.
    """

    def fit(tuner: Any) -> None:
        (suggester,) = created
        suggester.suggest("a")
        raise RuntimeError("the experiment failed") from OutOfMemoryError("worker ff00 was killed")

    def suggester_of(*arguments: Any) -> Any:
        created[:] = [_Suggester(*arguments)]
        return created[0]

    created: list[Any] = []
    monkeypatch.setattr("pipeline.tuning.ray_tune._Suggester", suggester_of)
    monkeypatch.setattr("ray.tune.Tuner.fit", fit)
    monkeypatch.setattr("pipeline.tuning.ray_tune.worker_of", lambda job, number: "ff00")
    with pytest.raises(JobFailed, match=rf"all 1 trials failed.* was killed {MAX_KILLS + 1} times by Ray's memory"):
        options: dict[str, Any] = {"storage": store / "runs", "name": "memory", "source": "first"}
        tune(dataset, CONFIG, space=find_space("margins"), trials=1, **options)
    said = capsys.readouterr().err
    assert said.count("trial 0: its process was killed by Ray's memory monitor") == MAX_KILLS
    assert re.search(rf"from first: 3 best settings to begin with, and [{TRIALS}-9] trials as knowledge", said)
    plan = json.loads((store / "runs" / "memory" / "search.json").read_text())["plan"]
    digest = json.loads((store / "runs" / "first" / "search.json").read_text())["digest"]
    assert plan["source"] == {"study": "first", "digest": digest}


def test_a_study_against_width_and_latency_has_a_front(
    ray_started: None, store: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    def define(trial: optuna.Trial) -> None:
        trial.suggest_categorical("embedding_dim", [8, 16])

    config = CONFIG.model_copy(update={"epochs": 1})
    widths = Space("own", define, {"embedding_dim": 16}, frozenset(["embedding_dim"]), "")
    options: dict[str, Any] = {"storage": store / "runs", "name": "front", "final_seeds": 0}
    against = ("embedding_dim", "latency_ms")
    result = tune(dataset, config, space=widths, trials=2, against=against, seed=2, repeats=1, **options)
    for trial in result.trials:
        best, width, latency = trial.objectives
        assert (best, width) == (trial.best, trial.setting["embedding_dim"]) and 0 < latency < 10_000
    assert result.metrics["front"] == [trial.number for trial in front_of(result.trials)] != []
    assert result.page is None, "no report was asked for"
    show_study(result)
    said = "".join(capsys.readouterr())
    assert all(name in said for name in against) and "done, front" in said and ", best" in said
    assert "to train: 2 trials of at most 1 epoch, then the best 3 settings × 1 other seed of 1 epoch" in said
    assert sorted(one.number for one in result.repeated) == [0, 1]
    repeats = [run for run in children(result) if run.data.tags.get("job") == "repeat"]
    assert {run.info.status for run in repeats} == {"FINISHED"} and {run.data.params["seed"] for run in repeats} == {
        "12"
    }
    assert all(len(one.values) == 2 for one in result.repeated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concurrent": 4096}, r"--concurrent 4096: the cluster has \d+ CPUs, and each needs one"),
        ({"workers": 3, "concurrent": 999}, "--concurrent 999 × --workers-per-trial 3 = 2997: the cluster has"),
        ({"scheduler": "asha", "against": ("embedding_dim",)}, "--scheduler asha judges by MAP alone"),
        ({"source": "frist"}, "--from frist: no such study in .*; did you mean 'first'"),
        ({"name": "first", "resume": True, "source": "first"}, r"holds another study \(source: None there, {.* here\)"),
        ({"final_trial": 1}, "--final-trial takes a trial of a study that is resumed"),
        ({"name": "first", "resume": True, "final_trial": 77}, "--final-trial 77: this study has no trial 77 with a"),
        ({"name": "nobody", "resume": True}, "nobody: no study of this plan to resume"),
        ({"name": "first", "resume": True, "seed": 5}, r"first: holds another study \(seed: 0 there, 5 here\)"),
        ({"name": "first", "resume": True, "trial_epochs": 2}, r"holds another study \(epochs: 3 there, 2 here\)"),
    ],
)
def test_impossible_studies_are_refused(
    result: StudyResult, store: Path, dataset: Dataset, change: dict, message: str
) -> None:
    before = sorted(str(path) for path in (store / "runs").iterdir())
    with pytest.raises(InputError, match=message):
        tune(dataset, CONFIG, **({"space": find_space("margins"), "trials": 3, "storage": store / "runs"} | change))
    assert sorted(str(path) for path in (store / "runs").iterdir()) == before


def test_a_space_is_checked_before_anything_trains(dataset: Dataset, tmp_path: Path) -> None:
    def too_wide(trial: optuna.Trial) -> None:
        trial.suggest_int("embedding_dim", 2, 6)

    own = Space("own", too_wide, {}, frozenset(["embedding_dim"]), "")
    with pytest.raises(InputError, match=r"--space own: with embedding_dim=.: embedding_dim . is less than n_attrib"):
        tune(dataset, CONFIG, space=own, trials=3, storage=tmp_path / "runs")
    with pytest.raises(InputError, match="--space own: varies epochs, but trials are compared at equal budget"):
        tune(dataset, CONFIG, space=replace(own, varied=frozenset(["epochs"])), trials=3, storage=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_a_changed_dataset_is_not_resumed(
    result: StudyResult, store: Path, dataset: Dataset, tmp_path: Path
) -> None:
    changed = Dataset(dataset.storage)
    changed.info = dataset.info.model_copy(update={"digest": "another"})
    options: dict[str, Any] = {"space": find_space("margins"), "storage": store / "runs", "name": "first"}
    with pytest.raises(InputError, match="has changed since this study began; begin another one with --name"):
        tune(changed, CONFIG, trials=9, resume=True, **options)


def test_a_folder_of_something_else_is_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="mine: is no study's folder, but not empty; give another --name"):
        tune(dataset, CONFIG, space=find_space("margins"), trials=3, storage=tmp_path / "runs", name="mine")
    assert (tmp_path / "runs" / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "margin"], "did you mean 'margins'?"),
        (["--trials", "0"], "0 is not in the range x>=1"),
        (["margin=0.3"], "varies it"),
        (["--against", "latency_ms,width"], "'width' is not one of 'embedding_dim', 'latency_ms'"),
        (["--search", "tpo"], "'tpo' is not one of 'tpe', 'random'"),
        (["epoch=3"], "unknown setting 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_mistake_is_one_clear_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert agman_exit_code("tune", "--data", dataset.path, *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
