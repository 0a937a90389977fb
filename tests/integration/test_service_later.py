"""Runs that are started now and fetched later, and what the history keeps of what runs told.

Real runs, the command line, restarts, kills.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from sandbox.errors import NotFound
from sandbox.service.history.row import SERVICE_ENDED
from tests.command import environment, sandbox
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until

FAILS = """
import sys, json, base64
print("it began")
print("with", secret, file=sys.stderr) if (secret := __import__("os").environ.get("TOKEN")) else None
log("about to fail", "warning")
print(json.dumps({"auth": base64.b64encode(f"user:{secret}".encode()).decode()}))
raise KeyError(f"no {secret}")
"""
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> object:
    with served(tmp_path_factory.mktemp("later")) as opened:
        yield opened


def command(service: Service, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Call the command line, with this service."""
    answer = sandbox(*arguments, env=environment(SANDBOX_SOCKET=service.socket, **variables))
    return answer.returncode, answer.stdout, answer.stderr


def script(tmp_path: Path, text: str) -> str:
    (tmp_path / "s.py").write_text(text)
    return str(tmp_path / "s.py")


def test_a_detached_run_is_shown_later_as_run_shows_it(service: Service, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsave_file('a.txt', 'content')\nresult = {'n':"
        " payload}",
    )
    status, run_id, said = command(service, "run", "--detach", "--input", "7", program)
    assert (status, len(run_id.strip()), said) == (0, 32, "")
    run_id = run_id.strip()
    shown = command(service, "result", run_id[:12], "--wait", "--save-files", str(tmp_path / "files"))
    assert shown == command(service, "run", "--input", "7", program, "--save-files", str(tmp_path / "others"))
    assert (tmp_path / "files" / "a.txt").read_text() == (tmp_path / "others" / "a.txt").read_text() == "content"
    status, text, _ = command(service, "result", run_id, "--json")
    assert (status, json.loads(text)["run_id"], json.loads(text)["result"]) == (0, run_id, {"n": 7})
    with service.client() as client:
        assert client.files(run_id) == [{"name": "a.txt", "size_bytes": 7}]


def test_while_it_goes_on_the_status_says_so_and_a_run_that_fails_has_its_own(service: Service, tmp_path: Path) -> None:
    run_id = command(service, "run", "--detach", script(tmp_path, "import time\ntime.sleep(100)"))[1].strip()
    for options in ((), ("--timeout", "500ms")):
        status, out, said = command(service, "result", run_id, *options)
        assert (status, out.strip(), "goes on" in said) == (75, "", True)
    status, out, _ = command(service, "result", run_id, "--json")
    assert (status, json.loads(out)["state"]) == (75, "running")
    assert command(service, "stop", run_id)[0] == 0
    assert command(service, "result", run_id, "--wait")[0] == 130
    failed = command(service, "run", "--detach", script(tmp_path, "raise SystemExit(3)"))[1].strip()
    assert command(service, "result", failed, "--wait")[0] == 1
    assert command(service, "result", "f" * 32)[0] == 2


def test_detach_says_what_it_needs(service: Service, tmp_path: Path) -> None:
    program = script(tmp_path, "result = 1")
    assert command(service, "run", "--detach", "--no-service", program)[0] == 2
    assert command(service, "run", "--detach", "--save-files", str(tmp_path), program)[0] == 2
    alone = sandbox("run", "--detach", program, env=environment(SANDBOX_SOCKET=str(tmp_path / "none")))
    assert alone.returncode == 13


def test_a_failed_run_s_output_is_there_tomorrow_without_its_secrets_and_without_the_service(tmp_path: Path) -> None:
    with served(tmp_path, SANDBOX_HISTORY__OUTPUT_KIB="1") as service, service.client() as client:
        failed = client.run(FAILS, secrets={"TOKEN": SECRET})
        assert SECRET in failed.stderr, "its own caller gets what the program printed"
        row = client.recorded(failed.run_id)
        assert row["output"]["stdout"].startswith("it began\n")
        assert row["output"]["stderr"] == "with [secret]\n"
        assert row["output"]["logs"][0]["message"] == "about to fail"
        assert row["output"]["error"] is not None
        assert "KeyError" in row["output"]["error"]["traceback"]
        fine = client.run("print('quiet')\nresult = 1")
        assert "output" not in client.recorded(fine.run_id), "by default, of runs that fail alone"
        long = client.run("print('x' * 100_000)\nprint('the end')\nraise ValueError")
        kept = client.recorded(long.run_id)["output"]
        assert (len(kept["stdout"]), kept["stdout"][-8:], kept["left_out"]["stdout_bytes"]) == (
            1024,
            "the end\n",
            100_009 - 1024,
        )
        assert not any("output" in row for row in client.runs())
        with_service = command(service, "logs", failed.run_id)
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("history.sqlite*"))
    assert b"about to fail" in content
    assert SECRET.encode() not in content
    assert base64.b64encode(f"user:{SECRET}".encode())[7:-2] not in content, "nor in what it is encoded with"
    nowhere = {"XDG_DATA_HOME": str(tmp_path / "data"), "SANDBOX_SOCKET__PATH": "/run/no-service/service.sock"}
    variables = {name: value for name, value in os.environ.items() if name != "SANDBOX_SOCKET"} | nowhere
    without_service = sandbox("logs", failed.run_id[:10], env=variables)
    assert (without_service.returncode, without_service.stdout, without_service.stderr) == with_service
    assert "--- stderr\n  with [secret]" in without_service.stdout
    assert len(json.loads(sandbox("runs", "--json", env=variables).stdout)["runs"]) == 3
    assert sandbox("logs", failed.run_id, env={**variables, "SANDBOX_SOCKET": "/run/other.sock"}).returncode == 13, (
        "a named service must be there"
    )


