"""`agman tune` and `agman compare`: many trainings on one dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.words import counted
from pipeline.cli.options import PATH, data_option, json_option, recipe_options, seed_option
from pipeline.common.console import emit, mean_and_deviation, say, show_table
from pipeline.compare.systems import SYSTEMS, refuse_own

if TYPE_CHECKING:
    from pipeline.compare.compare import Comparison
    from pipeline.tuning.tune import StudyResult


class _Objectives(click.ParamType):
    """Objectives beside MAP, separated by commas."""

    name = "objectives"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        for name in names:
            if name not in ("embedding_dim", "latency_ms"):
                self.fail(f"{name!r} is not one of 'embedding_dim', 'latency_ms'", param, ctx)
        return names


@click.command()
@data_option
@click.option(
    "--space",
    default="margins",
    show_default=True,
    metavar="NAME",
    help="Search space: margins, recipe, batches, losses, embedding, full, or your own MODULE:FUNCTION.",
)
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Number of trials.")
@click.option("--concurrent", default=2, show_default=True, type=click.IntRange(1), help="Trials that run at a time.")
@click.option(
    "--workers-per-trial",
    "workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="DDP workers of each trial; 1 trains in the trial's own process.",
)
@click.option(
    "--trial-epochs", type=click.IntRange(1), metavar="N", help="Epochs of a trial.  [default: all, as epochs=N]"
)
@click.option(
    "--search",
    default="tpe",
    show_default=True,
    type=click.Choice(["tpe", "random", "gp"]),
    help="Algorithm that suggests settings; gp learns from trials alone that were not stopped early.",
)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "hyperband", "median", "none"]),
    help="Algorithm that stops trials early.  [default: asha; none with --against]",
)
@click.option(
    "--against",
    type=_Objectives(),
    default=(),
    metavar="NAME,...",
    help="Objectives to be minimised, embedding_dim, latency_ms or both: find the Pareto front of MAP against them.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0),
    metavar="N",
    help="Other seeds with which the best 3 settings are trained before the best, by the mean, is trained in full."
    "  [default: 2; 0 with --final-seeds 0]",
)
@click.option(
    "--final-seeds",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="Trainings of the best setting for all epochs; the best of them is registered. 0: none.",
)
@click.option(
    "--final-trial",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="With --resume: train and register this trial's setting, say of the Pareto front, instead of the best.",
)
@click.option(
    "--storage", default=Path("runs"), show_default=True, type=PATH, metavar="DIR", help="Folder of the studies."
)
@click.option("--name", metavar="NAME", help="Folder of this study there.  [default: made from its plan]")
@click.option(
    "--from",
    "source",
    metavar="STUDY",
    help="Begin with an earlier study's best settings, and with its trials as knowledge if dataset, space and fixed"
    " settings are the same: a folder's name in --storage, or a path.",
)
@click.option("--resume", is_flag=True, help="Continue the study of this plan; a larger --trials extends it.")
@seed_option
@recipe_options
@json_option
def tune(
    data: str | Path,
    space: str,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Search a space of settings, and train and register the best.

    Optuna searches, on Ray Tune. KEY=VALUE sets what does not vary. The same command with --resume continues a study
    that was stopped or killed.
    """
    from pipeline.config.schema import load_config
    from pipeline.tuning.spaces import find_space, refuse_varied

    found = find_space(space)
    refuse_varied(found, settings)
    config = load_config(config_file, settings, preset, found.varied)
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.reports.study.page import write_study_report
    from pipeline.tuning.tune import tune as run_study

    study = run_study(dataset, config, space=found, write_report=write_study_report, **options)
    show_study(study)
    emit(study.metrics, as_json)


