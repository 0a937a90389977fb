from __future__ import annotations

import contextlib
import json
import pwd
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import sandbox.index.pages
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.index.files import discover_file_hosts
from sandbox.index.pip_config import (
    FIRST_PERSON,
    Index,
    as_pip_environment,
    default_url,
    environment_for_handover,
    read_index,
)

PUBLIC = default_url()
PUBLIC_HOST = f"{urlsplit(PUBLIC).hostname}:443"
JSON = "application/vnd.pypi.simple.v1+json"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "people/me"
    path.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_configuration_it_is_the_public_index(home: Path, root: Path) -> None:
    index = read_index({}, home, root)
    assert index == Index(urls=(PUBLIC,))
    assert index.remote_hosts == (PUBLIC_HOST,)
    assert index.local_paths == ()


def test_files_count_in_the_order_that_pip_has(home: Path, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    places = [
        root / "etc/xdg/pip/pip.conf",
        root / "etc/pip.conf",
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    ]
    for number, path in enumerate(places):
        write(path, f"[global]\nindex-url = https://{number}.example/simple/\n")
        assert read_index({}, home, root).urls == (f"https://{number}.example/simple",)
    write(other / "xdg/pip/pip.conf", "[global]\nindex-url = https://xdg.example/simple\n")
    assert read_index({"XDG_CONFIG_HOME": str(other / "xdg")}, home, root).urls == ("https://xdg.example/simple",)
    chosen = write(other / "chosen.conf", "[global]\nextra-index-url = https://more.example/simple\n")
    found = read_index({"PIP_CONFIG_FILE": str(chosen)}, home, root).urls
    assert found == ("https://1.example/simple", "https://more.example/simple")
    missing = {"PIP_CONFIG_FILE": str(other / "missing.conf")}
    assert read_index(missing, home, root).urls == ("https://3.example/simple",)
    assert read_index({"PIP_CONFIG_FILE": "/dev/null"}, home, root).urls == (PUBLIC,)
    assert read_index({"PIP_INDEX_URL": "https://env.example/simple"}, home, root).urls == (
        "https://env.example/simple",
    )


def test_system_directories_are_those_of_the_environment(home: Path, root: Path, tmp_path: Path) -> None:
    write(root / "etc/xdg/pip/pip.conf", "[global]\nindex-url = https://etc.example/simple\n")
    write(tmp_path / "b/pip/pip.conf", "[global]\nindex-url = https://b.example/simple\n")
    environ = {"XDG_CONFIG_DIRS": f"{tmp_path / 'a'}:{tmp_path / 'b'}"}
    assert read_index(environ, home, root).urls == ("https://b.example/simple",)


def test_the_section_of_install_counts_more_than_the_global_one(home: Path, root: Path) -> None:
    write(home / ".config/pip/pip.conf", "[global]\nindex-url = https://user.example/simple\n")
    write(
        root / "etc/pip.conf",
        "[install]\nindex-url = https://install.example/simple\n[download]\nindex-url = https://no.example/simple\n"
        "[global]\nfind_links = https://links.example/a\n",
    )
    index = read_index({}, home, root)
    assert index.urls == ("https://install.example/simple",)
    assert index.find_links == ("https://links.example/a",)


def test_an_empty_value_takes_back_what_an_earlier_file_says_and_a_variable_does_not(home: Path, root: Path) -> None:
    write(root / "etc/pip.conf", "[global]\nfind-links = /srv/wheels\nextra-index-url = https://a.example/simple\n")
    write(home / ".config/pip/pip.conf", "[global]\nfind-links =\n")
    index = read_index({"PIP_EXTRA_INDEX_URL": ""}, home, root)
    assert index == Index(urls=(PUBLIC, "https://a.example/simple"))


def test_several_values_stand_on_lines_or_beside_each_other(home: Path, root: Path) -> None:
    write(
        root / "etc/pip.conf",
        "[global]\nextra-index-url =\n    https://a.example/simple\n    https://b.example:8443/simple"
        " https://a.example/simple\ntrusted-host = a.example\n  b.example:8443\n",
    )
    index = read_index({}, home, root)
    assert index.urls == (PUBLIC, "https://a.example/simple", "https://b.example:8443/simple")
    assert index.trusted_hosts == ("a.example", "b.example:8443")
    assert index.remote_hosts == (PUBLIC_HOST, "a.example:443", "b.example:8443")
    assert index.trusts("https://b.example:8443/x")
    assert not index.trusts("https://b.example/x")


@pytest.mark.parametrize(
    ("value", "urls"), [("1", ()), ("true", ()), ("nonsense", ()), ("0", (PUBLIC,)), ("", (PUBLIC,))]
)
def test_no_index_asks_no_index(home: Path, root: Path, value: str, urls: tuple[str, ...]) -> None:
    assert read_index({"PIP_NO_INDEX": value}, home, root).urls == urls


def test_paths_are_read_as_pip_reads_them(home: Path, root: Path, tmp_path: Path) -> None:
    environ = {"PIP_INDEX_URL": str(tmp_path / "simple"), "PIP_FIND_LINKS": f"~/wheels {tmp_path}/x file:///y/z"}
    index = read_index(environ, home, root)
    assert index.urls == ((tmp_path / "simple").as_uri(),)
    assert index.find_links == ((home / "wheels").as_uri(), (tmp_path / "x").as_uri(), "file:///y/z")
    assert index.remote_hosts == ()


@pytest.mark.parametrize(
    "text",
    [
        "index-url = https://me:s3cret@example.org/simple\n",
        "[global]\nindex-url me.s3cret.example.org\n",
        "[global]\nindex-url = a\nindex-url = https://me:s3cret@example.org/simple\n",
        "[global]\nindex-url = https://me:s3cret@example.org:port/simple\n",
        "[global]\nindex-url = https://me:s3cret@/simple\n",
    ],
)
def test_a_broken_file_is_an_error_that_keeps_its_passwords(home: Path, root: Path, text: str) -> None:
    write(root / "etc/pip.conf", text)
    with pytest.raises(InvalidRequest, match=r"pip's configuration") as caught:
        read_index({}, home, root)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error_not_the_public_index(home: Path, root: Path) -> None:
    (root / "etc/pip.conf").mkdir(parents=True)  # unreadable for root, too
    with pytest.raises(InvalidRequest, match=r"etc/pip\.conf can't be read"):
        read_index({}, home, root)
    shutil.rmtree(root / "etc/pip.conf")
    (root / "etc/pip.conf").write_bytes(b"[global]\nindex-url = \xff\n")
    with pytest.raises(InvalidRequest, match=r"etc/pip\.conf is not as pip reads it"):
        read_index({}, home, root)


def test_the_certificate_is_the_configured_one_else_the_systems(home: Path, root: Path, tmp_path: Path) -> None:
    assert read_index({}, home, root).certificate is None
    system = write(root / "etc/pki/tls/certs/ca-bundle.crt", "")
    assert read_index({}, home, root).certificate == system
    debian = write(root / "etc/ssl/certs/ca-certificates.crt", "")
    assert read_index({}, home, root).certificate == debian
    named, own = write(tmp_path / "named.pem", ""), write(home / "own.pem", "")
    assert read_index({"REQUESTS_CA_BUNDLE": str(named)}, home, root).certificate == named
    assert read_index({"SSL_CERT_FILE": "/missing", "REQUESTS_CA_BUNDLE": str(named)}, home, root).certificate == named
    assert read_index({"PIP_CERT": "~/own.pem", "SSL_CERT_FILE": str(named)}, home, root).certificate == own
    with pytest.raises(InvalidRequest, match=r"/missing\.pem of pip's configuration does not exist"):
        read_index({"PIP_CERT": "/missing.pem"}, home, root)


def test_what_is_shown_holds_no_password() -> None:
    index = Index(
        urls=("https://me:s3cret@example.org:8443/simple", "https://t0ken@example.net/simple?key=t0ken"),
        find_links=("http://me:s3cret@example.org/links",),
    )
    public = index.public()
    assert public.urls == ("https://example.org:8443/simple", "https://example.net/simple")
    assert public.find_links == ("http://example.org/links",)
    for shown in (repr(public), repr(index), str(index.remote_hosts)):
        assert "s3cret" not in shown
        assert "t0ken" not in shown
    assert index.remote_hosts == ("example.org:8443", "example.net:443", "example.org:80")


def test_the_variables_for_pip_give_the_same_configuration_elsewhere(home: Path, root: Path, tmp_path: Path) -> None:
    bundle = write(tmp_path / "ca.pem", "")
    write(
        root / "etc/pip.conf",
        "[global]\nindex-url = https://me:s3cret@example.org/simple\nextra-index-url = https://a.example/simple\n"
        f"find-links = /srv/wheels\ntrusted-host = a.example b.example\ncert = {bundle}\n",
    )
    index = read_index({}, home, root)
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "etc/pip.conf", "[global]\nextra-index-url = https://evil.example/simple\n")
    assert read_index(as_pip_environment(index), elsewhere, elsewhere) == index
    for same in (Index(urls=(), find_links=("file:///srv/wheels",)), Index(urls=(PUBLIC,))):
        assert read_index(as_pip_environment(same), elsewhere, tmp_path / "nothing") == same


