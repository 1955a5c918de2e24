"""`agman serve`: the service asked over HTTP by many clients, and its page in a browser."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect
from support.commands import agman_exit_code
from support.galleries import add_prototypes, embed_folder, jpeg, random_model
from support.pages import inaccessible

import agman
from agman.embedder import Embedder
from data_prep.errors import InputError
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import Hit, embedder_of, run_search, search
from pipeline.serving.app import MOST_BYTES
from pipeline.serving.keys import add_key
from pipeline.serving.run import Options, served

NAMES = ["collar_design", "skirt_length", "sleeve_length"]
PICTURES = 24
VALUES = {"collar_design": ("round", '"square"'), "sleeve_length": ("short", "long", "never seen")}
NASTY = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    root = tmp_path_factory.mktemp("serve")
    model = agman.save_model(root / "model", *random_model(NAMES))
    (root / "pictures").mkdir()
    for number in range(PICTURES):
        name = NASTY if number == 5 else f"{number:02d}.jpg"
        (root / "pictures" / name).write_bytes(jpeg(number))
    made = embed_folder(model, root / "pictures", root / "gallery")
    add_prototypes(made.folder, VALUES, made.info.width, made.info.model_digest)
    return Gallery.open(made.folder)


@pytest.fixture(scope="module")
def address(gallery: Gallery) -> Iterator[str]:
    with served(gallery.folder, None, Options(port=0, max_batch=16, wait_ms=20)) as where:
        yield where


@pytest.fixture(scope="module")
def embedder(gallery: Gallery) -> Embedder:
    return embedder_of(gallery)


def upload(data: bytes, attributes: list[str], **more: Any) -> dict[str, Any]:
    return {"files": {"image": ("query.jpg", data)}, "data": {"attributes": attributes} | more}


def test_the_health_check_describes_the_service(address: str, gallery: Gallery) -> None:
    health = httpx.get(f"{address}/healthz").json()
    assert health["status"] == "ok" and health["pictures"] == PICTURES and health["attributes"] == NAMES
    described = httpx.get(f"{address}/openapi.json").json()
    assert described["info"]["title"] == "agman"
    assert "multipart/form-data" in described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert httpx.get(f"{address}/docs").status_code == 404  # its page would load from a CDN


def test_64_concurrent_clients_each_get_their_own_answer(address: str, gallery: Gallery, embedder: Embedder) -> None:
    """Pictures, attributes and numbers of hits differ between the requests."""
    asked = [(jpeg(100 + n), [NAMES[n % 3], *([NAMES[(n + 1) % 3]] if n % 2 else [])], 1 + n % 7) for n in range(128)]

    async def client(own: httpx.AsyncClient, data: bytes, attributes: list[str], top: int) -> Any:
        answer = await own.post(f"{address}/search", **upload(data, attributes, top=top))
        assert answer.status_code == 200, answer.text
        return [(hit["row"], hit["score"]) for hit in answer.json()["hits"]]

    async def everybody() -> list[Any]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=120, limits=limits) as own:
            return await asyncio.gather(*(client(own, *one) for one in asked))

    for answer, (data, attributes, top) in zip(asyncio.run(everybody()), asked, strict=True):
        scores = {hit.row: hit.score for hit in search(gallery, embedder, data, attributes, PICTURES)}
        assert [score for _, score in answer] == pytest.approx(sorted(scores.values(), reverse=True)[:top], abs=1e-5)
        assert [scores[row] for row, _ in answer] == pytest.approx([score for _, score in answer], abs=1e-5)


def test_values_find_pictures_alone_and_beside_one(address: str, gallery: Gallery) -> None:
    health = httpx.get(f"{address}/healthz").json()
    assert health["values"] == {"collar_design": ["round", '"square"'], "sleeve_length": ["short", "long"]}
    asked = {"values": ["sleeve_length=long"], "excluded": ["collar_design=round"], "top": 5}
    hits = httpx.post(f"{address}/search", data=asked).json()["hits"]
    expected = run_search(gallery, None, {}, approximate=False, model=None, **asked)
    assert [hit["row"] for hit in hits] == [hit.row for hit in expected]
    namer = gallery.tagger.namers["collar_design"]  # type: ignore[union-attr]
    for hit in hits:
        long, without = hit["values"]
        assert (long["value"], long["excluded"]) == ("long", False)
        assert (without["value"], without["excluded"]) == ("round", True)
        assert hit["score"] == pytest.approx(long["score"] * without["score"])
        assert hit["tags"].keys() == {"collar_design", "sleeve_length"}
        (known,) = namer.probabilities(torch.from_numpy(gallery.matrix(0)[[hit["row"]]])).tolist()
        best = int(np.argmax(known))
        assert hit["tags"]["collar_design"] == {"value": namer.values[best], "probability": pytest.approx(known[best])}
    beside = httpx.post(f"{address}/search", **upload(jpeg(3), NAMES[:1], values="sleeve_length=short")).json()["hits"]
    again = httpx.get(f"{address}/similar/3", params={"attributes": NAMES[:1], "values": "sleeve_length=short"})
    assert len(beside) == len(again.json()["hits"]) == 10
    assert 3 not in [hit["row"] for hit in again.json()["hits"]]
    for hit in beside + again.json()["hits"]:
        score = hit["cosines"][NAMES[0]] + hit["values"][0]["score"]
        assert hit["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing to search for; send a picture with attributes, or values"),
        ({"attributes": NAMES[:1]}, "attributes are those of a picture, and there is none"),
        ({"values": "sleeve_length=lon"}, "did you mean 'long'?"),
        ({"values": "sleeve_length=long", "top": 0}, "top must be 1 to"),
    ],
)
def test_a_search_that_asks_for_nothing_possible_is_refused(address: str, asked: dict[str, Any], message: str) -> None:
    answer = httpx.post(f"{address}/search", data=asked)
    assert answer.status_code == 422 and message in answer.json()["error"]


def test_embeddings_pictures_and_attention(address: str, gallery: Gallery, embedder: Embedder) -> None:
    data = jpeg(7)
    answer = httpx.post(f"{address}/embed", **upload(data, NAMES[1:])).json()["embeddings"]
    alone = embedder.embed([embedder.read(data)])[0]
    np.testing.assert_allclose([answer[name] for name in NAMES[1:]], alone[1:], atol=1e-5)
    row = list(gallery.images).index("07.jpg")
    picture = httpx.get(f"{address}/pictures/{row}")
    assert picture.content == data and picture.headers["content-type"] == "image/jpeg"
    assert picture.headers["x-content-type-options"] == "nosniff"
    assert picture.headers["cache-control"] == "no-store"  # the row may be another picture's soon
    kept = httpx.get(f"{address}/pictures/{row}", params={"of": gallery.version}).headers["cache-control"]
    assert kept == "private, max-age=3600"
    heat = httpx.get(f"{address}/attention/{row}", params={"attribute": NAMES[0]})
    assert Image.open(io.BytesIO(heat.content)).size == (32, 32)
    own = httpx.post(f"{address}/attention", **upload(data, NAMES[:2])).json()["attention"]
    assert list(own) == NAMES[:2] and own[NAMES[0]] != own[NAMES[1]]
    others = httpx.get(f"{address}/similar/{row}", params={"attributes": NAMES, "top": PICTURES}).json()["hits"]
    assert sorted(hit["row"] for hit in others) == [other for other in range(PICTURES) if other != row]
    weighted = upload(data, [f"{NAMES[0]}=3", NAMES[1]], top=5)
    for hit in httpx.post(f"{address}/search", **weighted).json()["hits"]:
        assert hit["score"] == pytest.approx(3 * hit["cosines"][NAMES[0]] + hit["cosines"][NAMES[1]], abs=1e-5)


def test_some_pictures_to_begin_with_and_one_by_its_name(address: str, gallery: Gallery) -> None:
    def asked(**query: Any) -> Any:
        return httpx.get(f"{address}/pictures", params=query).json()["pictures"]

    drawn = asked(seed=1, top=5)
    assert drawn == asked(seed=1, top=5) != asked(seed=2, top=5)
    assert len({one["image"] for one in drawn}) == 5
    for one in drawn:
        assert gallery.images[one["row"]] == one["image"] and one["of"] == gallery.version
        assert one["tags"].keys() == {"collar_design", "sleeve_length"}
        assert [one] == asked(image=one["image"])
    assert [one["row"] for one in asked(top=100)] == [*range(PICTURES)]
    for wrong, said in (
        ({"image": "x.jpg"}, "has no picture 'x.jpg'"),
        ({"top": 101}, "top: "),
        ({"seed": -1}, "seed: "),
    ):
        answer = httpx.get(f"{address}/pictures", params=wrong)
        assert answer.status_code == 422 and said in answer.json()["error"]


def huge() -> bytes:
    file = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "request_", "code", "said"),
    [
        ("search", upload(b"text", NAMES), 422, "not a picture that can be read"),
        ("search", upload(b"", NAMES), 422, "not a picture that can be read"),
        ("search", upload(huge(), NAMES), 413, r"too large \(10000x5000 pixels, at most 40 megapixels\)"),
        ("search", upload(bytes(100 * 2**20), NAMES), 413, "the upload is too large: at most 16 MiB"),
        ("search", upload(jpeg(1), ["colar_design"]), 422, "unknown attribute 'colar_design'; did you mean 'collar_"),
        ("search", upload(jpeg(1), [NAMES[0], NAMES[0]]), 422, "given twice"),
        ("search", upload(jpeg(1), [f"{NAMES[0]}=-1"]), 422, "a weight must be a positive number"),
        ("search", upload(jpeg(1), [f"{NAMES[0]}=much"]), 422, "the weight must be a number, as in collar_design=2"),
        ("search", upload(jpeg(1), NAMES, top=0), 422, "top must be 1 to 100, not 0"),
        ("search", upload(jpeg(1), NAMES, top="many"), 422, "top: .*integer"),
        (
            "search",
            upload(jpeg(1), NAMES, approximate=True),
            422,
            "^GALLERY: has no approximate index; `agman index GALLERY` builds one$",
        ),
        ("search", {"data": {"attributes": NAMES}}, 422, "attributes are those of a picture, and there is none"),
        ("search", {"files": {"image": ("a.jpg", jpeg(1))}}, 422, "no attribute given; known: collar_design"),
        ("embed", {"content": b"{}", "headers": {"Content-Type": "application/json"}}, 422, "image: field required"),
        ("nowhere", {}, 404, "not found"),
    ],
)
def test_an_invalid_request_is_answered_in_one_line_and_the_service_continues(
    address: str, path: str, request_: dict[str, Any], code: int, said: str
) -> None:
    answer = httpx.post(f"{address}/{path}", timeout=60, **request_)
    assert answer.status_code == code, answer.text
    assert re.search(said, answer.json()["error"], re.IGNORECASE) and list(answer.json()) == ["error"]
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_a_long_body_of_unstated_length_is_cut_off(address: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(2 * MOST_BYTES // 2**20):
            yield bytes(2**20)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{address}/search", content=endless(), headers=headers, timeout=60)
    assert answer.status_code == 413 and "at most 16 MiB" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "code"),
    [("pictures/999", 422), ("pictures/-1", 422), ("pictures/..%2Fgallery.json", 404), ("attention/0?attribute=x", 422),
     ("similar/999?attributes=skirt_length", 422), ("search", 405)],
)  # fmt: skip
def test_missing_rows_and_paths_are_answered_with_an_error(address: str, path: str, code: int) -> None:
    answer = httpx.get(f"{address}/{path}")
    assert answer.status_code == code and list(answer.json()) == ["error"]


class Elements(HTMLParser):
    """Elements of a page: names and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.found if name == tag and attributes.items() <= found.items()]


