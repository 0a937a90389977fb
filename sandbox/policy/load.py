"""Policies by name: search, load, extend by rule. The controls themselves are in `sandbox.policy.model`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sandbox.errors import InvalidRequest, NotFound, PolicyDenied, SandboxError
from sandbox.policy.advice import opening
from sandbox.policy.directories import NAME, policy_directories, shipped_directory
from sandbox.policy.model import BUILT_IN, KEYS, Policy, PolicyDocument, Sections
from sandbox.policy.order import ORDER
from sandbox.policy.renamed import with_present_names
from sandbox.policy.seccomp import SeccompProfile, load_profile
from sandbox.toml_file import TomlFile, exists, read_toml, shown
from sandbox.toml_mistakes import Checker, ConflictError

__all__ = [
    "BUILT_IN",
    "LoadedPolicy",
    "Policy",
    "load_policy",
    "policy_directories",
    "policy_files",
    "policy_names",
    "shipped_directory",
]

MAX_DEPTH = 8
HINT = "`sandbox policy explain default` says what each key means, and `sandbox policy schema` what it may be"


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """An effective policy and where it comes from.

    `origins` maps every dotted key to `file:line` or `BUILT_IN`; `open` maps the keys that a child may
    loosen to True or to a bound; `files` goes from the policy's own file to the root of its chain. `warnings` are
    sentences for whoever wrote those files.
    """

    policy: Policy
    path: Path
    origins: dict[str, str]
    open: dict[str, Any]
    files: tuple[Path, ...]
    seccomp: SeccompProfile
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One file of a chain: only what it sets itself."""

    name: str
    file: TomlFile
    document: PolicyDocument
    values: dict[str, Any]
    open: dict[str, Any]
    warnings: tuple[str, ...]


def load_policy(name_or_path: str, *, directories: Sequence[Path]) -> LoadedPolicy:
    """Load a policy by name from `directories`, or by path when the text has a `/` or ends in `.toml`.

    Raises `NotFound` for an unknown name, `InvalidRequest` for a file that says something impossible or that
    others can change, `PolicyDenied` for a child that loosens what its parent keeps closed.
    """
    chain = _chain(_locate(name_or_path, directories), directories)
    values = Sections().values()
    opened: dict[str, Any] = {}
    origins = dict.fromkeys(values, BUILT_IN)
    for child, parent in reversed(list(zip(chain, [*chain[1:], None], strict=True))):
        if parent is not None:
            _check_extension(child, parent, values, opened, directories)
        values |= child.values
        origins |= {key: child.file.at(key) for key in child.values}
        opened = child.open
        for key, bound in opened.items():
            _check_own_bound(child, key, values[key], bound)
    own = chain[0]
    profile = _profile(values["seccomp.profile"], origins["seccomp.profile"], directories)
    return LoadedPolicy(
        policy=_effective(own, values, origins, profile),
        path=own.file.path,
        origins=origins,
        open=opened,
        files=tuple(layer.file.path for layer in chain),
        seccomp=profile,
        warnings=tuple(warning for layer in chain for warning in layer.warnings),
    )


def policy_files(directories: Sequence[Path]) -> dict[str, Path]:
    """Return the file of every policy name, first directory first."""
    found: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.toml")):
            if NAME.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def policy_names(directories: Sequence[Path]) -> list[str]:
    """Return the name of every policy in the search path, sorted; a file among them may be invalid."""
    return list(policy_files(directories))


# ---- finding files -------------------------------------------------------------------------------


def _locate(name_or_path: str, directories: Sequence[Path]) -> Path:
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path).absolute()
        if not NAME.fullmatch(path.stem) or path.suffix != ".toml":
            raise InvalidRequest(
                f"{shown(path.name)} is not a name for a policy file",
                hint="use lower-case letters, digits, - and _, and end it in .toml",
            )
        return path
    return _search(name_or_path, directories, directories)


