"""The exception of bad input."""


class InputError(ValueError):
    """A request that cannot be fulfilled. The message is one line: what is wrong, where, and what to do."""
