"""The `agman` command.

Every subcommand is thin: it reads the request, calls the job, and shows what the job returns. Heavy imports happen
inside the commands, so that `--help` and typing mistakes are answered at once.
"""

from __future__ import annotations

import errno
import sys

import click

from data_prep.errors import InputError
from pipeline.cli import audit, cluster, copies, data, demo, models, retrieval, runs, train, tune
from pipeline.common.console import close_bars, printable
from pipeline.common.errors import JobFailed

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="agman-pipeline")
def cli() -> None:
    """Train, tune, register and serve attribute-specific fashion retrieval models."""


for command in (
    data.sample,
    data.prep,
    audit.audit,
    train.train,
    train.evaluate,
    tune.tune,
    tune.compare,
    models.promote,
    models.rollback,
    models.report,
    models.export,
    retrieval.embed,
    retrieval.index,
    retrieval.search,
    retrieval.tag,
    copies.copies,
    retrieval.serve,
    retrieval.key,
    runs.runs,
    cluster.doctor,
    cluster.submit,
    cluster.bench,
    demo.demo,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; every error that a user can cause is one line on stderr.

    The arguments are the object of click's context, so that MLflow's runs can name the command.
    """
    try:
        returned = cli.main(arguments, prog_name="agman", standalone_mode=False, obj=arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_REQUEST
    except click.ClickException as error:
        return _complain(" ".join(error.format_message().split()), WRONG_REQUEST)
    except InputError as error:
        return _complain(str(error), WRONG_REQUEST)
    except JobFailed as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, click.Abort) as stop:
        said = (stop.__cause__ or stop).args  # click raises Abort from KeyboardInterrupt
        return _complain(": ".join(["interrupted", *map(str, said)]), INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _complain(f"{error.filename or 'disk'}: no space left on device", WRONG_REQUEST)
        # A path that the system refuses is the user's; without one, a connection or a device has failed.
        code = WRONG_REQUEST if error.filename else FAILED
        return _complain(f"{error.filename or type(error).__name__}: {error.strerror or error}", code)
    return returned if isinstance(returned, int) else DONE


def _complain(message: str, code: int) -> int:
    close_bars()
    print(f"agman: {printable(message, longest=2_000)}", file=sys.stderr)
    return code
