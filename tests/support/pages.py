"""Pages that the commands write: read as a tree without a browser, or opened in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VOID = {"br", "hr", "img", "input", "link", "meta", "source"}


def read_page(file: Path) -> ElementTree.Element:
    """Parse an HTML file; raises AssertionError unless every element is closed where it should be.

    Attributes without a value are "". `find` and `findall` take paths such as ".//tr[@data-split='test']/td".
    """
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open, f"not closed: {reader.open}"
    return reader.tree.close()


def text(element: ElementTree.Element | None) -> str:
    """Return the text of an element and all below it, with single blanks."""
    assert element is not None
    return " ".join("".join(element.itertext()).split())


def texts(page: ElementTree.Element, path: str) -> list[str]:
    """Return the texts of all elements of a path."""
    return [text(element) for element in page.findall(path)]


def with_class(page: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Return the elements of a class, in the order of the page."""
    return [element for element in page.iter() if name in element.get("class", "").split()]


CUT_OFF = """() => [...document.querySelectorAll("table")].filter(table => {
  for (let one = table.parentElement; one; one = one.parentElement) {
    if (one.scrollWidth <= one.clientWidth) continue;
    const overflow = getComputedStyle(one).overflowX;
    if (["auto", "scroll"].includes(overflow)) return false;
    if (overflow !== "visible" || one === document.documentElement) return true;
  }
  return false;
}).map(table => table.id || table.textContent.trim().slice(0, 40))"""


def cut_off(page: Page) -> list[str]:
    """Return the tables of which a part can neither be seen nor scrolled to, in a wide window and on a phone."""
    assert page.locator("table").count(), "no table to look at"
    found = []
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 844})
        found += [f"{table} at {width}" for table in page.evaluate(CUT_OFF)]
    return found


def small_charts(page: Page) -> list[str]:
    """Return the charts whose text, which is drawn in 10 points, has less than 8 pixels on a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    script = (
        "() => [...document.querySelectorAll('.chart img')].map(one => [one.alt, one.clientWidth / one.naturalWidth])"
    )
    charts = page.evaluate(script)
    assert charts, "no chart to look at"
    return [alt for alt, scale in charts if scale * 10 * 96 / 72 < 8]


def inaccessible(page: Page) -> list[str]:
    """Return what axe-core has against a page by WCAG 2 A and AA: wide and on a phone, light and dark."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    rules = {"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"]}
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for one in Axe().run(page, options=rules).response["violations"]:
                found += [f"{width} {scheme} {one['id']}: {node['html'][:200]}" for node in one["nodes"]]
    page.set_viewport_size({"width": 1280, "height": 844})
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tree, self.open = ElementTree.TreeBuilder(), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tree.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.tree.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        self.tree.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tree.data(data)


@dataclass
class Opened:
    """A page in the browser."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Messages, errors and dialogs."""
    requests: list[str] = field(default_factory=list)
    """Addresses that the page has requested, its own first."""

    @property
    def asked_for(self) -> list[str]:
        """Addresses of the requests, except for data: URIs, which are inside the page."""
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