def test_the_page_offers_every_attribute_and_loads_nothing_from_elsewhere(address: str) -> None:
    answer = httpx.get(address)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Elements(answer.text)
    boxes = page.named("input", name="attributes")
    assert [box["value"] for box in boxes] == NAMES and ["checked" in box for box in boxes] == [True, False, False]
    assert [script.get("src") for script in page.named("script")] == ["serve.js"]
    assert all(link["href"].startswith("data:") for link in page.named("link"))
    assert f"{PICTURES} pictures" in answer.text
    for name in ("serve.js", "serve_hits.js"):
        assert httpx.get(f"{address}/{name}").headers["content-type"].startswith("text/javascript")


def test_the_page_in_a_browser(browser: Browser, address: str, gallery: Gallery, embedder: Embedder) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    begins_with_pictures_of_the_gallery(page, gallery)
    finds_by_values_alone(page, gallery)
    refuses_an_incomplete_query(page)
    page.on("console", lambda message: messages.append(message.text))  # the refused file above is an error there
    finds_pictures_and_shows_attention(page, gallery, embedder)
    keeps_all_in_the_address(page, gallery, embedder)
    searches_under_another_attribute(page, gallery, embedder)
    moves_by_arrow_keys(page)
    shows_more(page)
    assert inaccessible(page) == []
    fits_a_phone(page)
    assert messages == [] and all(url.startswith((address, "blob:", "data:")) for url in asked)
    keeps_what_stands_until_the_answer(page)
    page.close()


