"""The replicas as the HTTP application sees them: one method call for each request, and whether any can answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

OTHERS_ANSWER = 1.0
"""Seconds in which another replica answers anything after one has ended; without an answer, none is left."""
PAUSE = 0.1
"""Seconds before a replica is asked again."""
RETRY_SECONDS = 2
"""Seconds after which a client should try again."""


class Unavailable(Exception):
    """No replica can answer now."""


STARTING = "the service is starting; try again in a few seconds"
BUSY = "the service is busy; try again"
LOST = "the process that worked on this has ended; try again"


class Replicas:
    """Replicas of Ray Serve behind a handle.

    Ray Serve lets requests wait while it replaces a replica. Here, they end with `Unavailable`, and so do those that a
    replica was working on when it ended.
    """

    def __init__(self, handle: DeploymentHandle, facts: dict[str, Any]):
        self._handle = handle
        self.facts = facts
        """Facts about the gallery and its model."""
        self._answering, self._none_left = asyncio.Event(), asyncio.Event()
        self._none_left.set()
        self._answers = 0
        """Number of requests that have been answered."""

    @property
    def answering(self) -> bool:
        """Whether a replica can answer."""
        return self._answering.is_set()

    async def watch(self) -> None:
        """Keep `answering` and `facts` up to date, for ever."""
        while True:
            facts, before = asyncio.ensure_future(self._facts_of_one()), -1
            while not facts.done():
                if self._answers == before:
                    self._answering.clear()
                    self._none_left.set()
                before = self._answers
                await asyncio.wait([facts], timeout=OTHERS_ANSWER)
            self.facts = await facts
            self._none_left.clear()
            self._answering.set()
            with suppress(RayActorError, RayServeException):
                await self._follow()

    async def _follow(self) -> None:
        """Keep `facts` up to date. Raises RayActorError or RayServeException when the replica that is asked has ended.

        While some replicas serve a new state and others do not yet, either may answer.
        """
        while True:
            with suppress(BackPressureError):
                await self._handle.changed.remote(self.facts["state"])
                self.facts = dict(await self._handle.facts.remote())
            await asyncio.sleep(PAUSE)

    async def _facts_of_one(self) -> dict[str, Any]:
        """Return the facts of the replica that answers first.

        A replica whose node has died neither answers nor fails for a while, so the others are asked meanwhile.
        """
        asked: set[asyncio.Task[dict[str, Any] | None]] = set()
        try:
            while True:
                asked.add(asyncio.create_task(self._asked_facts()))
                done, asked = await asyncio.wait(asked, timeout=PAUSE, return_when=asyncio.FIRST_COMPLETED)
                for facts in [one.result() for one in done]:
                    if facts is not None:
                        return facts
                    await asyncio.sleep(PAUSE)
        finally:
            for one in asked:
                one.cancel()

    async def _asked_facts(self) -> dict[str, Any] | None:
        """Return the facts, or None if the replica that was asked has just ended."""
        with suppress(RayActorError, RayServeException):
            return dict(await self._handle.facts.remote())
        return None

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of a replica. Raises what it raises, or Unavailable."""
        if not self.answering:
            raise Unavailable(STARTING)
        answer = asyncio.ensure_future(self._ask(method, *arguments))
        none_left = asyncio.ensure_future(self._none_left.wait())
        await asyncio.wait([answer, none_left], return_when=asyncio.FIRST_COMPLETED)
        none_left.cancel()
        if answer.done():
            return answer.result()
        answer.cancel()
        raise Unavailable(STARTING)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            answer = await getattr(self._handle, method).remote(*arguments)
            self._answers += 1
            return answer
        except BackPressureError as error:
            raise Unavailable(BUSY) from error
        except RayActorError as error:
            raise Unavailable(LOST) from error
        except RayServeException as error:
            raise Unavailable(STARTING) from error
        except RayTaskError as error:
            self._answers += 1
            raise error.cause from None