def test_pips_proxy_and_client_certificate_are_read_and_handed_over(home: Path, root: Path) -> None:
    write(home / "client.pem", "-----BEGIN PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n")
    write(home / ".config/pip/pip.conf", "[global]\nproxy = http://ada:s3cr3t@pip.test:8\nclient-cert = ~/client.pem\n")
    environ = {"HTTPS_PROXY": "http://environment.test:9", "NO_PROXY": "*"}
    index = read_index(environ, home, root)
    assert index.proxies.https is not None
    assert index.proxies.https.shown == "http://pip.test:8"
    assert index.client_certificate == home / "client.pem"
    assert b"PRIVATE" in index.client_bytes()
    assert "s3cr3t" not in repr(index)
    handed = environment_for_handover(environ, home, root)
    assert handed["HTTPS_PROXY"] == "http://environment.test:9"
    assert read_index(handed, root, root) == index


def test_what_is_no_proxy_is_nobodys_matter_who_reaches_no_index(home: Path, root: Path) -> None:
    environ = {"HTTPS_PROXY": "socks5://127.0.0.1:1"}
    assert environment_for_handover(environ, home, root)["HTTPS_PROXY"] == "socks5://127.0.0.1:1"
    with pytest.raises(InvalidRequest, match="HTTPS_PROXY"):
        read_index(environ, home, root)


