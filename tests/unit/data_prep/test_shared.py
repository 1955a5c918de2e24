"""The line that names what a machine of a cluster does not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import StorageError
from data_prep.shared import Shared
from data_prep.storage import Storage


def test_the_folder_that_a_machine_does_not_see_is_named(tmp_path: Path) -> None:
    storage, images = Storage(tmp_path / "out"), tmp_path / "images"
    shared = Shared(storage, "plan", "mine", {"images": images})

    def why() -> str:
        with pytest.raises(StorageError) as refused:
            shared.check()
        return str(refused.value)

    assert why().startswith(f"{images}: not there, or empty; the images must be in a folder that all nodes share, but ")
    images.mkdir()
    assert "not there, or empty" in why()
    (images / "a.jpg").touch()
    assert why().startswith(f"{storage}: must be a folder that all nodes share, but it is not seen on the ")
    (storage / "plan").write_bytes(b"another")
    assert "but another folder of this name is on the cluster's node " in why()
    (storage / "plan").write_bytes(b"mine")
    shared.check()
