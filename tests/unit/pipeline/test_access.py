"""API keys, the limit on requests a minute, ids and figures of requests: around an application of one line."""

from __future__ import annotations

import asyncio
import io
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from support.commands import agman_exit_code

from data_prep.errors import InputError
from pipeline.serving.access import Access, is_loopback
from pipeline.serving.keys import Keys, add_key
from pipeline.serving.observe import LOG, REGISTRY, Observed, OfRequest

app = FastAPI(openapi_url=None)


@app.get("/search/{row}")
@app.get("/healthz")
async def answer() -> str:
    return "ok"


def ask(application: Any, *requests: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    async def every() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://here") as client:
            return [await client.get(path, headers=headers) for path, headers in requests]

    return asyncio.run(every())


def test_a_key_opens_the_service_as_bearer_token_and_as_password(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key, other = add_key(file, "shop"), add_key(file, "team.b")
    assert key not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    basic = httpx.BasicAuth("whoever", other)._auth_header
    paths = [
        ("/search/1", {}),
        ("/search/1", {"Authorization": f"Bearer {key}"}),
        ("/search/1", {"Authorization": basic}),
        ("/search/1", {"Authorization": f"Bearer {key[:-1]}"}),
        ("/search/1", {"Authorization": "Basic %%%"}),
        ("/search/1", {"Authorization": "Basic é".encode("latin-1")}),
        ("/search/1", {"Authorization": f"Digest {key}"}),
        ("/healthz", {}),
        ("/search/1", {"X-Requested-With": "fetch"}),
    ]
    answers = ask(Access(app, Keys.read(file), None), *paths)
    assert [one.status_code for one in answers] == [401, 200, 200, 401, 401, 401, 401, 200, 401]
    assert answers[0].json() == {"error": "a key is needed; send it as a bearer token"}
    challenges = [answers[number].headers["www-authenticate"].split()[0] for number in (0, -1)]
    assert challenges == ["Basic", "Bearer"]  # browsers ask for a password, but not for a page's script
    assert [one.status_code for one in ask(Access(app, None, None), ("/search/1", {}))] == [200]


def test_requests_beyond_the_limit_are_told_when_to_come_back(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = ({"Authorization": f"Bearer {add_key(file, name)}"} for name in ("first", "second"))
    asked = [("/search/1", first)] * 3 + [("/search/1", second), ("/healthz", first)]
    answers = ask(Access(app, Keys.read(file), 2), *asked)
    assert [one.status_code for one in answers] == [200, 200, 429, 200, 200]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    assert answers[2].json()["error"].startswith("more than 2 requests a minute; try again in ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key; `agman key NAME --keys"),
        ("shop 123\n", "line 1: expected a new name and 64 hexadecimal digits"),
        (f"a {'0' * 64}\n\na {'1' * 64}\n", "line 3: expected a new name"),
        ("\udcff", "cannot be read (not text)"),
    ],
)
def test_a_damaged_file_of_keys_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as refused:
        Keys.read(tmp_path / "keys")
    assert message in str(refused.value)
    with pytest.raises(InputError, match="No such file"):
        Keys.read(tmp_path / "nothing")


def test_agman_key_shows_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert agman_exit_code("key", "shop", "--keys", file) == 0
    key = capsys.readouterr().out.strip()
    assert Keys.read(file).name_of(f"Bearer {key}") == "shop"
    file.write_text(file.read_text().rstrip())  # as editors leave files
    assert agman_exit_code("key", "team", "--keys", file) == 0
    assert {Keys.read(file).name_of(f"Bearer {one}") for one in (key, capsys.readouterr().out.strip())} == {
        "shop",
        "team",
    }
    before = file.read_bytes()
    assert agman_exit_code("key", "shop", "--keys", file) == 2
    assert "has a key of shop" in capsys.readouterr().err
    assert agman_exit_code("key", "a b", "--keys", file) == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("shop", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_every_request_has_an_id_in_answer_and_log() -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(OfRequest())
    handler.setFormatter(logging.Formatter("%(request)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    mine, strange = {"X-Request-Id": "mine-1"}, {"X-Request-Id": "two words"}
    asked = [("/search/7?q=x", mine), ("/search/8", {}), ("/a%0Ab", strange)]
    try:
        answers = ask(Observed(Access(app, None, None)), *asked)
    finally:
        LOG.removeHandler(handler)
    ids = [one.headers["x-request-id"] for one in answers]
    assert ids[0] == "mine-1" and len({*ids}) == 3 and "two words" not in ids
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ids
    assert lines[0].startswith("mine-1 127.0.0.1 GET /search/7 200 ")
    assert "GET /a%0Ab 404 " in lines[2]


def test_requests_are_counted_by_the_template_of_their_path() -> None:
    ask(Observed(app), ("/search/1", {}), ("/search/2", {}), ("/nowhere/3", {}))
    figures = generate_latest(REGISTRY).decode()
    assert 'agman_requests_total{method="GET",path="/search/{row}",status="200"}' in figures
    assert 'path="none",status="404"' in figures and "/nowhere" not in figures
    assert "agman_requests_in_progress 0.0" in figures
