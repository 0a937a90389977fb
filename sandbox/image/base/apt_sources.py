"""Which package sources of the host a base image is built from.

The host's apt configuration decides: no archive is named here. Only the sources of the wanted suite that
belong to the distribution itself are used, so a third-party source that fails can't break a build.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ETC_APT = Path("/etc/apt")
_SUFFIX = re.compile(r"(-updates|-security|/updates)$")
_KEPT_OPTIONS = ("arch", "signed-by", "trusted", "check-valid-until", "check-date")
_DEB822_OPTIONS = {
    "architectures": "arch",
    "signed-by": "signed-by",
    "trusted": "trusted",
    "check-valid-until": "check-valid-until",
    "check-date": "check-date",
}
# Acquire settings that say how to reach the archive; the rest of the section says what to fetch.
_TRANSPORT = re.compile(
    r"^Acquire::((https?|ftp|socks)(::.*[^:])?|Proxy(-Auto-Detect)?|CaInfo|Retries|ForceIPv[46]"
    r"|Check-Valid-Until|Check-Date|Max-FutureTime|Min-ValidTime)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """One archive, suite and list of components; `signed_by` may be a whole armoured key."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def signed_by(self) -> str:
        """Return the keyring, fingerprint or key of this source, or ''."""
        return dict(self.options).get("signed-by", "")

    @property
    def base_suite(self) -> str:
        """Return the suite without `-updates` or `-security`."""
        return _SUFFIX.sub("", self.suite)

    def line(self) -> str:
        """Return the one-line form."""
        options = " ".join(f"{key}={value}" for key, value in self.options)
        return " ".join(["deb", *([f"[{options}]"] if options else []), self.uri, self.suite, *self.components])


def parse_one_line(text: str) -> list[AptSource]:
    """Read the `deb [options] uri suite components…` format; lines it can't read are skipped."""
    sources = []
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<rest>[^#\[]+)", line)
        words = found["rest"].split() if found else []
        if found is None or len(words) < 3:
            continue
        options = dict(word.split("=", 1) for word in (found["options"] or "").split() if "=" in word)
        sources.append(AptSource(uri=words[0], suite=words[1], components=tuple(words[2:]), options=_kept(options)))
    return sources


def parse_deb822(text: str) -> list[AptSource]:
    """Read the `.sources` format: one source for each type, address and suite of a stanza."""
    sources = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in " \t":
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in {
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        }
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        options = {
            ours: _option_value(field, fields[field]) for field, ours in _DEB822_OPTIONS.items() if fields.get(field)
        }
        sources += [
            AptSource(
                uri=uri,
                suite=suite,
                components=tuple(fields.get("components", "").split()),
                options=_kept(options),
            )
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return sources


def host_sources(etc_apt: Path = ETC_APT) -> list[AptSource]:
    """Return every binary source that is configured and readable."""
    sources: list[AptSource] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            sources += parse_one_line(text)
        elif path.suffix == ".sources":
            sources += parse_deb822(text)
    return sources


def sources_for(suite: str, sources: Iterable[AptSource], *, distribution: str, codename: str) -> list[AptSource]:
    """Choose the distribution's own sources for `suite`, with its updates and security fixes.

    A suite that the host doesn't list is looked for where the host's own (`codename`) comes from.
    """
    usable = [source for source in sources if "main" in source.components and not source.uri.startswith("cdrom:")]
    for wanted in (suite, codename, "stable", "oldstable", "testing"):
        matching = [source for source in usable if source.base_suite == wanted]
        own = [source for source in matching if not source.signed_by or f"{distribution}-archive" in source.signed_by]
        chosen = own or matching
        if any(source.suite == wanted for source in chosen):
            return [_moved(source, wanted, suite) for source in chosen]
    return []


def transport_options(dump: str) -> list[str]:
    """Return the settings of `apt-config dump` that say how to reach an archive, ready for `--aptopt`."""
    options = []
    for line in dump.splitlines():
        key, _, value = line.partition(" ")
        if _TRANSPORT.match(key) and value not in {"", '"";'}:
            options.append(f"{key} {value}")
    return options


def with_key_files(sources: Sequence[AptSource], directory: Path) -> list[AptSource]:
    """Write keys that a source carries in itself to files of `directory`, since one line can't hold them."""
    result = []
    for number, source in enumerate(sources):
        if "\n" not in source.signed_by:
            result.append(source)
            continue
        path = directory / f"key-{number}.asc"
        lines = ["" if line == "." else line for line in source.signed_by.strip().splitlines()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o644)
        options = {**dict(source.options), "signed-by": str(path)}
        result.append(
            AptSource(uri=source.uri, suite=source.suite, components=source.components, options=_kept(options))
        )
    return result


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """Return the fields of `os-release`; empty when there is none."""
    try:
        words = shlex.split(path.read_text(encoding="utf-8", errors="replace"), comments=True)
    except (OSError, ValueError):
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _kept(options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((key, options[key]) for key in _KEPT_OPTIONS if key in options)


def _option_value(field: str, value: str) -> str:
    if field == "signed-by" and "\n" in value:
        return value
    return ",".join(value.split())


def _moved(source: AptSource, old: str, new: str) -> AptSource:
    suite = new + source.suite[len(old) :]
    return AptSource(uri=source.uri, suite=suite, components=source.components, options=source.options)
