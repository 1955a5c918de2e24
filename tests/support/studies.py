"""Studies made with Optuna alone, as `agman tune` leaves them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, event

from pipeline.tuning.study import ENDED, EPOCHS, HISTORY, OBJECTIVES, REASON, RUN_ID, SECONDS

HOSTILE = "</script><script>document.title='gone'</script><img src=x onerror=alert(1)>\x1b[31m\u202e,\"\n{{ 7*7 }}"
LONG = "torch.OutOfMemoryError: " + "CUDA out of memory. " * 12
FACTS = {"space": "losses", "dataset": HOSTILE, "seed": "7"}
LR, MARGIN = FloatDistribution(1e-5, 1e-2, log=True), FloatDistribution(0.05, 0.6)
MINING = CategoricalDistribution(["none", "hard", HOSTILE])
CLASSIFY = CategoricalDistribution([True, False, None])
FUSED, DECAY = CategoricalDistribution([True, False]), FloatDistribution(0.9, 0.9)
KERNEL, SIZE = IntDistribution(1, 2000), CategoricalDistribution([128, 224])
BUDGET = 6


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Processes that die lose nothing that sqlite has handed to the system; only machines that lose power would."""

    def hurry(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


def new_study(*objectives: str, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    """Make an empty study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=directions, study_name="fashionai-losses")
    study.set_user_attr(OBJECTIVES, list(objectives or ["valid/map"]))
    study.set_user_attr(EPOCHS, BUDGET)
    return study


def attributes(ended: str, history: list, reason: str = "trained all epochs", number: int = 0) -> dict:
    """Return what a trial has in the study beside its setting."""
    return {ENDED: ended, HISTORY: history, REASON: reason, RUN_ID: f"{number:032x}", SECONDS: 1.5 * len(history)}


def made_study(n: int, seed: int = 3, pruned: float = 0.3, epochs: int = BUDGET) -> optuna.Study:
    """Make a study of `n` trials in which lr decides; one in eight failed, and one more still runs."""
    study, rng = new_study(), np.random.default_rng(seed)
    study.set_user_attr(EPOCHS, epochs)
    for number in range(n):
        lr, margin = 10 ** rng.uniform(-5, -2), float(rng.uniform(0.05, 0.6))
        params = {"lr": lr, "margin": margin, "mining": MINING.choices[number % 3], "decay": 0.9}
        distributions = {"lr": LR, "margin": MARGIN, "mining": MINING, "decay": DECAY}
        params |= {
            "classify": CLASSIFY.choices[number % 5 % 3],
            "fused": number % 2 == 0,
            "size": (128, 224)[number % 2],
        }
        distributions |= {"classify": CLASSIFY, "fused": FUSED, "size": SIZE}
        if number % 3 == 1:  # a condition
            params["kernel"], distributions["kernel"] = int(rng.integers(1, 2000)), KERNEL
        quality = 0.6 * math.exp(-((math.log10(lr) + 3.5) ** 2)) + 0.02 * rng.random()
        curve = [[epoch, quality * (1 - math.exp(-epoch / 3))] for epoch in range(1, epochs + 1)]
        if number % 8 == 5:
            reason = LONG if number % 16 == 5 else HOSTILE
            given = {"state": TrialState.FAIL, "user_attrs": attributes("failed", curve[: number % 3], reason, number)}
        elif rng.random() < pruned:
            given = {
                "state": TrialState.PRUNED,
                "user_attrs": attributes("pruned", curve[:2], "in the worst third", number),
            }
        else:
            given = {"value": curve[-1][1], "user_attrs": attributes("done", curve, number=number)}
        study.add_trial(create_trial(params=params, distributions=distributions, **given))
    asked = study.ask()
    asked.suggest_float("lr", 1e-5, 1e-2, log=True)
    asked.set_user_attr(HISTORY, [[1, 0.05], [2, 0.04]])
    return study


def of_two(n: int = 24) -> optuna.Study:
    """Make a study of MAP against latency with `n` trials."""
    study, rng = new_study("valid/map", "latency_ms", directions=("maximize", "minimize")), np.random.default_rng(5)
    for number in range(n):
        width = float(rng.uniform(0, 1))
        values = [round(0.2 + 0.3 * width + 0.1 * rng.random(), 2), round(2 + 5 * width + 2 * rng.random(), 1)]
        given = {"params": {"margin": 0.05 + 0.5 * width}, "distributions": {"margin": MARGIN}}
        if number % 6 == 2:
            given |= {"state": TrialState.PRUNED, "user_attrs": attributes("pruned", [[1, 0.9]])}
        else:
            given |= {"values": values, "user_attrs": attributes("done", [[1, 0.1], [BUDGET, values[0]]])}
        study.add_trial(create_trial(**given))
    return study
