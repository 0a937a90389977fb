"""[build]: which libraries may be installed, and the policy of the sandbox that installs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import Tightening
from sandbox.policy.explain import meaning
from sandbox.policy.load import Policy, load_policy, shipped_directory
from sandbox.policy.order import ORDER

DOCS = (Path(__file__).parents[2] / "docs/writing-policies.md").read_text()


def load(directory: Path, text: str) -> Policy:
    (directory / "t.toml").write_text(text)
    return load_policy("t", directories=[directory, shipped_directory()]).policy


def build(directory: Path, *lines: str) -> Policy:
    return load(directory, "\n".join(["[build]", *lines]))


def shipped(name: str) -> Policy:
    return load_policy(name, directories=[shipped_directory()]).policy


# ---- which libraries


def test_no_library_may_be_installed_unless_a_policy_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyDenied, match="policy 't' does not let the library \"numpy\" be installed") as caught:
        load(tmp_path, "").library_allowed("numpy")
    assert caught.value.hint == "allowed: none; the key is build.libraries"
    assert caught.value.facts == {"key": "build.libraries", "asked": "numpy", "allowed": []}
    for name in ("default", "strict"):
        shipped(name).library_allowed("numpy")


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("scikit-learn", "scikit-learn", True),
        ("scikit-learn", "Scikit_Learn", True),
        ("Scikit__Learn", "scikit.learn", True),
        ("zope.*", "zope_interface", True),
        ("numpy?", "numpy2", True),
        ("scikit-learn", "scikit-learn-evil", False),
        ("scikit-*", "scikit", False),
        ("numpy", "num-py", False),
        ("numpy?", "numpy", False),
    ],
)
def test_libraries_are_matched_in_their_one_spelling(tmp_path: Path, pattern: str, name: str, *, allowed: bool) -> None:
    policy = build(tmp_path, f'libraries = ["{pattern}"]')
    if allowed:
        policy.library_allowed(name)
    else:
        with pytest.raises(PolicyDenied, match=re.escape(f'"{name}"')):
            policy.library_allowed(name)


@pytest.mark.parametrize("name", ["", "-r", "a b", "numpy\n", "numpy==1", "a@b", "../x", "*", "é", "x" * 129, "a\x1b"])
def test_what_is_no_library_name_is_invalid(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a library's name") as caught:
        shipped("default").library_allowed(name)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("pattern", ["", "a b", "[ab]", "numpy>=1", "-x", "https://x/y.whl"])
def test_what_is_no_library_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InvalidRequest, match=r"of build\.libraries is .*, but it must be a library's name in which"):
        build(tmp_path, f'libraries = ["{pattern}"]')


def test_hosts_of_a_build_are_the_index_or_exact_rules(tmp_path: Path) -> None:
    policy = build(tmp_path, 'allow = ["@index", "files.example.com:443"]')
    assert policy.build.allow == ("@index", "files.example.com:443")
    assert build(tmp_path, "allow = []").build.allow == ()
    for entry in ("@Index", "@other", "files.example.com"):
        with pytest.raises(InvalidRequest, match=r"of build\.allow is .*, but it is not a rule: "):
            build(tmp_path, f'allow = ["{entry}"]')


@pytest.mark.parametrize(
    ("key", "value", "ceiling", "tight"),
    [
        ("build.libraries", ("numpy",), ("*",), True),
        ("build.libraries", ("scikit-learn",), ("scikit-*",), True),
        ("build.libraries", ("*",), ("numpy",), False),
        ("build.allow", ("@index",), ("@index", "a:1"), True),
        ("build.allow", ("a:1",), ("@index",), False),
        ("build.allow", ("@index",), ("a:1",), False),
        ("build.allow_sdists", False, True, True),
        ("build.allow_pth", True, False, False),
    ],
)
def test_which_build_is_as_tight(key: str, value: object, ceiling: object, *, tight: bool) -> None:
    assert ORDER[key](value, ceiling) is tight


def test_installed_files_must_fit_in_the_memory_of_the_build(tmp_path: Path) -> None:
    assert build(tmp_path, "memory_mib = 1088").build.memory_mib == 1088
    with pytest.raises(InvalidRequest, match=r":2: build\.installed_mib is 1024 MiB, .* the 1087 MiB") as caught:
        build(tmp_path, "memory_mib = 1087")
    assert "build.installed_mib at built-in" in caught.value.hint


# ---- the hash of a build


@pytest.mark.parametrize("line", ["cpus = 1", "allow_sdists = true", "allow_pth = true", 'libraries = ["numpy"]'])
def test_hash_of_a_build_covers_its_section(tmp_path: Path, line: str) -> None:
    before, after = build(tmp_path), build(tmp_path, line)
    assert re.fullmatch("sha256:[0-9a-f]{64}", before.build_hash)
    assert after.build_hash != before.build_hash
    assert after.hash != before.hash


def test_hash_of_a_build_covers_the_seccomp_profile_and_nothing_that_holds_runs_alone(tmp_path: Path) -> None:
    policy = build(tmp_path)
    assert policy.model_copy(update={"seccomp_sha256": "0" * 64}).build_hash != policy.build_hash
    assert policy.tightened(Tightening(cpus=0.1)).build_hash == policy.build_hash
    assert policy.model_copy(update={"name": "other"}).build_hash == policy.build_hash
    assert policy.build_hash != policy.hash


# ---- the policy of the sandbox that installs


def test_installing_is_held_by_the_numbers_of_the_build_section() -> None:
    policy = shipped("default")
    section, installing = policy.build, policy.build_policy()
    limits, files = installing.limits, installing.filesystem
    assert (limits.timeout_s, limits.memory_mib, limits.cpus) == (section.timeout_s, section.memory_mib, section.cpus)
    assert (limits.processes, limits.files_count) == (section.processes, section.files_count)
    assert limits.files_mib == max(section.download_mib, section.installed_mib)
    assert limits.open_files >= 1024
    assert files.app_mib == section.installed_mib
    assert files.app_mib + files.tmp_mib + files.shm_mib < limits.memory_mib


def test_installing_takes_the_larger_of_download_and_installed(tmp_path: Path) -> None:
    assert build(tmp_path, "download_mib = 1500").build_policy().limits.files_mib == 1500
    assert build(tmp_path, "download_mib = 5").build_policy().limits.files_mib == 1024


def test_installing_has_no_network_no_variables_and_no_secrets_whatever_the_run_has(tmp_path: Path) -> None:
    policy = load(tmp_path, 'extends = "default"\n[network]\nmode = "allowlist"\nallow = ["api.example.com:443"]\n')
    installing = policy.build_policy()
    assert (installing.network.mode, installing.network.allow) == ("none", ())
    policy.env_allowed("TOKEN")
    policy.secret_allowed("TOKEN")
    for check in (installing.env_allowed, installing.secret_allowed):
        with pytest.raises(PolicyDenied):
            check("TOKEN")


@pytest.mark.parametrize("name", ["default", "strict"])
def test_installing_keeps_the_isolation_of_runs(name: str) -> None:
    policy = shipped(name)
    installing = policy.build_policy()
    for section in ("isolation", "seccomp", "seccomp_sha256", "images", "enforcement", "build"):
        assert getattr(installing, section) == getattr(policy, section)
    assert installing.build_hash == policy.build_hash


def test_files_may_be_executed_only_where_source_archives_are_built(tmp_path: Path) -> None:
    assert not build(tmp_path).build_policy().filesystem.exec
    assert build(tmp_path, "allow_sdists = true").build_policy().filesystem.exec
    assert not build(tmp_path, "allow_sdists = true").filesystem.exec


def test_default_lets_a_policy_for_large_libraries_extend_it(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        'extends = "default"\n[build]\ninstalled_mib = 16384\nmemory_mib = 32768\ndownload_mib = 16384\ntimeout_s ='
        " 3600",
    )
    assert policy.build_policy().filesystem.app_mib == 16384


@pytest.mark.parametrize("line", ["allow_sdists = true", "allow_pth = true", 'allow = ["files.example.com:443"]'])
def test_strict_keeps_code_and_other_hosts_out_of_its_children(tmp_path: Path, line: str) -> None:
    with pytest.raises(PolicyDenied, match="does not mark the key as open"):
        load(tmp_path, f'extends = "strict"\n[build]\n{line}')
    load(tmp_path, f'extends = "default"\n[build]\n{line}')


# ---- in plain words, and as documented


def test_explanation_tells_what_a_build_may_do() -> None:
    assert meaning("build.libraries", ()) == "No library may be installed."
    assert meaning("build.libraries", ("*",)) == "Any library may be installed."
    assert "numpy, scikit-*" in meaning("build.libraries", ("numpy", "scikit-*"))
    hosts = meaning("build.allow", ("@index", "files.example.com:443"))
    assert "indexes that pip on this host is set up for" in hosts
    assert "files.example.com:443" in hosts
    assert "their own code runs" in meaning("build.allow_sdists", value=True)


def test_documented_policy_for_libraries_is_valid(tmp_path: Path) -> None:
    section = DOCS.split("\n## Allow libraries\n", 1)[1].split("\n## ", 1)[0]
    policy = load(tmp_path, re.findall(r"```toml\n(.*?)```", section, re.DOTALL)[0])
    policy.library_allowed("pandas")
    with pytest.raises(PolicyDenied):
        policy.library_allowed("left-pad")