def _search(name: str, directories: Sequence[Path], known: Sequence[Path], *, where: str = "") -> Path:
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}{shown(name)} is not a policy name",
            hint="use lower-case letters, digits, - and _, at most 64",
        )
    for directory in directories:
        if exists(path := directory / f"{name}.toml"):
            return path
    names = policy_names(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    raise NotFound(
        f"{where}there is no policy named {name}{f'; did you mean {nearest[0]}?' if nearest else ''}",
        hint=f"known policies: {', '.join(names) or 'none'}",
        known=names,
    )


def _chain(path: Path, directories: Sequence[Path]) -> list[_Layer]:
    """Return the layers from the policy's own file to its root."""
    chain = [_layer(path)]
    while (parent := chain[-1].document.extends) is not None:
        layer = chain[-1]
        where = f"{layer.file.at('extends')}: "
        own = parent == layer.name
        try:
            path = _search(parent, _after(layer, directories) if own else directories, directories, where=where)
        except NotFound:
            if not own:
                raise
            raise NotFound(
                f"{where}{parent} extends its own name, and it hides no policy of that name",
                hint="extend another policy, such as default",
            ) from None
        if any(path.samefile(seen.file.path) for seen in chain):
            names = " -> ".join([*(seen.name for seen in chain), parent])
            raise InvalidRequest(
                f"{where}the policies extend each other in a circle: {names}", hint="remove one extends"
            )
        if len(chain) == MAX_DEPTH:
            raise InvalidRequest(f"{where}a chain of more than {MAX_DEPTH} policies", hint="extend fewer policies")
        chain.append(_layer(path))
    return chain


def _after(layer: _Layer, directories: Sequence[Path]) -> Sequence[Path]:
    """Return the directories behind the layer's own: a file that extends its own name means the one it hides."""
    for index, directory in enumerate(directories):
        candidate = directory / f"{layer.name}.toml"
        if exists(candidate) and candidate.samefile(layer.file.path):
            return directories[index + 1 :]
    return directories


def _layer(path: Path) -> _Layer:
    file, warnings = with_present_names(read_toml(path, what="policy"))
    hint = "; ".join([HINT, *warnings])  # a mistake below an old name is told with the present one
    data = dict(file.data)
    opened = data.pop("open", {})
    document = Checker(model=PolicyDocument, place=file.place, hint=hint).read(data)
    values = {
        f"{section}.{name}": getattr(getattr(document, section), name)
        for section in document.model_fields_set & set(Sections.model_fields)
        for name in getattr(document, section).model_fields_set
    }
    opened = _bounds(opened, file, hint)
    return _Layer(name=path.stem, file=file, document=document, values=values, open=opened, warnings=warnings)


# ---- extending -----------------------------------------------------------------------------------


def _check_extension(
    child: _Layer, parent: _Layer, inherited: dict[str, Any], opened: dict[str, Any], directories: Sequence[Path]
) -> None:
    def advice(key: str, value: Any) -> str:
        bound = value if _reaches(key, value, inherited[key]) else True  # of two names, none is the looser one
        return opening(
            key,
            bound,
            parent=parent.name,
            file=parent.file,
            opened=key in opened,
            any_open=bool(opened),
            directories=directories,
        )

    for key, value in child.values.items():
        if ORDER[key](value, inherited[key]) or (key in opened and _reaches(key, opened[key], value)):
            continue
        if key in opened:
            why = f"lets a child go to {shown(opened[key])} at most"
        else:
            why = f"sets {shown(inherited[key])} and does not mark the key as open"
        raise PolicyDenied(
            f"{child.file.at(key)}: {key} = {shown(value)} is not as tight as policy {parent.name!r} wants, which "
            f"{why}",
            hint=f"tighten it, or {advice(key, value)}",
            key=key,
            asked=value,
            allowed=opened.get(key, inherited[key]),
        )
    for key, bound in child.open.items():
        if key in opened and (opened[key] is True or (bound is not True and _reaches(key, opened[key], bound))):
            continue
        why = f"opens it to {shown(opened[key])} at most" if key in opened else "keeps it closed"
        raise PolicyDenied(
            f"{child.file.at(f'open.{key}')}: [open] offers {key} = {shown(bound)}, but policy {parent.name!r} {why}",
            hint=f"remove the line, or {advice(key, bound)}",
            key=key,
        )


def _reaches(key: str, bound: Any, value: Any) -> bool:
    return bound is True or ORDER[key](value, bound)


def _check_own_bound(layer: _Layer, key: str, value: Any, bound: Any) -> None:
    if not _reaches(key, bound, value):
        raise InvalidRequest(
            f"{layer.file.at(f'open.{key}')}: [open] bounds {key} at {shown(bound)}, tighter than the policy's own "
            f"{shown(value)}",
            hint="a bound is the loosest value that a child may set: at least as loose as the value itself",
        )


def _bounds(opened: Any, file: TomlFile, hint: str) -> dict[str, Any]:
    """Check [open], written with dotted or quoted keys, and return its bounds by dotted key."""
    if not isinstance(opened, dict):
        raise InvalidRequest(
            f"{file.at('open')}: open must be a section ([open])", hint='write "[open]" on its own line'
        )
    checker = Checker(model=Sections, place=file.place, hint=hint, below=("open",), alternative="true or ")
    bounds: dict[str, Any] = {}
    for key, bound in _flattened(opened):
        if key not in KEYS:
            raise checker.unknown(tuple(key.split(".")))
        section, _, name = key.partition(".")
        if bound is not True:
            bound = getattr(getattr(checker.read({section: {name: bound}}), section), name)
        if key in bounds:
            raise InvalidRequest(
                f"{file.at(f'open.{key}')}: [open] has {key} twice, with dots and in quotes",
                hint="keep the line with the bound that is meant",
                key=f"open.{key}",
            )
        bounds[key] = bound
    return bounds


def _flattened(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        pairs += _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _profile(name: str, origin: str, directories: Sequence[Path]) -> SeccompProfile:
    try:
        return load_profile(name, directories=directories)
    except SandboxError as error:
        if origin == BUILT_IN:
            raise
        raise type(error)(f"{origin}: {error.message}", hint=error.hint, **error.facts) from None


def _effective(own: _Layer, values: dict[str, Any], origins: dict[str, str], profile: SeccompProfile) -> Policy:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    try:
        return Policy.model_validate(
            {
                **sections,
                "name": own.name,
                "description": own.document.description,
                "seccomp_sha256": profile.sha256,
            }
        )
    except ValidationError as error:
        conflict = error.errors()[0].get("ctx", {}).get("error")
        if not isinstance(conflict, ConflictError):
            raise
        set_at = [f"{key} at {origins[key]}" for key in conflict.keys]
        raise InvalidRequest(
            f"{_own_line(own, conflict.keys)}: {conflict}", hint=f"change one of: {'; '.join(set_at)}"
        ) from None


def _own_line(own: _Layer, keys: Sequence[str]) -> str:
    return next((own.file.at(key) for key in keys if key in own.values), str(own.file.path))
