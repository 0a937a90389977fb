"""Policies load strictly, extend by rule, and say in words what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest, NotFound, PolicyDenied, SandboxError
from sandbox.policy.load import BUILT_IN, LoadedPolicy, load_policy, policy_files, policy_names, shipped_directory
from sandbox.policy.model import KEYS, Sections
from sandbox.policy.order import ORDER


class Directories:
    """Two policy directories, "user" before "system", and the shipped one behind them."""

    def __init__(self, base: Path) -> None:
        self.user, self.system = base / "user", base / "system"
        self.path = [self.user, self.system, shipped_directory()]
        self.user.mkdir()
        self.system.mkdir()

    def write(self, name: str, text: str, *, where: str = "user") -> Path:
        path = Path(getattr(self, where)) / f"{name}.toml"
        path.write_text(text)
        return path

    def load(self, name: str) -> LoadedPolicy:
        return load_policy(name, directories=self.path)

    def refused(self, text: str, error: type[SandboxError] = InvalidRequest) -> SandboxError:
        path = self.write("t", text)
        with pytest.raises(error) as caught:
            self.load("t")
        caught.value.message = caught.value.message.replace(f"{path}:", "t:")
        return caught.value


@pytest.fixture
def policies(tmp_path: Path) -> Directories:
    return Directories(tmp_path)


# ---- names and search ----------------------------------------------------------------------------


def test_shipped_default_has_its_documented_values(policies: Directories) -> None:
    policy = policies.load("default").policy
    assert (policy.name, policy.limits.timeout_s, policy.limits.memory_mib) == ("default", 30.0, 512)
    assert policy.enforcement.on_unenforceable == "fallback"
    assert policy.images.pull == "missing"


def test_shipped_strict_spells_out_the_built_in_defaults(policies: Directories) -> None:
    strict = policies.load("strict")
    assert strict.policy.values() == {**Sections().values(), "build.libraries": ("*",)}
    assert BUILT_IN not in strict.origins.values()


def test_first_directory_wins(policies: Directories) -> None:
    policies.write("mine", "[limits]\ncpus = 0.1")
    policies.write("mine", "[limits]\ncpus = 0.2", where="system")
    assert policies.load("mine").policy.limits.cpus == 0.1


def test_names_are_listed_once_with_the_file_that_wins(policies: Directories) -> None:
    mine = policies.write("strict", "")
    policies.write("UPPER", "")
    assert policy_names(policies.path) == ["cells", "default", "strict"]
    assert policy_files(policies.path)["strict"] == mine


def test_unknown_name_suggests_the_nearest_and_lists_all(policies: Directories) -> None:
    with pytest.raises(NotFound, match="no policy named stric; did you mean strict") as caught:
        policies.load("stric")
    assert caught.value.hint == "known policies: cells, default, strict"


@pytest.mark.parametrize("name", ["", "A", "-x", "a b", "a\n", "..", "é", "x" * 65])
def test_names_are_validated(policies: Directories, name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a policy name"):
        policies.load(name)


def test_a_path_is_loaded_as_it_is(policies: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    path = policies.write("mine", "[limits]\ncpus = 0.1")
    monkeypatch.chdir(path.parent)
    for name in (str(path), "mine.toml", "./mine.toml"):
        assert load_policy(name, directories=[shipped_directory()]).path == path


def test_missing_path_is_not_found(policies: Directories) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        policies.load("./none.toml")


def test_untrusted_file_is_refused(policies: Directories) -> None:
    policies.write("t", "").chmod(0o666)
    with pytest.raises(InvalidRequest, match="changed by other users"):
        policies.load("t")


# ---- mistakes, in words --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[limits]\nmemory_mib = "512m"',
            't:2: limits.memory_mib is "512m", but it must be a whole number of MiB from 32',
        ),
        (
            "[limits]\n\nmemory_mib = 5",
            "t:3: limits.memory_mib is 5, but it must be a whole number of MiB from 32 to 1048576",
        ),
        ("limits.memory_mib = 512.0", "t:1: limits.memory_mib is 512.0, but it must be a whole number"),
        ("limits.memory_mib = true", "t:1: limits.memory_mib is true, but it must be a whole number"),
        ("limits.timeout_s = 0", "t:1: limits.timeout_s is 0, but it must be a number of seconds from 0.1 to 86400"),
        ("limits.timeout_s = nan", "t:1: limits.timeout_s is nan, but it must be a number"),
        ("limits.timeout_s = inf", "t:1: limits.timeout_s is inf, but it must be a number"),
        ("limits.cpus = 1979-05-27", 't:1: limits.cpus is "1979-05-27", but it must be a number of CPUs'),
        ("limits = 5", "t:1: limits is 5, but it must be a section, [limits]"),
        ("filesystem.exec = 1", "t:1: filesystem.exec is 1, but it must be true or false"),
        ('isolation.per_run = "vm"', 't:1: isolation.per_run is "vm", but it must be "container", "auto" or "cell"'),
        ('images.pull = "always"', 't:1: images.pull is "always", but it must be "missing" or "never"'),
        ('variables.allow = "A"', 't:1: variables.allow is "A", but it must be a list of texts'),
        ("secrets.allow = [1]", "t:1: entry 1 of secrets.allow is 1, but it must be a text"),
        ('variables.allow = ["A-B"]', 'entry 1 of variables.allow is "A-B", but it must be "*" or a variable\'s name'),
        ('secrets.allow = ["LD_PRELOAD"]', 'entry 1 of secrets.allow is "LD_PRELOAD", but it is reserved'),
        ('images.allow = ["a b"]', 'entry 1 of images.allow is "a b", but it must be an image reference'),
        ("description = 5", "t:1: description is 5, but it must be a text of at most 500 characters"),
        ("extends = 5", "t:1: extends is 5, but it must be the name of a policy"),
        ("open = 5", "t:1: open must be a section"),
        ("name = 'x'", "t:1: there is no key name"),
        ("seccomp_sha256 = 'x'", "t:1: there is no key seccomp_sha256"),
    ],
)
def test_wrong_value_names_line_key_and_what_is_allowed(policies: Directories, text: str, message: str) -> None:
    assert message in policies.refused(text).message


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("[limits]\ntimeout = 5", "t:2", "limits.timeout_s"),
        ("[limits]\ntimeout_ms = 5", "t:2", "limits.timeout_s"),
        ("memory_mib = 5", "t:1", "limits.memory_mib"),
        ("[limit]\ncpus = 1", "t:1", "limits"),
        ('extend = "default"', "t:1", "extends"),
        ("[images]\nallowed = []", "t:2", "images.allow"),
        ("[open]\nlimits.timeout = 5", "t:2", "limits.timeout_s"),
        ('[open]\n"limits.cpu" = 5', "t:2", "limits.cpus"),
    ],
)
def test_unknown_key_suggests_the_nearest(policies: Directories, text: str, place: str, nearest: str) -> None:
    error = policies.refused(text)
    assert error.message.startswith(f"{place}: there is no key ")
    assert error.message.endswith(f"; did you mean {nearest}?")


def test_hopeless_key_gets_no_suggestion(policies: Directories) -> None:
    assert policies.refused("zzzzzz = 1").message == "t:1: there is no key zzzzzz"


def test_number_written_as_text_gets_the_hint_about_units(policies: Directories) -> None:
    assert "write the number alone, without quotes or unit" in policies.refused('limits.memory_mib = "1g"').hint


def test_several_mistakes_are_one_error_at_the_first_line(policies: Directories) -> None:
    error = policies.refused("[limits]\ncpus = 0\nmemory_mib = 1\nspeed = 3")
    assert error.message.startswith("t:2: limits.cpus")
    assert len(error.facts["mistakes"]) == 3


def test_file_systems_must_fit_in_memory(policies: Directories) -> None:
    error = policies.refused("[filesystem]\napp_mib = 500")
    assert error.message.startswith("t:2: app_mib, tmp_mib and shm_mib make 548 MiB together, more than the 256 MiB")
    assert f"limits.memory_mib at {BUILT_IN}" in error.hint


def test_file_systems_must_fit_in_the_memory_that_a_child_lowers(policies: Directories) -> None:
    error = policies.refused('extends = "strict"\nlimits.memory_mib = 64')
    assert error.message.startswith("t:2: app_mib, tmp_mib and shm_mib make 80 MiB")
    assert "strict.toml:" in error.hint


def test_default_image_must_be_allowed(policies: Directories) -> None:
    error = policies.refused('images.allow = ["docker.io/*"]')
    assert (
        "images.default is localhost/sandbox-python:latest, which no pattern of images.allow matches" in error.message
    )


def test_unknown_seccomp_profile_names_the_line(policies: Directories) -> None:
    error = policies.refused('seccomp.profile = "none"', NotFound)
    assert error.message == "t:1: there is no seccomp profile named none"


def test_message_cannot_steer_a_terminal(policies: Directories) -> None:
    error = policies.refused('"\\u001b[2J" = 1')
    assert "\x1b" not in error.message


# ---- extending -----------------------------------------------------------------------------------


def test_child_inherits_and_tightens_and_origins_tell(policies: Directories) -> None:
    path = policies.write("mine", 'extends = "default"\n[limits]\ncpus = 0.5\n')
    loaded = policies.load("mine")
    assert (loaded.policy.limits.cpus, loaded.policy.limits.memory_mib) == (0.5, 512)
    assert loaded.origins["limits.cpus"] == f"{path}:3"
    assert re.fullmatch(r".*/default\.toml:\d+", loaded.origins["limits.memory_mib"])
    assert loaded.files == (path, shipped_directory() / "default.toml")


def test_every_value_has_an_origin(policies: Directories) -> None:
    policies.write("root", "limits.cpus = 0.1")
    origins = policies.load("root").origins
    assert set(origins) == set(KEYS)
    assert origins["limits.memory_mib"] == BUILT_IN


def test_description_is_not_inherited(policies: Directories) -> None:
    policies.write("mine", 'extends = "default"')
    assert policies.load("mine").policy.description == ""


def test_same_name_extends_the_one_it_hides(policies: Directories) -> None:
    user = policies.write("default", 'extends = "default"\nlimits.cpus = 0.25')
    system = policies.write("default", 'extends = "default"\nlimits.timeout_s = 7', where="system")
    loaded = policies.load("default")
    assert loaded.files == (user, system, shipped_directory() / "default.toml")
    assert (loaded.policy.limits.cpus, loaded.policy.limits.timeout_s) == (0.25, 7.0)
    assert load_policy(str(user), directories=policies.path).files == loaded.files


def test_same_name_with_nothing_hidden_is_not_found(policies: Directories) -> None:
    error = policies.refused('extends = "t"', NotFound)
    assert error.message == "t:1: t extends its own name, and it hides no policy of that name"


def test_circle_is_refused_with_the_chain(policies: Directories) -> None:
    policies.write("b", 'extends = "t"')
    assert "in a circle: t -> b -> t" in policies.refused('extends = "b"').message


def test_circle_through_a_symbolic_link_is_refused(policies: Directories) -> None:
    os.symlink(policies.user / "t.toml", policies.user / "b.toml")
    assert "in a circle: t -> b" in policies.refused('extends = "b"').message


def test_chain_is_bounded(policies: Directories) -> None:
    for index in range(9):
        policies.write(f"p{index}", f'extends = "p{index + 1}"')
    policies.write("p9", "")
    with pytest.raises(InvalidRequest, match="a chain of more than 8 policies"):
        policies.load("p0")
    assert len(policies.load("p2").files) == 8


LOOSER = {
    "limits.timeout_s": "11",
    "limits.memory_mib": "257",
    "limits.cpus": "0.6",
    "limits.processes": "33",
    "limits.open_files": "257",
    "limits.output_mib": "2",
    "limits.result_mib": "9",
    "limits.files_mib": "17",
    "limits.files_count": "21",
    "limits.payload_mib": "17",
    "limits.code_kib": "257",
    "limits.log_records": "1001",
    "filesystem.app_mib": "33",
    "filesystem.tmp_mib": "33",
    "filesystem.shm_mib": "17",
    "filesystem.exec": "true",
    "network.mode": '"allowlist"',
    "network.allow": '["api.example.com:443"]',
    "network.allow_addresses": '["192.168.1.20"]',
    "network.resolver": '"proxy"',
    "network.transfer_mib": "65",
    "network.connections": "101",
    "seccomp.profile": '"other"',
    "variables.allow": '["A"]',
    "secrets.allow": '["*"]',
    "images.allow": '["localhost/*", "docker.io/x"]',
    "images.pull": '"missing"',
    "build.libraries": '["numpy"]',
    "build.allow": '["@index", "files.example.com:443"]',
    "build.allow_addresses": '["10.0.0.0/8"]',
    "build.resolver": '"proxy"',
    "build.allow_sdists": "true",
    "build.allow_pth": "true",
    "build.timeout_s": "301",
    "isolation.per_run": '"cell"',
    "build.memory_mib": "2049",
    "build.cpus": "2.5",
    "build.processes": "129",
    "build.download_mib": "1025",
    "build.installed_mib": "1025",
    "build.files_count": "100001",
    "history.output": '"all"',
    "history.payloads": "true",
    "enforcement.on_unenforceable": '"fallback"',
}
ONE_VALUE_OR_FREE = {"images.default", "isolation.preload"}
# A key that fits together with another one only.
COMPANION = {"network.mode": "network.allow", "network.allow": "network.mode"}


def test_every_key_with_a_looser_value_is_covered() -> None:
    assert set(LOOSER) | ONE_VALUE_OR_FREE == set(KEYS) == set(ORDER)


@pytest.mark.parametrize(("key", "value"), LOOSER.items())
def test_child_cannot_loosen_a_closed_key(policies: Directories, key: str, value: str) -> None:
    policies.write("root", "")  # the built-in defaults, nothing open
    error = policies.refused(f'extends = "root"\n{key} = {value}', PolicyDenied)
    assert error.message.startswith(f"t:2: {key} = ")
    assert "does not mark the key as open" in error.message
    assert "under [open] in" in error.hint


@pytest.mark.parametrize("bound", ["true", None])
@pytest.mark.parametrize(("key", "value"), [item for item in LOOSER.items() if item[0] != "seccomp.profile"])
def test_child_can_loosen_an_open_key_up_to_its_bound(
    policies: Directories, key: str, value: str, bound: str | None
) -> None:
    keys = [key, *([COMPANION[key]] if key in COMPANION else [])]
    policies.write("root", "[open]\n" + "\n".join(f"{key} = {bound or LOOSER[key]}" for key in keys))
    policies.write("mine", 'extends = "root"\n' + "\n".join(f"{key} = {LOOSER[key]}" for key in keys))
    assert policies.load("mine").policy.values()[key] != Sections().values()[key]


def test_child_cannot_pass_the_bound(policies: Directories) -> None:
    error = policies.refused('extends = "strict"\nlimits.timeout_s = 61', PolicyDenied)
    assert "lets a child go to 60 at most" in error.message
    assert "change limits.timeout_s to 61.0 in its [open]" in error.hint


def test_openness_ends_with_the_child_that_does_not_pass_it_on(policies: Directories) -> None:
    policies.write("b", 'extends = "default"')
    policies.refused('extends = "b"\nlimits.timeout_s = 40', PolicyDenied)
    policies.write("b", 'extends = "default"\n[open]\n"limits.timeout_s" = 50')
    policies.write("t", 'extends = "b"\nlimits.timeout_s = 40')
    assert policies.load("t").policy.limits.timeout_s == 40.0


@pytest.mark.parametrize("line", ["limits.timeout_s = 61", "limits.timeout_s = true", "limits.open_files = 300"])
def test_child_cannot_open_more_than_its_parent_opened(policies: Directories, line: str) -> None:
    error = policies.refused(f'extends = "strict"\n[open]\n{line}', PolicyDenied)
    assert error.message.startswith("t:3: [open] offers limits.")


@pytest.mark.parametrize("value", ['"5"', "false", "0", "[1]"])
def test_bound_must_be_a_value_of_the_key(policies: Directories, value: str) -> None:
    error = policies.refused(f"[open]\nlimits.timeout_s = {value}")
    assert error.message.startswith("t:2: open.limits.timeout_s is ")
    assert "must be true or a number of seconds" in error.message


def test_bound_below_the_own_value_is_refused(policies: Directories) -> None:
    assert "tighter than the policy's own 10" in policies.refused("[open]\nlimits.timeout_s = 5").message


@pytest.mark.parametrize("style", ["[open]\nlimits.cpus = 2", '[open]\n"limits.cpus" = 2', "[open.limits]\ncpus = 2"])
def test_open_can_be_written_in_every_toml_style(policies: Directories, style: str) -> None:
    policies.write("root", style)
    assert policies.load("root").open == {"limits.cpus": 2.0}


# ---- tightness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("narrow", "wide", "tight"),
    [
        (["localhost/a:1"], ["localhost/*"], True),
        (["localhost/*"], ["localhost/*"], True),
        (["localhost/a*"], ["localhost/*"], True),
        (["localhost/*"], ["*"], True),
        ([], ["x"], True),
        (["localhost/*"], ["localhost/a*"], False),
        (["local*"], ["localhost/*"], False),
        (["*"], ["localhost/*"], False),
        (["?ocalhost/a"], ["localhost/*"], False),
        (["localhost/*:1"], ["localhost/?:1"], False),
        (["a", "b"], ["a"], False),
    ],
)
def test_image_patterns_are_compared_by_what_they_match(narrow: list[str], wide: list[str], *, tight: bool) -> None:
    assert ORDER["images.allow"](tuple(narrow), tuple(wide)) is tight


@given(st.text("ab*?", min_size=1, max_size=5), st.text("ab*?", min_size=1, max_size=5), st.text("ab", max_size=6))
def test_a_tighter_pattern_never_matches_more(narrow: str, wide: str, reference: str) -> None:
    from fnmatch import fnmatchcase

    if ORDER["images.allow"]((narrow,), (wide,)) and fnmatchcase(reference, narrow):
        assert fnmatchcase(reference, wide)


@pytest.mark.parametrize("key", KEYS)
def test_every_value_is_as_tight_as_itself(key: str) -> None:
    value: Any = Sections().values()[key]
    assert ORDER[key](value, value)


@pytest.mark.parametrize("section", ["limits", "variables", "environment"])
def test_key_that_is_opened_in_two_spellings_is_refused_with_its_line(policies: Directories, section: str) -> None:
    key, values = ("memory_mib", (9_000, 8_000)) if section == "limits" else ("allow", ("['A']", "['B']"))
    error = policies.refused(f"[open]\n'{section}.{key}' = {values[0]}\n{section}.{key} = {values[1]}\n")
    assert re.match(r"t:2: \[open\] has (limits\.memory_mib|variables\.allow) twice", error.message)
