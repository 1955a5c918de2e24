"""Exceptions that a user's input or environment can cause."""


class InputError(ValueError):
    """A request that cannot be fulfilled. The message is one line: what is wrong, where, and what to do."""


class Resumable(InputError):
    """An obstacle after which the same command continues with what has been done so far."""


class StorageError(Resumable):
    """A file or store that cannot be read or written: disk full, no answer, no permission."""


class TooManyRejects(Resumable):
    """More rejects than allowed: probably a general mistake."""
