"""A page in the browser, and what it says and asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Opened:
    """An open page."""

    page: Page
    console: list[str] = field(default_factory=list)
    """What it said: messages, errors, dialogs."""
    requests: list[str] = field(default_factory=list)
    """What it asked for, itself among it."""

    @property
    def asked_for(self) -> list[str]:
        """Without what lies in the page."""
        return [url for url in self.requests if not url.startswith("data:")]


def open_page(browser: Browser, file: Path, width: int = 1280, **options: Any) -> Opened:
    """Open `file` in a window of `width` pixels."""
    page = browser.new_page(viewport={"width": width, "height": 844}, **options)
    opened = Opened(page)
    page.on("console", lambda message: opened.console.append(message.text))
    page.on("pageerror", lambda error: opened.console.append(str(error)))
    page.on("dialog", lambda dialog: (opened.console.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(file.as_uri(), wait_until="load")
    return opened
