"""The exceptions that are answered in one line instead of a traceback."""


class InputError(ValueError):
    """The request cannot be done as asked. The message is one line: what, where, what to do."""


class JobFailed(RuntimeError):
    """The request was right, but the work failed while running. The message is one line: what, where, what now."""