def test_root_hands_its_configuration_over_and_nothing_of_the_old_one(home: Path, root: Path) -> None:
    write(home / ".config/pip/pip.conf", "[global]\nindex-url = https://user.example/simple\n")
    environ = {
        "PATH": "/bin",
        "PIP_EXTRA_INDEX_URL": "https://a.example/simple",
        "PIP_TRUSTED_HOST": "",
        "PIP_TIMEOUT": "9",
    }
    handed = environment_for_handover(environ, home, root)
    assert handed == {
        "PATH": "/bin",
        "PIP_TIMEOUT": "9",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "https://user.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://a.example/simple",
    }


def local_index(simple: Path, link: str, package: str = "tiny") -> str:
    write(simple / package / "index.html", f'<!DOCTYPE html><html><body><a href="{link}#sha256=0">x</a></body></html>')
    return simple.as_uri()


def test_a_local_index_is_offered_with_the_files_beside_it(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "pypi/files/tiny-1.0-py3-none-any.whl", "")
    url = local_index(tmp_path / "pypi/simple", "../../files/tiny-1.0-py3-none-any.whl")
    assert Index(urls=(PUBLIC, url)).local_paths == (tmp_path / "pypi",)


def test_a_local_index_with_its_files_inside_is_offered_alone(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "pypi/simple/tiny/tiny-1.0-py3-none-any.whl", "")
    url = local_index(tmp_path / "pypi/simple", "tiny-1.0-py3-none-any.whl")
    links = (tmp_path / "pypi/simple/tiny").as_uri()
    assert Index(urls=(url,), find_links=(links,)).local_paths == (tmp_path / "pypi/simple",)


def test_a_page_does_not_open_directories_without_packages(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "secrets/key.pem", "")
    for link in ("../../../secrets/key.pem", "file:///etc/passwd", "../../../secrets/missing.whl"):
        url = local_index(tmp_path / "pypi/simple", link)
        assert Index(urls=(url,)).local_paths == (tmp_path / "pypi/simple",)


def test_far_apart_directories_are_offered_one_by_one(home: Path, tmp_path: Path) -> None:
    # Their common parent is one of a home.
    write(home / "files/tiny-1.0-py3-none-any.whl", "")
    url = local_index(home.parent / "simple", (home / "files/tiny-1.0-py3-none-any.whl").as_uri())
    assert Index(urls=(url,)).local_paths == (home / "files", home.parent / "simple")


