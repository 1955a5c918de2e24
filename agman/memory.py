"""Settings of the C allocator, whose defaults can cost more than the arithmetic."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Numbers of the two parameters in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free for later tensors; return whether that was possible.

    A training step on the CPU frees its activations and asks for as many again. By default glibc gives large blocks
    back to the system, which hands them out again page by page, zeroed: on a virtual machine that can take as long as
    the step itself. After this call the process keeps its peak memory until it ends. Without glibc nothing changes,
    and neither does memory on a GPU, which torch's own allocator keeps anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(TRIM_THRESHOLD, -1)) and bool(mallopt(MMAP_MAX, 0))
