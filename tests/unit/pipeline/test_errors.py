"""Errors as users see them."""

from __future__ import annotations

import click
import pytest

from pipeline.cli.options import typed
from pipeline.common.errors import reason, without_credentials


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://user:sesame@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("no answer from 'postgresql://user:se/sa:me@db/x' now", "no answer from 'postgresql://db/x' now"),
        ("mysql+pymysql://user:se@same@db/x?y=1", "mysql+pymysql://db/x?y=1"),
        ("http://token@host/path", "http://host/path"),
        ("s3://bucket/runs@night", "s3://bucket/runs@night"),
        ("sqlite:////srv/mlflow.db and me@home", "sqlite:////srv/mlflow.db and me@home"),
    ],
)
def test_credentials_are_removed_from_addresses(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_a_reason_is_the_first_line_without_credentials() -> None:
    assert reason(ValueError("no answer from http://me:sesame@host\nsecond line")) == "no answer from http://host"
    assert reason(ValueError()) == "ValueError"


def test_a_command_is_shown_without_what_addresses_hide() -> None:
    secret = "az://me:sesame@box/data?client_secret=abc"
    context = click.Context(click.Command("agman", params=[click.Option(["--out"]), click.Option(["--name"])]))
    context.command.parse_args(context, ["--out", secret, "--name", "why?"])
    context.info_name = "agman"
    assert typed(context) == "agman --out az://box/data --name 'why?'"
