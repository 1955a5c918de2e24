"""Processes that tests start."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes in which the slow imports are done already."""
FORKS.set_forkserver_preload(["agman", "torch.distributed", "pipeline.tracking.runs"])
