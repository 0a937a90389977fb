"""A company's network, whose HTTP proxy is the only way out: libraries, images and programs get through it.

The servers are in a network that this host can't reach, under names that only the proxy knows. Each test has its
control: without the setting, nothing is reached.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cli.environment import ways_of
from sandbox.document import as_document
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.image.admission import REPOSITORY
from tests.command import environment, sandbox
from tests.escape.bench import weakening
from tests.integration.certificates import certified
from tests.integration.company_network import ADDRESS, NAME, CompanyNetwork, company_network
from tests.integration.desk import Desk, desk, shared_images
from tests.integration.package_index import PackageIndex, package_index, wheel
from tests.integration.registry import podman
from tests.integration.service import served as service_of

__all__ = ["desk", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
REFUSED, REGISTRY = "refused.company.invalid", "registry.company.invalid:5000"
LOGIN = "ada:Pr0xy-s3cr3t"
SECRET = "s3cr3t"
# The secret in the forms in which it travels.
FORMS = (SECRET, base64.b64encode(LOGIN.encode()).decode())
# What a program can look at: its own and others' variables and command lines, and every file that it may read. It
# names the places that have what it looks for, which its own text has backwards.
LOOK = f"""
import os, pathlib
wanted = [form[::-1].encode() for form in {[form[::-1] for form in FORMS]!r}]
found = [name for name, value in os.environ.items() if any(form in value.encode() for form in wanted)]
looked = 0
for top in ("/proc", "/run", "/etc", "/app", "/tmp", "/dev/shm"):
    for directory, _, files in os.walk(top):
        for name in files:
            if top != "/proc" or name in ("environ", "cmdline", "mountinfo"):
                try:
                    content = pathlib.Path(directory, name).read_bytes()
                except OSError:
                    continue
                looked += 1
                if any(form in content for form in wanted):
                    found.append(os.path.join(directory, name))
"""


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompanyNetwork]:
    """Give the network, with a proxy that wants a login, a registry, and sockets for servers of the tests."""
    place = tmp_path_factory.mktemp("company")
    authority, signing = certified(place, "authority")
    names = ",".join(f"DNS:{name}" for name in (NAME, REFUSED, REGISTRY.partition(":")[0]))
    certificate, key = certified(
        place, "server", "-CA", authority, "-CAkey", signing, "-addext", f"subjectAltName={names}"
    )
    beside = Path(sys.executable).with_name("docker-registry")
    registry = str(beside) if beside.exists() else shutil.which("docker-registry")
    assert registry, "docker-registry is missing: scripts/setup --dev fetches it"
    configuration = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": f"{ADDRESS}:5000", "tls": {"certificate": str(certificate), "key": str(key)}},
    }
    (place / "registry.yml").write_text(json.dumps(configuration))
    hosts = dict.fromkeys((NAME, REFUSED, REGISTRY.partition(":")[0]), ADDRESS)
    with company_network(
        place,
        hosts=hosts,
        listen=[(ADDRESS, 443), (ADDRESS, 8443)],
        login=LOGIN,
        refuses="^refused",
        commands=[[registry, "serve", str(place / "registry.yml")]],
    ) as made:
        yield made


def server_context(company: CompanyNetwork) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(company.place / "server.pem", company.place / "server.key")
    return context


@pytest.fixture(scope="module")
def served(company: CompanyNetwork) -> Iterator[PackageIndex]:
    """Give an index in that network, with TLS."""
    with package_index(server_context(company), listener=company.sockets[0]) as made:
        made.add(wheel("tiny", "1.0", {"tiny.py": "X = 1\n"}))
        yield made


@pytest.fixture
def index(served: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch) -> PackageIndex:
    """Give the index, which pip's configuration names, and no proxy yet."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"https://{NAME}/simple")
    monkeypatch.setenv("PIP_CERT", str(company.place / "authority.pem"))
    monkeypatch.setenv("NETRC", os.devnull)
    served.login = None
    served.hits.clear()
    return served


@pytest.fixture
def policy(desk: Desk) -> str:
    """Give a policy that leaves names to the proxy: this host does not know them."""
    return desk.policy("company", build__resolver="proxy")


