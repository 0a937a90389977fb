"""Talk to the service from Python.

    from sandbox.client import Client

    with Client() as client:
        result = client.run("result = payload['a'] + 1", payload={"a": 1})
        print(result.outcome, result.value)
        for event in client.stream("print('hello')"):
            print(event)

`AsyncClient` is the same for asyncio. Errors are the classes of `sandbox.errors`, the same ones that the service
raises. A program that fails is a result, not an error. The package imports only the standard library. Any number of
threads and forked processes can use one client, because every call has a connection for itself while it lasts.

Of our modules it imports only `errors`, `places` and `toml_file`. Read `calls`, `told`, then `client`, `unix_http`.
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
    """Return `AsyncClient`. Programs that do not use it need not import asyncio."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandbox.client.async_client import AsyncClient

    return AsyncClient
