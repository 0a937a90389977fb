"""A connection that ends with an answer of the proxy itself, in words that reach the program."""

from __future__ import annotations

from http import HTTPStatus

__all__ = ["Refusal"]

PHRASE_CHARS = 160


class Refusal(Exception):
    """Why the proxy does not do, or stops doing, what was asked; `status` is the HTTP answer to it."""

    def __init__(self, status: HTTPStatus | int, reason: str) -> None:
        super().__init__(reason)
        self.status = int(status)
        self.reason = reason

    @property
    def denied(self) -> bool:
        """Whether the policy's rules said no, as opposed to a limit, a mistake or a failure."""
        return self.status == HTTPStatus.FORBIDDEN

    def response(self) -> bytes:
        """Return the answer; the reason is in its body, and in its first line because clients show only that."""
        plain = "".join(char if " " <= char <= "~" else "?" for char in self.reason)
        body = f"{plain}\n".encode("ascii")
        head = (
            f"HTTP/1.1 {self.status} {plain[:PHRASE_CHARS]}\r\nContent-Type: text/plain; charset=us-ascii\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body
