"""Makes, in the tree of an image, what installation scripts would have made; runs in that tree, as its root directory.

What it is told, and what it made or why it refuses, lies in two files beside the packages' scripts.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.inside.image_tree.reviewed import MULTIARCH, reviewed
from sandbox.inside.image_tree.scripts import Alternative, Effects, effects_of

HERE = "/sandbox-build"
SEARCHED = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/games")
# Scripts that matter on a first installation, with what the package manager gives them.
SCRIPTS = {"preinst": ("install", ""), "postinst": ("configure", "")}
SHOWN = 12
# Accepts every package without what its scripts would make, apart from links and alternatives.
ALL = "*"


@dataclass
class Tree:
    """The tree that is prepared; `refusals` are sentences, and one is enough to make no image of it."""

    root: Path = Path("/")
    made: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Return a path of the image as one of this process."""
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        """Say whether the image has the file, directory or link."""
        return os.path.lexists(self.at(path))


def prepare(tree: Tree, job: dict[str, list[str]]) -> None:
    """Make everything that `job` asks for; stop at the first step that has to refuse."""
    accepted = frozenset(job["accepted"])
    effects = read_scripts(tree, accepted=accepted)
    if ALL in accepted:
        tree.refusals.clear()
        effects = Effects(
            alternatives=[each for each in effects.alternatives if tree.exists(each.path)],
            links=[(path, target) for path, target in effects.links if tree.exists(target)],
        )
    steps: tuple[Callable[[], None], ...] = (
        lambda: make_python(tree, job["python"]),
        lambda: make_links(tree, effects.links),
        lambda: make_alternatives(tree, effects.alternatives),
        lambda: make_locales(tree, job["locales"]),
        lambda: run_tools(tree, effects.tools),
        lambda: link_libraries(tree),
        lambda: check_programs(tree, job["checked"]),
        lambda: compile_modules(tree),
    )
    for step in steps:
        if tree.refusals:
            return
        step()


def read_scripts(tree: Tree, *, accepted: frozenset[str]) -> Effects:
    """Return what all scripts together would leave; of the packages in `accepted`, nothing is needed."""
    together = Effects()
    multiarch = multiarch_of(tree)
    for directory in sorted(tree.at(f"{HERE}/control").glob("*")):
        package = directory.name
        known = reviewed(package)
        if known is not None:
            together.links += known.links
            together.tools += [tuple(word.replace(MULTIARCH, multiarch) for word in tool) for tool in known.tools]
            continue
        for name, arguments in SCRIPTS.items():
            try:
                text = (directory / name).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue
            effects = effects_of(text, arguments=arguments, exists=tree.exists)
            together.alternatives += effects.alternatives
            together.links += effects.links
            together.tools += effects.tools
            if effects.unknown and package not in accepted:
                more = f" (and {len(effects.unknown) - 1} more)" if effects.unknown[1:] else ""
                tree.refusals.append(f"the package {package} needs its {name} script: {effects.unknown[0]}{more}")
    return together


def multiarch_of(tree: Tree) -> str:
    """Return the name of the directory of this architecture's libraries."""
    found = sorted(path.name for path in tree.at("/usr/lib").glob("*-linux-gnu*") if path.is_dir())
    return found[0] if found else ""


def make_python(tree: Tree, wanted: list[str]) -> None:
    """Make `python3` the wanted version, and `python` a name of it."""
    for version in wanted:
        if not tree.exists(f"/usr/bin/python{version}"):
            have = sorted(path.name[6:] for path in tree.at("/usr/bin").glob("python3.*") if path.name[8:].isdigit())
            tree.refusals.append(f"the release has no Python {version}; it has {', '.join(have)}")
            return
        link(tree, "/usr/bin/python3", f"python{version}")
    link(tree, "/usr/bin/python", "python3")


def make_links(tree: Tree, links: list[tuple[str, str]]) -> None:
    """Make links as the scripts would; the target must be there."""
    for path, target in links:
        if tree.exists(str(Path(path).parent / target)):
            link(tree, path, target)
        else:
            tree.refusals.append(f"{path} would lead to {target}, which no package brings")


def make_alternatives(tree: Tree, alternatives: list[Alternative]) -> None:
    """Make for each choice the links of the candidate with the highest priority, as update-alternatives does."""
    names = sorted({each.name for each in alternatives})
    for name in names:
        candidates = [each for each in alternatives if each.name == name and tree.exists(each.path)]
        if not candidates:
            paths = ", ".join(sorted({each.path for each in alternatives if each.name == name}))
            if "/man/" not in paths:  # manual pages are left out
                tree.refusals.append(f"the choice {name} has no candidate: {paths} is not there")
            continue
        chosen = max(candidates, key=lambda each: each.priority)  # the first, of equal ones
        for path, choice, target in ((chosen.link, name, chosen.path), *chosen.slaves):
            if "/man/" in path or not tree.exists(target):
                continue
            if tree.exists(path) and not tree.at(path).is_symlink():
                tree.refusals.append(f"the choice {choice} can't be made: {path} is a file of a package")
                continue
            link(tree, f"/etc/alternatives/{choice}", target)
            link(tree, path, f"/etc/alternatives/{choice}")


