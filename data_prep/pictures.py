"""Old name of `basics.pictures`: the code of models registered under it imports this name from here."""

from basics.pictures import MAX_BYTES

__all__ = ["MAX_BYTES"]