def pick(page: Page, name: str, data: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": data})


def box(page: Page, attribute: str) -> Locator:
    return page.locator(f"[name=attributes][value={attribute}]")


def names_on(page: Page) -> list[str]:
    return page.locator(".hit .name").all_text_contents()


def shows(page: Page, hits: Sequence[Hit]) -> None:
    """Expect the page to show these hits."""
    expect(page.locator(".hit strong")).to_have_text([f"{rank}. {hit.score:.3f}" for rank, hit in enumerate(hits, 1)])
    assert names_on(page) == [hit.image for hit in hits]


def like(gallery: Gallery, embedder: Embedder, image: str, weights: dict[str, float], top: int = 10) -> list[Hit]:
    row = list(gallery.images).index(image)
    return search(gallery, embedder, (Path(gallery.info.root) / image).read_bytes(), weights, top, without=row)


def begins_with_pictures_of_the_gallery(page: Page, gallery: Gallery) -> None:
    expect(page.get_by_text("Drop a picture here")).to_be_visible()
    expect(page.locator(".hit")).to_have_count(PICTURES)
    assert sorted(names_on(page)) == sorted(gallery.images)
    expect(page.locator(".hit dl.tags")).to_have_count(PICTURES)
    hidden = page.locator("[hidden]").all()
    assert len(hidden) == 9
    for element in hidden:
        expect(element).to_be_hidden()
    page.get_by_role("button", name="Show others").click()
    expect(page).to_have_url(re.compile("#seed=1$"))
    assert inaccessible(page) == []
    page.go_back()


def finds_by_values_alone(page: Page, gallery: Gallery) -> None:
    assert page.locator(".value").all_text_contents() == ["round", '"square"', "short", "long"]
    square, long = page.get_by_role("button", name='"square"'), page.get_by_role("button", name="long", exact=True)
    square.click()
    long.click()
    long.click()
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.get_by_role("button", name="not long", exact=True)).to_have_attribute("aria-pressed", "mixed")
    asked = {"values": ['collar_design="square"'], "excluded": ["sleeve_length=long"]}
    found = run_search(gallery, None, {}, top=10, approximate=False, model=None, **asked)
    shows(page, found)
    expect(page.locator(".hit dl.tags")).to_have_count(10)
    assert found[0].values[0].score < 0.5
    expect(page.locator("#status")).to_have_text("Nothing seems to have all these values; these come nearest.")
    page.get_by_role("button", name='Leave out “collar design: "square"”').click()
    expect(square).to_have_attribute("aria-pressed", "false")
    square.click()
    shows(page, found)
    page.get_by_role("button", name="round").click()  # instead of the other value of its attribute
    expect(square).to_have_attribute("aria-pressed", "false")
    for name in ("round", "not round", "not long"):
        page.get_by_role("button", name=name, exact=True).click()
    expect(page.locator(".hit")).to_have_count(PICTURES)
    expect(page.locator(".hit strong")).to_have_count(0)


