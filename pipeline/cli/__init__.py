"""The `agman` command. Every subcommand is thin: read the request, call the job, show its figures.

Heavy imports happen inside the commands, so that `--help` and typing mistakes are answered at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.common.hints import nearest
from pipeline.config.presets import PRESETS

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

PATH = click.Path(path_type=Path, file_okay=True)


class Place(click.ParamType):
    """A folder (as a Path), or a URI (as it is: a Path would lose a slash)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        return value if "://" in str(value) else Path(value)


class WorkerRange(click.ParamType):
    """A number of workers, or at least and at most how many."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        least, dash, most = str(value).partition("-")
        if not least.isdecimal() or (dash and not most.isdecimal()):
            self.fail(f"{value!r} is neither a number nor MIN-MAX", param, ctx)
        pair = (int(least), int(most or least))
        if not 1 <= pair[0] <= pair[1]:
            self.fail(f"{value!r}: at least 1, and MIN not above MAX", param, ctx)
        return pair


PLACE = Place()
LAYOUT = click.Choice(["fashionai", "deepfashion", "zappos50k", "darn"])
BENCHMARK = click.Choice(
    [
        "annotation",
        "drawing",
        "evaluate",
        "loader",
        "model",
        "options",
        "packing",
        "precision",
        "retrieval",
        "scale",
        "search",
        "serve",
        "train",
        "triplets",
        "tune",
    ]
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON line on stdout.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all that is drawn."
)
data_option = click.option("--data", required=True, type=PLACE, metavar="OUT", help="Prepared dataset: folder or URI.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the folder, if this command made it.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="agman-pipeline")
def cli() -> None:
    """Train, search, register and serve attribute-specific fashion retrieval models."""


@cli.command()
@click.argument("layout", type=LAYOUT)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to make.")
@click.option("--images", default=2_000, show_default=True, type=click.IntRange(1), help="Pictures to draw.")
@click.option("--size", default=224, show_default=True, type=click.IntRange(32, 2048), help="Side in pixels.")
@seed_option
@click.option("--split-files", type=PATH, metavar="DIR", help="Draw exactly the rows of this annotation instead.")
@overwrite_option
@json_option
def sample(layout: str, out: Path, as_json: bool, **options: Any) -> None:
    """Draw a dataset in LAYOUT's official files."""
    from data_prep.synthetic.samples import sample as draw_dataset
    from pipeline.common.console import emit, progress_bar, say

    drawn = draw_dataset(layout, out, progress=progress_bar, **options)
    say(f"{drawn.images:,} images with {drawn.labels:,} labels in {out}")
    emit({"images": drawn.images, "labels": drawn.labels, "out": str(out)}, as_json)


@cli.command()
@click.argument("layout", type=LAYOUT)
@click.option("--root", required=True, type=PATH, metavar="DIR", help="The dataset's folder.")
@click.option("--out", required=True, type=PLACE, metavar="OUT", help="Prepared dataset to make: folder or URI.")
@click.option(
    "--split-files", type=PATH, metavar="DIR", help="ASEN split files or CSN triplet lists, if not in the root."
)
@click.option(
    "--annotation",
    type=click.Choice(["coarse", "fine"]),
    help="DeepFashion: which raw annotation.  [default: coarse if it is there]",
)
@click.option("--categories", is_flag=True, help="DeepFashion: the clothing category as one more attribute.")
@click.option("--crop-boxes", is_flag=True, help="DeepFashion: crop every picture to its bounding box.")
@click.option("--name", metavar="NAME", help="Names the experiment and the registered model; default: the layout.")
@click.option(
    "--triplets",
    type=click.IntRange(1, 100_000_000),
    help="Triplets per training epoch.  [default: 100000; all, where the dataset gives them]",
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 10_000),
    help="Epochs of triplets; longer trainings go round them.  [default: 10; 1, where the dataset gives them]",
)
@click.option(
    "--image-size",
    default=224,
    show_default=True,
    type=click.IntRange(32, 2048),
    help="Short side of packed images, pixels.",
)
@click.option(
    "--max-rejects",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Stop if more than this share of the annotation rows is rejected.",
)
@seed_option
@overwrite_option
@json_option
def prep(layout: str, root: Path, out: str | Path, as_json: bool, **options: Any) -> None:
    """Turn LAYOUT's official files into Parquet tables, triplets and packed images, and a page on them."""
    from data_prep.dataset import Dataset
    from data_prep.prepare import prepare
    from pipeline.cli.summaries import show_prepared
    from pipeline.common.console import emit, progress_bar
    from pipeline.reports.dataset.page import write_prep_report

    prepare(layout, root, out, progress=progress_bar, **options)
    dataset = Dataset(out)
    emit(show_prepared(write_prep_report(dataset), dataset.path), as_json)


