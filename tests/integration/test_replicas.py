"""Answers of the service while its replicas come and go; the replicas are played by this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from data_prep.errors import InputError
from pipeline.serving.app import serving

FACTS = {"model": "m", "pictures": 1, "state": "first", "attributes": ["skirt"], "width": 3, "device": "cpu"}
ERRORS: dict[int, Exception] = {
    1: RayTaskError("similar", "", InputError("no picture 1")),
    2: RayTaskError("similar", "", ValueError("a secret")),
    3: BackPressureError(num_queued_requests=3, max_queued_requests=3),
}


class Played:
    """The handle of a deployment with one replica, which begins and ends as a test wants it to."""

    def __init__(self) -> None:
        self.alive, self.ended, self.updated = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.busy = False
        self.silent = 0
        """Number of questions about the facts that get no answer: they reach a replica whose node has died."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self, f"play_{name}"))

    async def play_facts(self) -> dict[str, Any]:
        await self.alive.wait()
        if self.silent:
            self.silent -= 1
            await asyncio.Event().wait()
        if self.busy:
            raise ERRORS[3]
        return FACTS | ({"pictures": 2, "state": "second"} if self.updated.is_set() else {})

    async def play_changed(self, state: str) -> None:
        """Wait for the end of the replica, or for another state than this."""
        updated = asyncio.Event() if state == "second" else self.updated
        waits = [asyncio.create_task(event.wait()) for event in (self.ended, updated)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        if self.ended.is_set():
            raise ActorDiedError()

    async def play_similar(self, row: int, *_: Any) -> list[dict]:
        if row in ERRORS:
            raise ERRORS[row]
        if row == 8:  # the replica ends while it works on this
            await self.ended.wait()
            raise ActorDiedError()
        if row == 9:  # waits for a replica
            await asyncio.Event().wait()
        return []


Get = Callable[[str], Any]


@asynccontextmanager
async def service(replica: Played) -> AsyncIterator[Get]:
    app = serving(replica, FACTS)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client.get


@asynccontextmanager
async def busy_service() -> AsyncIterator[tuple[Played, Get, asyncio.Task[httpx.Response]]]:
    """A replica that works on a request, the service's GET, and that request."""
    replica = Played()
    replica.alive.set()
    async with service(replica) as get:
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(get("/similar/9?attributes=skirt"))
        await asyncio.sleep(0.05)
        yield replica, get, waiting


def told_to_come_back(answer: httpx.Response, why: str) -> bool:
    return (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, why, "2")


STARTING = "the service is starting; try again in a few seconds"
LOST = "the process that worked on this has ended; try again"


def test_while_no_replica_answers_all_requests_get_503_at_once() -> None:
    async def run() -> None:
        replica = Played()
        async with service(replica) as get:
            health = await get("/healthz")
            assert told_to_come_back(health, STARTING) and health.json()["status"] == "starting"
            assert told_to_come_back(await get("/similar/0?attributes=skirt"), STARTING)
            replica.alive.set()
            await asyncio.sleep(0.05)
            assert (await get("/healthz")).json()["status"] == "ok"
            assert (await get("/similar/0?attributes=skirt")).json() == {"hits": []}
            waiting = [asyncio.create_task(get(f"/similar/{row}?attributes=skirt")) for row in (8, 9)]
            await asyncio.sleep(0.05)
            replica.alive.clear()
            replica.ended.set()
            for answer, why in zip(await asyncio.gather(*waiting), (LOST, STARTING), strict=True):
                assert told_to_come_back(answer, why)
            assert (await get("/healthz")).json()["status"] == "starting"
            replica.ended.clear()
            replica.alive.set()
            await asyncio.sleep(0.05)
            assert (await get("/healthz")).json()["status"] == "ok"

    asyncio.run(run())


def test_the_facts_follow_the_state_that_is_served_while_requests_are_answered() -> None:
    async def run() -> None:
        async with busy_service() as (replica, get, waiting):
            replica.busy = True  # too many requests wait for an answer about the facts
            replica.updated.set()
            await asyncio.sleep(1.5)
            assert (await get("/healthz")).json() | {"version": ""} == FACTS | {"status": "ok", "version": ""}
            replica.busy = False
            await asyncio.sleep(0.3)
            about = (await get("/healthz")).json()
            assert (about["status"], about["pictures"], about["state"]) == ("ok", 2, "second")
            assert not waiting.done()  # no request was told to come back
            replica.ended.set()
            replica.alive.clear()
            assert told_to_come_back(await waiting, STARTING)

    asyncio.run(run())


def test_while_a_dead_replica_is_silent_another_one_answers() -> None:
    async def run() -> None:
        async with busy_service() as (replica, get, waiting):
            replica.silent = 3
            replica.ended.set()
            await asyncio.sleep(0.05)
            replica.ended.clear()
            await asyncio.sleep(1.5)
            assert not replica.silent and not waiting.done()
            assert (await get("/similar/0?attributes=skirt")).json() == {"hits": []}
            waiting.cancel()

    asyncio.run(run())


def test_errors_of_replicas_have_the_service_s_form() -> None:
    async def run() -> None:
        replica = Played()
        replica.alive.set()
        async with service(replica) as get:
            await asyncio.sleep(0.05)
            answers = [await get(f"/similar/{row}?attributes=skirt") for row in (1, 2)]
            assert [answer.status_code for answer in answers] == [422, 500]
            assert answers[0].json() == {"error": "no picture 1"} and "secret" not in answers[1].text
            busy = await get("/similar/3?attributes=skirt")
            assert told_to_come_back(busy, "the service is busy; try again")

    asyncio.run(run())
