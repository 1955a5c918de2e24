"""The one exception that a user's input can cause."""


class InputError(ValueError):
    """The request cannot be done as asked. The message is one line: what, where, what to do."""
