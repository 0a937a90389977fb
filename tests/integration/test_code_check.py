"""Checking code in real sandboxes: the verdict is the one of a run, and libraries are those of the environment."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sandbox.container.standby import Setting, fresh
from sandbox.errors import Internal, InvalidRequest
from sandbox.image import admission as image
from sandbox.image.admission import AdmittedImage
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.policy.load import load_policy
from sandbox.run import code_check
from sandbox.run.code_check import check_code
from sandbox.run.decision import DecidedRun, Run
from sandbox.run.execution import Execution
from sandbox.wire.answers import CodeCheck
from tests.escape.bench import Bench
from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, wheel
from tests.unit.factory import decided

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman


def setting_of(bench: Bench, policy: str, admitted: AdmittedImage | None = None) -> Setting:
    """Return the setting of a policy's runs, in the base image unless another one is given."""
    loaded = load_policy(policy, directories=bench.places.policy_dirs)
    if admitted is None:
        record = image.ensure(bench.engine, image.resolve(loaded.policy.images.default), policy_pull="never")
        admitted = image.admit(bench.engine, record, cache_dir=bench.places.cache_dir / "images")
    return Setting(policy=loaded.policy, seccomp=loaded.seccomp, admitted=admitted)


async def executed(bench: Bench, step: DecidedRun) -> RunResult:
    source = fresh(bench.engine, bench.facts, bench.places)
    return await Execution(step, source, facts=bench.facts, cancel=asyncio.Event()).run()


def check(bench: Bench, code: str, setting: Setting) -> CodeCheck:
    async def execute(step: DecidedRun) -> RunResult:
        return await executed(bench, step)

    request = RunRequest(code=code, filename="flow.py")
    return asyncio.run(check_code(decided(setting, Run(request=request)), execute))


def run(bench: Bench, code: str, setting: Setting) -> RunResult:
    """Run code as it is: what this host's own Python says of it beforehand is left out."""
    request = RunRequest(code=code, policy=setting.policy.name)
    return asyncio.run(executed(bench, decided(setting, Run(request=request))))


def test_the_answer_is_of_the_sandboxs_own_python_and_nothing_ran(bench: Bench) -> None:
    setting = setting_of(bench, "escape")
    version = json.loads(run(bench, "import platform\nreturn platform.python_version()", setting).result_json or b"")
    code = "import json, absent_a, __main__\nprint('x' * 10**9)\nwhile True:\n    import harness, sandbox"
    found = check(bench, code, setting)
    assert found.python == version
    assert found.problem is None
    assert [(one.module, one.line, one.install) for one in found.missing] == [
        ("absent_a", 1, None),
        ("harness", 4, None),
        ("sandbox", 4, None),
    ]
    assert found.imports == ("json", "absent_a", "__main__", "harness", "sandbox")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "return 1",
        "import asyncio\nawait asyncio.sleep(0)",
        "\ufeffresult = 1",
        "\ufeff\ufeffresult = 1",
        "x = 1\r\nif x:\r\n\tresult = 2\r\n",
        "\x0cresult = (\n",
        "if 1:\n\tx = 1\n        y = 2",
        "result = '\0'",
        "result = '\ud800'",
        "-" * 100_000 + "1",
        "x = 1\ndef f(a, a): pass",
        "type X = int",
        "x = 'é'; break",
        "return 1\nyield 2",
    ],
    ids=lambda code: repr(code[:20]),
)
def test_the_verdict_is_the_one_of_a_run(bench: Bench, code: str) -> None:
    setting = setting_of(bench, "escape")
    found, ran = check(bench, code, setting).problem, run(bench, code, setting)
    if found is None:
        assert ran.outcome in (Outcome.SUCCEEDED, Outcome.NO_RESULT), ran.error
    else:
        assert ran.error is not None
        assert ran.error.type in ("SyntaxError", "TabError", "IndentationError")
        assert ran.error.line == found.line
        assert ran.error.message.startswith(found.message)


def test_a_mebibyte_of_code_gets_an_answer(bench: Bench) -> None:
    policy = bench.policy_with(limits__code_kib=1024, limits__memory_mib=1024, limits__timeout_s=30)
    code = "import absent_a\n" + "total = add(total, 'some text', [1, 2, 3])\n" * 24_000
    code += "#" * ((1 << 20) - len(code) - 7) + "\nx = (\n"
    assert len(code) == 1 << 20
    found = check(bench, code, setting_of(bench, policy))
    assert found.problem is not None
    assert found.problem.line == 24_003


def test_code_that_takes_more_memory_to_compile_than_the_policy_gives_is_refused_in_words(bench: Bench) -> None:
    policy = bench.policy_with(limits__code_kib=1024, limits__memory_mib=64)
    with pytest.raises(InvalidRequest, match="compiling it needed more than 64 MiB") as caught:
        check(bench, "a;" * 500_000, setting_of(bench, policy))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise RuntimeError('no')", "without an answer"),
        ("pass", "without an answer"),
        ("result = {'python': '3', 'problem': {'line': -1}}", "gave no valid answer"),
        ("result = {'imports': ['a' * 1_000_000]}", "gave no valid answer"),
    ],
)
def test_a_sandbox_that_lies_is_an_error_and_no_traceback(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, words: str
) -> None:
    lying = tmp_path / "lying.py"
    lying.write_text(program)
    monkeypatch.setattr(code_check, "PROGRAM", lying)
    with pytest.raises(Internal, match=words):
        check(bench, "x = 1", setting_of(bench, "escape"))


def test_what_an_environment_has_is_not_missing_in_it(desk: Desk, index: PackageIndex) -> None:
    index.add(wheel("greeting", "1.0", {"greeting/__init__.py": "raise SystemExit('imported')\n"}))
    environment = desk.build("greeting")
    code = "import greeting.words\nimport sklearn.svm, yaml"
    with_it = check(desk.bench, code, setting_of(desk.bench, "escape", environment.image))
    without = check(desk.bench, code, setting_of(desk.bench, "escape"))
    wanted = [("sklearn", 2, "scikit-learn"), ("yaml", 2, "pyyaml")]
    assert [(one.module, one.line, one.install) for one in with_it.missing] == wanted
    assert [(one.module, one.line, one.install) for one in without.missing] == [("greeting", 1, None), *wanted]
