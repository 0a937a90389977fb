"""What a program's exception is answered with, where the sandbox is what makes it likely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.models import ProgramError
from sandbox.policy.model import Policy
from sandbox.run.advice import advice
from tests.unit.factory import policy

DNS = "[Errno -3] Temporary failure in name resolution"
NONE = policy()
OPEN = NONE.model_copy(
    update={
        "network": NONE.network.model_copy(
            update={"mode": "allowlist", "allow": ("api.example.com:443", "db.example.com:5432")}
        )
    }
)


def told(kind: str, message: str, traceback: str = "", *, under: Policy = NONE) -> str:
    return advice(ProgramError(type=kind, message=message, traceback=traceback), under)


@pytest.mark.parametrize(
    ("module", "said", "not_said"),
    [
        ("pandas", "to install it: --with pandas", "--file"),
        ("sklearn.linear_model", "--with scikit-learn", "--file"),
        ("cv2", "--with opencv-python-headless", "--file"),
        ("websocket", "--with websocket-client", "--file"),
        ("plant_helpers", "--file plant_helpers.py", "--with plant"),
        ("tkinter", "needs a screen", "--with"),
        ("_tkinter", "needs a screen", "--with"),
        ("turtle", "needs a screen", "--with"),
        ("sqlite3", "a part of Python that this image does not have", "--with"),
        ("distutils", "--with setuptools", "--file"),
    ],
)
def test_a_module_that_is_missing(module: str, said: str, not_said: str) -> None:
    found = told("ModuleNotFoundError", f"No module named {module!r}")
    assert said in found
    assert not_said not in found


def test_a_file_that_hides_a_library_is_told_so() -> None:
    found = told("ModuleNotFoundError", "No module named 'json.tool'; 'json' is not a package")
    assert "named json.py" in found
    assert "--with" not in found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data.csv", "--file data.csv;"),
        ("./data.csv", "--file data.csv;"),
        ("/app/data.csv", "--file data.csv;"),
        ("in/data.csv", "--file data.csv=in/data.csv, and the program opens data.csv;"),
        ("/app/in/data.csv", "--file data.csv=in/data.csv, and the program opens data.csv;"),
    ],
)
def test_a_file_that_is_not_there_is_sent_along(path: str, said: str) -> None:
    assert said in told("FileNotFoundError", f"[Errno 2] No such file or directory: {path!r}")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow",
        "/srv/ada/data.csv",
        "../ada/data.csv",
        "in/../../data.csv",
        "/app/../etc/shadow",
        ".ssh/id_rsa",
        "ada/.netrc",
        "data;poweroff",
        "a data.csv",
        "$(id).csv",
        "--json",
        "a=b",
    ],
)
def test_a_path_that_is_not_plainly_in_the_directory_of_the_command_is_not_recommended(path: str) -> None:
    """The user may not be able to read it, and a program could so ask for what nobody should hand over."""
    said = told("FileNotFoundError", f"[Errno 2] No such file or directory: '{path}'")
    assert "--file NAME=PATH, and the program opens NAME;" in said
    assert path not in said
    assert path.rpartition("/")[2] not in said


@pytest.mark.parametrize(
    ("kind", "message", "traceback"),
    [
        ("gaierror", DNS, ""),
        ("gaierror", "[Errno -2] Name or service not known", ""),
        ("URLError", f"<urlopen error {DNS}>", ""),
        (
            "ConnectionError",
            (
                "HTTPSConnectionPool(host='api.test', port=8443): Max retries exceeded with url: / (Caused by"
                f' NameResolutionError("{DNS}"))'
            ),
            "",
        ),
        ("ConnectError", DNS, ""),
        (
            "ClientConnectorError",
            "Cannot connect to host api.test:8443 ssl:default [Temporary failure in name resolution]",
            "",
        ),
        ("OperationalError", 'could not translate host name "db" to address: Temporary failure in name resolution', ""),
        ("OSError", "[Errno 101] Network is unreachable", ""),
        ("InfluxError", "it failed", f"socket.gaierror: {DNS}\n\nDuring handling of it\nInfluxError: it failed"),
    ],
)
def test_a_network_that_is_not_there_is_the_policys_doing(kind: str, message: str, traceback: str) -> None:
    none = told(kind, message, traceback)
    assert "policy default gives programs no network" in none
    assert 'network.mode = "allowlist"' in none
    assert "api.test" not in none, "no program has its own host recommended"
    some = told(kind, message, traceback, under=OPEN)
    assert "no network" not in some
    assert "HTTP_PROXY" in some
    assert "api.example.com:443, db.example.com:5432" in some


def test_a_refused_connection_is_the_sandboxs_own_loopback() -> None:
    for kind, message in (
        ("ConnectionRefusedError", "[Errno 111] Connection refused"),
        ("URLError", "<urlopen error [Errno 111] Connection refused>"),
    ):
        assert "the sandbox's own, not this host's" in told(kind, message)
        assert "no network" in told(kind, message)
        assert "HTTP_PROXY" in told(kind, message, under=OPEN)


def test_a_host_that_the_policy_does_not_allow_is_told_with_those_that_it_does() -> None:
    for kind, message in (
        ("URLError", "<urlopen error Tunnel connection failed: 403 Forbidden>"),
        ("ProxyError", "Unable to connect: 403 Forbidden"),
    ):
        assert "lets them reach api.example.com:443, db.example.com:5432 (network.allow)" in told(
            kind, message, under=OPEN
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ValueError", "no"),
        ("HTTPError", "HTTP Error 403: Forbidden"),
        ("FileNotFoundError", "chart"),
        ("TimeoutError", "timed out"),
        ("KeyError", "'host'"),
    ],
)
def test_other_errors_get_no_advice(kind: str, message: str) -> None:
    assert told(kind, message) == ""


@given(
    st.sampled_from(["ModuleNotFoundError", "FileNotFoundError", "gaierror", "x"]),
    st.text(max_size=300),
    st.text(max_size=300),
)
def test_whatever_a_program_says_advice_stays_one_short_line(kind: str, message: str, traceback: str) -> None:
    for text in (
        message,
        f"No module named '{message}'",
        f"[Errno 2] No such file or directory: '{message}'",
        f"host='{message}' {DNS}",
    ):
        found = told(kind, text, traceback)
        assert len(found) < 900
        assert found.isprintable()


def test_a_locale_that_the_image_lacks_is_answered_with_what_has_it() -> None:
    found = told("locale.Error", "unsupported locale setting")
    assert "C.UTF-8 alone" in found
    assert "sandbox image build NAME --locale" in found
    assert told("locale.Error", "another thing") == ""


@pytest.mark.parametrize(
    "traceback",
    [
        "  rawlist = _psplatform.net_if_addrs()\nOSError: [Errno 38] Function not implemented",
        "  socket.if_nameindex()\nOSError: [Errno 97] Address family not supported by protocol",
        "  getifaddrs()\nOSError: [Errno 1] Operation not permitted",
    ],
)
def test_a_list_of_interfaces_is_answered_with_what_there_is(traceback: str) -> None:
    kind, _, message = traceback.rpartition("\n")[2].partition(": ")
    assert "loopback alone" in told(kind, message, traceback)
