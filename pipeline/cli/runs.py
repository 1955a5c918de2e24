"""`agman runs`: what --storage holds, and removal of the checkpoints that nobody needs any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option, storage_option
from pipeline.common.console import emit, show, show_table

if TYPE_CHECKING:
    from pipeline.training.jobs import Job


@click.group(invoke_without_command=True)
@storage_option
@json_option
@click.pass_context
def runs(context: click.Context, storage: str | Path, as_json: bool) -> None:
    """List trainings, studies and comparisons with state and size.

    They are those in --storage, with their scores. `agman runs clean` removes the checkpoints of those that are
    finished.
    """
    if context.invoked_subcommand:
        context.default_map = {"clean": {"storage": str(storage), "as_json": as_json}}
        return
    jobs = _jobs(storage)
    rows = [
        [
            str(job.folder).rpartition("/")[2],
            job.kind,
            job.state,
            *("" if number is None else f"{number:.4f}" for number in (job.score, job.chance)),
            _size(job.size),
            _size(sum(job.checkpoints.values())),
        ]
        for job in jobs
    ]
    show_table(str(storage), ["name", "kind", "state", "best score", "chance", "size", "of it checkpoints"], rows)
    fields = ("kind", "state", "score", "chance", "size")
    emit(
        {"jobs": [{"folder": str(job.folder)} | {name: getattr(job, name) for name in fields} for job in jobs]}, as_json
    )


@runs.command()
@storage_option
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@json_option
def clean(storage: str | Path, dry_run: bool, as_json: bool) -> None:
    """Remove the checkpoints of finished trainings and studies.

    Nothing of an unfinished or running one is removed, and registered versions have copies of their own.
    """
    from pipeline.training.jobs import FINISHED
    from pipeline.training.jobs import clean as remove

    freed = 0
    for job in _jobs(storage):
        if job.state == FINISHED and job.checkpoints:
            size = sum(job.checkpoints.values()) if dry_run else remove(job)
            show(f"{job.folder}: {_size(size)} of checkpoints {'would be removed' if dry_run else 'removed'}")
            freed += size
    show(f"{_size(freed)} {'would be ' if dry_run else ''}freed")
    emit({"freed": freed, "dry_run": dry_run}, as_json)


def _jobs(storage: str | Path) -> list[Job]:
    from data_prep.errors import InputError
    from data_prep.storage import Storage
    from pipeline.training.jobs import jobs_in

    root = Storage(storage)
    if root.local and not root.local.is_dir():
        raise InputError(f"--storage {storage}: no such folder; give the one that `agman train` wrote")
    return list(jobs_in(root))


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
