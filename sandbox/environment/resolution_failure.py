"""Why libraries could not be installed, from what uv or pip said, in words for the reader.

The tools' own last lines always go along as the fact `output`; nothing here is needed to hold a build, only to explain
it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sandbox.environment.requirements import HASHED_HINT, without_hashes
from sandbox.errors import BuildFailed, clipped
from sandbox.index.client_certificate import CLIENT_HINT, WANTS_CERTIFICATE
from sandbox.index.listing import listing_of
from sandbox.index.package_names import CALLED, POPULAR
from sandbox.index.pages import NETWORK_HINT
from sandbox.index.pip_config import LOGIN_HINT, Index
from sandbox.policy.model import Policy
from sandbox.proxies import proxy_advice

__all__ = ["StepFailure", "explained", "last_lines", "named", "nearest"]

LAST_LINES = 12
SHOWN_NAMES = 5
SHOWN_VERSIONS = 5
# What is matched comes out of a sandbox: it is bounded, and so is every repetition, lest it take minutes.
MAX_TEXT_CHARS = 8_000
NAME = r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)"
VERSIONS = r"(?:\[[\w,-]{0,100}\])?([=<>!~]\S{0,100}[^\s,.:])?"
DOING = {"resolve": "resolving", "fetch": "fetching", "install": "installing"}


@dataclass(frozen=True, kw_only=True)
class StepFailure:
    """A step that failed: what its tool said, what it was about, and which connections the egress proxy refused.

    `broken` are the reasons of those that it allowed and could not make; `used_up` says that it let no more bytes
    through. `python` is the image's (3, 11), where that is
    known.
    """

    text: str
    step: str
    subject: Sequence[str]
    refused: Sequence[str]
    broken: Sequence[str]
    used_up: bool
    index: Index
    policy: Policy
    python: tuple[int, int] | None

    @property
    def about(self) -> str:
        """The one package or file that the words begin with, or else everything that was asked for."""
        said = re.match(rf"{NAME} ([0-9]\S*): ", self.text)
        file = re.match(r"(\S+\.(?:whl|tar\.gz|zip)): ", self.text)
        return f"{said[1]} {said[2]}" if said else file[1] if file else named(self.subject)

    @property
    def reason(self) -> str:
        """What was said about it, in one line."""
        lines = [line.strip() for line in self.text.splitlines() if not line.startswith("hint:")]
        said = last_lines("\n".join(lines), 3).replace("\n", "; ").removeprefix(f"{self.about}: ")
        return clipped(re.sub(r"\bcause: ", "", said), 500)


def explained(failure: StepFailure) -> BuildFailed:
    """Return the error for a failed step: a sentence, what to do, and the facts `step`, `output` and `refused`."""
    # Addresses of an index may hold a password.
    text = re.sub(r"(https?://)[^/\s@]{0,500}@", r"\1", shortened(failure.text))
    failure = StepFailure(**{**vars(failure), "text": text})
    message, hint = _explanation(failure)
    return BuildFailed(message, hint=hint, step=failure.step, output=last_lines(text), refused=list(failure.refused))


def _explanation(failure: StepFailure) -> tuple[str, str]:
    if failure.used_up:  # what the tools say of a connection that is cut, or refused with 429, is no cause
        return _too_large(failure)
    for pattern, explain in PATTERNS:
        if match := re.search(pattern, failure.text):
            return explain(failure, match)
    return (
        f"{DOING[failure.step]} {failure.about} failed: {failure.reason}",
        "try again; if it repeats, ask for another version",
    )


def shortened(text: str) -> str:
    """Return the beginning and the end of a long text."""
    half = MAX_TEXT_CHARS // 2
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:half]}\n...\n{text[-half:]}"


def named(subject: Sequence[str]) -> str:
    """Return a list of libraries for a sentence: the first few of them."""
    more = len(subject) - SHOWN_NAMES
    return ", ".join(map(without_hashes, subject[:SHOWN_NAMES])) + (f" and {more} more" if more > 0 else "")


def last_lines(text: str, count: int = LAST_LINES) -> str:
    """Return the last useful lines of a tool's output."""
    return clipped("\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:]))


def nearest(name: str, *, known: Callable[[str], bool], candidates: Iterable[str] = POPULAR) -> str | None:
    """Return what `name` probably means, if the index knows it."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    guesses = [CALLED[plain]] if plain in CALLED else []
    guesses += difflib.get_close_matches(plain, list(candidates), n=2, cutoff=0.75)
    return next((guess for guess in guesses if known(guess)), None)


# ---- one function per kind of failure: (failure, match) -> (message, hint)


def _no_space(failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    policy = failure.policy
    return (
        f"{failure.about} does not fit into the {policy.build.installed_mib} MiB that a build may fill",
        f"raise build.installed_mib (and build.memory_mib) in policy {policy.name!r}, or ask for less",
    )


def _too_large(failure: StepFailure) -> tuple[str, str]:
    policy = failure.policy
    return (
        f"{DOING[failure.step]} {named(failure.subject)} takes more than the {policy.build.download_mib} MiB that a"
        " build may download (build.download_mib)",
        f"raise build.download_mib in policy {policy.name!r}, or ask for less",
    )


def _unknown(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    name = match[1]
    near = nearest(name, known=_known(failure))
    return (
        f"the package index knows no package named {name}{_required_by(failure, name)}",
        f"did you mean {near}?" if near else "check its spelling; packages are not always called as they are imported",
    )


def _known(failure: StepFailure) -> Callable[[str], bool]:
    """Return what tells whether the index has a file of a package."""
    return lambda name: bool(listing_of(failure.index, name).files)


def _no_version(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    name, wanted = match[1], match[2] or ""
    every = listing_of(failure.index, name)
    newest = every.versions()[-SHOWN_VERSIONS:]
    usable = every.usable(failure.python, sdists=failure.policy.build.allow_sdists).versions()[-SHOWN_VERSIONS:]
    which = "" if usable[-1:] == newest[-1:] else f" that {_python(failure)} can use"
    return (
        f"no version of {name} satisfies {name}{wanted}{_required_by(failure, name)}",
        f"the newest versions{which} are {', '.join(usable)}" if usable else "loosen the version",
    )


def _required_by(failure: StepFailure, name: str) -> str:
    """Return which package asked for another, in words; nothing where it was the user."""
    match = re.search(rf"{NAME}(?:==\S{{1,100}})? depends? on {re.escape(name)}\b", failure.text)
    return f", which {match[1]} requires" if match else ""


def _python(failure: StepFailure) -> str:
    """Return the image's Python in words."""
    return f"Python {'.'.join(map(str, failure.python)) if failure.python else 'of the image'}"


def _nothing_fits(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    """Explain pip's `from versions: none`: no answer, no such package, or none of its files can be used."""
    if "Retrying (" in failure.text:
        return _unreachable(failure, match)
    return _no_wheel(failure, match) if _known(failure)(match[1]) else _unknown(failure, match)


def _no_wheel(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    """Explain by the index why a package has no usable wheel: the tools say little, and not always the truth."""
    name, wanted = match[1], match[2] or ""
    every = listing_of(failure.index, name)
    asked = every.of(wanted)
    wheels = asked.usable(None, sdists=False)
    what = f"{name}{wanted} has no wheel for {_python(failure)} on this machine"
    if pythons := wheels.pythons():
        what += f", only for Python {', '.join(pythons)}"
    elif platforms := wheels.platforms():
        what += f", only for {', '.join(platforms[:SHOWN_NAMES])}"
    elif asked.files:
        what = f"{name}{wanted} has no wheel, only a source archive, whose build would run its code"
    if meant := nearest(name, known=_known(failure), candidates=()):
        return what, f"did you mean {meant}? That is what has the module {name}"
    good = every.usable(failure.python, sdists=False).versions()[-SHOWN_VERSIONS:]
    advice = [f"ask for a version that has one: {', '.join(good)}"] if good else []
    advice += ["use an image with such a Python"] if pythons else []
    if not failure.policy.build.allow_sdists:
        advice.append("use a policy with build.allow_sdists = true, if it has a source archive")
    return what, "; or ".join(advice) or "ask for another version"


def _conflict(failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    uv = failure.text.partition("cause:")[2].partition("hint:")[0]
    pip = failure.text.partition("The conflict is caused by:")[2].partition("To fix this")[0]
    reason = re.sub(r"\s+", " ", uv or pip).strip() or last_lines(failure.text, 4)
    constraints = ", ".join(map(str, failure.index.constraints))
    also = f"; the constraints of pip's configuration hold, too: {constraints}" if constraints else ""
    return f"these requirements can't be met together: {clipped(reason, 800)}", f"loosen one of the versions{also}"


def _hash(_failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    return (
        f"the file of {match[1]} has another hash than the one that was asked for",
        "correct the hashes, or find out who changed the file",
    )


def _unhashed(_failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    return "some libraries have hashes, and others that are needed have none", HASHED_HINT


def _login(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    """Explain an index that wants another login, or any; the egress proxy's refusal is a 403, too."""
    if failure.refused:
        return _refused(failure, match)
    hosts = ", ".join(failure.index.remote_hosts[:SHOWN_NAMES]) or "of pip's configuration"
    return f"the package index {hosts} refuses access to {failure.about} ({match[0][:40]})", LOGIN_HINT


def _invalid(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    """Explain what uv finds while resolving."""
    details = failure.text.partition("was invalid:")[2]
    what = f": {last_lines(details, 2).strip()}" if details else ""
    return f"{match[1]}{match[2] or ''} is broken: it has an invalid package format{what}", _OTHER


def _archive(failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    return f"{failure.about} is broken or hostile: {failure.reason}", _OTHER


def _source(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    """Explain a source archive whose build failed; the proxy's refusal is the likeliest reason where there is one."""
    if failure.refused:
        return _refused(failure, match)
    raised = re.findall(r"^[ \t]*(\w*(?:Error|Exception|Exit|Interrupt)\b.*)$", failure.text, re.MULTILINE)
    reason = raised[-1] if raised else failure.reason
    what = next(group for group in (*match.groups(), failure.about) if group)
    return f"the source archive {what} can't be built: {clipped(reason, 500)}", "ask for a version that has a wheel"


def _refused(failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    hint = f"policy {failure.policy.name!r} says in build.allow and build.allow_addresses where a build may connect to"
    if failure.step == "fetch":
        hint += "; if the index has moved, sandbox env lock --upgrade makes a lock with its addresses"
    return f"{DOING[failure.step]} {failure.about} was refused a connection: {failure.refused[0]}", hint


def _gone(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    if match[1] == "403" and failure.refused:  # which is how the egress proxy answers
        return _refused(failure, match)
    hint = "its file was removed; sandbox env lock --upgrade makes a new lock"
    if match[1] in ("401", "403"):
        hint = LOGIN_HINT
    return f"the package index does not give {failure.about}: {match[1]} {match[2]}".rstrip(), hint


def _tls(failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    return (
        (
            "the package index could not prove who it is: its certificate is not trusted by"
            f" {failure.index.certificate or 'uv'}"
        ),
        "name a bundle that has its certificate authority: cert in pip.conf, or PIP_CERT",
    )


def _client(_failure: StepFailure, _match: re.Match[str]) -> tuple[str, str]:
    return "the package index wants a client certificate, or another one", CLIENT_HINT


def _unreachable(failure: StepFailure, match: re.Match[str]) -> tuple[str, str]:
    if failure.refused:
        return _refused(failure, match)
    why = failure.broken[0] if failure.broken else failure.reason
    return f"the package index can't be reached: {why}", proxy_advice(why) or NETWORK_HINT


def _no_tool(*_: object) -> tuple[str, str]:
    return (
        "this image can install nothing: uv does not run in it (it needs glibc), and it has no pip that can --report",
        "use an image with pip 23 or newer, or the built-in base image",
    )


_OTHER = "ask for another version, or another package"
# In the order of what is most telling: one text often matches several.
PATTERNS: tuple[tuple[str, Callable[[StepFailure, re.Match[str]], tuple[str, str]]], ...] = (
    (r"No space left on device|os error 28|Errno 28", _no_space),
    (r"No module named pip|no such option: --(?:report|dry-run)", _no_tool),
    (r"Hashes are required in --require-hashes mode", _unhashed),
    (
        (
            r"40[13] (?:Unauthorized|Forbidden)|\b40[13] Client Error|HTTP error 40[13]|40[13] Error, Credentials not"
            r" correct"
        ),
        _login,
    ),
    (WANTS_CERTIFICATE, _client),
    (r"invalid peer certificate|certificate verify failed|UnknownIssuer|CERTIFICATE_VERIFY_FAILED|SSLError", _tls),
    (rf"{NAME} was not found in the (?:package registry|provided package locations|cache)", _unknown),
    (rf"that satisfies the requirement {NAME}{VERSIONS}[^\n]*\(from versions: none\)", _nothing_fits),
    (rf"that satisfies the requirement {NAME}{VERSIONS}[^\n]*\(from versions: ", _no_version),
    (rf"{NAME}{VERSIONS} ha(?:s|ve) no (?:usable wheels|wheels with)", _no_wheel),
    (rf"{NAME}{VERSIONS} has an invalid package format", _invalid),
    (
        rf"(?:there (?:is|are) no versions? of|only(?: the following versions of)?) {NAME}[^;]{{0,1000}}?\s(?:and|that)"
        rf"(?: you require|[^,;]{{0,200}}? depends? on) \1{VERSIONS}",
        _no_version,
    ),
    (rf"DO NOT MATCH THE HASHES[^\n]*\n(?:\s*[^\n]*\n)??\s+{NAME}", _hash),
    (r"No solution found|ResolutionImpossible|conflicting dependencies", _conflict),
    (
        r"^(\S+\.(?:tar\.gz|zip)): its build |Failed to build [`']?([^\s`']+)|(?m:^error: )metadata-generation-failed",
        _source,
    ),
    (
        r"its archive is |leads out of it|Failed to extract archive|[Ff]ailed to (?:unzip|read from"
        r" zip|unpack)|[Ii]nvalid zip|BadZipFile"
        r"|RECORD",
        _archive,
    ),
    (r"the index answered (4\d\d) ?([^\n]*)", _gone),
    (
        r"tcp connect error|[Cc]onnection refused|dns error|Request failed after|error sending request|timed out|Tunnel"
        r" connection failed"
        r"|urlopen error|the index answered|Failed to fetch|ConnectionError|connection ended",
        _unreachable,
    ),
)
