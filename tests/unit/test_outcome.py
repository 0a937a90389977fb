"""How a run ended, from what is known of it."""

from __future__ import annotations

import pytest

from sandbox.models import EXIT_STATUS, Outcome, ProgramError
from sandbox.run.outcome import Evidence, decide
from tests.unit.factory import policy

RAISED = ProgramError(type="ValueError", message="no", line=3)


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        (Evidence(ended="exited", exit_code=0, has_result=True), Outcome.SUCCEEDED),
        (Evidence(ended="exited", exit_code=0), Outcome.NO_RESULT),
        (Evidence(ended="exited", exit_code=1, error=RAISED), Outcome.FAILED),
        (Evidence(ended="exited", signal_name="SIGKILL", error=RAISED), Outcome.FAILED),
        (Evidence(ended="exited", exit_code=9), Outcome.FAILED),
        (Evidence(ended="exited", exit_code=9, has_result=True), Outcome.FAILED),
        (Evidence(ended="exited", exit_code=0, error=RAISED, has_result=True), Outcome.FAILED),
        (Evidence(ended="channel", signal_name=None), Outcome.FAILED),
        (Evidence(ended="cancelled", timed_out=True, signal_name="SIGKILL"), Outcome.TIMED_OUT),
        (Evidence(timed_out=True), Outcome.TIMED_OUT),
        (Evidence(timed_out=True, processes_exceeded=True), Outcome.TOO_MANY_PROCESSES),
        (Evidence(ended="exited", signal_name="SIGXCPU"), Outcome.TIMED_OUT),
        (Evidence(cancelled=True), Outcome.CANCELLED),
        (Evidence(ended="cancelled", cancelled=True, signal_name="SIGKILL"), Outcome.CANCELLED),
        (Evidence(memory_exceeded=True), Outcome.OUT_OF_MEMORY),
        (Evidence(ended="exited", exit_code=1, error=RAISED, cause="memory"), Outcome.OUT_OF_MEMORY),
        (Evidence(ended="exited", exit_code=0, has_result=True, memory_exceeded=True), Outcome.OUT_OF_MEMORY),
        (Evidence(ended="cancelled", signal_name="SIGKILL"), Outcome.KILLED),
        (Evidence(ended="cancelled", memory_exceeded=True, signal_name="SIGKILL"), Outcome.OUT_OF_MEMORY),
        (Evidence(ended="cancelled", cancelled=True, memory_exceeded=True), Outcome.CANCELLED),
        (Evidence(ended="exited", exit_code=1, error=RAISED, cause="processes"), Outcome.TOO_MANY_PROCESSES),
        (Evidence(ended="exited", exit_code=1, error=RAISED, processes_exceeded=True), Outcome.FAILED),
        (Evidence(ended="exited", exit_code=7, processes_exceeded=True), Outcome.FAILED),
        (Evidence(ended="output_limit", signal_name="SIGKILL"), Outcome.OUTPUT_LIMIT),
        (Evidence(ended="result_limit", signal_name="SIGKILL"), Outcome.OUTPUT_LIMIT),
        (Evidence(ended="files_limit", signal_name="SIGKILL"), Outcome.OUTPUT_LIMIT),
        (Evidence(ended="log_limit", signal_name="SIGKILL"), Outcome.OUTPUT_LIMIT),
        (Evidence(ended="exited", signal_name="SIGSEGV"), Outcome.KILLED),
        (Evidence(ended="exited", signal_name="SIGSYS"), Outcome.KILLED),
        (Evidence(), Outcome.KILLED),
    ],
)
def test_evidence_leads_to_one_outcome(evidence: Evidence, outcome: Outcome) -> None:
    decided, explanation = decide(evidence, policy())
    assert decided is outcome
    assert bool(explanation) == (outcome is not Outcome.SUCCEEDED)


def test_only_success_exits_with_0_and_no_two_outcomes_share_a_status() -> None:
    assert [outcome for outcome, status in EXIT_STATUS.items() if status == 0] == [Outcome.SUCCEEDED]
    assert set(EXIT_STATUS) == set(Outcome)
    assert len(set(EXIT_STATUS.values())) == len(Outcome)


def test_too_much_of_what_the_kernel_holds_is_named() -> None:
    seen = Evidence(memory_exceeded=True, memory_excess="more than 8,192 file locks at a time")
    assert (
        decide(seen, policy())[1]
        == "the program needed more than 8,192 file locks at a time, which take memory of the kernel"
    )


def test_explanations_name_the_limit_and_the_key() -> None:
    limits = policy().limits
    assert f"{limits.timeout_s:g} s (limits.timeout_s)" in decide(Evidence(timed_out=True), policy())[1]
    assert f"{limits.memory_mib} MiB (limits.memory_mib)" in decide(Evidence(memory_exceeded=True), policy())[1]


def test_the_explanation_of_an_exception_ends_with_what_to_do() -> None:
    error = ProgramError(type="ModuleNotFoundError", message="No module named 'pandas'", line=2)
    explanation = decide(Evidence(ended="exited", exit_code=1, error=error), policy())[1]
    assert explanation == "the program raised ModuleNotFoundError at line 2; to install it: --with pandas"


def test_a_bus_error_is_explained_by_the_size_of_what_is_mapped() -> None:
    files = policy().filesystem
    outcome, said = decide(Evidence(ended="exited", signal_name="SIGBUS"), policy())
    assert outcome is Outcome.KILLED
    assert f"/dev/shm holds {files.shm_mib} MiB (filesystem.shm_mib)" in said
    assert "filesystem.app_mib" in said
    only = decide(Evidence(ended="exited", signal_name="SIGBUS", full=("/dev/shm",)), policy())[1]
    assert "filesystem.shm_mib" in only
    assert "filesystem.app_mib" not in only


def test_last_words_explain_a_signal_and_an_exit_status() -> None:
    words = "what():  std::bad_alloc\n"
    for evidence in (
        Evidence(ended="exited", signal_name="SIGABRT", last_words=words),
        Evidence(ended="exited", exit_code=1, last_words=words),
        Evidence(ended="exited", exit_code=1, last_words=words, error=ProgramError(type="SystemExit", message="1")),
        Evidence(
            ended="exited", exit_code=1, last_words=words, error=ProgramError(type="CalledProcessError", message="1")
        ),
    ):
        assert "limits.memory_mib" in decide(evidence, policy())[1]
    assert "limits" not in decide(Evidence(ended="exited", exit_code=1, error=RAISED, last_words=words), policy())[1]
    assert "limits" not in decide(Evidence(ended="exited", exit_code=0, has_result=True, last_words=words), policy())[1]


def test_reserved_memory_is_told_apart_from_used_memory() -> None:
    raised = Evidence(ended="exited", exit_code=1, error=RAISED, cause="memory", address_space_mib=2560)
    assert "reserved more than 2560 MiB for one process" in decide(raised, policy())[1]
    used = Evidence(memory_exceeded=True, address_space_mib=2560)
    assert "reserved" not in decide(used, policy())[1]
