"""Types of arguments and options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pipeline.common.errors import shown_word
from pipeline.config.presets import PRESETS
from pipeline.registry.names import check_model

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path, file_okay=True)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
NEW_FILE = click.Path(path_type=Path, dir_okay=False)


class PathOrUri(click.ParamType):
    """A local path (converted to Path), or a URI (kept as a string, because a Path would lose a slash)."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        """Return a Path, or the string if it is a URI."""
        return value if "://" in str(value) else Path(value)


class WorkerRange(click.ParamType):
    """A number of workers, N, or a range, MIN-MAX."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return minimum and maximum; fail unless 1 <= minimum <= maximum."""
        least, dash, most = str(value).partition("-")
        if not least.isdecimal() or (dash and not most.isdecimal()):
            self.fail(f"{value!r} is neither a number nor MIN-MAX", param, ctx)
        pair = (int(least), int(most or least))
        if not 1 <= pair[0] <= pair[1]:
            self.fail(f"{value!r}: at least 1, and MIN not above MAX", param, ctx)
        return pair


class Model(click.ParamType):
    """A model in one of the forms that `pipeline.registry.names` knows."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is. Raises InputError with the right form if it is none."""
        check_model(value)
        return str(value)


PATH_OR_URI = PathOrUri()
MODEL = Model()

storage_option = click.option(
    "--storage",
    default="runs",
    show_default=True,
    type=PATH_OR_URI,
    metavar="DIR",
    help="Where trainings are kept: folder or URI.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON on stdout.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all random choices."
)
data_option = click.option(
    "--data", required=True, type=PATH_OR_URI, metavar="OUT", help="Prepared dataset: folder or URI."
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the folder, if this command has written it before."
)


def typed(context: click.Context, without: Sequence[str] = ()) -> str:
    """Return the command as it was typed, for a shell: without the options `without`, and without credentials."""
    words = context.command_path.split()
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name in without or context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        option = [max(parameter.opts, key=len)] if isinstance(parameter, click.Option) else []
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += option
            continue
        for one in value if isinstance(value, tuple) else [value]:
            words += [*option, shown_word(str(one))]
    return shlex.join(words)


def split_option(purpose: str) -> Callable[[Function], Function]:
    """Return the decorator of --split; `purpose` completes "Split to …"."""
    return click.option(
        "--split",
        default="test",
        show_default=True,
        type=click.Choice(["valid", "test"]),
        help=f"Split to {purpose}.",
    )


def precision_option(purpose: str) -> Callable[[Function], Function]:
    """Return the decorator of --precision with this help text."""
    return click.option(
        "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]), help=purpose
    )


def recipe_options(command: Function) -> Function:
    """Add --preset, --config and KEY=VALUE, the three sources of a training's settings; later ones take precedence."""
    preset = click.option("--preset", metavar="NAME", help=f"Start from a recipe: {', '.join(PRESETS)}.")
    config = click.option(
        "--config",
        "config_file",
        type=PATH,
        metavar="FILE",
        help="YAML file of settings; takes precedence over the preset, KEY=VALUE over both.",
    )
    return preset(config(click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")(command)))