@cli.command()
@click.option("--data", type=PLACE, metavar="OUT", help="Prepared dataset: folder or URI.")
@click.option("--model", "model_name", metavar="NAME", help="Model to train, as model=NAME.")
@click.option(
    "--workers",
    default="1",
    show_default=True,
    type=WorkerRange(),
    help="DDP workers, one GPU each if there are GPUs; MIN-MAX: as many as the cluster has room for.",
)
@click.option("--preset", metavar="NAME", help=f"Start from a recipe: {', '.join(PRESETS)}.")
@click.option(
    "--config",
    "config_file",
    type=PATH,
    metavar="FILE",
    help="YAML file of settings, over the preset; KEY=VALUE goes over it.",
)
@click.option(
    "--storage", default="runs", show_default=True, type=PLACE, help="Where trainings are kept: folder or URI."
)
@click.option("--fresh", is_flag=True, help="Begin anew, even if the same training can be continued.")
@click.option("--show-config", is_flag=True, help="List every setting with its value and meaning, and stop.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
@json_option
def train(
    data: str | Path | None,
    model_name: str | None,
    workers: tuple[int, int],
    preset: str | None,
    config_file: Path | None,
    storage: str | Path,
    fresh: bool,
    show_config: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model on Ray, log it to MLflow and register it.

    The same command continues a training that was stopped or killed.
    """
    from data_prep.dataset import Dataset
    from pipeline.common.console import emit
    from pipeline.config.schema import load_config
    from pipeline.config.settings import describe_settings

    config = load_config(config_file, (*settings, *([f"model={model_name}"] if model_name else [])), preset)
    if not show_config and data is None:
        raise click.UsageError("Missing option '--data'.")
    dataset = Dataset(data) if data is not None else None
    from pipeline.training.train import preview, show
    from pipeline.training.train import train as run_training

    if show_config or dataset is None:
        config = preview(config, dataset, workers[1])
        describe_settings(config, preset)
        return emit(config.model_dump(), as_json)
    emit(show(run_training(dataset, config, workers=workers, storage=storage, fresh=fresh)), as_json)


@cli.command()
@click.argument("model")
@data_option
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["valid", "test"]), help="Split to score."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16"]),
    help="Of the embeddings; bf16 is faster on hardware that computes in it.",
)
@json_option
def evaluate(model: str, data: str | Path, split: str, precision: str, as_json: bool) -> None:
    """Score MODEL (models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint folder or a published .pth.tar) on a split.

    The figures are logged to the MLflow run that trained the model, if the dataset is the one it was trained on.
    """
    from data_prep.dataset import Dataset
    from pipeline.common.console import emit, progress_bar
    from pipeline.evaluation.evaluate import evaluate as run_evaluation
    from pipeline.evaluation.evaluate import log
    from pipeline.evaluation.tables import show
    from pipeline.registry.models import load

    dataset = Dataset(data)
    network, description = load(model, dataset.info.attribute_names)
    evaluation = run_evaluation(network, description, dataset, split, precision=precision, progress=progress_bar)
    show(evaluation)
    emit(evaluation.figures, as_json)  # before they are logged: the store may not answer
    log(evaluation, description, dataset)


@cli.command()
@data_option
@click.option(
    "--space",
    default="margins",
    show_default=True,
    metavar="NAME",
    help="Search space: margins, loss_weights, embedding, optimizer, full, or your own MODULE:FUNCTION.",
)
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Trainings to run.")
@click.option("--concurrent", default=2, show_default=True, type=click.IntRange(1), help="Trials at a time.")
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
    "--search", default="tpe", show_default=True, type=click.Choice(["tpe", "random"]), help="Who suggests settings."
)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "none"]),
    help="Who stops trials early.  [default: asha; none with --against]",
)
@click.option(
    "--against",
    type=click.Choice(["embedding_dim", "latency_ms"]),
    help="Search for a Pareto front of MAP against this, less being better.",
)
@click.option(
    "--final-seeds",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="Trainings of the best setting for all epochs; the best of them is registered. 0: none.",
)
@click.option("--preset", metavar="NAME", help=f"Start from a recipe: {', '.join(PRESETS)}.")
@click.option("--config", "config_file", type=PATH, metavar="FILE", help="YAML file of settings, over the preset.")
@click.option(
    "--storage", default=Path("runs"), show_default=True, type=PATH, help="Where searches are kept: a folder."
)
@click.option("--name", metavar="NAME", help="The search's folder there; by default made of its plan.")
@click.option("--resume", is_flag=True, help="Go on with the search of this plan; with more --trials, further.")
@seed_option
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
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
    """Search a space with Optuna on Ray Tune, and register what its best setting makes.

    KEY=VALUE sets what does not vary. Killed or stopped, the same command with --resume goes on.
    """
    from data_prep.dataset import Dataset
    from pipeline.cli.tune import show_study
    from pipeline.common.console import emit
    from pipeline.config.schema import load_config
    from pipeline.reports.study.page import write_study_report
    from pipeline.tuning.spaces import find_space, refuse_varied
    from pipeline.tuning.tune import tune as run_search

    config, found = load_config(config_file, settings, preset), find_space(space)
    refuse_varied(found, settings)
    sweep = run_search(Dataset(data), config, space=found, write_report=write_study_report, **options)
    show_study(sweep)
    emit(sweep.figures, as_json)


@cli.command()
@data_option
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME",
    help="May be given several times: csn, asenet_v2, attnfashion, isln, agman, no_multi_level, no_classification, "
    "no_asa, no_sa, no_aca, no_mask.  [default: all]",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each system.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="DDP workers of each training.")
@click.option("--preset", metavar="NAME", help=f"Start from a recipe: {', '.join(PRESETS)}.")
@click.option("--config", "config_file", type=PATH, metavar="FILE", help="YAML file of settings, over the preset.")
@click.option(
    "--storage", default=Path("runs"), show_default=True, type=PATH, help="Where comparisons are kept: a folder."
)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
@json_option
def compare(
    data: str | Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train the systems of the papers' tables, and AG-MAN without its parts, under one budget; score them on test.

    KEY=VALUE is the budget and recipe of all. Killed or stopped, the same command goes on.
    """
    from data_prep.dataset import Dataset
    from pipeline.cli.tune import show_comparison
    from pipeline.common.console import emit
    from pipeline.compare.compare import compare as run_comparison
    from pipeline.compare.compare import refuse_own
    from pipeline.config.schema import load_config
    from pipeline.reports.compare import write_comparison_report

    refuse_own(settings)
    config = load_config(config_file, settings, preset)
    comparison = run_comparison(Dataset(data), config, **options)
    emit(show_comparison(comparison, write_comparison_report(comparison)), as_json)


@cli.command()
@click.argument("model")
@data_option
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["valid", "test"]), help="Split to compare on."
)
@click.option(
    "--tolerance",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="MAP that any attribute may lose, as a share.",
)
@click.option("--force", metavar="REASON", help="Promote it whatever the scores say; the reason is recorded.")
@json_option
def promote(model: str, data: str | Path, as_json: bool, **options: Any) -> None:
    """Make MODEL the champion if it is better than the champion beyond noise.

    MODEL is NAME (its challenger), models:/NAME@ALIAS or models:/NAME/VERSION. A refusal is an answer too: exit code 0.
    """
    from data_prep.dataset import Dataset
    from pipeline.common.console import emit, progress_bar
    from pipeline.registry.promotion import promote as run_promotion
    from pipeline.registry.promotion import show

    decision = run_promotion(model, Dataset(data), progress=progress_bar, **options)
    show(decision)
    emit(decision.figures, as_json)


