"""Pages of a registered model and of its versions: which is champion, on which data, by whom, and why."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.common.console import say
from pipeline.common.errors import reason
from pipeline.common.markdown import plain, with_rows, with_section
from pipeline.registry.model_card import as_description
from pipeline.tracking.origin import made_by

CHAMPION = "champion"
"""Alias of the version to use."""
DECISION = "decision."
"""Prefix of the tags that record a version's last decision."""
SINCE, BECAUSE = "champion.since", "champion.because"
"""Tags of a version that is or was champion: the date, and why it became that."""
RESTORED = "restored"
"""Result of the decision for a version that is champion again."""
ABOUT = (
    "Embeds pictures of {dataset}: one vector for each attribute, whose cosine is the similarity under it.\n\n"
    "Each training registers a version. `champion` is the one to use, `challenger` the newest candidate. "
    "`agman promote` scores both on the same queries of the test split: the challenger becomes champion if it beats "
    "chance and the champion beyond noise, and no attribute falls by more than a tolerance. A version's page has its "
    "card and its last decision."
)
"""First paragraphs of a registered model's description; MLflow's pages break lines where the text does."""
WORDS = {
    "promoted": "Promoted on {date}",
    "forced": "Promoted by force on {date}",
    "refused": "Not promoted on {date}",
    "kept": "Kept as champion on {date}",
    "replaced": "Replaced on {date}",
    RESTORED: "Champion again since {date}",
}
"""Result -> beginning of the sentence on a decision."""


def now() -> str:
    """Return date and time for a tag."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def decision_text(tags: Mapping[str, str]) -> str:
    """Return the last decision on a version in words; empty if there was none."""
    of = {key.removeprefix(DECISION): text for key, text in tags.items() if key.startswith(DECISION)}
    if of.get("result") not in WORDS:
        return ""
    said = WORDS[of["result"]].format(date=of.get("date", "an unknown date"))
    if "by" in of:
        said += f" by {of['by']}"
    if of.get("against", "none") != "none":
        said += f", against version {of['against']}"
    although = f", although {of['although']}" if of["result"] == "forced" and "although" in of else ""
    said += f": {of.get('reason', 'no reason is noted')}{although}."
    if of["result"] in ("promoted", "forced", "refused") and "score" in of:
        said += (
            f" {of['metric']} {100 * float(of['score']):.2f}, chance {100 * float(of['chance']):.2f} (times 100), "
            f"on {of['split']} of {of['dataset']}."
        )
    if tags.get("rolled_back", "") >= of.get("date", "") and of["result"] != RESTORED:
        said += f" Rolled back on {tags['rolled_back']} to version {tags.get('rolled_back.to')}: "
        said += f"{tags.get('rolled_back.reason')}."
    return said


def champion_text(number: str | None, tags: Mapping[str, str], run: str = "") -> str:
    """Return what the model's page says of its champion, as Markdown.

    Args:
        number: version of the champion; None if there is none.
        tags: its tags.
        run: link to its training.
    """
    if number is None:
        return "There is none: no version was promoted yet."
    last = decision_text(tags)
    rows = {
        "version": f"**{number}**",
        "champion since": plain(tags.get(SINCE, "")),
        "why it won": plain(tags.get(BECAUSE, "")),
        "last decision": plain(last) if last != tags.get(BECAUSE) else "",
        **made_by(tags),
        "training": run,
    }
    return with_rows("", {name: text for name, text in rows.items() if text})


def describe_decision(client: MlflowClient, name: str, version: str) -> None:
    """Write the last decision on a version to its description. Raises MlflowException."""
    found = client.get_model_version(name, version)
    if said := decision_text(found.tags):
        text = with_section(found.description or "", "Decision", plain(said))
        client.update_model_version(name, version, as_description(text))


def describe_champion(client: MlflowClient, name: str) -> None:
    """Write to the registered model's description which version is champion; other sections stay. Raises nothing."""
    try:
        registered = client.get_registered_model(name)
        about = registered.description or ABOUT.format(dataset=name.removeprefix("agman-"))
        said = champion_text(None, {})
        if number := registered.aliases.get(CHAMPION):
            version = client.get_model_version(name, str(number))
            said = champion_text(str(number), version.tags, _link(client, version.run_id))
        client.update_registered_model(name, as_description(with_section(about, "Champion", said)))
    except MlflowException as error:
        say(f"note: the description of {name} may name an earlier champion ({reason(error)})")


def _link(client: MlflowClient, run_id: str | None) -> str:
    """Return a link to a run's page, as MLflow's own pages have it; empty if the store has no such run."""
    with suppress(MlflowException):
        info = client.get_run(run_id or "").info
        return f"[{plain(info.run_name)}](#/experiments/{info.experiment_id}/runs/{run_id})"
    return ""