def refuses_an_incomplete_query(page: Page) -> None:
    pick(page, "text.txt", b"no picture")
    expect(page.locator("#status")).to_contain_text("Not a picture that can be read")
    expect(page.locator(".hit")).to_have_count(0)
    box(page, "collar_design").uncheck()
    expect(page.locator("#status")).to_have_text("Choose at least one attribute.")
    box(page, "collar_design").check()
    expect(page.locator("#status")).to_contain_text("Not a picture that can be read")
    page.get_by_role("button", name="Start again").click()
    expect(page.locator(".hit")).to_have_count(PICTURES)
    pick(page, "query.jpg", jpeg(3))
    expect(page.locator(".hit")).to_have_count(10)


def finds_pictures_and_shows_attention(page: Page, gallery: Gallery, embedder: Embedder) -> None:
    box(page, "skirt_length").check()
    found = search(gallery, embedder, jpeg(3), NAMES[:2], 10)
    shows(page, found)
    expect(page.locator("#preview")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    version = f"?of={gallery.info.fingerprint[:8]}"
    first = page.locator(".hit img").first
    expect(first).to_have_attribute("src", f"attention/{found[0].row}{version}&attribute={NAMES[0]}")
    for picture in page.locator(".hit img").all():
        picture.scroll_into_view_if_needed()  # it is loaded then
        expect(picture).not_to_have_js_property("naturalWidth", 0)
    page.select_option("#heat", "")
    expect(first).to_have_attribute("src", f"pictures/{found[0].row}{version}")
    page.locator(".hit .pick").nth(4).click()
    others = like(gallery, embedder, found[4].image, dict.fromkeys(NAMES[:2], 1.0))
    shows(page, others)
    expect(first).to_have_attribute("src", f"pictures/{others[0].row}{version}")  # the choice of no attention persists


def keeps_all_in_the_address(page: Page, gallery: Gallery, embedder: Embedder) -> None:
    """In the state in which `finds_pictures_and_shows_attention` leaves the page."""
    image = search(gallery, embedder, jpeg(3), NAMES[:2], 10)[4].image
    page.get_by_label("Weight of skirt length").fill("2.5")
    page.get_by_label("Weight of skirt length").press("Enter")
    weighted = like(gallery, embedder, image, {NAMES[0]: 1, NAMES[1]: 2.5})
    shows(page, weighted)
    here = page.url
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".hit")).to_have_count(PICTURES)
    page.reload()
    page.goto(here)
    shows(page, weighted)
    expect(page.get_by_label("Weight of skirt length")).to_have_value("2.5")
    expect(page.locator("#preview")).to_have_attribute("alt", f"Query picture {image}")
    expect(page.locator("#heat")).to_have_value("")
    pick(page, "query.jpg", jpeg(3))
    shows(page, search(gallery, embedder, jpeg(3), {NAMES[0]: 1, NAMES[1]: 2.5}, 10))
    expect(page.get_by_text("A link cannot hold your picture.")).to_be_visible()
    page.go_back()
    shows(page, weighted)
    page.go_forward()
    expect(page.locator("#preview")).to_have_attribute("alt", "Query picture query.jpg")
    page.reload()
    expect(page.locator("#status")).to_contain_text("a link cannot hold")
    page.go_back()
    shows(page, weighted)