def show_study(study: StudyResult) -> None:
    """Show every trial, the best first, and what became of the best setting."""
    from pipeline.evaluation.chance import evidence_in
    from pipeline.tuning.repeats import described
    from pipeline.tuning.study import FAILED, METRIC, places_of
    from pipeline.tuning.tune import short

    keys = list(dict.fromkeys(key for trial in study.trials for key in trial.setting))
    places = places_of(study.trials) if study.against else {}
    repeated = {one.number: one for one in study.repeated}
    seeds = ["mean of seeds"] if repeated else []
    rows = []
    for trial in sorted(study.trials, key=lambda trial: (trial is not study.best, -trial.best)):
        costs = [f"{value:.4g}" for value in trial.objectives[1:]] or ["" for _ in study.against]
        ended = ", ".join([trial.state, *([places[trial.number]] if trial.number in places else [])])
        setting = (short(trial.setting.get(key, "")) for key in keys)
        mean = [described(repeated.get(trial.number), trial is study.best) for _ in seeds]
        rows.append([str(trial.number), *setting, f"{trial.best:.4f}", *mean, *costs, ended])
    blank = ["" for _ in (*seeds, *study.against)]
    rows.append(["chance", *("" for _ in keys), f"{study.chance:.4f}", *blank, ""])
    show_table(f"Trials in the space {study.space}", ["trial", *keys, METRIC, *seeds, *study.against, "ended"], rows)
    for trial in study.trials:
        if trial.state == FAILED:
            say(f"  trial {trial.number} failed: {trial.reason}")
    if study.final:
        reached = mean_and_deviation(study.final.valid, scale=1, digits=4)
        over = counted(len(study.final.valid), "seed")
        say(f"full budget  trial {study.final.trial}: {METRIC} {reached} over {over}, chance {study.chance:.4f}")
        test, chance = (study.final.test[f"test/{name}"] for name in ("map", "chance"))
        say(f"             test/map {test:.4f}, chance {chance:.4f}, with the seed that is best on validation")
        say(f"registered   {study.final.model_uri} ({study.final.alias})")
        found = evidence_in(study.final.test, "test", int(study.final.test["test/queries"]))
        if found and found.doubt:
            say(f"note: {found.doubt}")
    if study.page:
        say(f"page         {study.page}")


@click.command()
@data_option
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Choice(list(SYSTEMS)),
    metavar="NAME",
    help=f"May be given several times: {', '.join(SYSTEMS)}.  [default: all]",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each system.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="DDP workers of each training.")
@click.option(
    "--storage", default=Path("runs"), show_default=True, type=PATH, metavar="DIR", help="Folder of the comparisons."
)
@recipe_options
@json_option
def compare(
    data: str | Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train and score the systems of the papers' tables on one budget.

    AG-MAN without its components is among them. KEY=VALUE sets budget and recipe of all. The same command continues a
    comparison that was stopped or killed.
    """
    from pipeline.config.schema import load_config

    refuse_own(settings)
    config = load_config(config_file, settings, preset)
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.compare.compare import compare as run_comparison
    from pipeline.reports.compare import write_comparison_report

    comparison = run_comparison(dataset, config, **options)
    emit(show_comparison(comparison, write_comparison_report(comparison)), as_json)


def show_comparison(comparison: Comparison, page: Path) -> dict[str, Any]:
    """Show the table, a row for each system; return the result for --json."""
    from pipeline.compare.compare import SPLIT
    from pipeline.evaluation.few import meaning_for
    from pipeline.reports.compare import comparison_table

    header, rows = comparison_table(comparison)
    seeds = len({one.seed for one in comparison.scored})
    over = "one seed" if seeds == 1 else f"mean ± deviation over {seeds} seeds"
    show_table(f"MAP on {SPLIT} of {comparison.dataset}, times 100, {over}", header, rows)
    for line in meaning_for(comparison.queries.values()):
        say(line)
    if any(SYSTEMS[key].interpretation for key in comparison.systems):
        say("* an interpretation: its paper has neither public code nor equations")
    say(f"page: {page}")
    result: dict[str, Any] = {"page": str(page), "run_id": comparison.run.run_id, "seeds": seeds}
    return (
        result
        | comparison.metrics
        | {"failed": [f"{one.system}, seed {one.seed}" for one in comparison.scored if one.failed]}
    )
