"""Where tables and messages go, and what they look like in a file, a pipe and a narrow terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import click
import pytest

from pipeline.cli.options import json_option
from pipeline.common import console

TABLE = ("wide", ["key", "meaning"], [["margin", "word " * 60], ["lr", "rate"]])
SCRIPT = f"""
from pipeline.common.console import say, show_table
show_table(*{TABLE!r})
say("done")
"""


@pytest.fixture(autouse=True)
def no_console_of_another_test() -> None:
    console._console.cache_clear()


def test_a_table_goes_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_table(*TABLE)
    console.say("a message")
    said = capsys.readouterr()
    assert said.err == "a message\n"
    assert said.out.startswith("wide\n")
    (row,) = [line for line in said.out.splitlines() if "margin" in line]
    assert row.count("word") == 60, "a row of a file is one line"


def test_with_json_stdout_is_for_the_object_alone(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @json_option
    def command(as_json: bool) -> None:
        console.show_table(*TABLE)
        console.show("a line")
        console.emit({"figure": 1}, as_json)

    command.main(["--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert said.out == '{"figure": 1}\n'
    assert "margin" in said.err and "a line" in said.err
    command.main([], standalone_mode=False)
    said = capsys.readouterr()
    assert said.err == "" and "margin" in said.out and "a line" in said.out


def test_a_closed_pipe_does_not_end_the_work() -> None:
    """As in `agman evaluate | head -1`, which has still to log the metrics."""
    script = f"import sys\nsys.stdin.readline()\n{SCRIPT}{SCRIPT}"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.close()
        _, said = process.communicate("go\n", timeout=60)
    assert (process.returncode, said) == (0, "done\ndone\n")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_narrow_terminal_folds_and_no_color_is_respected(no_color: str) -> None:
    terminal, its_end = pty.openpty()
    environment = os.environ | {"COLUMNS": "40", "TERM": "xterm-256color", "NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", SCRIPT], stdout=its_end, stderr=its_end, env=environment, check=True)
    os.close(its_end)
    text = b""
    try:
        while piece := os.read(terminal, 65536):
            text += piece
    except OSError:  # how Linux says that a terminal has no more
        pass
    os.close(terminal)
    plain = click.unstyle(text.decode())
    assert max(map(len, plain.splitlines())) <= 40
    assert plain.count("word") == 60
    if no_color:
        assert "\x1b[3" not in text.decode(), "a colour"


@pytest.mark.parametrize(
    ("values", "shown"), [([0.509], "50.90"), ([0.3, 0.5], "40.00 ± 14.14"), ([0.5, 0.5], "50.00 ± 0.00")]
)
def test_a_single_value_has_no_deviation(values: list[float], shown: str) -> None:
    assert console.mean_and_deviation(values) == shown