def test_homes_and_the_root_are_never_offered(home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    lived_in = [Path(entry.pw_dir) for entry in pwd.getpwall() if entry.pw_uid >= FIRST_PERSON]
    others = [Path("/"), Path("/root"), *lived_in, *(place.parent for place in lived_in)]
    for path in (home, home.parent, tmp_path / "link", *others):
        if path.exists():
            with pytest.raises(InvalidRequest, match="can't be offered to a sandbox"):
                _ = Index(urls=(), find_links=(path.as_uri(),)).local_paths
    (home / "wheels").mkdir()
    assert Index(urls=(), find_links=((home / "wheels").as_uri(),)).local_paths == (home / "wheels",)


def test_local_sources_that_are_not_there_are_left_out_as_pip_does(home: Path, tmp_path: Path) -> None:
    page = write(tmp_path / "links/page.html", "<a href='tiny-1.0.tar.gz'>x</a>")
    index = Index(urls=((tmp_path / "missing").as_uri(),), find_links=("file://elsewhere/x", page.as_uri()))
    assert index.local_paths == (tmp_path / "links",)


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                answer(self)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def page(body: str | bytes, kind: str = "text/html", status: int = 200) -> Answer:
    content = body.encode() if isinstance(body, str) else body

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def local(port: int) -> Index:
    return Index(urls=(f"http://127.0.0.1:{port}/simple",))


def files(*urls: str) -> str:
    return json.dumps({"meta": {"api-version": "1.0"}, "name": "x", "files": [{"url": url} for url in urls]})


@pytest.mark.parametrize(
    ("body", "kind", "hosts"),
    [
        (files("https://files.example.org/x.whl", "https://files.example.org/y.whl"), JSON, {"files.example.org:443"}),
        (files("http://files.example.org:8080/x.whl", "../../x.whl"), JSON, {"files.example.org:8080"}),
        (files(), f"{JSON}; charset=utf-8", set()),
        (
            '<a href="https://a.example/x.whl#sha256=0">x</a><A HREF="//b.example/y">',
            "text/html",
            {"a.example:443", "b.example:80"},
        ),
        (
            '<base href="https://c.example/"><base href="https://d.example/"><a href="x.whl">',
            "text/html",
            {"c.example:443"},
        ),
        ('<a href="x.whl"><a href="mailto:x"><a><a href="https://h:port/"><a href="http://[::1/">', "text/html", set()),
        ('<a href="https://e.example/?a=1&amp;b=2">', "application/vnd.pypi.simple.v1+html", {"e.example:443"}),
    ],
)
def test_the_hosts_of_files_are_found_on_the_page(home: Path, body: str, kind: str, hosts: set[str]) -> None:
    with serving(page(body, kind)) as port:
        assert set(discover_file_hosts(local(port), "x")) == hosts | {f"127.0.0.1:{port}"}


def test_the_page_asked_for_is_the_normalised_one_with_the_credentials(home: Path) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers["Accept"].split(",")[0], handler.headers["Authorization"]))
        page(files(), JSON)(handler)

    with serving(answer) as port:
        index = Index(urls=(f"http://me:s3cret@127.0.0.1:{port}/simple",))
        assert discover_file_hosts(index, "Scikit_Learn") == (f"127.0.0.1:{port}",)
    assert asked == [("/simple/scikit-learn/", JSON, "Basic bWU6czNjcmV0")]


def test_a_package_that_an_index_does_not_have_adds_nothing(home: Path) -> None:
    with serving(page("", status=404)) as port, serving(page(files("https://f.example/x"), JSON)) as other:
        index = Index(urls=(*local(port).urls, *local(other).urls, "file:///nowhere"))
        assert discover_file_hosts(index, "x") == (f"127.0.0.1:{other}", "f.example:443")
        assert discover_file_hosts(local(port), "x") == ()


def test_the_way_to_a_page_counts_too(home: Path) -> None:
    with serving(page(files("x.whl"), JSON)) as mirror:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", f"http://127.0.0.1:{mirror}{handler.path}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with serving(redirect) as port:
            assert discover_file_hosts(local(port), "x") == (f"127.0.0.1:{port}", f"127.0.0.1:{mirror}")


def test_a_page_of_links_is_searched_for_the_package_only(home: Path) -> None:
    body = '<a href="https://a.example/Tiny_Library-1.0.whl"><a href="https://b.example/other-1.0.whl">'
    with serving(page(body)) as port:
        index = Index(urls=(), find_links=(f"http://127.0.0.1:{port}/links",))
        assert discover_file_hosts(index, "tiny.library") == ("a.example:443",)


def forever(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    while True:
        handler.wfile.write(b"<p>" * 20_000)


def loop(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (page("", status=500), "answers with HTTP status 500"),
        (page("", status=403), "answers with HTTP status 403"),
        (page("not json", JSON), "not a list of files"),
        (page("{}", JSON), "not a list of files"),
        (page('{"files": [7]}', JSON), "not a list of files"),
        (page("[" * 100_000, JSON), "not a list of files"),
        (page(files(*(f"https://h{number}.example/x" for number in range(40))), JSON), "spread over 41 hosts"),
        (forever, "sends more than 1 MiB"),
        (loop, "can't be reached: TooManyRedirects"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "can't be reached"),
    ],
)
def test_an_index_that_misbehaves_is_one_clear_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    monkeypatch.setattr(sandbox.index.pages, "MAX_PAGE_BYTES", 1 << 20)
    with serving(answer) as port, pytest.raises(BuildFailed, match=reason) as caught:
        discover_file_hosts(Index(urls=(f"http://me:s3cret@127.0.0.1:{port}/simple",)), "x")
    assert "s3cret" not in str(caught.value)
    assert caught.value.hint


