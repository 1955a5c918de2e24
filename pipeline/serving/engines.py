"""The states of a gallery that a replica answers for: the one that counts, and the one before."""

from __future__ import annotations

import threading

from agman.embedder import Embedder
from data_prep.errors import InputError
from pipeline.common.console import say
from pipeline.retrieval.gallery import Gallery, read_info
from pipeline.serving.engine import Engine


class Engines:
    """Engines of a gallery that may be updated while it is served. All methods are safe to call from several threads.

    Answers in progress end on the state on which they began. Rows of the state before are answered too, because pages
    show them still.
    """

    def __init__(self, gallery: Gallery, embedder: Embedder):
        self.current = Engine(gallery, embedder)
        """Engine of the newest state."""
        self._before: Engine | None = None
        self._seen = gallery.info
        """Description that was read last, of a gallery that is served or cannot be."""
        self._opening = threading.Lock()

    def follow(self) -> None:
        """Serve the state that counts now. A gallery that is damaged, or of another model, changes nothing."""
        with self._opening:
            now, folder = self.current, self.current.gallery.folder
            try:
                info = read_info(folder)
            except InputError:  # it is being replaced, or is gone
                return
            if info in (now.gallery.info, self._seen):
                return
            self._seen = info
            try:
                gallery = Gallery.open(folder)
                if gallery.info.model_digest != now.gallery.info.model_digest:
                    raise InputError(f"{folder}: is of another model now; start the service again to serve it")
                engine = Engine(gallery, now.embedder)
                _ = engine.facts  # reads the columns and prototypes, before anybody waits for them
            except InputError as error:
                say(f"note: {error}")
                return
            self._before, self.current = now, engine

    def of(self, version: str | None) -> Engine:
        """Return the engine of a state (`Gallery.version`), the newest for None. Raises InputError if it is gone."""
        if (found := self._find(version)) is None:
            self.follow()  # another replica has told the client of a newer state
            found = self._find(version)
        if found is None:
            raise InputError("the gallery has been updated since that answer; search again")
        return found

    def _find(self, version: str | None) -> Engine | None:
        for engine in (self.current, self._before):
            if engine and version in (None, engine.gallery.version):
                return engine
        return None
