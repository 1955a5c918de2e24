"""`agman serve` on two nodes, one of which dies while 16 clients ask."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support.galleries import embed_folder, jpeg, random_model
from support.nodes import Nodes, environment

import agman

pytestmark = pytest.mark.slow
CLIENTS = 16
REPLICA = "ray::ServeReplica"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with a picture for each client."""
    root = tmp_path_factory.mktemp("serve")
    model = agman.save_model(root / "model", *random_model(["collar"]))
    (root / "pictures").mkdir()
    for number in range(CLIENTS):
        (root / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    return embed_folder(model, root / "pictures", root / "gallery").folder


@pytest.fixture
def service(gallery: Path, nodes: Nodes, tmp_path: Path) -> Iterator[tuple[str, list]]:
    """The address of the service, and the two nodes of its replicas."""
    both = [nodes.add(), nodes.add()]
    program = [str(Path(sys.executable).with_name("agman")), "serve", str(gallery), "--port", "0", "--replicas", "2"]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(program, cwd=tmp_path, env=environment(nodes.address), stderr=file, text=True) as process,
    ):
        try:
            while not (address := re.search(r" at (http://\S+) ", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield address[1], both
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert process.returncode == 0


@dataclass(frozen=True)
class Answer:
    """Answer to one request."""

    client: int
    sent: float
    status: int
    right: bool
    """Whether it is the answer to this request: its id, and the client's own picture or the reason why not."""


def ask(address: str, client: int, over: threading.Event, answers: list[Answer]) -> None:
    """Search with the client's own picture, again and again; if told to come back, do so."""
    form = {"files": {"image": ("query.jpg", jpeg(client))}, "data": {"attributes": ["collar"], "top": 1}}
    with httpx.Client(base_url=address, timeout=60) as http:
        while not over.is_set():
            sent, mark = time.monotonic(), f"{client}-{len(answers)}"
            answer = http.post("/search", **form, headers={"X-Request-Id": mark})  # type: ignore[arg-type]
            content, right = answer.json(), answer.headers["x-request-id"] == mark
            if answer.status_code == 200:
                right &= [hit["image"] for hit in content["hits"]] == [f"{client}.jpg"]
            else:
                right &= content == {"error": "the process that worked on this has ended; try again"}
            answers.append(Answer(client, sent, answer.status_code, right))
            if answer.status_code == 503:
                time.sleep(int(answer.headers["retry-after"]))


def test_a_node_dies_under_load(service: tuple[str, list], nodes: Nodes) -> None:
    address, both = service
    assert [len(nodes.workers(node, REPLICA)) for node in both] == [1, 1]
    answers: list[Answer] = []
    over = threading.Event()

    def each_has(count: int, since: float) -> bool:
        good = [one.client for one in list(answers) if one.status == 200 and one.sent > since]
        return min(good.count(client) for client in range(CLIENTS)) >= count

    def wait_until_each_has(count: int, since: float = 0) -> None:
        deadline = time.monotonic() + 120
        while not each_has(count, since):
            assert time.monotonic() < deadline, f"not {count} answers for each client"
            time.sleep(0.05)

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, address, client, over, answers) for client in range(CLIENTS)]
        try:
            wait_until_each_has(3)
            nodes.kill(both[0])
            killed = time.monotonic()
            wait_until_each_has(3, since=killed)
        finally:
            over.set()
        for client in clients:
            client.result()
    lost = [one for one in answers if one.status != 200]
    print(f"{len(answers)} answers, {len(lost)} of them 503")
    assert all(one.right for one in answers)
    assert {one.status for one in lost} == {503}
    assert len({one.client for one in lost}) == len(lost), "a repeated request failed"
    assert all(one.sent < killed for one in lost), "a request failed that was not in flight"