def searches_under_another_attribute(page: Page, gallery: Gallery, embedder: Embedder) -> None:
    image = names_on(page)[1]
    more = page.get_by_role("button", name="More like this in…").nth(1)
    more.click()
    menu = page.locator("#more")
    expect(menu).to_be_visible()
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(menu).to_be_hidden()
    shows(page, like(gallery, embedder, image, {NAMES[2]: 1}))
    assert page.locator("[name=attributes]:checked").evaluate_all("boxes => boxes.map(box => box.value)") == NAMES[2:]
    expect(page.locator("#title")).to_be_focused()


def moves_by_arrow_keys(page: Page) -> None:
    pictures = page.locator(".pick")
    pictures.first.focus()
    for key, place in (("ArrowRight", 1), ("ArrowDown", 5), ("ArrowLeft", 4), ("ArrowUp", 0), ("ArrowUp", 0)):
        page.keyboard.press(key)
        expect(pictures.nth(place)).to_be_focused()


def shows_more(page: Page) -> None:
    before = names_on(page)
    more = page.get_by_role("button", name="Show more")
    more.click()
    expect(page.locator(".hit")).to_have_count(20)
    assert names_on(page)[:10] == before
    expect(page).to_have_url(re.compile("top=20"))
    more.click()
    expect(page.locator(".hit")).to_have_count(PICTURES - 1)
    expect(more).to_be_hidden()


SMALL = """() => [...document.querySelectorAll("button, select, summary, .chip label, .weight, .drop")]
  .filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 40).map(one => one.outerHTML)"""
"""Controls that a finger does not hit well."""


def fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    pick(page, "query.jpg", jpeg(5))
    expect(page.locator(".hit .name").first).to_have_text(NASTY)  # as text
    box(page, "skirt_length").check()
    expect(page.locator(".hit")).to_have_count(10)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(SMALL) == []


