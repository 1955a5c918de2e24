"""Tags and descriptions by which people find a run: user, command, commit, data, result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest
from support.made_dataset import info_of

from pipeline.common.markdown import code, plain, with_rows, with_section, with_sections_of
from pipeline.tracking import origin
from pipeline.tracking.origin import (
    COMMAND,
    COMMIT,
    SOURCE,
    USER,
    command_line,
    describe_run,
    git_commit,
    labels_of,
    origin_tags,
    version_tags,
)

INFO = info_of(name="tiny|<b>", images={"train": 1200, "valid": 0, "test": 30}, digest="0123456789abcdef" * 4)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder outside any repository, and a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("LOGNAME", "ana")


def test_a_working_folder_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit() == "" and COMMIT not in origin_tags()
    subprocess.run(["git", "init", "-q"], check=True)
    assert git_commit() == ""  # a repository without a commit
    author = ["-c", "user.name=ana", "-c", "user.email=ana@example.org"]
    subprocess.run(["git", *author, "commit", "-qm", "first", "--allow-empty"], check=True)
    assert len(git_commit()) == 40 and origin_tags()[COMMIT] == git_commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == ""


def test_a_job_on_another_machine_names_who_submitted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin.variables() == {"AGMAN_USER": "ana"}
    monkeypatch.setenv("AGMAN_USER", "eva")
    monkeypatch.setenv("AGMAN_COMMIT", "c0ffee")
    assert (origin_tags()[USER], origin_tags()[COMMIT]) == ("eva", "c0ffee")


def test_the_command_is_kept_as_it_was_typed_without_secrets() -> None:
    assert command_line() == "" and COMMAND not in origin_tags()
    words = ["train", "--data", "s3://key:sesame@bucket/my data?client_secret=sesame", "--workers", "2-4", "seed=1"]
    with click.Context(click.Command("agman"), obj=words):
        assert command_line() == "agman train --data 's3://bucket/my data' --workers 2-4 seed=1"
        assert origin_tags()[SOURCE] == "agman train"


def test_labels_are_settings_and_the_dataset() -> None:
    labels = labels_of({"model": "agman", "backbone": "resnet18", "lr": 0.1}, INFO)
    assert labels == {"model": "agman", "backbone": "resnet18", "dataset": INFO.name, "dataset_digest": INFO.digest}
    assert "model" not in labels_of({"lr": 0.1}, INFO)


def test_a_description_names_data_user_and_command_and_escapes_them() -> None:
    tags = labels_of({"model": "agman", "backbone": "resnet18"}, INFO) | {USER: "ana", COMMAND: "agman train 'a|b'"}
    said = describe_run(INFO, tags | {"job": "trial", "trial": "3", "sweep": "night"}).splitlines()
    assert said[:2] == ["| | |", "|---|---|"]
    assert said[2:] == [
        "| job | trial 3 |",
        "| study | `night` |",
        "| model | agman on resnet18 |",
        "| trained on | **tiny\\|&lt;b&gt;** (digest `0123456789ab`) |",
        "| trained by | ana |",
        "| command | `agman train 'a\\|b'` |",
        "| pictures | 1,200 train, 30 test |",
    ]
    assert version_tags(tags) == {
        "trained_by": "ana",
        "command": "agman train 'a|b'",
        "dataset": INFO.name,
        "dataset_digest": INFO.digest,
    }


def test_rows_and_sections_are_replaced_and_what_people_wrote_stays() -> None:
    text = with_rows("", {"result": "1", "by": "ana"}) + "\n\nLooks good, says eva."
    assert with_rows(text, {"result": "2"}).splitlines() == [
        "| | |",
        "|---|---|",
        "| result | 2 |",
        "| by | ana |",
        "",
        "Looks good, says eva.",
    ]
    assert with_rows("A note.", {"result": "2"}).splitlines() == ["A note.", "", "| | |", "|---|---|", "| result | 2 |"]
    page = with_section("About.\n\n## Notes\n\nMine.", "Champion", "Version 1.")
    assert page == "About.\n\n## Champion\n\nVersion 1.\n\n## Notes\n\nMine.\n"
    assert with_section(page, "Champion", "Version 2.") == page.replace("1", "2")


def test_a_new_card_keeps_the_sections_that_people_wrote() -> None:
    older = "# A card\n\n## Ours\n\nsold in May\n\n## Data\n\nold\n"
    text = with_sections_of("# The card\n\n## Data\n\nnew\n\n## Limits\n\nfew\n", older)
    assert text == "# The card\n\n## Ours\n\nsold in May\n\n## Data\n\nnew\n\n## Limits\n\nfew\n"


def test_texts_from_outside_are_no_markup() -> None:
    assert plain("![x](https://a.b/c.png) **a_b** <i> | `") == (r"![x]\(https://a.b/c.png) \*\*a_b\*\* &lt;i&gt; \| '")
    assert code("a|b`c") == r"`a\|b'c`"
