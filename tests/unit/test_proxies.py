"""Which HTTP proxy leads to an address, by which setting, and what of it is shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from sandbox.errors import InvalidRequest
from sandbox.proxies import Proxies, ProxyServer, parse_proxy, podman_variables, proxy_advice, read_proxies, refusal

SECRET = "s3cr3t"


def chosen(environ: dict[str, str], *, pip: str = "", host: str = "pypi.example", tls: bool = True) -> str:
    server = read_proxies(environ, pip=pip).leading_to(host, 443 if tls else 80, tls=tls)
    return server.shown if server else ""


def test_the_products_own_setting_wins_over_pips_and_that_over_the_environments() -> None:
    environ = {"HTTPS_PROXY": "http://environment:1"}
    assert chosen(environ) == "http://environment:1"
    assert chosen(environ, pip="http://pip:2") == "http://pip:2"
    assert chosen({**environ, "SANDBOX_PROXY__URL": "http://own:3"}, pip="http://pip:2") == "http://own:3"
    assert chosen({}) == ""


def test_each_scheme_has_its_variable_and_the_lower_case_spelling_wins() -> None:
    environ = {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:2", "HTTP_PROXY": "http://plain:3"}
    assert chosen(environ) == "http://lower:2"
    assert chosen(environ, tls=False) == "http://plain:3"
    assert chosen({"HTTP_PROXY": "http://plain:3"}) == ""
    assert chosen({"https_proxy": "  ", "HTTPS_PROXY": "http://upper:1"}) == "http://upper:1"


def test_the_variable_for_all_schemes_counts_where_none_names_one() -> None:
    environ = {"ALL_PROXY": "http://all:1", "HTTP_PROXY": "http://plain:3", "NO_PROXY": "inside.example"}
    assert chosen(environ) == "http://all:1"
    assert chosen({**environ, "all_proxy": "http://lower:2"}) == "http://lower:2"
    assert chosen(environ, tls=False) == "http://plain:3"
    assert chosen(environ, host="inside.example") == ""
    # Podman knows no such variable, and is told by those that it knows.
    assert podman_variables(environ) == {
        "HTTP_PROXY": "http://plain:3", "HTTPS_PROXY": "http://all:1", "NO_PROXY": "inside.example",
    }  # fmt: skip # a table
    assert podman_variables({"ALL_PROXY": "socks5://all:1"})["HTTPS_PROXY"] == "socks5://all:1"


def test_a_socks_proxy_is_refused_with_what_leads_there() -> None:
    for scheme in ("socks4", "socks5", "socks5h"):
        with pytest.raises(
            InvalidRequest, match=f"ALL_PROXY is not the address of an HTTP proxy: {scheme}://"
        ) as caught:
            read_proxies({"ALL_PROXY": f"{scheme}://ada:{SECRET}@proxy:1"})
        assert "a local HTTP proxy that leads to it" in caught.value.hint
        assert SECRET not in repr(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("example", "pypi.example", True),
        (".example", "pypi.example", True),
        ("*.example", "pypi.example", True),
        ("pypi.example", "pypi.example", True),
        ("PYPI.example", "pypi.example", True),
        ("pypi.example:443", "pypi.example", True),
        ("pypi.example:80", "pypi.example", False),
        ("i.example", "pypi.example", False),
        ("pypi.example.org", "pypi.example", False),
        ("*", "pypi.example", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::/8", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]", True),
        ("[fd00::1]:443", "[fd00::1]", True),
        ("[fd00::1]:80", "[fd00::1]", False),
        ("other.example , pypi.example", "pypi.example", True),
        ("other.example pypi.example", "pypi.example", True),
        ("", "pypi.example", False),
        (",", "pypi.example", False),
        (".", "pypi.example", False),
    ],
)
def test_no_proxy_is_read_as_others_read_it(entry: str, host: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": entry}
    assert chosen(environ, host=host) == ("" if direct else "http://proxy:1")


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "LOCALHOST"])
def test_this_hosts_own_loopback_is_never_asked_of_another_machine(host: str) -> None:
    assert chosen({"HTTPS_PROXY": "http://proxy:1"}, host=host, pip="http://pip:2") == ""


def test_pips_setting_asks_no_variable() -> None:
    assert chosen({"NO_PROXY": "*"}, pip="http://pip:2") == "http://pip:2"


@pytest.mark.parametrize(
    ("text", "shown", "login"),
    [
        ("http://proxy:3128", "http://proxy:3128", ""),
        ("http://proxy", "http://proxy:80", ""),
        ("proxy:3128/", "http://proxy:3128", ""),
        (f"ada:{SECRET}@proxy:1", "http://proxy:1", f"ada:{SECRET}"),
        (f"http://DOM%5Cada:{SECRET}%40%3A%2F@Proxy.example:1", "http://proxy.example:1", f"DOM\\ada:{SECRET}@:/"),
        ("http://[fd00::1]:8", "http://[fd00::1]:8", ""),
        ("http://ada@proxy:1", "http://proxy:1", "ada:"),
    ],
)
def test_an_address_is_read_with_its_login(text: str, shown: str, login: str) -> None:
    server = parse_proxy(text, "HTTPS_PROXY")
    assert (server.shown, server.login) == (shown, login)
    assert parse_proxy(server.url, "HTTPS_PROXY") == server
    assert SECRET not in repr(server) + repr(Proxies(https=server)) + str(server) + server.shown


@pytest.mark.parametrize(
    "text",
    [
        f"socks5://ada:{SECRET}@proxy:1",
        f"https://ada:{SECRET}@proxy:1",
        f"http://ada:{SECRET}@proxy:no",
        f"http://ada:{SECRET}@",
        f"http://[{SECRET}",
        f"http://ada:{SECRET}@a b:1",
        f"http://ada:{SECRET}/x@proxy:1",
    ],
)
def test_what_is_no_http_proxy_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_proxies({"HTTPS_PROXY": text})
    assert "HTTPS_PROXY" in caught.value.message or "https_proxy" in caught.value.message
    assert "http://[USER:PASSWORD@]HOST:PORT" in caught.value.hint
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"
    assert podman_variables({"HTTPS_PROXY": text}) == {"HTTPS_PROXY": text}  # which Podman judges itself


def test_the_login_of_the_products_own_proxy_is_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.write_text(f"ada:{SECRET}:@\n")
    environ = {"SANDBOX_PROXY__URL": "http://own:3", "SANDBOX_PROXY__LOGIN_FILE": str(file)}
    found = read_proxies({**environ, "SANDBOX_PROXY__BYPASS": ".example"})
    assert found.https is not None
    assert found.https.login == f"ada:{SECRET}:@"
    assert found.leading_to("pypi.example", 443, tls=True) is None
    assert podman_variables(environ)["HTTPS_PROXY"] == f"http://ada:{SECRET}%3A%40@own:3"
    for text in ("", "ada\n", f"ada:{SECRET}\nmore:lines\n"):
        file.write_text(text)
        with pytest.raises(InvalidRequest, match="login_file") as caught:
            read_proxies(environ)
        assert SECRET not in str(caught.value)
    file.unlink()
    with pytest.raises(InvalidRequest, match="No such file"):
        read_proxies(environ)


@pytest.mark.parametrize("password", ["50%off", "a^b", "a b", "a%20b"])
def test_podman_gets_every_login_as_a_url_has_it(password: str) -> None:
    """With one that Go's parser refuses, it would go without the proxy."""
    given = podman_variables({"https_proxy": f"ada:{password}@proxy:3128", "no_proxy": ".example"})
    assert re.fullmatch(r"http://ada:([\w-]|%[0-9A-F]{2})+@proxy:3128", given["HTTPS_PROXY"])
    assert parse_proxy(given["HTTPS_PROXY"], "").login == f"ada:{unquote(password)}"
    assert given["NO_PROXY"] == ".example"


