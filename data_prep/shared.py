"""Check what the nodes of a cluster must share: folders of pictures or models, and the folder that a job writes."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import InputError, StorageError
from data_prep.storage import Storage


@dataclass(frozen=True)
class Shared:
    """Folders that every node must see. Nodes may join a cluster at any time: workers call `check`, too."""

    storage: Storage
    """Folder of the job."""
    marker: str
    """File below it that tells it apart from another folder of the same name."""
    content: str
    folders: dict[str, Path] = field(default_factory=dict)
    """Other folders that must be there and not empty, by what they are in words."""

    def check(self) -> None:
        """Raise StorageError with the first folder that this machine does not see."""
        if problem := self._unseen():
            raise StorageError(problem)

    def check_nodes(self) -> None:
        """Raise InputError with the first folder that a node of the current Ray session does not see."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        unseen = ray.remote(num_cpus=0.001)(lambda: self._unseen())
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        for problem in ray.get([unseen.options(scheduling_strategy=one).remote() for one in there]):
            if problem:
                raise InputError(problem)

    def _unseen(self) -> str | None:
        """Return what this machine does not see; None if it sees everything."""
        here = f"on the cluster's node {socket.gethostname()}"
        for what, folder in self.folders.items():
            if not folder.is_dir() or not any(folder.iterdir()):
                return (
                    f"{folder}: not there, or empty; the {what} must be in a folder that all nodes share, but it is "
                    f"not seen {here}"
                )
        try:
            if (self.storage / self.marker).read_bytes().decode() == self.content:
                return None
            why = "another folder of this name is"
        except FileNotFoundError:
            why = "it is not seen"
        except (OSError, StorageError) as error:
            why = f"it cannot be read ({error})"
        return f"{self.storage}: must be a folder that all nodes share, but {why} {here}"
