"""Waiting for a descriptor, with a cancellation in the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from sandbox.container.container import accepted


def test_a_wait_that_is_cancelled_as_the_connection_comes_is_quiet_and_loses_nothing() -> None:
    said: list[dict[str, Any]] = []

    async def trial() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("")  # an abstract name that the kernel chooses
            listener.listen(1)
            listener.settimeout(0)
            waiting = asyncio.create_task(accepted(listener))
            await asyncio.sleep(0)
            client.connect(listener.getsockname())
            # The loop sees the connection and the cancellation in one turn.
            loop.call_soon(waiting.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            assert waiting.cancelled()
            await asyncio.sleep(0)
            connection = await asyncio.wait_for(accepted(listener), 5)
            connection.close()

    asyncio.run(trial())
    assert said == []