def test_every_trouble_has_its_advice() -> None:
    server = ProxyServer(host="proxy", port=1, source="HTTPS_PROXY")
    known = ProxyServer(host="proxy", port=1, source="HTTPS_PROXY", login=f"ada:{SECRET}")
    assert "wants a login" in refusal(server, 407, "", "a.example:443")
    assert "refuses the login" in refusal(known, 407, "", "a.example:443")
    assert "refuses the login" in refusal(known, 401, "", "a.example:443")
    assert "refuses to connect" in refusal(server, 401, "", "a.example:443")
    assert "login" in proxy_advice(refusal(known, 407, "", "a.example:443"))
    assert "resolver" in proxy_advice(refusal(server, 403, "Filtered", "203.0.113.5:443"))
    assert "NO_PROXY" in proxy_advice(refusal(server, 403, "Filtered", "a.example:443"))
    assert "sandbox doctor" in proxy_advice("the proxy http://proxy:1 (HTTPS_PROXY) can't be reached: no")
    assert "sandbox doctor" in proxy_advice("this host's proxy can't be reached: no")
    assert "login" in proxy_advice('pinging container registry r: Get "https://r/v2/": Unauthorized')
    assert "NO_PROXY" in proxy_advice('pinging container registry r: Get "https://r/v2/": Filtered')
    assert proxy_advice('pinging container registry r: Get "https://r/v2/": dial tcp: lookup r: no such host') == ""
    assert proxy_advice("unauthorized: authentication required") == ""
    assert proxy_advice("no such package") == ""
    assert "\n" not in refusal(server, 500, "a\nb\x1b[0m\"'", "a.example:443")
