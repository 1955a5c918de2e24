"""The C allocator's habits, where they cost more than the arithmetic."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""glibc's numbers of the two parameters, in malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free, for the next ones; True if that could be arranged.

    A training step on the CPU frees its activations and asks for as many again. By default glibc gives large blocks
    back to the system, which hands them out anew page by page, zeroed: on a virtual machine that can take as long as
    the step itself. The process then holds on to its peak until it ends. Nothing happens without glibc, nor to what
    lies on a GPU, whose allocator keeps its memory anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(TRIM_THRESHOLD, -1)) and bool(mallopt(MMAP_MAX, 0))
