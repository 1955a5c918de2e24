"""What `agman tune` and `agman compare` show."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from pipeline.common.console import say, show_table

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.compare.compare import Comparison
    from pipeline.tuning.tune import Sweep


def show_study(sweep: Sweep) -> None:
    """Show every trial, the best first, and what became of the best setting."""
    from pipeline.tuning.study import FAILED, METRIC
    from pipeline.tuning.tune import short

    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.setting))
    ranked = sorted(sweep.trials, key=lambda trial: -trial.best)
    rows = [[str(t.number), *(short(t.setting.get(key, "")) for key in keys), f"{t.best:.4f}", t.state] for t in ranked]
    show_table(f"Search in {sweep.space}", ["trial", *keys, METRIC, "ended"], rows)
    for trial in sweep.trials:
        if trial.state == FAILED:
            say(f"  trial {trial.number} failed: {trial.reason}")
    if sweep.final:
        spread = statistics.stdev(sweep.final.valid) if len(sweep.final.valid) > 1 else 0.0
        mean = statistics.mean(sweep.final.valid)
        say(f"full budget  {METRIC} {mean:.4f} ± {spread:.4f} over {len(sweep.final.valid)} seeds")
        say(f"             test/map {sweep.final.test['test/map']:.4f}, of the seed best on validation")
        say(f"registered   {sweep.final.model_uri} ({sweep.final.alias})")
    if sweep.page:
        say(f"page         {sweep.page}")


def show_comparison(comparison: Comparison, page: Path) -> dict[str, Any]:
    """Show the table, a row for each system, and return the metrics."""
    from pipeline.compare.compare import SPLIT, SYSTEMS
    from pipeline.reports.compare import comparison_table

    header, rows = comparison_table(comparison)
    seeds = len({one.seed for one in comparison.scored})
    show_table(f"MAP on {SPLIT} of {comparison.dataset}, times 100, mean ± deviation over {seeds} seeds", header, rows)
    if any(SYSTEMS[key].interpretation for key in comparison.systems):
        say("* an interpretation: its paper has neither public code nor equations")
    say(f"page: {page}")
    figures: dict[str, Any] = {"page": str(page), "run_id": comparison.run.run_id, "seeds": seeds}
    for key in comparison.systems:
        if (found := comparison.spread(key, "map")) is not None:
            figures |= {f"{key}/{SPLIT}/map": found[0], f"{key}/{SPLIT}/map_deviation": found[1]}
    return figures | {"failed": [f"{one.system}, seed {one.seed}" for one in comparison.scored if one.failed]}