def link(tree: Tree, path: str, target: str) -> None:
    """Make a link, in the place of one that is there."""
    place = tree.at(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    if not place.exists():
        place.symlink_to(target)
        tree.made.append(f"{path} -> {target}")


def make_locales(tree: Tree, locales: list[str]) -> None:
    """Compile locales from their sources; which there are is said by the package that brings them."""
    if not locales:
        return
    lines = tree.at("/usr/share/i18n/SUPPORTED").read_text(encoding="utf-8").splitlines()
    supported = [(words[0], words[1]) for words in map(str.split, lines) if len(words) == 2]
    for asked in locales:
        found = find_locale(asked, supported)
        if found is None:
            near = difflib.get_close_matches(asked, [name for name, _ in supported], n=3, cutoff=0.6)
            tree.refusals.append(
                f"the release has no locale {asked}" + (f"; near are {', '.join(near)}" if near else "")
            )
            continue
        source, charset = found
        compiled = canonical_locale(source, charset)
        answer = run(["localedef", "--no-archive", "-i", source, "-f", charset, compiled])
        check = "import locale, sys; locale.setlocale(locale.LC_ALL, sys.argv[1])"
        if answer.returncode == 0:
            answer = run(["/usr/bin/python3", "-I", "-S", "-c", check, compiled])
        if answer.returncode:
            tree.refusals.append(f"the locale {asked} can't be compiled: {last_line(answer.stderr)}")
        else:
            tree.made.append(f"locale {compiled}")


def find_locale(asked: str, supported: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the source and the character set of a locale; without a set, UTF-8 is meant, as people mean it today."""
    source, charset = split_locale(asked)
    for name, its_charset in supported:
        if split_locale(name)[0] == source and short_charset(its_charset) == short_charset(charset or "UTF-8"):
            return source, its_charset
    return None


def split_locale(name: str) -> tuple[str, str]:
    """Return what a locale is called without its character set, and that."""
    language, at, modifier = name.partition("@")
    language, _, charset = language.partition(".")
    return f"{language}{at}{modifier}", charset


def short_charset(charset: str) -> str:
    """Return a character set as the C library writes it in names of directories."""
    return re.sub(r"[^a-z0-9]", "", charset.lower())


def canonical_locale(source: str, charset: str) -> str:
    """Return the name of a compiled locale's directory, where the C library looks for it: `de_DE.utf8`."""
    language, at, modifier = source.partition("@")
    return f"{language}.{short_charset(charset)}{at}{modifier}"


def run_tools(tree: Tree, tools: list[tuple[str, ...]]) -> None:
    """Run programs that make an index over the files of all packages; one that is not there is not needed."""
    for words in dict.fromkeys(tools):
        program = shutil.which(words[0], path=os.pathsep.join(SEARCHED))
        if program is None:
            continue
        answer = run([program, *words[1:]])
        if answer.returncode:
            tree.refusals.append(f"{Path(program).name} failed: {last_line(answer.stderr)}")
        else:
            tree.made.append(f"what {Path(program).name} makes")


def link_libraries(tree: Tree) -> None:
    """Make the linker's cache, by which libraries are found, also by ctypes."""
    answer = run(["ldconfig", "-X"])
    if answer.returncode:
        tree.refusals.append(f"ldconfig failed: {last_line(answer.stderr)}")


def check_programs(tree: Tree, wanted: list[str]) -> None:
    """Refuse where a program of the packages would not find its libraries."""
    loaders = [str(path) for path in sorted(Path("/").glob("lib*/ld-linux*.so*")) if os.access(path, os.X_OK)]
    if not wanted or not loaders:
        return
    for directory in SEARCHED[1:]:
        for path in sorted(tree.at(directory).glob("*")):
            if path.is_symlink() or not path.is_file() or not is_program(path):
                continue
            missing = re.findall(r"(\S+) => not found|(\S+): cannot open shared object", _needed(loaders[0], path))
            if missing:
                library = missing[0][0] or missing[0][1]
                tree.refusals.append(f"{path} needs {library}, which no package brings")


def is_program(path: Path) -> bool:
    """Say whether a file is a program for the machine itself."""
    with path.open("rb") as content:
        return content.read(4) == b"\x7fELF"


def _needed(loader: str, path: Path) -> str:
    answer = run([loader, "--list", str(path)])
    return answer.stdout + answer.stderr


def compile_modules(tree: Tree) -> None:
    """Compile the standard library, and modules that packages bring, in a process that is the same in every build."""
    packages = sorted(str(path) for path in tree.at("/usr/lib/python3").glob("dist-packages"))
    answer = run(["/usr/bin/python3", "-S", "-s", f"{HERE}/sandbox/inside/image_tree/compiling.py", *packages])
    if answer.returncode:
        tree.refusals.append(last_line(answer.stderr))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of the tree."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it gave no reason")[:300]


def main() -> None:
    """Prepare the tree that this process sees as its root."""
    tree = Tree()
    job = json.loads(Path(f"{HERE}/job.json").read_text(encoding="utf-8"))
    prepare(tree, job)
    if tree.refusals[SHOWN:]:
        tree.refusals[SHOWN:] = [f"and {len(tree.refusals) - SHOWN} more"]
    made = {"made": sorted(tree.made), "refusals": tree.refusals}
    Path(f"{HERE}/made.json").write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
