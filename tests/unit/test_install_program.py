"""The program that installs libraries inside a sandbox: what it fetches, refuses, compiles and packs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import marshal
import os
import py_compile
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sandbox.environment.tree import Kind, TreeDecoder, TreeLimits
from sandbox.inside import install_program
from sandbox.inside.install_program import (
    Opener,
    StepError,
    check_paths,
    compile_modules,
    download,
    index_variables,
    install_one,
    main,
    no_index,
    pack,
    run_tool,
)
from tests.integration.package_index import wheel
from tests.unit.test_tree import Listing

INDEX: dict[str, Any] = {
    "urls": ["https://a.test/simple", "https://b.test/simple"],
    "find_links": ["/run/sandbox/index/0"],
    "trusted_hosts": ["b.test"],
    "no_index": False,
    "credentials": {},
}


def test_it_needs_nothing_but_the_standard_library_of_python_3_8() -> None:
    tree = ast.parse(Path(install_program.__file__).read_text(), feature_version=(3, 8))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names <= sys.stdlib_module_names


# ---- packing


def test_a_packed_tree_is_what_the_runner_decodes(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "package/empty").mkdir(parents=True)
    (top / "package/module.py").write_text("X = 1\n")
    (top / "package/link.py").symlink_to("module.py")
    (top / "bin").mkdir()
    (top / "bin/run").write_text("#!/bin/sh\n")
    (top / "bin/run").chmod(0o4755)
    large = bytes(range(256)) * (install_program.CHUNK_BYTES // 256 + 1)
    (top / "package/shared.so").write_bytes(large)
    with (tmp_path / "tree").open("wb") as out:
        pack(str(top), out)
    found = Listing()
    decoder = TreeDecoder(TreeLimits(files_count=10, installed_bytes=len(large) + 1_000), found)
    decoder.feed((tmp_path / "tree").read_bytes())
    decoder.finish()
    assert [(kind, path) for kind, path, _ in found.entries] == [
        (Kind.DIRECTORY, "bin"),
        (Kind.EXECUTABLE, "bin/run"),
        (Kind.DIRECTORY, "package"),
        (Kind.DIRECTORY, "package/empty"),
        (Kind.LINK, "package/link.py"),
        (Kind.FILE, "package/module.py"),
        (Kind.FILE, "package/shared.so"),
    ]
    assert found.bodies["package/module.py"] == b"X = 1\n"
    assert found.bodies["package/link.py"] == b"module.py"
    assert found.bodies["package/shared.so"] == large


def test_a_pipe_in_a_tree_is_named_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path.parent / "out").open("wb") as out, pytest.raises(StepError, match="pipe is neither"):
        pack(str(tmp_path), out)


def test_modules_are_compiled_for_where_they_will_be(tmp_path: Path) -> None:
    (tmp_path / "package/tests").mkdir(parents=True)
    for path, text in {
        "package/good.py": "X = 1",
        "package/broken.py": "x =",
        "package/tests/seldom.py": "X = 1",
    }.items():
        (tmp_path / path).write_text(text)
    (tmp_path / "package/nul.py").write_bytes(b"\0")
    (tmp_path / "package/outside.py").symlink_to("/etc/hostname")
    compile_modules(str(tmp_path))
    assert [path.relative_to(tmp_path).parts[:-1] for path in tmp_path.rglob("*.pyc")] == [("package", "__pycache__")]
    compiled = Path(importlib.util.cache_from_source(str(tmp_path / "package/good.py"))).read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 1  # by hash, and never compared
    assert marshal.loads(compiled[16:]).co_filename == "/opt/environment/package/good.py"


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o444])
def test_byte_code_is_what_python_itself_would_write(tmp_path: Path, mode: int) -> None:
    module = tmp_path / "package/module.py"
    module.parent.mkdir()
    module.write_text(
        "# -*- coding: latin-1 -*-\nimport os\nNAME = 'x', 'x'\ndef f(a, *, b=NAME): return {a: b, **os.environ}\n"
    )
    module.chmod(mode)
    compile_modules(str(tmp_path))
    ours = Path(importlib.util.cache_from_source(str(module)))
    theirs = py_compile.compile(
        str(module),
        str(tmp_path / "theirs.pyc"),
        "/opt/environment/package/module.py",
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    assert theirs is not None
    assert ours.read_bytes() == Path(theirs).read_bytes()
    assert ours.stat().st_mode == Path(theirs).stat().st_mode  # a tree says what is executable


def test_byte_code_is_written_through_no_link_of_the_wheel_and_replaces_what_came_along(tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.write_text("untouched")
    (top / "__pycache__").mkdir(parents=True)
    for name in ("one", "two"):
        (top / f"{name}.py").write_text("X = 1")
    one, two = (Path(importlib.util.cache_from_source(str(top / f"{name}.py"))) for name in ("one", "two"))
    one.symlink_to(outside)
    two.write_text("stale")
    compile_modules(str(top))
    assert outside.read_text() == "untouched"
    assert not one.is_symlink()
    assert one.read_bytes()[:4] == two.read_bytes()[:4] == importlib.util.MAGIC_NUMBER


def test_what_uv_finds_out_about_the_python_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app, wheels, known = (tmp_path / name for name in ("app", "wheels", "known"))
    app.mkdir()
    wheels.mkdir()
    # uv itself, behind what notes how many files the cache has that it is given.
    noting = tmp_path / "uv"
    count = f'for word; do [ "$before" = --cache-dir ] && find "$word" -type f | wc -l >>{known}; before=$word; done'
    noting.write_text(f'#!/bin/sh\n{count}\nexec {pytest.importorskip("uv").find_uv_bin()} "$@"\n')
    noting.chmod(0o755)
    monkeypatch.setattr(install_program, "APP", app)
    monkeypatch.setattr(install_program, "WHEELS", wheels)
    monkeypatch.setattr(install_program, "UV", str(noting))
    monkeypatch.setattr(install_program, "uv_works", lambda: True)
    for number, name in enumerate(("one", "two", "three")):
        file, content = wheel(name, "1.0", {f"{name}.py": "X = 1\n"})
        (wheels / file).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        install_one({"n": number, "file": file, "name": name, "version": "1.0", "sha256": sha256})
    assert [int(line) for line in known.read_text().split()] == [0, 1, 1]
    assert not list(app.glob("c*"))


@pytest.mark.parametrize("path", ["../x.py", "/x.py", "a/../../x.py", "a/.."])
def test_a_wheel_with_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    name, content = wheel("tiny", "1.0", {"tiny.py": "", path: ""})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepError, match="leads out of it"):
        check_paths(tmp_path / name)


def test_a_wheel_with_dots_in_its_names_is_taken_and_no_archive_is_not(tmp_path: Path) -> None:
    name, content = wheel("tiny", "1.0", {"tiny/..data": "", "a..b/c": ""})
    (tmp_path / name).write_bytes(content)
    check_paths(tmp_path / name)
    (tmp_path / name).write_bytes(content[:-30])
    with pytest.raises(StepError, match="its archive is no wheel"):
        check_paths(tmp_path / name)


# ---- fetching


class Shop(BaseHTTPRequestHandler):
    """Answers by path, and notes who came with which password."""

    server: ThreadingHTTPServer
    came: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.came.append((self.path, self.headers.get("Authorization")))
        times = sum(path == self.path for path, _ in self.came)
        if self.path == "/moved":
            other = f"http://localhost:{self.server.server_port}/file"
            self.send_response(302)
            self.send_header("Location", other)
            self.end_headers()
            return
        status = {"/absent": 404, "/busy": 503 if times == 1 else 200, "/broken": 500}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Content-Length", "9" if self.path == "/short" and times == 1 else "4")
        self.end_headers()
        self.wfile.write(b"body")

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Give the address of a server on loopback, and who came."""
    monkeypatch.setattr(install_program, "APP", tmp_path)
    monkeypatch.setattr(install_program, "AGAIN_S", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    came: list[tuple[str, str | None]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneShop", (Shop,), {"came": came}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", came
    server.shutdown()
    server.server_close()
    thread.join(5)


def fetched(host: str, path: str, tmp_path: Path, **index: Any) -> bytes:
    download(Opener({**INDEX, **index}), {"name": "x.whl", "url": f"http://{host}{path}", "kind": "wheel"})
    return (tmp_path / "x.whl").read_bytes()


@pytest.mark.parametrize("path", ["/busy", "/short"])
def test_a_download_that_breaks_is_tried_again(shop: Any, tmp_path: Path, path: str) -> None:
    host, came = shop
    assert fetched(host, path, tmp_path) == b"body"
    assert len(came) == 2


@pytest.mark.parametrize(("path", "attempts", "words"), [("/absent", 1, "404 Not Found"), ("/broken", 3, "500")])
def test_a_download_that_fails_for_good_names_its_file(
    shop: Any, tmp_path: Path, path: str, attempts: int, words: str
) -> None:
    host, came = shop
    with pytest.raises(StepError, match=rf"^x\.whl: the index answered {words}"):
        fetched(host, path, tmp_path)
    assert len(came) == attempts


def test_passwords_go_to_the_index_and_to_nobody_it_redirects_to(shop: Any, tmp_path: Path) -> None:
    host, came = shop
    assert fetched(host, "/moved", tmp_path, credentials={host: "me:p%40ss"}) == b"body"
    assert came == [("/moved", "Basic bWU6cEBzcw=="), ("/file", None)]  # me:p@ss


# ---- the rest


def test_the_index_is_named_in_the_variables_of_each_tool_and_in_no_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install_program, "CLIENT", tmp_path / "client.pem")
    own = {"PIP_CONFIG_FILE": "/dev/null", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    assert index_variables({**INDEX, "find_links": ["file:///a", "file:///b"]}, pip=True) == {
        **own,
        "PIP_INDEX_URL": "https://a.test/simple",
        "PIP_EXTRA_INDEX_URL": "https://b.test/simple",
        "PIP_FIND_LINKS": "file:///a file:///b",
        "PIP_TRUSTED_HOST": "b.test",
    }
    (tmp_path / "client.pem").touch()
    assert index_variables({**INDEX, "find_links": ["file:///a", "file:///b"]}, pip=False) == {
        **own,
        "UV_DEFAULT_INDEX": "https://a.test/simple",
        "UV_INDEX": "https://b.test/simple",
        "UV_FIND_LINKS": "file:///a,file:///b",
        "UV_INSECURE_HOST": "b.test",
        "SSL_CLIENT_CERT": str(tmp_path / "client.pem"),
    }
    assert no_index(INDEX) == []
    assert no_index({**INDEX, "no_index": True}) == ["--no-index"]
    assert "PIP_INDEX_URL" not in index_variables({**INDEX, "no_index": True}, pip=True)


def test_a_tool_that_fails_is_quoted_from_its_end_behind_the_package_that_it_was_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install_program, "APP", tmp_path)
    program = "import sys\nprint('x' * 100_000)\nsys.exit('the reason')"

    def failing(_job: dict[str, Any], _hand_over: object) -> dict[str, Any]:
        try:
            run_tool(sys.executable, "-c", program)
        except StepError as error:
            raise StepError(f"tiny 1.0: {error}") from None
        return {}

    monkeypatch.setattr(install_program, "install", failing)
    said = main({"step": "install"}, lambda _: None)["error"]
    assert said.startswith("tiny 1.0: x")
    assert said.endswith("x\n\nthe reason")
    assert len(said) == install_program.MAX_ERROR_CHARS + len("tiny 1.0: ")


def test_a_tool_that_is_not_there_or_is_killed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install_program, "APP", tmp_path)
    with pytest.raises(StepError, match="could not start"):
        run_tool(str(tmp_path / "absent"))
    with pytest.raises(StepError, match="was killed by signal 9"):
        run_tool(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
