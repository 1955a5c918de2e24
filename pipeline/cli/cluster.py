"""`agman doctor`, `submit` and `bench`: the machine, the cluster, and how fast they are."""

from __future__ import annotations

import pkgutil
from importlib.util import find_spec
from pathlib import Path

import click

from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.words import counted
from pipeline.cli.options import FOLDER, PATH_OR_URI, json_option
from pipeline.common.console import emit, progress_bar, show
from pipeline.common.errors import JobFailed

_FOLDERS = getattr(find_spec("benchmarks"), "submodule_search_locations", None)
BENCHMARKS = [module.name for module in pkgutil.iter_modules(_FOLDERS or []) if module.name != "common"]
"""Names of the modules that can be run; `common` is what they share."""


@click.command()
@click.option("--data", type=PATH_OR_URI, metavar="OUT", help="Prepared dataset to check: folder or URI.")
@click.option(
    "--storage",
    default="runs",
    show_default=True,
    type=PATH_OR_URI,
    metavar="DIR",
    help="Where checkpoints would be written: folder or URI.",
)
@json_option
def doctor(data: str | Path | None, storage: str | Path, as_json: bool) -> None:
    """Check what this machine lacks, and with --data a dataset.

    Checks are of versions, devices, Ray, storage and MLflow. The exit code is 1 if one fails.
    """
    from pipeline.cluster.doctor import examine

    findings = []
    for finding in examine(data, storage, progress_bar):
        findings.append(finding)
        show(f"{'ok  ' if finding.ok else 'WRONG'} {finding.check}: {finding.found}")
        if finding.remedy:
            show(f"      what to do: {finding.remedy}")
    wrong = [finding.check for finding in findings if not finding.ok]
    emit({"checks": len(findings), "wrong": wrong}, as_json)
    if wrong:
        raise JobFailed(f"{len(wrong)} of {counted(len(findings), 'check')} failed: {', '.join(wrong)}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    metavar="URL",
    help="Dashboard of the head node; default: RAY_API_SERVER_ADDRESS, if it is set.",
)
@click.option(
    "--env",
    "names",
    multiple=True,
    metavar="NAME",
    help="Pass the value of this environment variable to the job; may be given several times.",
)
@click.option("--working-dir", type=FOLDER, metavar="DIR", help="Files to upload to the job's working folder.")
@click.pass_context
def submit(
    context: click.Context, command: tuple[str, ...], address: str, names: tuple[str, ...], working_dir: Path | None
) -> int:
    """Run an agman COMMAND on a cluster, and show its log.

    For example: `agman submit -- train --data s3://…`. The exit code is that of the command.
    """
    assert context.parent and isinstance(context.parent.command, click.Group)
    commands = context.parent.command.commands
    if command[0] not in commands:
        raise InputError(f"{command[0]}: no such command; {nearest(command[0], commands)}")
    from pipeline.cluster.submit import submit as run_submission

    return run_submission(command, address, names, working_dir)


@click.command(
    help="Measure NAME side by side with a plain implementation.\n\nA dated table goes to benchmarks/results. "
    f"NAME is one of {', '.join(BENCHMARKS)}."
)
@click.argument("name", type=click.Choice(BENCHMARKS), metavar="NAME")
def bench(name: str) -> None:
    """Run the benchmark `benchmarks.NAME`."""
    import importlib

    importlib.import_module(f"benchmarks.{name}").main()
