"""The exceptions that a user's input or surroundings can cause."""


class InputError(ValueError):
    """The request cannot be done as asked. The message is one line: what, where, what to do."""


class Resumable(InputError):
    """Something stands in the way, but what was done before it stands, and the same command goes on from there."""


class StorageError(Resumable):
    """A place cannot be read or written: disk full, no answer, no permission."""


class TooManyRejects(Resumable):
    """So much was rejected that something general must be wrong."""
