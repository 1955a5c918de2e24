"""A process serves a gallery, and afterwards another one."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.galleries import embed_folder, jpeg, random_model

import agman
from pipeline.serving.run import Options, served


@pytest.mark.slow
def test_a_process_serves_twice(tmp_path: Path) -> None:
    model = agman.save_model(tmp_path / "model", *random_model(["collar"]))
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    gallery = embed_folder(model, tmp_path / "pictures", tmp_path / "gallery").folder
    for _ in range(2):
        with served(gallery, None, Options(port=0)) as address:
            assert httpx.get(f"{address}/healthz", timeout=60).json()["pictures"] == 3