def test_an_index_that_is_not_there_is_named_without_its_password(home: Path) -> None:
    with serving(page("")) as port:
        pass
    with pytest.raises(BuildFailed, match=f"127.0.0.1:{port} can't be reached: Connection refused") as caught:
        discover_file_hosts(Index(urls=(f"http://me:s3cret@127.0.0.1:{port}/simple",)), "x")
    assert "s3cret" not in str(caught.value)


def test_an_index_that_never_answers_is_given_up(home: Path) -> None:
    done = threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        done.wait(30)

    with serving(silent) as port:
        with pytest.raises(BuildFailed, match="reached: ReadTimeout"):
            discover_file_hosts(local(port), "x", timeout_s=0.1)
        done.set()


def test_an_unencrypted_index_needs_trust(home: Path) -> None:
    index = Index(urls=("http://index.invalid/simple",))
    with pytest.raises(BuildFailed, match=r"index\.invalid:80 is not encrypted"):
        discover_file_hosts(index, "x")
    trusting = Index(urls=index.urls, trusted_hosts=("index.invalid",))
    with pytest.raises(BuildFailed, match="can't be reached"):
        discover_file_hosts(trusting, "x")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Make a certificate for 127.0.0.1 that is its own authority; key and certificate in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=index", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip # a command line
    return certificate


def test_certificates_are_checked_against_the_configured_bundle(home: Path, authority: Path, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, tmp_path / "key.pem")
    with serving(page(files("https://f.example/x"), JSON), context) as port:
        url = f"https://127.0.0.1:{port}/simple"
        other = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
        if other.is_file():
            with pytest.raises(BuildFailed, match=f"127.0.0.1:{port} is not trusted by {other}") as caught:
                discover_file_hosts(Index(urls=(url,), certificate=other), "x")
            assert "PIP_CERT" in caught.value.hint
        hosts = (f"127.0.0.1:{port}", "f.example:443")
        assert discover_file_hosts(Index(urls=(url,), certificate=authority), "x") == hosts
        assert discover_file_hosts(Index(urls=(url,), certificate=other, trusted_hosts=("127.0.0.1",)), "x") == hosts


def test_without_a_configuration_it_is_pip_s_own_index_and_without_pip_an_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_index({}, home, tmp_path).urls[0].startswith("https://")
    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    with pytest.raises(InvalidRequest, match="no package index is configured"):
        read_index({}, home, tmp_path)
    assert read_index({"PIP_INDEX_URL": "https://a.example/simple"}, home, tmp_path).urls == (
        "https://a.example/simple",
    )
    assert read_index({"PIP_NO_INDEX": "1"}, home, tmp_path).urls == ()


# ---- what chooses versions


def test_constraints_are_files_of_files_and_variables_alike(home: Path, root: Path) -> None:
    write(root / "etc/pip.conf", "[install]\nconstraint = ~/company.txt\n")
    assert read_index({}, home, root).constraints == (home / "company.txt",)
    environ = {"PIP_CONSTRAINT": "/a.txt /b.txt"}
    index = read_index(environ, home, root)
    assert index.constraints == (Path("/a.txt"), Path("/b.txt"))
    assert environment_for_handover(environ, home, root)["PIP_CONSTRAINT"] == "/a.txt /b.txt"
    with pytest.raises(InvalidRequest, match="is an address") as caught:
        read_index({"PIP_CONSTRAINT": "https://ada:s3cr3t@files.example/c.txt"}, home, root)
    assert "s3cr3t" not in repr(caught.value)


@pytest.mark.parametrize("name", ["pre", "no-binary", "requirement", "ignore-requires-python", "uploaded-prior-to"])
def test_what_else_chooses_files_is_refused_in_words(home: Path, root: Path, name: str) -> None:
    variable = f"PIP_{name.upper().replace('-', '_')}"
    write(root / "etc/pip.conf", f"[global]\n{name} = true\nprefer-binary = true\nuser = true\n")
    for read in (read_index, environment_for_handover):
        with pytest.raises(InvalidRequest, match=f"^{name} of pip's configuration is not followed here") as caught:
            read({}, home, root)
        assert f"{variable}=no" in caught.value.hint
        # The advice works.
        assert read({variable: "no"}, home, root)