@cli.command()
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is recorded.")
@json_option
def rollback(name: str, reason: str, as_json: bool) -> None:
    """Give the champion's alias of the registered model NAME back to the version that had it before."""
    from pipeline.common.console import emit, say
    from pipeline.registry.promotion import rollback as run_rollback

    now, before = run_rollback(name, reason)
    say(f"{name}: version {now} is the champion again, in the place of version {before}")
    emit({"champion": int(now), "rolled_back": int(before)}, as_json)


@cli.command()
@click.argument("model")
@data_option
@click.option("--out", default=Path("report.html"), show_default=True, type=PATH, help="Page to write.")
@json_option
def report(model: str, data: str | Path, out: Path, as_json: bool) -> None:
    """Write one self-contained page on MODEL: MAP table, curves, attention, galleries."""
    from data_prep.dataset import Dataset
    from pipeline.common.console import emit, say
    from pipeline.reports.model.page import write_report

    figures = write_report(model, Dataset(data), out)
    say(f"page: {out.absolute()}")
    emit(figures | {"page": str(out)}, as_json)


@cli.command()
@click.argument("model")
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to make.")
@overwrite_option
@json_option
def export(model: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write MODEL for other programs: safetensors, a torch.export program, and ONNX."""
    from pipeline.common.console import emit
    from pipeline.registry.export import export as run_export
    from pipeline.registry.export import show

    figures = run_export(model, out, overwrite=overwrite)
    show(figures)
    emit(figures, as_json)


@cli.command()
@click.argument("model")
@click.option(
    "--images",
    required=True,
    type=PLACE,
    metavar="PLACE",
    help="Folder of pictures, Parquet files, or a prepared dataset.",
)
@click.option("--out", required=True, type=PATH, metavar="GALLERY", help="Gallery to make: a folder.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, one GPU each if there are GPUs."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16"]),
    help="What the model computes in.",
)
@overwrite_option
@json_option
def embed(model: str, images: str | Path, out: Path, as_json: bool, **options: Any) -> None:
    """Embed pictures under every attribute of MODEL, for `agman search` and `agman serve`.

    Killed or stopped, the same command goes on.
    """
    from pipeline.common.console import emit, progress_bar
    from pipeline.retrieval.embed import embed_images, show

    emit(show(embed_images(model, images, out, progress=progress_bar, **options)), as_json)


@cli.command()
@click.argument("gallery", type=PATH)
@json_option
def index(gallery: Path, as_json: bool) -> None:
    """Build an approximate index of GALLERY, for `agman search --approximate`; measures its recall."""
    from dataclasses import asdict

    from pipeline.common.console import emit, progress_bar, say
    from pipeline.retrieval.faiss_index import RECALL_AT
    from pipeline.retrieval.gallery import Gallery

    measured = Gallery.open(gallery).build_index(progress_bar).measured
    say(
        f"index of {measured.rows:,} pictures: {measured.lists:,} lists, {measured.probes:,} of them looked into; "
        f"recall@{RECALL_AT} {measured.recall:.3f} against exact search"
    )
    emit(asdict(measured), as_json)


@cli.command()
@click.argument("gallery", type=PATH)
@click.option("--query", required=True, type=PATH, metavar="IMAGE", help="Picture to look for.")
@click.option(
    "--attribute", "attributes", required=True, multiple=True, metavar="NAME", help="May be given several times."
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many to show.")
@click.option("--approximate", is_flag=True, help="By the index that `agman index` has built.")
@click.option("--model", metavar="MODEL", help="The gallery's model, if it has moved.")
@json_option
def search(gallery: Path, query: Path, attributes: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """The pictures of GALLERY that are most like IMAGE under one or several attributes."""
    from pipeline.common.console import emit
    from pipeline.retrieval.search import run_search, show

    emit(show(run_search(gallery, query, attributes, **options), attributes), as_json)


@cli.command()
@click.argument("gallery", type=PATH)
@click.option("--model", metavar="MODEL", help="The gallery's model, if it has moved.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: every one.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes, one GPU each if there are GPUs.",
)
@click.option(
    "--max-batch", default=32, show_default=True, type=click.IntRange(1), help="Pictures that pass the model together."
)
@click.option(
    "--wait-ms", default=5.0, show_default=True, type=click.FloatRange(0), help="How long one waits for others, ms."
)
def serve(gallery: Path, model: str | None, **options: Any) -> None:
    """Serve GALLERY over HTTP, with a page to search it by picture and attribute. Ctrl-C stops it."""
    from pipeline.serving.run import Options, serve_until_stopped

    serve_until_stopped(gallery, model, Options(**options))


@cli.command()
@click.option("--data", type=PLACE, metavar="OUT", help="Prepared dataset to look through: folder or URI.")
@click.option(
    "--storage", default="runs", show_default=True, type=PLACE, metavar="PLACE", help="Where checkpoints would go."
)
@json_option
def doctor(data: str | Path | None, storage: str | Path, as_json: bool) -> None:
    """Check versions, devices, Ray, storage, MLflow and, with --data, a dataset; exit code 1 if one is wrong."""
    from pipeline.cluster.doctor import examine
    from pipeline.common.console import emit, progress_bar, say

    findings = []
    for finding in examine(data, storage, progress_bar):
        findings.append(finding)
        say(f"{'ok  ' if finding.ok else 'WRONG'} {finding.check}: {finding.found}")
        if finding.remedy:
            say(f"      what to do: {finding.remedy}")
    ill = [finding.check for finding in findings if not finding.ok]
    emit({"checks": len(findings), "wrong": ill}, as_json)
    if ill:
        raise JobFailed(f"{len(ill)} of {len(findings)} checks: {', '.join(ill)}")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    metavar="URL",
    help="The head's dashboard; RAY_API_SERVER_ADDRESS.",
)
@click.option("--env", "names", multiple=True, metavar="NAME", help="Hand this variable's value to the job; repeat it.")
@click.option(
    "--working-dir", type=PATH, metavar="DIR", help="Files that the job is to have in its working folder; uploaded."
)
def submit(command: tuple[str, ...], address: str, names: tuple[str, ...], working_dir: Path | None) -> int:
    """Run an agman COMMAND on a cluster, as in `submit -- train --data s3://…`; follow its log, exit as it does."""
    from pipeline.cluster.submit import submit as run_submission

    if command[0] not in cli.commands:
        raise InputError(f"{command[0]}: no such command; {nearest(command[0], cli.commands)}")
    return run_submission(command, address, names, working_dir)


@cli.command()
@click.option("--out", default=Path("demo"), show_default=True, type=PATH, help="Folder to make.")
@click.option("--images", default=4_000, show_default=True, type=click.IntRange(200), help="Pictures to draw.")
@seed_option
@overwrite_option
@json_option
def demo(out: Path, images: int, seed: int, overwrite: bool, as_json: bool) -> None:
    """The whole way on a drawn dataset: sample, prep, train, tune, evaluate, register, report."""
    from pipeline.cli.demo import run_demo
    from pipeline.common.console import emit

    emit(run_demo(out, images=images, seed=seed, overwrite=overwrite), as_json)


@cli.command()
@click.argument("name", type=BENCHMARK, metavar="NAME")
def bench(name: str) -> None:
    """Measure NAME side by side with the plain way; writes a dated table to benchmarks/results.

    NAME is annotation, drawing, evaluate, loader, model, options, packing, precision, retrieval,
    scale, search, serve, train, triplets or tune.
    """
    import importlib

    importlib.import_module(f"benchmarks.{name}").main()


def main() -> None:
    """Entry point: every error that a user can cause is one line on stderr."""
    sys.exit(_exit_code(lambda: cli.main(prog_name="agman", standalone_mode=False)))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        returned = command()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_REQUEST
    except click.ClickException as error:
        return _complain(" ".join(error.format_message().split()), WRONG_REQUEST)
    except InputError as error:
        return _complain(str(error), WRONG_REQUEST)
    except JobFailed as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, click.Abort) as stop:
        said = (stop.__cause__ or stop).args  # click turns the one into the other
        return _complain(": ".join(["interrupted", *map(str, said)]), INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _complain(f"{error.filename or 'disk'}: no space left on device", WRONG_REQUEST)
        return _complain(f"{error.filename or type(error).__name__}: {error.strerror or error}", FAILED)
    return returned if isinstance(returned, int) else DONE


def _complain(message: str, code: int) -> int:
    from pipeline.common.console import close_bars, printable

    close_bars()
    print(f"agman: {printable(message, longest=2_000)}", file=sys.stderr)
    return code