def with_login(company: CompanyNetwork, login: str = LOGIN) -> str:
    return company.proxy.replace("//", f"//{login}@")


def everything_kept(desk: Desk) -> str:
    kept = [path for top in (desk.places.cache_dir, desk.places.data_dir) for path in top.rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode("latin-1") for path in kept)


def shows_no_secret(*texts: object) -> bool:
    return not any(form in str(text) for form in FORMS for text in texts)


# ---- libraries


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "PIP_PROXY"])
def test_libraries_come_through_the_proxy(
    desk: Desk,
    index: PackageIndex,
    company: CompanyNetwork,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    variable: str,
) -> None:
    # The control: without the setting, nothing is reached.
    assert "can't be reached" in desk.failure("tiny", policy=policy).message
    assert not index.hits
    monkeypatch.setenv(variable, with_login(company))
    assert desk.value("import tiny\nresult = tiny.X", "tiny", policy=policy) == 1
    assert index.hits
    assert set(company.asked()) == {f"CONNECT {NAME}:443"}
    store = desk.runner().environments().store
    (record,) = store.records()
    ways = ways_of(store.egress(record.id))
    assert ways.startswith(f"through the proxy {company.proxy}: ")
    assert "directly" not in ways
    kept = everything_kept(desk)
    assert "tiny" in kept
    assert shows_no_secret(kept)


