"""The page on Node-RED and what it ships: settings that are taken, files that systemd takes, a flow of core nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.service.config.load import load_config
from sandbox.service.config.model import Socket
from sandbox.service.door.listen import open_socket
from sandbox.toml_file import parse

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "node-red.md").read_text()
TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_settings_of_the_page_are_taken_alone_and_together(tmp_path: Path) -> None:
    assert len(TOML) == 2
    for text in (*TOML, "".join(TOML)):
        file = tmp_path / "service.toml"
        file.write_text(text)
        load_config(file, {})


def test_the_flow_has_core_nodes_alone_and_every_wire_leads_to_one() -> None:
    flow = json.loads((DOCS / "node-red-flow.json").read_text())
    assert {node["type"] for node in flow} == {"tab", "inject", "function", "http request", "debug"}
    known = {node["id"] for node in flow}
    assert {target for node in flow for output in node.get("wires", ()) for target in output} <= known
    [request] = [node for node in flow if node["type"] == "http request"]
    assert request["url"] in PAGE
    assert parse("".join(TOML))["socket"]["path"] in request["url"]


def test_the_directories_of_tmpfiles_are_as_the_service_asks_for_them(tmp_path: Path) -> None:
    program = shutil.which("systemd-tmpfiles")
    assert program, "systemd-tmpfiles is missing: scripts/setup --dev installs systemd"
    root = Path("/tmp") / f"tmpfiles-{os.getpid()}"  # a socket's path is short
    try:
        (root / "etc").mkdir(parents=True)
        (root / "run").mkdir()
        # In this root, the users of the file are we.
        (root / "etc/passwd").write_text(f"sandbox:x:{os.getuid()}:{os.getgid()}::/:/bin/sh\n")
        (root / "etc/group").write_text(f"sandbox:x:{os.getgid()}:\nnodered:x:{os.getgid()}:\n")
        done = subprocess.run(
            [program, "--create", f"--root={root}", str(DOCS / "deploy/tmpfiles.conf")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        import grp

        group = grp.getgrgid(os.getgid()).gr_name
        settings = parse("".join(TOML))
        for path, named in ((settings["socket"]["path"], group), (settings["restricted"]["path"], None)):
            place = root / path.lstrip("/")
            assert place.parent.is_dir()
            open_socket(Socket(path=str(place), group=named)).close()
    finally:
        shutil.rmtree(root)


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: scripts/setup --dev installs systemd"
    unit = tmp_path / "podman-sandbox-runner.service"
    unit.write_text(
        (DOCS / "deploy/podman-sandbox-runner.service").read_text().replace("/usr/local/bin/sandbox", sys.executable)
    )
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [program, "verify", "--user", str(unit)], capture_output=True, text=True, timeout=60, check=False, env=home
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    # The control: it looks.
    unit.write_text(unit.read_text().replace("Type=notify", "Type=nonsense"))
    assert (
        "nonsense"
        in subprocess.run(
            [program, "verify", "--user", str(unit)], capture_output=True, text=True, timeout=60, check=False, env=home
        ).stderr
    )


@pytest.mark.parametrize("code", ["ENOENT", "retry-after", "wait_for_end", "content_base64"])
def test_what_a_flow_meets_is_on_the_page(code: str) -> None:
    assert code in PAGE
