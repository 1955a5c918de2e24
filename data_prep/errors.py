"""The exceptions that a user's input or surroundings can cause."""


class InputError(ValueError):
    """The request cannot be done as asked. The message is one line: what, where, what to do."""


class StorageError(InputError):
    """A place cannot be read or written: disk full, no answer, no permission. What was done before it stands."""
