# /// script
# dependencies = ["httpx"]
#
# [tool.will-it-run]
# does = "sends ten requests at once to an application in the same process"
# expects = [10, 200]
# ///
import asyncio

import httpx


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://app") as client:
    answers = await asyncio.gather(*(client.get("/") for _ in range(10)))
result = [len(answers), answers[0].status_code]