def keeps_what_stands_until_the_answer(page: Page) -> None:
    results, held = page.locator("#results"), list[Route]()
    expect(results).to_have_attribute("aria-busy", "false")  # the answer to the last choice is there
    before = names_on(page)
    page.route("**/search", lambda route: held.append(route))
    box(page, "skirt_length").uncheck()
    expect(page.locator("#status")).to_have_text("Searching …")
    expect(results).to_have_attribute("aria-busy", "true")
    assert names_on(page) == before
    while not held:
        page.wait_for_timeout(20)
    held[0].continue_()
    expect(results).to_have_attribute("aria-busy", "false")
    assert names_on(page) != before
    page.unroute("**/search")
    page.context.set_offline(True)
    box(page, "collar_design").check()
    expect(page.locator("#status")).to_have_text("The service does not answer. Is it running?")
    expect(page.locator(".hit")).to_have_count(0)
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".hit")).to_have_count(10)
    page.route("**/search", lambda route: route.fulfill(status=401, json={"error": "a key is needed"}))
    box(page, "collar_design").uncheck()
    expect(page.locator("#status")).to_have_text(
        "The service needs a key. Load this page again, and enter the key as the password."
    )
    page.unroute("**/search")
    page.get_by_role("button", name="Start again").click()
    expect(page.locator(".hit")).to_have_count(PICTURES)


def test_while_a_replica_is_replaced_requests_are_told_to_come_back(address: str, browser: Browser) -> None:
    """The last test of the fixture's service that needs a replica at once."""
    page = browser.new_page()
    page.goto(address)
    expect(page.locator(".hit")).to_have_count(PICTURES)
    (replica,) = [one for one in psutil.process_iter(["cmdline"]) if is_replica_of(one, os.getpid())]
    replica.kill()
    killed = time.monotonic()
    page.locator(".pick").first.click()
    expect(page.locator("#status")).to_have_text("The service is starting; try again in a few seconds.")
    expect(page.locator(".hit")).to_have_count(0)
    codes = set()
    while time.monotonic() < killed + 60:
        answer = httpx.post(f"{address}/search", **upload(jpeg(1), NAMES), timeout=5)
        health = httpx.get(f"{address}/healthz", timeout=5)
        codes.add(answer.status_code)
        if answer.status_code == 503:
            assert answer.json() == {"error": "the service is starting; try again in a few seconds"}
            assert answer.headers["retry-after"] == "2"
        if health.status_code == 503:
            assert health.json()["status"] == "starting"
            codes.add("starting")
        elif "starting" in codes:
            break
        time.sleep(0.1)
    assert codes == {503, "starting"} or codes == {503, "starting", 200}
    assert httpx.post(f"{address}/search", **upload(jpeg(1), NAMES), timeout=5).status_code == 200
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".hit")).to_have_count(10)
    page.close()


def is_replica_of(process: psutil.Process, driver: int) -> bool:
    """Return whether a process is a replica of Ray Serve in the Ray that `driver` has started."""
    try:
        named = "ServeReplica" in " ".join(process.info["cmdline"] or [])
        return named and driver in [parent.pid for parent in process.parents()]
    except psutil.Error:
        return False


def test_a_running_ray_serve_is_refused_and_left_alone(address: str, gallery: Gallery) -> None:
    with (
        pytest.raises(InputError, match="runs Ray Serve already"),
        served(gallery.folder, None, Options(port=0)),
    ):
        pass
    assert httpx.get(f"{address}/healthz").json()["status"] == "ok"


