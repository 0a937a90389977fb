"""What uv and pip say when libraries can't be installed, and what a reader is told. The texts are theirs."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.tags import parse_tag
from packaging.version import Version

from sandbox.environment import resolution_failure
from sandbox.environment.resolution_failure import StepFailure, explained, named, nearest
from sandbox.errors import BuildFailed
from sandbox.index.listing import ListedFile, Listing
from sandbox.index.pip_config import Index
from tests.unit import factory

POLICY = factory.policy()
UV = "error: No solution found when resolving dependencies\n  cause: "
LINUX = f"linux_{platform.machine()}"
PUBLISHED = {
    "tiny": ["1.0-py3-none-any", "2.0-py3-none-any"],
    "pandas": ["3.0-py3-none-any"],
    "scikit-learn": ["1.0-py3-none-any"],
    "old": ["0.9-py3-none-any", f"1.0-cp39-cp39-{LINUX}"],
    "mac": ["1.0-py3-none-macosx_11_0_arm64"],
    "source": ["1.0"],
    "sklearn": ["0.0"],
    "new": [f"1.0-cp311-cp311-{LINUX}", f"2.0-cp312-cp312-{LINUX}", f"2.0-cp313-cp313-{LINUX}", "2.0"],
}


@pytest.fixture(autouse=True)
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    def listing_of(_index: Index, package: str) -> Listing:
        rows = [row.partition("-") for row in PUBLISHED.get(package, [])]
        return Listing(
            tuple(ListedFile(Version(version), parse_tag(tags) if tags else frozenset()) for version, _, tags in rows)
        )

    monkeypatch.setattr(resolution_failure, "listing_of", listing_of)


def told(text: str, step: str = "resolve", refused: Sequence[str] = (), *, used_up: bool = False) -> BuildFailed:
    return explained(
        StepFailure(
            text=text,
            step=step,
            subject=["tiny", "wants"],
            refused=refused,
            broken=[],
            used_up=used_up,
            index=Index(urls=("https://index.test/simple",), certificate=Path("/etc/bundle.crt")),
            policy=POLICY,
            python=(3, 11),
        )
    )


SENTENCES = [
    # ---- uv
    (
        f"{UV}Because panda was not found in the package registry and you require panda, we can conclude …",
        "the package index knows no package named panda",
        "did you mean pandas?",
    ),
    (
        (
            f"{UV}Because lost.thing was not found in the package registry and all versions of wants depend on"
            " lost.thing, we …"
        ),
        "the package index knows no package named lost.thing, which wants requires",
        "check its spelling",
    ),
    (
        f"{UV}Because only tiny<=2.0 is available and you require tiny>=9, we can conclude …",
        "no version of tiny satisfies tiny>=9",
        "the newest versions are 1.0, 2.0",
    ),
    (
        f"{UV}Because there is no version of tiny==3.7 and you require tiny==3.7, we can conclude …",
        "no version of tiny satisfies tiny==3.7",
        "the newest versions are 1.0, 2.0",
    ),
    (
        (
            f"{UV}Because only the following versions of tiny are available:\n      tiny<=1\n      tiny>=2\n  and you"
            " require tiny>1,<2, we …"
        ),
        "no version of tiny satisfies tiny>1,<2",
        "the newest versions are 1.0, 2.0",
    ),
    (
        f"{UV}Because only tiny<=2.0 is available and all versions of wants depend on tiny>=9, we can conclude …",
        "no version of tiny satisfies tiny>=9, which wants requires",
        "the newest versions are 1.0, 2.0",
    ),
    (
        (
            f"{UV}Because old==1.0 has no wheels with a matching Python ABI tag (e.g., `cp311`) and you require"
            " old==1.0, we …\nhint: You require CPython 3.11 (`cp311`), but we only found wheels for `old` (v1.0) with"
            " the following Python ABI tag: `cp39`"
        ),
        "old==1.0 has no wheel for Python 3.11 on this machine, only for Python 3.9",
        "ask for a version that has one: 0.9; or ",
    ),
    (
        (
            f"{UV}Because mac==1.0 has no wheels with a matching platform tag (e.g., `manylinux_2_36_x86_64`) and only"
            " mac==1.0 …\nhint: Wheels are available for `mac` (v1.0) on the following platform: `macosx_11_0_arm64`"
        ),
        "mac==1.0 has no wheel for Python 3.11 on this machine, only for macosx_11_0_arm64",
        "build.allow_sdists = true",
    ),
    (
        (
            f"{UV}Because source==1.0 has no usable wheels and only source==1.0 is available, we can conclude …\n"
            "hint: Wheels are required for `source` because building from source is disabled for all packages"
        ),
        "source==1.0 has no wheel, only a source archive, whose build would run its code",
        "build.allow_sdists = true",
    ),
    (
        (
            f"{UV}Because new==2.0 has no usable wheels and you require new==2.0, we can conclude …\n"
            "hint: Wheels are required for `new` because building from source is disabled for all packages"
        ),
        "new==2.0 has no wheel for Python 3.11 on this machine, only for Python 3.12, 3.13",
        "ask for a version that has one: 1.0; or ",
    ),
    (
        f"{UV}Because there is no version of new==9 and you require new==9, we can conclude …",
        "no version of new satisfies new==9",
        "the newest versions that Python 3.11 can use are 1.0",
    ),
    (
        f"{UV}Because all versions of sklearn have no usable wheels and you require sklearn, we can conclude …",
        "sklearn has no wheel, only a source archive",
        "did you mean scikit-learn? That is what has the module sklearn",
    ),
    (
        (
            f"{UV}Because all versions of dep depend on tiny<2 and you require dep, we can conclude that you require"
            " tiny<2.\n         And because you require tiny==2.0, we can conclude …"
        ),
        "these requirements can't be met together: Because all versions of dep depend on tiny<2 and you require dep",
        "loosen",
    ),
    (
        (
            f"{UV}Because odd==1.0 has an invalid package format and only odd==1.0 …\nhint: The structure of `odd`"
            " (v1.0) was invalid:\n  Failed to read from zip file"
        ),
        "odd==1.0 is broken: it has an invalid package format: Failed to read from zip file",
        "another version",
    ),
    (
        (
            "error: Failed to fetch: `https://user:hunter2@index.test/simple/tiny/`\n  cause: Request failed after 3"
            " retries\n  cause: dns error\n"
        ),
        "the package index can't be reached: error: Failed to fetch",
        "pip config list",
    ),
    (
        "error: Failed to fetch: `https://index.test/simple/tiny/`\n  cause: invalid peer certificate: UnknownIssuer",
        "the package index could not prove who it is: its certificate is not trusted by /etc/bundle.crt",
        "PIP_CERT",
    ),
    # ---- pip
    (
        (
            "ERROR: Could not find a version that satisfies the requirement panda (from versions: none)\n"
            "ERROR: No matching distribution found for panda"
        ),
        "the package index knows no package named panda",
        "did you mean pandas?",
    ),
    (
        (
            "ERROR: Could not find a version that satisfies the requirement old (from versions: none)\n"
            "ERROR: No matching distribution found for old"
        ),
        "old has no wheel for Python 3.11 on this machine",
        "has one: 0.9",
    ),
    (
        (
            "ERROR: Could not find a version that satisfies the requirement tiny>=9 (from versions: 1.0, 2.0)\n"
            "ERROR: No matching distribution found for tiny>=9"
        ),
        "no version of tiny satisfies tiny>=9",
        "are 1.0, 2.0",
    ),
    (
        (
            "WARNING: Retrying (Retry(total=0, …)) after connection broken by 'NewConnectionError(…)': /simple/tiny/\n"
            "ERROR: Could not find a version that satisfies the requirement tiny (from versions: none)"
        ),
        "the package index can't be reached: ",
        "pip config list",
    ),
    (
        (
            "The conflict is caused by:\n    The user requested tiny==1.0\n    The user requested tiny==2.0\n\nTo fix"
            " this you could try to:\n1. loosen\n\nERROR: Cannot install tiny==1.0 and tiny==2.0 because these package"
            " versions have conflicting dependencies."
        ),
        "these requirements can't be met together: The user requested tiny==1.0 The user requested tiny==2.0",
        "loosen",
    ),
    (
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you …\n    tiny==1.0 from"
            " http://index.test/tiny.whl:\n        Expected sha256 00\n"
        ),
        "the file of tiny has another hash",
        "correct the hashes",
    ),
    (
        "      RuntimeError: no compiler here\n      [end of output]\n\nerror: metadata-generation-failed\n",
        "the source archive tiny, wants can't be built: RuntimeError: no compiler here",
        "has a wheel",
    ),
    ("/usr/bin/python3: No module named pip", "this image can install nothing", "use an image with pip"),
    ("no such option: --report", "this image can install nothing", "use an image with pip"),
]


@pytest.mark.parametrize(("text", "message", "hint"), SENTENCES)
def test_each_failure_is_one_sentence_with_what_to_do(text: str, message: str, hint: str) -> None:
    error = told(text)
    assert error.message.startswith(message)
    assert hint in error.hint
    assert error.facts["step"] == "resolve"
    assert error.facts["output"]
    assert "hunter2" not in repr(vars(error))


STEPS = [
    (
        "install",
        (
            "bomb 1.0: error: Failed to download `bomb==1.0`\n  cause: failed to write: No space left on device (os"
            " error 28)"
        ),
        f"bomb 1.0 does not fit into the {POLICY.build.installed_mib} MiB that a build may fill",
    ),
    (
        "fetch",
        "big-1.0-py3-none-any.whl: [Errno 28] No space left on device",
        "big-1.0-py3-none-any.whl does not fit into the ",
    ),
    (
        "install",
        "esc 1.0: its file '../x.py' leads out of it",
        "esc 1.0 is broken or hostile: its file '../x.py' leads out of it",
    ),
    (
        "install",
        "cut 1.0: its archive is no wheel: File is not a zip file",
        "cut 1.0 is broken or hostile: its archive is no wheel",
    ),
    (
        "fetch",
        "gone-1.0-py3-none-any.whl: the index answered 404 Not Found",
        "the package index does not give gone-1.0-py3-none-any.whl: 404 Not Found",
    ),
    (
        "fetch",
        "down-1.0-py3-none-any.whl: <urlopen error [Errno 111] Connection refused>",
        "the package index can't be reached: <urlopen error",
    ),
    (
        "fetch",
        (
            "fails-1.0.tar.gz: its build failed\nRuntimeError: no compiler here\nerror: Failed to build"
            " `/app/fails-1.0.tar.gz`"
        ),
        "the source archive fails-1.0.tar.gz can't be built: RuntimeError: no compiler here",
    ),
    (
        "install",
        "odd 1.0: something that nobody has seen before",
        "installing odd 1.0 failed: something that nobody has seen before",
    ),
]


@pytest.mark.parametrize(("step", "text", "message"), STEPS)
def test_the_package_that_is_at_fault_is_named(step: str, text: str, message: str) -> None:
    assert told(text, step=step).message.startswith(message)


def test_a_connection_that_was_refused_is_the_reason_of_what_could_not_be_reached_or_built() -> None:
    refused = ["elsewhere.test:80 is not in the policy's build.allow"]
    for text in (
        "x-1.0.tar.gz: its build failed\nurllib.error.HTTPError: 403",
        "x-1.0-py3-none-any.whl: the index answered 403 elsewhere.test:80 is not in the policy's build.allow",
        "error: Failed to fetch: http://index.test/x",
    ):
        error = told(text, step="fetch", refused=refused)
        assert error.message.endswith("was refused a connection: elsewhere.test:80 is not in the policy's build.allow")
        assert error.facts["refused"] == refused
        assert "build.allow" in error.hint
        assert "env lock --upgrade" in error.hint
    # The index's own word is another matter.
    assert "user name and password" in told("x-1.0.zip: the index answered 403 Forbidden", step="fetch").hint
    # A package may try as it likes: that it asked for another host does not explain a version that isn't there.
    unknown = told(f"{UV}Because panda was not found in the package registry and you require panda", refused=refused)
    assert "knows no package" in unknown.message


def test_only_the_last_lines_go_along() -> None:
    text = "\n".join(f"line {number}\n" for number in range(1_000))
    assert told(text).facts["output"].splitlines() == [f"line {number}" for number in range(988, 1_000)]
    assert len(told("x" * 100_000).facts["output"]) < 3_000


@pytest.mark.parametrize(
    "piece",
    [
        "x",
        "x ",
        "x.",
        "\n",
        " \n",
        "a==a",
        "only a and ",
        "only a that a depends on b ",
        "a[a",
        "http://",
        "http://a",
        "available for ",
        "Failed to build ",
        "DO NOT MATCH THE HASHES\n",
        "No solution found cause: \n",
        "Error",
        "a-1.tar.gz: its build ",
    ],
)
def test_a_hostile_text_is_explained_in_a_bounded_time(piece: str) -> None:
    began = time.process_time()
    error = told(piece * (16_000_000 // len(piece)))
    assert time.process_time() - began < 3
    assert len(error.message) < 1_500


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cv2", "opencv-python-headless"),
        ("sklearn", "scikit-learn"),
        ("Pandsa", "pandas"),
        ("PIL", "pillow"),
        ("qqqq", None),
    ],
)
def test_the_nearest_name_is_one_that_the_index_has(name: str, near: str | None) -> None:
    assert nearest(name, known=lambda _: True) == near
    assert nearest(name, known=lambda _: False) is None


def test_many_libraries_are_named_by_the_first_few() -> None:
    assert named([f"p{number}" for number in range(7)]) == "p0, p1, p2, p3, p4 and 2 more"
    assert named(["one"]) == "one"


@pytest.mark.parametrize(
    "text",
    [
        (
            "x Because six was not found in the package registry and you require six, we can conclude that your"
            " requirements are unsatisfiable.\nhint: An index URL (http://index.test/simple) could not be queried due"
            " to a lack of valid authentication credentials (401 Unauthorized)."
        ),
        (
            "x six was not found in the package registry\nhint: An index URL (http://index.test/simple) returned a 403"
            " Forbidden error."
        ),
        "ERROR: HTTP error 401 while getting http://index.test/six",
        (
            "WARNING: 401 Error, Credentials not correct for http://index.test/simple/six/\n"
            "ERROR: Could not find a version that satisfies the requirement six (from versions: none)"
        ),
    ],
)
def test_an_index_that_wants_a_login_is_not_a_matter_of_spelling(text: str) -> None:
    error = told(text)
    assert "refuses access" in error.message
    assert "spelling" not in str(error)
    assert "user name and password" in error.hint
    assert "netrc" in error.hint


@pytest.mark.parametrize("step", ["resolve", "fetch"])
def test_what_met_the_download_limit_is_no_unreachable_index(step: str) -> None:
    text = "client error (Connect): Tunnel connection failed: 429 the 5 MiB that may be sent and received are used up"
    error = told(text, step, used_up=True)
    assert f"the {POLICY.build.download_mib} MiB that a build may download (build.download_mib)" in error.message
    assert error.hint.startswith("raise build.download_mib in policy")
    assert "can't be reached" in told(text, step).message
