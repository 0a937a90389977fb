"""What a program's exception is answered with, where the sandbox is what makes it likely."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.index.absent_modules import ELSEWHERE, REMOVED, RENAMED, STANDARD, WINDOWS
from sandbox.index.package_names import package_of_module
from sandbox.index.package_table import PACKAGES
from sandbox.models import ProgramError
from sandbox.policy.model import Policy
from sandbox.run.advice import advice, last_advice
from sandbox.run.limit_advice import Circumstances
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


def told(kind: str, message: str, traceback: str = "", *, under: Policy = NONE, **seen: Any) -> str:
    return advice(ProgramError(type=kind, message=message, traceback=traceback), Circumstances(policy=under, **seen))


@pytest.mark.parametrize(
    ("module", "said", "not_said"),
    [
        ("pandas", "to install it: --with pandas", "--file"),
        ("sklearn", "--with scikit-learn", "--file"),
        ("cv2", "--with opencv-python-headless", "--file"),
        ("websocket", "--with websocket-client", "--file"),
        ("serial", "--with pyserial", "--file"),
        ("PIL", "--with pillow", "--file"),
        ("pkg_resources", "--with 'setuptools<81'", "--file"),
        ("ruamel.yaml", "--with ruamel.yaml", "--file"),
        ("mysql.connector", "--with mysql-connector-python", "--file"),
        ("plant_helpers", "--file plant_helpers.py", "--with plant"),
        ("utils", "--file utils.py", "--with utils"),
        ("google", "--file google.py", "--with google"),
        ("board", "drives the pins of a small computer", "--with"),
        ("RPi", "drives the pins of a small computer", "--with"),
        ("win32com", "Windows alone", "--with"),
        ("gi", "comes with GNOME", "--with"),
        ("urllib2", "Python 3 has as urllib.request", "--with"),
        ("Queue", "Python 3 has as queue", "--with"),
        ("Tkinter", "needs a screen", "--with"),
        ("winreg", "Windows alone", "--with"),
        ("tkinter", "needs a screen", "--with"),
        ("_tkinter", "needs a screen", "--with"),
        ("turtle", "needs a screen", "--with"),
        ("idlelib", "needs a screen", "--with"),
        ("sqlite3", "a part of Python, not in this image", "--with"),
        ("ensurepip", "a part of Python, not in this image", "--with"),
        ("tomllib", "a part of Python, not in this image", "--with"),
        ("distutils", "was a part of Python until 3.11", "--with distutils"),
        ("imp", "use an image with Python 3.11", "--with"),
        ("telnetlib", "--with standard-telnetlib", "--with telnetlib"),
        ("sklearn.externals", "sklearn is there and has no externals", "--with sklearn"),
        ("plant.helpers", "plant is there and has no helpers", "--with"),
    ],
)
def test_a_module_that_is_missing(module: str, said: str, not_said: str) -> None:
    found = told("ModuleNotFoundError", f"No module named {module!r}")
    assert said in found
    assert not_said not in found


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("from google.cloud import storage", "google-cloud-storage"),
        ("import google.protobuf.message as m", "protobuf"),
        ("    from google.cloud.bigquery import Client", "google-cloud-bigquery"),
        ("from azure.storage.blob import BlobServiceClient", "azure-storage-blob"),
    ],
)
def test_a_part_of_a_namespace_is_named_by_the_import_itself(line: str, package: str) -> None:
    top = line.split()[1].partition(".")[0]
    traceback = f'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    {line}\n'
    assert told("ModuleNotFoundError", f"No module named '{top}'", traceback) == f"; to install it: --with {package}"


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}(\.[a-z]{1,8})?", fullmatch=True), st.text(max_size=200))
def test_no_package_is_named_that_is_not_in_a_reviewed_table(module: str, traceback: str) -> None:
    found = told("ModuleNotFoundError", f"No module named '{module}'", traceback)
    words = shlex.split(found.replace(";", " ").replace(",", " "))
    named = {words[at + 1].partition("==")[0] for at, word in enumerate(words) if word == "--with"} - {"NAME"}
    assert named <= {re.split(r"[<\[]", one)[0] for one in PACKAGES.values()} | {one for _, one in REMOVED.values()}


def test_the_tables_are_of_one_mind() -> None:
    assert len(PACKAGES) >= 150
    tops = {name for name in PACKAGES if "." not in name}
    assert not tops & (STANDARD | WINDOWS | ELSEWHERE.keys() | RENAMED.keys())
    for package in PACKAGES.values():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(\[[a-z]+\])?(<\d+)?", package.replace("typing_", "")), (
            package
        )
    assert package_of_module("sklearn.linear_model") == "scikit-learn"
    assert package_of_module("google.cloud") is None


def test_an_optional_library_of_another_is_named_from_the_table_alone() -> None:
    said = "Missing optional dependency '{}'. Use pip or conda to install it."
    assert told("ImportError", said.format("openpyxl")) == "; to install it: --with openpyxl"
    assert told("ImportError", said.format("evilpkg")) == ""


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("OSError", "libgomp.so.1: {}", "does not have libgomp.so.1"),
        ("ImportError", "libGL.so.1: {}", "opencv-python-headless"),
        ("XGBoostError", "it could not be loaded.\nError message(s): ['libgomp.so.1: {}']", "Debian: libgomp1"),
        ("OSError", "cannot load library 'libcairo.so.2': libcairo.so.2: {}", "Debian: libcairo2"),
        ("ImportError", "libpq.so.5: {}", "psycopg2-binary"),
        ("ImportError", "libcudart.so.12: {}", "no graphics processor"),
        ("OSError", "libsomething-else.so: {}", "does not have libsomething-else.so"),
    ],
)
def test_a_shared_library_that_is_missing_is_named_whoever_says_so(kind: str, message: str, said: str) -> None:
    found = told(kind, message.format("cannot open shared object file: No such file or directory"))
    assert said in found
    assert "--image" in found


# ---- limits


@pytest.mark.parametrize(
    ("kind", "message", "keys"),
    [
        ("OSError", "[Errno 28] No space left on device: '/tmp/a.bin'", ["tmp_mib"]),
        ("OSError", "[Errno 28] No space left on device: '/dev/shm/psm_1'", ["shm_mib"]),
        ("OSError", "[Errno 28] No space left on device: '/app/out.csv'", ["app_mib"]),
        ("OSError", "[Errno 28] No space left on device", ["app_mib", "tmp_mib", "shm_mib"]),
        ("OperationalError", "database or disk is full", ["app_mib", "tmp_mib", "shm_mib"]),
        ("RuntimeError", "unable to write to file </torch_9_1>: No space left on device (28)", ["shm_mib"]),
        ("RuntimeError", "DataLoader worker (pid 9) is killed by signal: Bus error.", ["shm_mib"]),
        ("TerminatedWorkerError", "The exit codes of the workers are {SIGBUS(-7)}", ["shm_mib"]),
    ],
)
def test_no_room_is_explained_by_the_key_of_the_place(kind: str, message: str, keys: list[str]) -> None:
    found = told(kind, message)
    assert {key for key in ("app_mib", "tmp_mib", "shm_mib") if f"filesystem.{key}" in found} >= set(keys)
    if len(keys) == 1 and "'/" in message:
        assert found.count("filesystem.") == 1
    assert "filesystem.tmp_mib" in told(kind, message, full=("/tmp",)) or "'/" in message or "torch" in message


def test_the_place_that_was_seen_to_be_full_is_named_alone() -> None:
    found = told("OSError", "[Errno 28] No space left on device", full=("/tmp",))
    assert "filesystem.tmp_mib" in found
    assert "shm_mib" not in found
    died = "A process in the process pool was terminated abruptly while the future was running or pending."
    assert "filesystem.shm_mib" in told("BrokenProcessPool", died, full=("/dev/shm",))
    assert told("BrokenProcessPool", died) == ""


@pytest.mark.parametrize(
    ("kind", "message", "key"),
    [
        ("OSError", "[Errno 24] Too many open files: 'a'", "limits.open_files"),
        ("ClientConnectorError", "Cannot do it [Too many open files]", "limits.open_files"),
        ("PanicException", 'Os { code: 24, message: "Too many open files" }', "limits.open_files"),
        ("WasmtimeError", "mmap failed to reserve 0x100000000 bytes", "limits.memory_mib"),
        ("RuntimeError", "Cannot allocate memory (os error 12)", "limits.memory_mib"),
        ("RuntimeError", "std::bad_alloc", "limits.memory_mib"),
        ("OSError", "[Errno 12] Cannot allocate memory: 'a'", "limits.memory_mib"),
        ("ComputeError", "failed to spawn thread: Resource temporarily unavailable (os error 11)", "limits.processes"),
        ("RuntimeError", "pthread_create has failed: Resource temporarily unavailable", "limits.processes"),
        ("Error", "can't start new thread", "limits.processes"),
    ],
)
def test_an_error_of_a_limit_names_its_key(kind: str, message: str, key: str) -> None:
    assert key in told(kind, message)
    assert key in told(
        "WrappedError", "it failed", f"{kind}: {message}\n\nDuring handling of it\nWrappedError: it failed"
    )


def test_what_a_process_may_reserve_is_told_where_that_counts() -> None:
    assert "reserve" not in told("WasmtimeError", "mmap failed")
    assert "may reserve 2560 MiB" in told("WasmtimeError", "mmap failed", address_space_mib=2560)


def test_code_that_speaks_of_a_limit_is_not_an_error_of_it() -> None:
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 1\n    raise ValueError(x)  # Out of memory, Errno 28\n'
    assert told("ValueError", "no", traceback) == ""
    assert told("BlockingIOError", "[Errno 11] Resource temporarily unavailable") == "", (
        "as of a socket that has nothing"
    )


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            "limits.memory_mib",
        ),
        ("libgomp: Thread creation failed: Resource temporarily unavailable\n", "limits.processes"),
        (
            "terminate called after throwing an instance of 'std::system_error'\n  what():  Resource temporarily"
            " unavailable\n",
            "limits.processes",
        ),
        (
            "OpenBLAS blas_thread_init: pthread_create failed for thread 5 of 8: Resource temporarily unavailable\n",
            "limits.processes",
        ),
        ("runtime: failed to create new OS thread (have 5 already; errno=11)\n", "limits.processes"),
        (
            "Error occurred during initialization of VM\nCould not reserve enough space for object heap\n",
            "limits.memory_mib",
        ),
        ("cp: error writing '/tmp/b': No space left on device\n", "filesystem.tmp_mib"),
        ("x: error while loading shared libraries: libgomp.so.1: cannot open shared object file", "libgomp.so.1"),
    ],
)
def test_last_words_explain_an_end_without_an_exception(words: str, key: str) -> None:
    assert key in last_advice(words, Circumstances(policy=NONE))
    assert last_advice("all went well\n", Circumstances(policy=NONE)) == ""


def test_a_file_that_hides_a_library_is_told_so() -> None:
    found = told("ModuleNotFoundError", "No module named 'json.tool'; 'json' is not a package")
    assert "named json.py" in found
    assert "--with" not in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("No module named 'os.paths'; 'os' is not a package", "os is there and has no paths"),
        ("No module named 'email.MIMEText'", "email is there and has no MIMEText"),
        ("No module named 'zoneinfo.x'", "zoneinfo is there and has no x"),
    ],
)
def test_a_part_that_a_module_of_python_lacks_is_named_and_the_module_is_there(words: str, said: str) -> None:
    found = told("ModuleNotFoundError", words)
    assert said in found
    assert "not in this image" not in found


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("Mapping", "collections", "use collections.abc.Mapping"),
        ("gcd", "fractions", "use math.gcd"),
        ("urlencode", "urllib", "use urllib.parse.urlencode"),
        ("nothing", "collections", "has no nothing; a module of your own"),
    ],
)
def test_a_name_that_moved_is_told_with_its_place(name: str, module: str, said: str) -> None:
    words = f"cannot import name {name!r} from {module!r} (/usr/lib/python3.11/{module}.py)"
    assert said in told("ImportError", words)


def test_letters_of_a_module_that_are_others_are_told() -> None:
    assert "--with pycryptodome, whose module is Crypto" in told("ModuleNotFoundError", "No module named 'crypto'")
    assert "--with pillow, whose module is PIL" in told("ModuleNotFoundError", "No module named 'pil'")
    assert told("ModuleNotFoundError", "No module named 'yaml'").endswith("--with pyyaml")


def test_devices_and_directories_are_told_as_what_they_are() -> None:
    missing = "[Errno 2] No such file or directory: '{}'"
    assert "none of this host's devices, such as /dev/ttyUSB0" in told(
        "FileNotFoundError", missing.format("/dev/ttyUSB0")
    )
    looking = '    for name in os.listdir("images"):\n'
    found = told("FileNotFoundError", missing.format("images"), looking)
    assert "--file images/NAME=images/NAME for each file of images" in found
    assert "into directories that it makes" in told("FileNotFoundError", missing.format("out/x.txt"))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data.csv", "--file data.csv;"),
        ("./data.csv", "--file data.csv;"),
        ("/app/data.csv", "--file data.csv;"),
        ("in/data.csv", "--file in/data.csv=in/data.csv;"),
        ("/app/in/data.csv", "--file in/data.csv=in/data.csv;"),
    ],
)
def test_a_file_that_is_not_there_is_sent_along(path: str, said: str) -> None:
    assert said in told("FileNotFoundError", f"[Errno 2] No such file or directory: {path!r}")


# what libraries say, word for word
MISSING = {
    "Polars": ("FileNotFoundError", "No such file or directory (os error 2): {}"),
    "Polars, with more": (
        "FileNotFoundError",
        "No such file or directory (os error 2): {}\n\nThis error occurred with",
    ),
    "Arrow": (
        "FileNotFoundError",
        "[Errno 2] Failed to open local file '{}'. Detail: [errno 2] No such file or directory",
    ),
    "Arrow's datasets, pandas.read_parquet": ("FileNotFoundError", "{}"),
    "NumPy": ("FileNotFoundError", "{} not found."),
    "pandas": ("FileNotFoundError", "File {} does not exist"),
    "h5py": (
        "FileNotFoundError",
        "[Errno 2] Unable to synchronously open file (unable to open file: name = '{}', errno = 2, error message = 'No such"
        " file or directory', flags = 0, o_flags = 0)",
    ),
    "DuckDB": ("duckdb.IOException", 'IO Error: No files found that match the pattern "{}"'),
    "DuckDB, a database": (
        "_duckdb.IOException",
        'IO Error: Cannot open database "{}" in read-only mode: database does not exist',
    ),
    "lxml": ("OSError", "Error reading file '{0}': failed to load \"{0}\": No such file or directory"),
    "python-docx": ("docx.opc.exceptions.PackageNotFoundError", "Package not found at '{}'"),
    "soundfile": ("soundfile.LibsndfileError", "Error opening '{}': System error."),
    "ONNX Runtime": (
        "onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile",
        "[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model from {0} failed:Load model {0} failed. File doesn't exist",
    ),
    "pyogrio": ("pyogrio.errors.DataSourceError", "{}: No such file or directory"),
    "rasterio": ("RasterioIOError", "{}: No such file or directory"),
    "OpenCV": (
        "cv2.error",
        "OpenCV(5.0.0) /io/x.cpp:341: error: (-5:Bad argument) Can't read ONNX file: {} in function 'parseFile'",
    ),
    "TensorFlow Lite": ("ValueError", "Could not open '{}'."),
}


@pytest.mark.parametrize("library", MISSING)
def test_a_missing_file_is_seen_in_whatever_words_a_library_has_for_it(library: str) -> None:
    kind, words = MISSING[library]
    assert "--file data.csv;" in told(kind, words.format("data.csv"))
    assert "--file in/data.csv=in/data.csv;" in told(kind, words.format("/app/in/data.csv"))
    assert "--file NAME=PATH, and the program opens NAME;" in told(kind, words.format("/etc/shadow"))
    assert "shadow" not in told(kind, words.format("/etc/shadow"))


def test_a_missing_file_is_seen_behind_the_error_that_it_caused_and_not_behind_one_that_came_later() -> None:
    first = "Traceback (most recent call last):\nFileNotFoundError: [Errno 2] No such file or directory: 'a.yaml'\n\n"
    cause = "The above exception was the direct cause of the following exception:\n\n"
    later = "During handling of the above exception, another exception occurred:\n\n"
    assert "--file a.yaml;" in told("RuntimeError", "no configuration", first + cause)
    assert told("RuntimeError", "no configuration", first + later) == ""


@pytest.mark.parametrize("kind", ["SystemExit", "ImportError"])
def test_a_program_that_asks_for_a_module_in_words_of_its_own_is_told_how_to_have_it(kind: str) -> None:
    missed = (
        "    import paho.mqtt.client as mqtt\nModuleNotFoundError: No module named 'paho'\n\nDuring handling of the above"
        f" exception, another exception occurred:\n\nTraceback:\n{kind}: please install it\n"
    )
    assert "--with paho-mqtt" in told(kind, "please install it", missed)
    assert told("KeyError", "'a'", missed) == ""


def test_the_first_of_the_modules_that_a_library_would_take_is_offered() -> None:
    words = (
        "Unable to find a usable engine; tried using: 'pyarrow', 'fastparquet'.\n - `Import pyarrow` failed. pyarrow is"
    )
    assert "--with pyarrow" in told("ImportError", words)


def test_a_name_that_a_module_of_python_lacks_is_looked_for_in_ones_own() -> None:
    words = "cannot import name 'WIFI' from '{0}' (/usr/lib/{0}.py)"
    assert "--file secrets.py" in told("ImportError", words.format("secrets"))
    assert told("ImportError", words.format("pandas")) == ""


def test_a_missing_program_is_no_file_to_send() -> None:
    started = '  File "subprocess.py", line 1955, in _execute_child\n    raise child_exception_type(errno_num)\n'
    found = told("FileNotFoundError", "[Errno 2] No such file or directory: 'ffmpeg'", started)
    assert "no program or directory ffmpeg: sandbox image build NAME --package PACKAGE" in found
    assert "--file" not in found
    assert "ffmpeg -x" not in told("FileNotFoundError", "[Errno 2] No such file or directory: 'ffmpeg -x'", started)


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("sqlite3.OperationalError", "unable to open database file", "SQLite begins an empty database"),
        ("sqlite3.OperationalError", "no such table: readings", "SQLite begins an empty database"),
        ("OperationalError", "(sqlite3.OperationalError) no such table: readings\n[SQL: x]", "SQLite begins an empty"),
        (
            "cv2.error",
            "OpenCV(4.9.0) /io/color.cpp:196: error: (-215:Assertion failed) !_src.empty() in function 'cvtColor'\n",
            "imread() returns None",
        ),
    ],
)
def test_what_a_missing_file_leads_to_is_told_of_the_file(kind: str, message: str, said: str) -> None:
    found = told(kind, message)
    assert said in found
    assert "--file NAME=PATH" in found


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


def test_what_one_run_has_used_up_names_its_keys() -> None:
    for message in (
        "<urlopen error Tunnel connection failed: 429 the 64 MiB that may be sent and received are used up>",
        "HTTP Error 429: the 100 connections that may be made are used up",
    ):
        said = told("URLError", message, under=OPEN)
        assert f"{OPEN.network.transfer_mib} MiB (network.transfer_mib)" in said
        assert f"{OPEN.network.connections} connections (network.connections)" in said


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
        f"[Errno 28] No space left on device: '{message}'",
        f"{message}.so: cannot open shared object file",
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
