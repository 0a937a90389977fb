"""One decision per run, which grows: frozen stages that hold each other, and keys that are computed once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sandbox.container.standby import Places, Setting
from sandbox.engine.protocol import Engine
from sandbox.environment import identity
from sandbox.environment.environments import Environments
from sandbox.environment.identity import EnvironmentPlan, InstalledEnvironment, Wanted
from sandbox.environment.lock import Lock
from sandbox.environment.locked_package import LockedFile, LockedPackage
from sandbox.environment.tree import Kind, encode_header
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.image import admission
from sandbox.image.verdicts import FilesystemVerdict, store_verdict
from sandbox.models import Outcome, RunRequest, RunResult, Tightening
from sandbox.places import private_directory
from sandbox.policy.directories import policy_directories
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import load_profile
from sandbox.run.decision import DecidedRun, Permitted, Run
from sandbox.runner import Runner
from tests.fake_engine import BASE, FakeEngine
from tests.unit.factory import decided, host, policy

NAMES = ("one", "two")


def setting(chosen: Policy | None = None) -> Setting:
    image = admission.AdmittedImage(
        id="sha256:abc",
        digest="sha256:abc",
        name=BASE,
        python_path="/usr/bin/python3",
        python_version=(3, 11),
        findings=(),
    )
    seccomp = load_profile("python", directories=policy_directories())
    return Setting(policy=chosen or policy(), seccomp=seccomp, admitted=image)


def step() -> DecidedRun:
    return decided(setting(), Run(request=RunRequest(code="", requirements=NAMES)))


def wanted() -> Wanted:
    made = step()
    return Wanted(permitted=made.permitted, base=made.setting.admitted)


def lock() -> Lock:
    files = [
        LockedFile(name=f"{name}-1.0-py3-none-any.whl", url=f"file:///w/{name}", sha256=number * 64, kind="wheel")
        for number, name in zip("12", NAMES, strict=True)
    ]
    packages = [LockedPackage(name=name, version="1.0", file=file) for name, file in zip(NAMES, files, strict=True)]
    return Lock(packages=tuple(packages), python="3.11", requirements=NAMES)


# ---- the stages


CHAINS: tuple[tuple[type, ...], ...] = (
    (Run, Permitted, DecidedRun),
    (Run, Permitted, Wanted, EnvironmentPlan, InstalledEnvironment),
)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[-1].__name__)
def test_each_stage_is_frozen_and_copies_no_field_of_those_before(chain: tuple[type[Any], ...]) -> None:
    names = [field.name for stage in chain for field in dataclasses.fields(stage)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(stage.__dataclass_params__.frozen for stage in chain)


def test_no_stage_can_be_changed() -> None:
    made = step()
    plan = EnvironmentPlan(wanted=wanted(), lock=lock())
    for stage, field in (
        (made, "setting"),
        (made.permitted, "policy"),
        (made.run, "caller"),
        (made.setting, "owner"),
        (plan, "lock"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field, None)


def test_another_run_in_such_a_sandbox_leaves_the_first_as_it_is() -> None:
    made = step()
    other = made.instead(Run(request=RunRequest(code="other")))
    assert (other.run.request.code, made.run.request.code) == ("other", "")
    assert other.setting is made.setting


def test_a_plan_whose_lock_the_policy_does_not_take_cannot_be_made() -> None:
    given = wanted()
    denying = policy().model_copy(update={"build": policy().build.model_copy(update={"libraries": ("one",)})})
    permitted = dataclasses.replace(given.permitted, policy=denying)
    with pytest.raises(PolicyDenied, match='"two"'):
        EnvironmentPlan(wanted=dataclasses.replace(given, permitted=permitted), lock=lock())


# ---- what the runner hands on


class Asked(Exception):
    """A run asked for its sandbox."""


def test_a_request_s_lower_limits_and_its_caller_s_node_reach_the_sandbox(tmp_path: Path) -> None:
    seen: list[Setting] = []

    @contextlib.asynccontextmanager
    async def source(setting: Setting, run_id: str) -> AsyncIterator[Any]:
        seen.append(setting)
        raise Asked(run_id)
        yield

    places = Places(runtime_dir=tmp_path, cache_dir=tmp_path, data_dir=tmp_path, policy_dirs=policy_directories())
    verdict = FilesystemVerdict(python_path="/usr/bin/python3", python_version=(3, 11))
    store_verdict(private_directory(tmp_path / "images"), FakeEngine().image(BASE).id, verdict)
    runner = Runner(FakeEngine, host(), places, source=source)
    request = RunRequest(code="", node_id="n", image=BASE, limits=Tightening(timeout_s=1.5))
    with pytest.raises(Asked, match="the-id"):
        asyncio.run(runner.run(Run(request=request, id="the-id", caller="7")))
    (asked,) = seen
    assert asked.policy.limits.timeout_s == 1.5
    assert (asked.owner, asked.admitted.name, asked.lease) == ("7/n", BASE, None)


ENTRANCES: dict[str, Callable[[Runner, RunRequest], Coroutine[Any, Any, object]]] = {
    "run": lambda runner, request: runner.run(Run(request=request)),
    "check": lambda runner, request: runner.check(request),
    "lock": lambda runner, request: runner.lock(request, lambda _: None),
    "build": lambda runner, request: runner.build(request, lambda _: None),
    "pull": lambda runner, request: runner.pull(request, "localhost/library:1"),
    "setting": lambda runner, request: contextlib.AsyncExitStack().enter_async_context(runner.setting(request)),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(
    "fields",
    [
        {"limits": Tightening(memory_mib=-1)},
        {"limits": Tightening(timeout_s=float("nan"))},
        {"policy": 7},
        {"image": ""},
        {"secrets": {"A": None}},
    ],
)
def test_a_request_that_can_be_none_starts_nothing_whoever_made_it(
    tmp_path: Path, entrance: str, fields: dict[str, Any]
) -> None:
    def engine() -> FakeEngine:
        raise AssertionError("an engine was started")

    def no_policy(_: str) -> NoReturn:
        raise AssertionError("a policy was looked for")

    places = Places(runtime_dir=tmp_path, cache_dir=tmp_path, data_dir=tmp_path, policy_dirs=())
    runner = Runner(engine, host(), places, policies=no_policy)
    with pytest.raises(InvalidRequest, match=f"`{next(iter(fields))}"):
        asyncio.run(ENTRANCES[entrance](runner, RunRequest(**{"code": "", **fields})))
    assert list(tmp_path.iterdir()) == []


# ---- an environment's keys


def counting(calls: Counter[str], name: str, call: Callable[..., str]) -> Callable[..., str]:
    """Return `call`, each call counted."""

    def counted(*values: Any) -> str:
        calls[name] += 1
        return call(*values)

    return counted


async def installed(run: DecidedRun) -> RunResult:
    """Hand over a tree with one file for each package, as the sandbox does that installs."""
    assert run.run.follow.open_file
    assert run.setting.policy.limits.timeout_s == policy().build.timeout_s
    assert run.setting.policy is run.permitted.policy
    for row in json.loads(run.run.request.payload_json)["wheels"]:
        tree = encode_header(Kind.FILE, f"{row['name']}.py", 1) + b"1" + encode_header(Kind.END, "", 0)
        sink = run.run.follow.open_file(f"{row['n']}.tree", len(tree))
        sink.write(tree)
        sink.close()
    return RunResult(run_id=run.run.id, outcome=Outcome.SUCCEEDED, result_json=b"{}")


async def used(environments: Environments, given: Wanted) -> InstalledEnvironment:
    async with environments.using(given) as environment:
        return environment


def test_the_keys_of_an_environment_are_computed_once_for_a_build_and_fewer_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Engine = FakeEngine()
    base = dataclasses.replace(wanted().base, id=engine.image(BASE).id)
    environments = Environments(engine, installed, cache_dir=tmp_path / "cache", data_dir=tmp_path / "data")
    environments.store.write_lock(wanted().key, lock().as_toml())
    for package in lock().packages:
        path = environments._wheels.path(package.file.sha256)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"wheel")

    calls: Counter[str] = Counter()
    monkeypatch.setattr(identity, "hash_of", counting(calls, "keys", identity.hash_of))
    monkeypatch.setattr(Policy, "_hash_of", counting(calls, "policy", Policy._hash_of))
    built = asyncio.run(used(environments, dataclasses.replace(wanted(), base=base)))
    # The request's, the environment's, and one for each package.
    assert calls == {"keys": 2 + len(NAMES), "policy": 1}
    assert (built.image.environment, built.image.lock_hash) == (built.id, lock().hash)
    assert engine.image(built.name).labels == built.plan.labels

    calls.clear()
    found = asyncio.run(used(environments, dataclasses.replace(wanted(), base=base)))
    assert calls == {"keys": 2, "policy": 1}
    assert found.image == built.image


def test_a_plan_computes_its_lock_s_hash_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    computed: Any = Lock.hash.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Lock, "hash", property(counting(calls, "lock", computed)))
    plan = EnvironmentPlan(wanted=wanted(), lock=lock())
    assert {plan.lock_hash, plan.labels[identity.LABEL_LOCK]} == {computed(plan.lock)}
    assert plan.id == plan.labels[identity.LABEL_ENVIRONMENT]
    assert calls == {"lock": 1}


def test_what_two_sandboxes_have_in_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    monkeypatch.setattr(Policy, "_hash_of", counting(calls, "policy", Policy._hash_of))
    made = setting()
    assert {made.kind for _ in range(3)} == {made.kind}
    assert calls == {"policy": 1}
    # Another setting is another kind: nothing remembered goes along.
    assert dataclasses.replace(made, preload=("json",)).kind != made.kind
    assert calls == {"policy": 2}
