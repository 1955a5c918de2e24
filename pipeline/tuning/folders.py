"""Folders of studies: the identity of a study, which study lies in which folder, and who may work in it."""

from __future__ import annotations

import hashlib
import itertools
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.storage import Storage
from pipeline.common.files import read_json
from pipeline.common.lock import locked
from pipeline.training.jobs import SEARCH
from pipeline.tuning.samplers import first_judged
from pipeline.tuning.spaces import Space
from pipeline.tuning.study import Plan

DESCRIPTION, STUDY = SEARCH, "study.db"
"""Files in a study's folder: its description, and its Optuna study."""


def identity_of(plan: Plan, space: Space) -> dict[str, Any]:
    """Return what makes a study another one, as JSON stores it."""
    identity = asdict(plan) | {"varied": sorted(space.varied), "start": space.start}
    if (first := first_judged(plan.scheduler, plan.settings["epochs"])) is not None:
        # Optuna numbers the rungs. If their first epochs differ, trials of unequal length would be compared.
        identity["first_judged"] = first
    return dict(json.loads(json.dumps(identity, default=str)))


def difference(before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...] = ()) -> str:
    """Return the first difference between two identities, or nothing."""
    one, other = ({**identity["settings"], **identity, "settings": None} for identity in (before, now))
    keys = [key for key in dict.fromkeys([*other, *one]) if key not in ignored]
    return next((f"{k}: {one.get(k)} there, {other.get(k)} here" for k in keys if one.get(k) != other.get(k)), "")


def find_study(storage: Path, name: str) -> Path:
    """Return the folder of the study NAME in `storage`, or at the path NAME. Raises InputError if there is none."""
    for folder in (storage / name, Path(name)):
        if (folder / DESCRIPTION).is_file():
            return folder
    names = _studies(storage)
    hint = nearest(name, names) if names else "there is none"
    raise InputError(f"--from {name}: no such study in {storage}; {hint}")


def claimed(
    stack: ExitStack, storage: Path, name: str | None, resume: bool, dataset: Dataset, plan: Plan, space: Space
) -> tuple[Path, dict[str, Any]]:
    """Lock the study's folder for this process; return it and the content of its description.

    Finished studies are passed over: the next study of the same plan is NAME-2, then NAME-3. Raises InputError if the
    folder holds another study, or something else.
    """
    identity = identity_of(plan, space)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = name or f"{dataset.info.name}-{plan.space.replace(':', '-')}-{digest[:8]}"
    numbers = itertools.takewhile(lambda number: _folder(storage, name, number).exists(), itertools.count(1))
    last = max(numbers, default=0)
    folder = _folder(storage, name, max(last, 1))
    begun = read_json(Storage(folder / DESCRIPTION))
    if resume and not begun:
        there = _others(storage)
        raise InputError(f"{folder}: no study of this plan to resume; leave --resume out to begin it{there}")
    if begun:
        if begun["digest"] != digest:
            why = difference(begun["plan"], identity)
            raise InputError(f"{folder}: holds another study ({why}); give another --name")
        if begun["dataset_digest"] != dataset.info.digest and not (begun["finished"] and not resume):
            raise InputError(
                f"{folder}: {dataset.path} has changed since this study began; begin another one with --name"
            )
        if not resume and not begun["finished"]:
            raise InputError(
                f"{folder}: this study was begun and did not finish; --resume continues it, --name begins another"
            )
        if not resume:
            folder, begun = _folder(storage, name, last + 1), {}
    elif folder.exists() and {file.name for file in folder.iterdir()} - {"lock"}:
        raise InputError(f"{folder}: is no study's folder, but not empty; give another --name")
    stack.enter_context(locked(folder, "--name NAME"))
    mine = {"digest": digest, "plan": identity, "dataset_digest": dataset.info.digest, "finished": False}
    return folder, begun or mine


def _folder(storage: Path, name: str, number: int) -> Path:
    return storage / (name if number == 1 else f"{name}-{number}")


def _studies(storage: Path) -> list[str]:
    return sorted(file.parent.name for file in storage.glob(f"*/{DESCRIPTION}"))


def _others(storage: Path) -> str:
    names = _studies(storage)
    return f" (studies there: {', '.join(names[:5])})" if names else ""
