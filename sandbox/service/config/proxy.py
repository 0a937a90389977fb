"""The service's section [proxy]: the HTTP proxy of this host's network."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from sandbox.proxies import OWN_BYPASS, OWN_LOGIN_FILE, OWN_URL
from sandbox.service.config.values import key_file_value, proxy_value
from sandbox.toml_mistakes import ConflictError, Strict

__all__ = ["Proxy"]


class Proxy(Strict):
    """The HTTP proxy through which libraries, images and what programs may reach leave this host."""

    url: Annotated[str | None, AfterValidator(proxy_value)] = Field(
        default=None,
        description=(
            "The proxy, without a login. Without this key, pip's `proxy` counts for libraries, and HTTPS_PROXY,"
            " HTTP_PROXY, ALL_PROXY and NO_PROXY of the service's environment for everything. Webhooks use none."
        ),
        json_schema_extra={"expected": "an address such as http://proxy.example.com:3128"},
    )
    login_file: Annotated[str | None, AfterValidator(key_file_value)] = Field(
        default=None,
        description="A file with the proxy's login in one line, USER:PASSWORD.",
        json_schema_extra={"expected": "an absolute path"},
    )
    bypass: str = Field(
        default="",
        description=(
            "Hosts that are reached without the proxy, as in NO_PROXY: names, which also stand for all below them,"
            " addresses and networks. This host's own loopback always is."
        ),
        json_schema_extra={"expected": 'a text such as ".example.com,10.0.0.0/8"'},
    )

    @model_validator(mode="after")
    def _others_need_url(self) -> Proxy:
        if self.url is None and (self.login_file or self.bypass):
            raise ConflictError("proxy.login_file and proxy.bypass need proxy.url", "proxy.url")
        return self

    def variables(self) -> dict[str, str]:
        """Return the same as variables, by which whoever reaches out learns of it (`sandbox.proxies`)."""
        if self.url is None:
            return {}
        values = {OWN_URL: self.url, OWN_LOGIN_FILE: self.login_file, OWN_BYPASS: self.bypass}
        return {name: value for name, value in values.items() if value}
