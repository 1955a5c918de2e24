"""Errors as users see them: one line, without credentials."""

import re


class JobFailed(RuntimeError):
    """A failed job; answered with one line and exit code 1. The message says what failed, where, and what to do."""


def reason(error: Exception) -> str:
    """Return the first line of an error's message, without credentials."""
    return without_credentials((str(error).splitlines() or [type(error).__name__])[0])


def without_credentials(text: str) -> str:
    """Remove user names and passwords from the addresses in a text; MLflow repeats addresses in its errors.

    SQLAlchemy accepts passwords with any character but `@`. If a password has an `@` all the same, everything up to
    the last one is removed.
    """
    return re.sub(r"://[^:/\s]*(:\S*)?@", "://", text)


def shown_word(word: str) -> str:
    """Return a word of a command line: an address loses its credentials, and its options, which may hold some."""
    word = without_credentials(word)
    return word.partition("?")[0] if "://" in word else word
