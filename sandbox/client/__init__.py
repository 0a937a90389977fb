"""Talk to the service from Python.

    from sandbox.client import Client

    with Client() as client:
        result = client.run("result = payload['a'] + 1", payload={"a": 1})
        print(result.outcome, result.value)
        for event in client.stream("print('hello')"):
            print(event)

`AsyncClient` is the same for asyncio. Errors are those of `sandbox.errors`, the same tree that the service raises: a program
that fails is a result. Only the standard library is imported. One client serves any number of threads, and processes that are
forked: every call has a connection for itself while it lasts.

Imports `errors`, `places` and `toml_file` of ours, and nothing else. Read `calls`, `told`, then `client`, `unix_http`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.client.base import default_socket
from sandbox.client.calls import OPTIONAL, run_body
from sandbox.client.client import Client
from sandbox.client.reading import Result, bytes_of, error_of, result_of
from sandbox.client.unix_http import NoService

if TYPE_CHECKING:
    from sandbox.client.async_client import AsyncClient

__all__ = [
    "OPTIONAL",
    "AsyncClient",
    "Client",
    "NoService",
    "Result",
    "bytes_of",
    "default_socket",
    "error_of",
    "result_of",
    "run_body",
]


def __getattr__(name: str) -> Any:
    """Give `AsyncClient`, without importing asyncio for those who need none of it."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandbox.client.async_client import AsyncClient

    return AsyncClient