def test_the_policy_decides_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    for kind in ("all", "none"):
        (tmp_path / "policies" / f"{kind}.toml").write_text(f'extends = "default"\nhistory.output = "{kind}"\n')
    with served(tmp_path) as service, service.client() as client:
        outputs = {
            (policy, code): "output" in client.recorded(client.run(f"print(1)\n{code}", policy=policy).run_id)
            for policy in ("default", "all", "none")
            for code in ("result = 1", "raise ValueError")
        }
    assert [name for name, kept in outputs.items() if kept] == [
        ("default", "raise ValueError"),
        ("all", "result = 1"),
        ("all", "raise ValueError"),
    ]


def test_results_outlive_the_service_and_a_run_that_it_took_with_it_says_so(tmp_path: Path) -> None:
    with served(tmp_path, SANDBOX_QUEUE__RUNNING="1") as service, service.client() as client:
        done = client.start("result = 'kept'")
        assert client.result(done, 20.0) is not None
        going, waiting = client.start("import time\ntime.sleep(9)\nresult = 1"), client.start("result = 2")
        until(lambda: client.recorded(going)["state"], "running")
        service.stop(signal.SIGKILL)
    with served(tmp_path) as service, service.client() as client:
        found = client.result(done)
        assert found is not None
        assert found.value == "kept"
        for run_id in (going, waiting):
            lost = client.result(run_id)
            assert lost is not None
            assert (lost.outcome, lost.explanation) == ("killed", SERVICE_ENDED)
            assert command(service, "result", run_id)[0] == 7
        (service.policies / "small.toml").unlink()
        service.process.send_signal(signal.SIGHUP)
        service.log("policies read")
        assert client.result(done) is not None, "whatever becomes of policies"
    with (
        served(tmp_path, SANDBOX_HISTORY__RESULTS_MIB="0") as service,
        service.client() as client,
        pytest.raises(NotFound, match="not kept any longer"),
    ):
        client.result(done)


def test_what_runs_when_the_service_stops_in_order_has_its_result_kept(tmp_path: Path) -> None:
    with served(tmp_path) as service, service.client() as client:
        short, long = (
            client.start("import time\ntime.sleep(2)\nresult = 1"),
            client.start("import time\ntime.sleep(9.5)\nresult = 1"),
        )
        until(lambda: {client.recorded(run_id)["state"] for run_id in (short, long)}, {"running"})
        assert service.stop() == 0
    with served(tmp_path) as service, service.client() as client:
        outcomes = [found.outcome for found in (client.result(short), client.result(long)) if found]
        assert outcomes == ["succeeded", "cancelled"]


class Ears(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    heard: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_a_webhook_tells_where_the_result_is_when_it_is_there(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Ears) as ears:
        listening = threading.Thread(target=ears.serve_forever, daemon=True)
        listening.start()
        url = f"http://127.0.0.1:{ears.server_port}/ended"
        with served(tmp_path, SANDBOX_WEBHOOKS__ALLOWED=json.dumps([url])) as service, service.client() as client:
            run_id = client.start("result = 1", notify={"url": f"{url}/flow?x=1"})
            until(lambda: Ears.heard)
            assert Ears.heard == [{"run_id": run_id, "outcome": "succeeded", "result": f"/v1/runs/{run_id}/result"}]
            assert client.get(str(Ears.heard[0]["result"]))["result"] == 1
        ears.shutdown()
        listening.join(WAIT_S)


def test_many_detached_runs_all_have_results(service: Service) -> None:
    async def scene() -> list[object]:
        from sandbox.client import AsyncClient

        async with AsyncClient(service.socket, retry_s=120) as client:
            ids = await asyncio.gather(*(client.start("result = payload", payload=n) for n in range(60)))
            found = await asyncio.gather(*(client.result(run_id, 50.0) for run_id in ids))
            return [one.value if one else None for one in found]

    assert asyncio.run(scene()) == list(range(60))
