"""Who began a run, with which command, on which code and data: MLflow's tags and descriptions for people.

Nothing here needs MLflow, and nothing is sent from here.
"""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.common.console import printable
from pipeline.common.errors import shown_word
from pipeline.common.markdown import code, plain, with_rows

if TYPE_CHECKING:
    from data_prep.tables import DatasetInfo

USER, COMMIT, SOURCE, SOURCE_TYPE, NOTE = (
    "mlflow.user",
    "mlflow.source.git.commit",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.note.content",
)
"""MLflow's documented system tags: user, commit, program and description of a run."""
COMMAND, SWEEP, LABELS = "command", "sweep", ("model", "backbone")
"""Tags of a run: the command line, the study that it belongs to, and the settings by which runs are looked for."""
OF_VERSION = {USER: "trained_by", COMMIT: "git_commit"} | {
    key: key for key in (COMMAND, SWEEP, "dataset", "dataset_digest")
}
"""Tag of a run -> tag of its registered version; MLflow's pages hide tags that begin with "mlflow."."""
AGMAN_USER, AGMAN_COMMIT = "AGMAN_USER", "AGMAN_COMMIT"
"""Environment variables that take the place of this machine's user and the working folder's commit."""
LONGEST = 2_000
"""Characters of a command line that are kept."""
GIT_SECONDS = 5.0
"""Seconds that git has to answer, say in a working folder on a slow disk."""


def variables() -> dict[str, str]:
    """Return the environment variables with which a job on another machine has this user and this commit."""
    found = {AGMAN_USER: user_name(), AGMAN_COMMIT: git_commit()}
    return {name: value for name, value in found.items() if value}


def origin_tags() -> dict[str, str]:
    """Return tags with the user, the program, the command line and the commit of the working folder's repository."""
    command = command_line()
    source = " ".join(command.split()[:2]) if command else Path(sys.argv[0]).name
    tags = {USER: user_name(), SOURCE: source, SOURCE_TYPE: "LOCAL", COMMAND: command, COMMIT: git_commit()}
    return {key: value for key, value in tags.items() if value}


def user_name() -> str:
    """Return AGMAN_USER or the name with which the user has logged in; empty if the machine knows none."""
    try:
        return os.environ.get(AGMAN_USER) or getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return ""


def git_commit() -> str:
    """Return AGMAN_COMMIT or the commit of the working folder's git repository; empty if there is none."""
    if given := os.environ.get(AGMAN_COMMIT):
        return given
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if done.returncode else done.stdout.strip()


def command_line() -> str:
    """Return the `agman` command of this thread for a shell, without secrets; empty if Python called."""
    context = click.get_current_context(silent=True)
    words = context.find_object(list) if context else None
    return printable(shlex.join(["agman", *map(shown_word, words)]), LONGEST) if words else ""


def labels_of(params: Mapping[str, Any], dataset: DatasetInfo) -> dict[str, str]:
    """Return the tags by which people look for a run: model, backbone, dataset and its digest."""
    labels = {key: str(params[key]) for key in LABELS if params.get(key)}
    return labels | {"dataset": dataset.name, "dataset_digest": dataset.digest}


def describe_run(dataset: DatasetInfo, tags: Mapping[str, str]) -> str:
    """Return a run's description, as Markdown: what it makes of which data, who began it, and how."""
    job = [tags[key] for key in ("job", tags["job"]) if tags.get(key)] if "job" in tags else []
    rows = {
        "job": " ".join(job),
        "study": code(tags[SWEEP]) if SWEEP in tags else "",
        **made_by(version_tags(tags) | {key: tags[key] for key in LABELS if key in tags}),
        "pictures": ", ".join(f"{count:,} {split}" for split, count in dataset.images.items() if count),
    }
    return with_rows("", {name: text for name, text in rows.items() if text})


def version_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return what a registered version takes over of the tags of the run that trained it."""
    return {name: tags[key] for key, name in OF_VERSION.items() if key in tags}


def made_by(tags: Mapping[str, str]) -> dict[str, str]:
    """Return name -> Markdown of what a version's tags say of its model, data, user, command and commit."""
    digest = f" (digest {code(tags['dataset_digest'][:12])})" if "dataset_digest" in tags else ""
    rows = {
        "model": " on ".join(plain(tags[key]) for key in LABELS if key in tags),
        "trained on": f"**{plain(tags['dataset'])}**{digest}" if "dataset" in tags else "",
        "trained by": plain(tags.get(OF_VERSION[USER], "")),
        "command": code(tags[COMMAND]) if COMMAND in tags else "",
        "git commit": code(tags[OF_VERSION[COMMIT]]) if OF_VERSION[COMMIT] in tags else "",
    }
    return {name: text for name, text in rows.items() if text}
