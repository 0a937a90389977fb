"""Answers to clients that hardly read, or not at all: they are cut off, and nothing is kept for them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sandbox.service import answers

BODY = b"x" * (20 << 20)


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never reads"])
def test_a_client_that_takes_nothing_is_cut_off_and_any_other_gets_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, reads: bool
) -> None:
    monkeypatch.setattr(answers, "WRITE_TIMEOUT_S", 60.0 if reads else 0.2)

    async def serve() -> int:
        over = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                return await answers.large(request, [BODY], {})
            finally:
                over.set()

        app = web.Application()
        app.router.add_get("/", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(tmp_path / "s")).start()
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if not reads:
                await asyncio.wait_for(over.wait(), 30)
            try:
                return len((await reader.read(-1)).partition(b"\r\n\r\n")[2])
            except ConnectionError:
                return 0
            finally:
                writer.close()
        finally:
            await runner.cleanup()

    got = asyncio.run(serve())
    assert got == len(BODY) if reads else got < len(BODY)


def test_a_method_that_a_route_has_not_is_answered_with_those_that_it_has() -> None:
    refused = web.HTTPMethodNotAllowed("PUT", ["POST", "GET"])
    answer = answers.error_answer(answers.translated(refused, make_mocked_request("PUT", "/v1/runs")))
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, POST")
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["error"]["facts"] == {}
