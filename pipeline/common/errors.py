"""The exception of a job whose request was right and whose work failed."""


class JobFailed(RuntimeError):
    """A failed job; answered with one line and exit code 1. The message says what failed, where, and what to do."""