def test_a_name_that_this_host_does_not_know_is_refused_unless_the_policy_leaves_it_to_the_proxy(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    error = desk.failure("tiny")
    assert f"{NAME} has no address here" in error.message
    assert "build.resolver" in error.hint


def test_an_index_with_a_login_of_its_own_is_reached_through_the_proxy(
    desk: Desk,
    index: PackageIndex,
    company: CompanyNetwork,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    tmp_path: Path,
) -> None:
    index.login = "bob:other-s3cr3t"
    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    assert "HTTP status 401" in desk.failure("tiny", policy=policy).message
    (tmp_path / "netrc").write_text(f"machine {NAME} login bob password other-s3cr3t\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert desk.value("import tiny\nresult = tiny.X", "tiny", policy=policy) == 1
    assert shows_no_secret(everything_kept(desk))


def test_an_index_that_wants_a_client_certificate_is_shown_pips(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    authority, signing = company.place / "authority.pem", company.place / "authority.key"
    context = server_context(company)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key = certified(company.place, "client", "-CA", authority, "-CAkey", signing)
    both = company.place / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    monkeypatch.setenv("PIP_INDEX_URL", f"https://{NAME}:8443/simple")
    with package_index(context, listener=company.sockets[1].dup()) as guarded:
        guarded.add(wheel("tiny", "1.0", {"tiny.py": "X = 1\n"}))
        # The control: without the certificate, nothing is given.
        error = desk.failure("tiny", policy=policy)
        assert "client certificate" in error.message
        assert "client-cert" in error.hint
        monkeypatch.setenv("PIP_CLIENT_CERT", str(both))
        assert desk.value("import tiny\nresult = tiny.X", "tiny", policy=policy) == 1
    assert key.read_text().splitlines()[1] not in everything_kept(desk)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("-----BEGIN CERTIFICATE-----\n", "has no private key"),
        ("-----BEGIN PRIVATE KEY-----\n", "has no certificate"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n", "passphrase"),
    ],
)
def test_a_client_certificate_that_can_not_be_used_is_told_in_words(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "client.pem").write_text(content)
    monkeypatch.setenv("PIP_CLIENT_CERT", str(tmp_path / "client.pem"))
    with pytest.raises(InvalidRequest, match=words):
        desk.build("tiny")


@pytest.mark.parametrize(
    ("proxy", "name", "words", "advice"),
    [
        ("http://127.0.0.1:{port}", NAME, "wants a login (HTTP 407)", "USER:PASSWORD"),
        ("http://ada:wrong-s3cr3t@127.0.0.1:{port}", NAME, "refuses the login that it was given", "USER:PASSWORD"),
        ("http://ada:s3cr3t@127.0.0.1:1", NAME, "can't be reached: Connection refused", "sandbox doctor"),
        ("http://{login}@127.0.0.1:{port}", REFUSED, f"refuses to connect to {REFUSED}:443 (HTTP 403", "NO_PROXY"),
    ],
)
def test_a_proxy_that_does_not_let_through_is_named_with_the_reason(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch, policy: str,
    proxy: str, name: str, words: str, advice: str,
) -> None:  # fmt: skip # a list
    address = proxy.format(port=company.port, login=LOGIN)
    monkeypatch.setenv("HTTPS_PROXY", address)
    monkeypatch.setenv("PIP_INDEX_URL", f"https://{name}/simple")
    error = desk.failure("tiny", policy=policy)
    assert f"the proxy http://127.0.0.1:{address.rpartition(':')[2]} (HTTPS_PROXY)" in error.message
    assert words in error.message
    assert advice in error.hint
    assert shows_no_secret(repr(error), error, error.facts)
    assert not index.hits


def test_a_refusal_inside_the_sandbox_is_explained_as_well(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """The index is reached; where its files lie is refused."""
    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    index.redirects["/files/tiny-1.0-py3-none-any.whl"] = f"https://{REFUSED}/files/tiny-1.0-py3-none-any.whl"
    desk.policy("wide", build__resolver="proxy", build__allow=["@index", f"{REFUSED}:443"])
    try:
        error = desk.failure("tiny", policy="wide")
    finally:
        index.redirects.clear()
    assert f"this host's proxy refuses to connect to {REFUSED}:443" in error.message
    assert "NO_PROXY" in error.hint


def test_no_login_is_on_a_command_line(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    def command_lines() -> str:
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it has ended
                continue
        return "\n".join(found)

    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    index.login = "bob:other-s3cr3t"
    monkeypatch.setenv("PIP_INDEX_URL", f"https://{index.login}@{NAME}/simple")
    # uv reads a wheel's metadata out of the file.
    with index.held("/files/tiny-1.0-py3-none-any.whl") as asked:
        building = threading.Thread(target=lambda: desk.build("tiny", policy=policy))
        building.start()
        assert asked.wait(60)
        seen = command_lines()
        # The control: what a command line shows is found in this way.
        command = [sys.executable, "-c", "import time; time.sleep(60)", with_login(company)]
        with subprocess.Popen(command) as shown:
            assert not shows_no_secret(command_lines())
            shown.kill()
    building.join()
    assert "conmon" in seen
    assert "uv pip compile" in seen
    assert shows_no_secret(seen)


# ---- programs


def test_a_program_reaches_what_its_policy_allows_and_learns_nothing_of_the_login(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""{LOOK}
import urllib.request
page = urllib.request.urlopen("https://{NAME}/simple/tiny/").read().decode()
result = {{"page": page, "found": found, "looked": looked, "proxy": os.environ["HTTPS_PROXY"]}}
"""
    allowed = {"network__mode": "allowlist", "network__allow": [f"{NAME}:443"]}
    # The control: without the setting, nothing is reached.
    desk.policy("direct", **allowed)
    assert desk.run(code, policy="direct").error is not None
    assert not index.hits
    monkeypatch.setenv("HTTPS_PROXY", with_login(company))
    result = desk.run(code, policy=desk.policy("through", **allowed, network__resolver="proxy"))
    assert result.result_json is not None, result.error
    value = json.loads(result.result_json)
    assert "tiny-1.0" in value["page"]
    assert value["looked"] > 20
    assert value["found"] == []
    assert str(company.port) not in value["proxy"]
    (record,) = result.egress
    assert (record.host, record.proxy, record.address) == (NAME, company.proxy, "")
    # The result, with its receipt.
    assert shows_no_secret(as_document(result))


def test_a_variable_handed_to_the_container_would_be_found_so(desk: Desk, company: CompanyNetwork) -> None:
    """The control of the test above: where the login is handed in, the program finds it."""

    def apply(podman: dict[str, object]) -> None:
        podman["env"] = {**podman["env"], "LEAK": with_login(company)}  # type: ignore[dict-item] # a table of JSON

    leak = weakening("a variable", "launch")
    weak = desk.bench.run_weakened(
        f"{LOOK}\nresult = found", type(leak)(name=leak.name, controls=leak.controls, apply=apply)
    )
    assert "LEAK" in weak.value
    assert any(place.endswith("/environ") for place in weak.value)


def test_a_program_is_told_why_the_proxy_does_not_let_it_through(
    desk: Desk, index: PackageIndex, company: CompanyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f'import urllib.request\nurllib.request.urlopen("https://{NAME}/simple/tiny/")'
    allowed = {"network__mode": "allowlist", "network__allow": [f"{NAME}:443"]}
    monkeypatch.setenv("HTTPS_PROXY", company.proxy)
    result = desk.run(code, policy=desk.policy("through", **allowed, network__resolver="proxy"))
    assert "this host's proxy wants a login (HTTP 407)" in str(result.error)
    assert "USER:PASSWORD" in result.explanation
    result = desk.run(code, policy=desk.policy("checked", **allowed))
    assert "has no address here" in str(result.error)
    assert "network.resolver" in result.explanation


def test_a_setting_that_is_no_proxy_keeps_a_program_from_the_network_in_words(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://ada:s3cr3t@127.0.0.1:1")
    assert desk.value("result = 1") == 1  # which needs none
    name = desk.policy("through", network__mode="allowlist", network__allow=[f"{NAME}:443"])
    with pytest.raises(InvalidRequest, match="HTTPS_PROXY is not the address of an HTTP proxy: socks5://") as caught:
        desk.run("result = 1", policy=name)
    assert shows_no_secret(repr(caught.value))


# ---- images


def with_proxy(company: CompanyNetwork, address: str) -> dict[str, str]:
    return environment(HTTPS_PROXY=address, NO_PROXY="", SSL_CERT_FILE=str(company.place / "authority.pem"))


@pytest.fixture(scope="module")
def base(company: CompanyNetwork) -> str:
    """Give the name of the base image in that network's registry."""
    name = f"{REGISTRY}/team/python:1"
    podman("tag", f"{REPOSITORY}:latest", name)
    podman("push", "--quiet", name, env=with_proxy(company, with_login(company)))
    podman("untag", f"{REPOSITORY}:latest", name)
    return name


def test_an_image_is_pulled_through_the_proxy(company: CompanyNetwork, base: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"{LOOK}\nresult = found")
    command = ("run", tmp_path / "script.py", "--image", base, "--json")
    # The control: without the setting, nothing is reached.
    direct = sandbox(*command, env=environment(HTTPS_PROXY="", SSL_CERT_FILE=str(company.place / "authority.pem")))
    assert direct.returncode == 11
    before = len(company.asked())
    answer = sandbox(*command, env=with_proxy(company, with_login(company)))
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["receipt"]["image"] == base
    assert json.loads(answer.stdout)["result"] == []
    assert f"CONNECT {REGISTRY}" in company.asked()[before:]
    assert shows_no_secret(answer.stdout, answer.stderr)
    podman("untag", f"{REPOSITORY}:latest", base)


@pytest.mark.parametrize(
    ("proxy", "image", "words"),
    [
        ("http://ada:s3cr3t@127.0.0.1:1", REGISTRY, "sandbox doctor"),
        ("http://127.0.0.1:{port}", REGISTRY, "USER:PASSWORD"),
        ("http://ada:wrong-s3cr3t@127.0.0.1:{port}", REGISTRY, "USER:PASSWORD"),
        ("http://{login}@127.0.0.1:{port}", REFUSED, "ask who runs the proxy"),
    ],
)
def test_a_pull_that_the_proxy_does_not_let_through_says_so(
    company: CompanyNetwork, tmp_path: Path, proxy: str, image: str, words: str
) -> None:
    (tmp_path / "script.py").write_text("result = 1")
    address = proxy.format(port=company.port, login=LOGIN)
    answer = sandbox(
        "run", tmp_path / "script.py", "--image", f"{image}/team/python:2", env=with_proxy(company, address)
    )
    assert answer.returncode == 11
    assert words in answer.stderr, answer.stderr
    assert shows_no_secret(answer.stderr)


def test_an_environment_travels_through_the_proxy(
    company: CompanyNetwork, served: PackageIndex, base: str, tmp_path: Path
) -> None:
    (tmp_path / "company.toml").write_text('extends = "default"\nbuild.resolver = "proxy"\n')
    asked = ("--with", "tiny", "--policy", tmp_path / "company.toml")
    env = {
        **with_proxy(company, with_login(company)),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"https://{NAME}/simple",
        "PIP_CERT": str(company.place / "authority.pem"),
    }
    assert sandbox("env", "lock", *asked, "--upgrade", env=env).returncode == 0
    built = sandbox("env", "build", *asked, "--json", env=env)
    assert built.returncode == 0, built.stderr
    identity = json.loads(built.stdout)["id"]
    target = f"{REGISTRY}/team/tiny:1"
    assert sandbox("env", "push", identity, target, env={**env, "HTTPS_PROXY": ""}).returncode == 11
    pushed = sandbox("env", "push", identity, target, env=env)
    assert pushed.returncode == 0, pushed.stderr
    assert sandbox("env", "rm", identity).returncode == 0
    pulled = sandbox("env", "pull", pushed.stdout.strip(), "--policy", tmp_path / "company.toml", env=env)
    assert pulled.returncode == 0, pulled.stderr
    shown = sandbox("env", "show", identity, "--json", env=env)
    assert shows_no_secret(built.stdout, built.stderr, pushed.stdout, pushed.stderr, pulled.stderr, shown.stdout)
    assert sandbox("env", "rm", identity).returncode == 0


# ---- the service, and the doctor


def test_the_services_own_setting_wins_and_its_log_has_no_login(
    company: CompanyNetwork, index: PackageIndex, tmp_path: Path
) -> None:
    (tmp_path / "login").write_text(f"{LOGIN}\n")
    file = tmp_path / "service.toml"
    file.write_text(f'[proxy]\nurl = "{company.proxy}"\nlogin_file = "{tmp_path}/login"\n')
    file.chmod(0o644)
    settings = {"SANDBOX_CONFIG": str(file)}
    wrong = {"HTTPS_PROXY": "http://127.0.0.1:1", "PIP_PROXY": "http://127.0.0.1:1", "SANDBOX_LOG__LEVEL": "debug"}
    code = "import tiny\nresult = tiny.X"
    (tmp_path / "policies").mkdir(mode=0o700)
    (tmp_path / "policies/company.toml").write_text('extends = "default"\nbuild.resolver = "proxy"\n')
    # The control: the environment's proxy is nobody.
    with service_of(tmp_path, **wrong) as service, service.client() as client, pytest.raises(BuildFailed) as caught:
        client.run(code, requirements=["tiny"], policy="company")
    assert "127.0.0.1:1" in str(caught.value)
    with service_of(tmp_path, **wrong, **settings) as service, service.client() as client:
        answer = client.run(code, requirements=["tiny"], policy="company")
        assert answer.value == 1
        log = service.log()
        command = Path(f"/proc/{service.process.pid}/cmdline").read_text()
    assert shows_no_secret(log, command, answer)


def test_the_doctor_says_which_proxy_is_used_without_its_login(company: CompanyNetwork) -> None:
    env = environment(HTTPS_PROXY=with_login(company), NO_PROXY=".lan", PIP_CONFIG_FILE=os.devnull)
    shown = sandbox("doctor", env=env)
    assert f"{company.proxy} (HTTPS_PROXY)" in shown.stdout
    assert ".lan" in shown.stdout
    assert shows_no_secret(shown.stdout, shown.stderr)
    gone = sandbox("doctor", env={**env, "PIP_PROXY": "http://ada:s3cr3t@127.0.0.1:1"})
    assert "the proxy http://127.0.0.1:1 can't be reached: Connection refused" in gone.stdout
    assert shows_no_secret(gone.stdout, gone.stderr)
    assert "connects directly" in sandbox("doctor", env={**env, "HTTPS_PROXY": ""}).stdout