def test_a_service_by_onnxruntime_with_keys_ends_quietly_at_ctrl_c(
    gallery: Gallery, tmp_path: Path, browser: Browser
) -> None:
    exported = tmp_path / "exported"
    assert agman_exit_code("export", gallery.info.model, "--out", exported) == 0
    key, guest = (add_key(tmp_path / "keys", name) for name in ("shop", "guest"))
    program = [str(Path(sys.executable).with_name("agman")), "serve", str(gallery.folder), "--port", "0"]
    program += ["--backend", "onnx", "--model", str(exported), "--keys", str(tmp_path / "keys"), "--rate-limit", "3"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_"))}
    with (
        subprocess.Popen(
            program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        ExitStack() as at_end,
    ):
        at_end.callback(process.terminate)  # otherwise, a failed assertion would wait for its end
        assert process.stdout
        assert process.stdout.readline() == "starting the service\n"
        first = process.stdout.readline()
        assert first.startswith(f"serving {gallery.folder} at http://127.0.0.1:"), first + process.stdout.read()
        where = first.split()[3]
        with httpx.Client(base_url=where, headers={"Authorization": f"Bearer {key}", "X-Request-Id": "one"}) as client:
            found = client.post("/embed", **upload(jpeg(7), NAMES[:1]), timeout=60).json()["embeddings"][NAMES[0]]
            assert 'path="/embed",status="200"' in client.get("/metrics").text
            assert client.get("/openapi.json").status_code == 200
            assert client.get("/openapi.json").status_code == 429
            assert client.get("/healthz").json()["pictures"] == PICTURES
        with browser.new_context(http_credentials={"username": "any", "password": guest}) as context:
            page = context.new_page()
            page.goto(where)  # with its two scripts, these are the three requests
            expect(page.locator("#status")).to_have_text(re.compile("^More than 3 requests a minute; try again in "))
            expect(page.get_by_role("button", name="Try again")).to_be_visible()
        assert httpx.get(f"{where}/openapi.json").status_code == 401
        assert httpx.get(f"{where}/healthz").json().keys() == {"status", "version"}
        process.send_signal(signal.SIGINT)
        *lines, stopping, stopped, rest = process.stdout.read().split("\n")
        assert process.wait() == 0
    assert (stopping, stopped, rest) == ("stopping", f"stopped (process {process.pid})", "")
    assert re.search(r"INFO one shop POST /embed 200 \d+ ms$", lines[0]), lines
    assert re.search(r"INFO [0-9a-f]{32} 127.0.0.1 GET /openapi.json 401 \d+ ms$", lines[-2]), lines
    expected = embedder_of(gallery).embed([embedder_of(gallery).read(jpeg(7))])[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_invalid_arguments_are_refused_in_one_line(
    gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert agman_exit_code("serve", gallery.folder, "--port", port) == 2
        assert f"--host 127.0.0.1 --port {port}: Address already in use" in capsys.readouterr().err
    assert agman_exit_code("serve", gallery.folder, "--host", "0.0.0.0") == 2
    assert "--host 0.0.0.0: other machines could use it; give --keys FILE" in capsys.readouterr().err
    assert agman_exit_code("serve", gallery.folder, "--backend", "int8") == 2
    assert "has no embed_all.int8.onnx; `agman export" in capsys.readouterr().err
    assert agman_exit_code("serve", tmp_path) == 2
    assert "not a gallery" in capsys.readouterr().err
    moved = json.loads((gallery.folder / "gallery.json").read_text()) | {"model": str(tmp_path / "gone")}
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("images.parquet", "vectors"):
        (copy / file).symlink_to(gallery.folder / file)
    (copy / "gallery.json").write_text(json.dumps(moved))
    assert agman_exit_code("serve", copy) == 2
    assert "no model there" in capsys.readouterr().err


def narrows_by_a_condition(page: Page, address: str) -> None:
    """Open a link to a picture whose row has moved; a condition leaves three, none, or is a mistake."""
    page.goto(f"{address}/#image=07.jpg&attributes={NAMES[0]}")
    expect(page.locator(".hit .name").first).to_have_text("00-new.jpg")
    where = page.get_by_label("Only where")
    where.fill("price between 1 and 3")
    where.press("Enter")
    expect(page.locator(".hit")).to_have_count(3)
    assert sorted(names_on(page)) == ["00-new.jpg", "10.jpg", "11.jpg"]
    page.reload()  # the address holds the condition
    expect(page.locator(".hit")).to_have_count(3)
    expect(where).to_have_value("price between 1 and 3")
    where.fill("prise < 3")
    where.press("Enter")
    expect(page.locator("#status")).to_contain_text("no column 'prise'; did you mean 'price'?")
    expect(page.locator(".hit")).to_have_count(0)
    assert inaccessible(page) == []
    where.fill("price < 0")
    where.press("Enter")
    expect(page.locator("#status")).to_have_text("Nothing fulfils “price < 0”.")
    expect(page.locator(".hit")).to_have_count(0)
    page.get_by_role("button", name="Search without the condition").click()
    expect(page.locator(".hit")).to_have_count(10)
    page.close()


def updated(gallery: Path, *options: str) -> None:
    """Run `agman embed --into` in a process and a Ray of its own, as beside a service."""
    program = [str(Path(sys.executable).with_name("agman")), "embed", "--into", str(gallery), *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def follows(address: str, pictures: int) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{address}/healthz").json()["pictures"] != pictures:
        assert time.monotonic() < deadline, "the service has not seen the new state"
        time.sleep(0.1)


def test_a_running_service_follows_an_update_and_mixes_no_states(
    address: str, gallery: Gallery, tmp_path: Path, browser: Browser
) -> None:
    """The last test of this gallery: it changes. The new picture is the first row, so that all rows move."""
    pictures, table = Path(gallery.info.root), tmp_path / "table.csv"
    asked = upload(jpeg(7), NAMES[:1], top=5)
    before = httpx.post(f"{address}/search", **asked).json()["hits"]
    (pictures / "00-new.jpg").write_bytes(jpeg(7))
    names = [NASTY, "00-new.jpg", *(f"{number:02d}.jpg" for number in range(10, PICTURES))]
    table.write_text("name,price\n" + "".join(f"{name},{price}\n" for price, name in enumerate(names)))
    answers: list[dict[str, Any]] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(
                {"code": 0} if (got := httpx.post(f"{address}/search", **asked)).status_code != 200 else got.json()
            )

    clients = [threading.Thread(target=client) for _ in range(2)]
    for one in clients:
        one.start()
    updated(gallery.folder, "--columns", str(table))
    follows(address, PICTURES + 1)
    stop.set()
    for one in clients:
        one.join()
    now = Gallery.open(gallery.folder)
    states = {state.version: state for state in (gallery, now)}
    assert len(states) == 2
    for hit in [hit for answer in answers for hit in answer["hits"]]:
        assert states[hit["of"]].images[hit["row"]] == hit["image"]
        assert hit["picture"] == f"pictures/{hit['row']}?of={hit['of']}"
    assert {hit["of"] for hit in answers[0]["hits"]} == {gallery.version}

    hits = httpx.post(f"{address}/search", **asked).json()["hits"]
    assert [hit["image"] for hit in hits[:2]] == ["00-new.jpg", "07.jpg"]  # equal scores are ordered by row
    assert hits[0]["columns"].keys() == {"price"}
    for hit in before[:3]:  # links of a page that shows the old state
        assert httpx.get(f"{address}/{hit['picture']}").content == (pictures / hit["image"]).read_bytes()
        similar = httpx.get(
            f"{address}/similar/{hit['row']}", params={"attributes": NAMES[:1], "of": hit["of"], "top": 50}
        )
        assert {one["image"] for one in similar.json()["hits"]} == {*gallery.images} - {hit["image"]}
    assert httpx.get(f"{address}/pictures/0").content == jpeg(7)

    where = {"where": "price between 1 and 3", "values": "sleeve_length=long"}
    found = httpx.post(f"{address}/search", data=where).json()["hits"]
    assert {hit["image"]: hit["columns"]["price"] for hit in found} == {"00-new.jpg": 1, "10.jpg": 2, "11.jpg": 3}
    assert httpx.post(f"{address}/search", data=where | {"where": "price < 0"}).json() == {"hits": []}
    for wrong, said in (
        ("prise < 3", "no column 'prise'; did you mean 'price'?"),
        ("price" * 201, "at most 1000 char"),
    ):
        answer = httpx.post(f"{address}/search", data=where | {"where": wrong})
        assert answer.status_code == 422 and said in answer.json()["error"]
    narrows_by_a_condition(browser.new_page(), address)
    assert httpx.get(f"{address}/healthz").json()["columns"] == {"price": "a number"}

    (pictures / "00-new.jpg").unlink()
    updated(gallery.folder, "--remove-missing")
    follows(address, PICTURES)
    left = next(hit for hit in hits if hit["image"] == "07.jpg")  # its score equals that of the removed one
    assert httpx.get(f"{address}/{left['picture']}").status_code == 200
    gone = httpx.get(f"{address}/{before[0]['picture']}")
    assert gone.status_code == 422 and gone.json() == {
        "error": "the gallery has been updated since that answer; search again"
    }
