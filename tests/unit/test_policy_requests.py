"""What one request may ask of a policy: lower limits, allowed names, allowed images; and the hash."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import Tightening
from sandbox.policy.load import Policy, load_policy, shipped_directory


@pytest.fixture(scope="module")
def default() -> Policy:
    return load_policy("default", directories=[shipped_directory()]).policy


@pytest.fixture(scope="module")
def strict() -> Policy:
    return load_policy("strict", directories=[shipped_directory()]).policy


def test_request_lowers_limits(default: Policy) -> None:
    policy = default.tightened(Tightening(timeout_s=1.5, memory_mib=256, cpus=0.5, processes=8))
    limits = policy.limits
    assert (limits.timeout_s, limits.memory_mib, limits.cpus, limits.processes) == (1.5, 256, 0.5, 8)
    assert (limits.open_files, policy.images) == (default.limits.open_files, default.images)


def test_request_without_limits_changes_nothing(default: Policy) -> None:
    assert default.tightened(Tightening()) == default


@pytest.mark.parametrize("limit", ["timeout_s", "memory_mib", "cpus", "processes"])
def test_request_for_more_is_denied_with_key_asked_and_allowed(default: Policy, limit: str) -> None:
    allowed = getattr(default.limits, limit)
    default.tightened(Tightening(**{limit: allowed}))
    with pytest.raises(PolicyDenied, match=f"limits.{limit} = {allowed + 1:g} .* allows at most {allowed:g}") as caught:
        default.tightened(Tightening(**{limit: allowed + 1}))
    assert caught.value.facts == {"key": f"limits.{limit}", "asked": allowed + 1, "allowed": allowed}


@pytest.mark.parametrize("text", ["inf", "nan"])
@pytest.mark.parametrize("limit", ["timeout_s", "cpus"])
def test_a_limit_that_is_no_finite_number_is_denied(default: Policy, limit: str, text: str) -> None:
    asked: dict[str, Any] = {limit: float(text)}
    with pytest.raises(PolicyDenied, match=rf"limits\.{limit} = {text}"):
        default.tightened(Tightening(**asked))


@pytest.mark.parametrize("asked", [{"memory_mib": 31}, {"processes": 1}, {"cpus": 0.01}, {"timeout_s": 0.01}])
def test_request_for_too_little_is_invalid(default: Policy, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="no program runs with less"):
        default.tightened(Tightening(**asked))


@given(memory_mib=st.integers(32, 512))
def test_file_systems_shrink_with_the_memory(default: Policy, memory_mib: int) -> None:
    before, after = default.filesystem, default.tightened(Tightening(memory_mib=memory_mib)).filesystem
    assert after.app_mib + after.tmp_mib + after.shm_mib <= memory_mib
    for name in ("app_mib", "tmp_mib", "shm_mib"):
        assert 1 <= getattr(after, name) <= getattr(before, name)


def test_policy_is_frozen(default: Policy) -> None:
    with pytest.raises(ValidationError):
        default.limits.cpus = 8.0  # type: ignore[misc]


# ---- hash ----------------------------------------------------------------------------------------


def test_hash_is_of_what_is_enforced(default: Policy) -> None:
    assert default.hash.startswith("sha256:")
    assert len(default.hash) == 71
    assert default.model_copy(update={"name": "x", "description": "y"}).hash == default.hash
    assert default.tightened(Tightening(cpus=0.5)).hash != default.hash
    assert default.model_copy(update={"seccomp_sha256": "0" * 64}).hash != default.hash


def test_hash_includes_the_seccomp_profile_that_was_loaded(default: Policy) -> None:
    loaded = load_policy("default", directories=[shipped_directory()])
    assert loaded.policy.seccomp_sha256 == loaded.seccomp.sha256


# ---- names and images ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A", "_x", "TZ", "API_KEY", "http", "home", "x1"])
def test_ordinary_names_are_allowed_by_default(default: Policy, name: str) -> None:
    default.env_allowed(name)
    default.secret_allowed(name)


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHON_GIL",
        "PATH",
        "HOME",
        "TMPDIR",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "OPENCV_FOR_THREADS_NUM",
        "GLIBC_TUNABLES",
        "MALLOC_ARENA_MAX",
        "GCONV_PATH",
        "BASH_ENV",
        "HTTP_PROXY",
        "https_proxy",
        "No_Proxy",
        "SANDBOX_RUN_ID",
    ],
)
def test_reserved_names_are_never_allowed(default: Policy, name: str) -> None:
    for check in (default.env_allowed, default.secret_allowed):
        with pytest.raises(PolicyDenied, match="is reserved"):
            check(name)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\0B", "A\n", "É", "x" * 129, "*"])
def test_what_is_no_name_is_invalid(default: Policy, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a name"):
        default.env_allowed(name)


def test_name_that_is_not_listed_is_denied(strict: Policy) -> None:
    with pytest.raises(PolicyDenied, match="policy 'strict' does not let a request set the variable \"TZ\"") as caught:
        strict.env_allowed("TZ")
    assert caught.value.facts["key"] == "variables.allow"
    with pytest.raises(PolicyDenied, match='the secret "TZ"'):
        strict.secret_allowed("TZ")


def test_images_are_matched_by_pattern(strict: Policy) -> None:
    strict.image_allowed("localhost/sandbox-python:latest")
    with pytest.raises(PolicyDenied, match=r'does not allow the image "docker\.io/library/python:3\.12"'):
        strict.image_allowed("docker.io/library/python:3.12")


@pytest.mark.parametrize("reference", ["", "-v", "localhost/a b", "localhost/a\n", "localhost/*", "localhost/\x1b"])
def test_what_is_no_image_reference_is_invalid(default: Policy, reference: str) -> None:
    with pytest.raises(InvalidRequest, match="not an image reference"):
        default.image_allowed(reference)
