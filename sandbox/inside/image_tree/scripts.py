"""What an installation script of a package would do on a first installation, found out without running it. Pure.

Commands that leave nothing in an image are passed over, alternatives and tools are noted, and everything else is
named: what is not understood is never taken for harmless.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.inside.image_tree.shell import (
    Case,
    Chain,
    For,
    Function,
    If,
    Not,
    NotUnderstood,
    Simple,
    expand,
    parse,
)

if TYPE_CHECKING:
    from sandbox.inside.image_tree.shell import Node

# Ask or print; change owners, modes, users, services, menus, an X server's fonts or dpkg's own records, none of which a
# sandbox has; or make what is made here for all packages together: byte code, the linker's cache.
_COMMANDS = """
    : set unset echo printf return break continue shift cd pwd command type which umask trap getopts hash wait
    sleep grep egrep fgrep awk cut tr sort uniq head tail ls stat readlink realpath basename dirname uname id getent
    md5sum sha256sum cmp diff wc seq date expr logger pgrep cat file sed find mountpoint ischroot tempfile mktemp
    rm rmdir mkdir chmod chown chgrp touch setcap getcap restorecon
    adduser addgroup useradd groupadd usermod groupmod deluser delgroup add-shell remove-shell update-shells
    pam-auth-update dpkg dpkg-query dpkg-maintscript-helper dpkg-trigger dpkg-statoverride dpkg-vendor
    dpkg-architecture dpkg-realpath invoke-rc.d update-rc.d service systemctl deb-systemd-helper deb-systemd-invoke
    start-stop-daemon systemd-tmpfiles systemd-sysusers systemd-hwdb systemd systemd-machine-id-setup journalctl udevadm
    telinit modprobe sysctl update-grub update-initramfs update-locale dbus-send apparmor_parser aa-status aa-enabled
    update-menus update-desktop-database update-mime update-icon-caches gtk-update-icon-cache update-binfmts
    update-fonts-scale update-fonts-dir update-fonts-alias
    install-info install-docs py3compile pypy3compile py3clean ldconfig fc-cache mandb
"""
_WITHOUT_TRACE = frozenset(_COMMANDS.split())
# Makers of an index over the files of all packages: run as they are, on the tree.
_TOOLS = frozenset(
    {"glib-compile-schemas", "gio-querymodules", "update-mime-database"}
    | {"update-gsfontmap", "libgvc6-config-update", "gtk-query-immodules-2.0", "gtk-query-immodules-3.0"}
)
# By which argument commands that leave nothing otherwise write files, or run others.
_WRITING = {
    "awk": r".*(print[^;}]*(>|\|)|system\s*\()", "find": r"-(exec|ok|fprint|fls)",
    "sed": r"-[a-zA-Z]*i|--in-place", "sort": r"-[a-zA-Z]*o|--output",
}  # fmt: skip # a table
_ENDLESS = 100


@dataclass(frozen=True)
class Alternative:
    """A choice among programs that do the same; `slaves` are links that follow it, as (link, name, path)."""

    link: str
    name: str
    path: str
    priority: int
    slaves: tuple[tuple[str, str, str], ...] = ()


@dataclass
class Effects:
    """What one script would have done that matters to an image; `links` are pairs of a path and its target."""

    alternatives: list[Alternative] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    tools: list[tuple[str, ...]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def effects_of(text: str, *, arguments: tuple[str, ...], exists: Callable[[str], bool]) -> Effects:
    """Return what a shell script does when it is called with `arguments`, as the package manager would call it.

    `exists` looks into the tree. What is not there may be made by another script, so only what is there is certain.
    """
    effects = Effects()
    first = text.partition("\n")[0]
    if not re.match(r"#!\s*/(usr/)?bin/(sh|dash|bash)\b", first):
        effects.unknown.append(f"it is no shell script ({first[:60]!r})")
        return effects
    try:
        _Evaluation(effects, exists).script(parse(text), arguments)
    except NotUnderstood as error:
        effects.unknown.append(f"it can't be read: {error}")
    except RecursionError:
        effects.unknown.append("it can't be read: it is nested too deep")
    return effects


class _Exit(Exception):
    """The script ends here for certain."""


class _Return(Exception):
    """The function ends here for certain."""


class _Evaluation:
    def __init__(self, effects: Effects, exists: Callable[[str], bool]) -> None:
        self._effects = effects
        self._exists = exists
        self._variables: dict[str, str | None] = {}
        self._functions: dict[str, list[Node]] = {}
        self._uncertain = 0
        self._uncertain_at_call: int | None = None
        self._depth = 0
        self._arguments: tuple[str | None, ...] = ()

    def script(self, nodes: list[Node], arguments: tuple[str, ...]) -> None:
        self._variables = {"DPKG_ROOT": "", "0": "postinst", "?": None, "@": None, "*": None, "RET": None}
        self._positional(arguments)
        with suppress(_Exit):
            self._all(nodes)

    def _positional(self, arguments: tuple[str | None, ...]) -> None:
        self._arguments = arguments
        for number in range(1, 10):
            self._variables[str(number)] = arguments[number - 1] if number <= len(arguments) else ""
        known = all(argument is not None for argument in arguments)
        self._variables["@"] = " ".join(argument or "" for argument in arguments) if known else None
        self._variables["*"] = self._variables["@"]
        self._variables["#"] = str(len(arguments))

    def _all(self, nodes: list[Node]) -> bool | None:
        """Walk commands one after the other; return whether the last succeeds, None where that can't be known."""
        status: bool | None = True
        for node in nodes:
            status = self._one(node)
        return status

    def _one(self, node: Node) -> bool | None:
        if isinstance(node, Simple):
            return self._simple(node)
        if isinstance(node, If):
            condition = self._all(node.condition)
            if condition is not None:
                return self._all(node.then if condition else node.otherwise)
            self._perhaps(node.then, node.otherwise)
            return None
        if isinstance(node, Chain):
            return self._chain(node)
        if isinstance(node, Not):
            status = self._one(node.node)
            return None if status is None else not status
        if isinstance(node, Case):
            return self._case(node)
        if isinstance(node, For):
            return self._for(node)
        if isinstance(node, Function):
            self._functions[node.name] = node.body
            return True
        status = self._all(node.nodes)
        return status if node.last_counts else None

    def _perhaps(self, *ways: list[Node]) -> None:
        """Walk every way that may be taken; a variable that they leave with different values is unknown afterwards."""
        before = dict(self._variables)
        after = [before]
        self._uncertain += 1
        for way in ways:
            self._variables = dict(before)
            with suppress(_Exit):
                self._all(way)
            after.append(self._variables)
        self._uncertain -= 1
        names = {name for variables in after for name in variables}
        self._variables = {
            name: before.get(name, "") if len({variables.get(name, "") for variables in after}) == 1 else None
            for name in names
        }

    def _chain(self, node: Chain) -> bool | None:
        left = self._one(node.left)
        stops = node.operator == "||"
        if left is None:
            self._perhaps([node.right])
            return None
        return left if left is stops else self._one(node.right)

    def _case(self, node: Case) -> bool | None:
        word = expand(node.word, self._variables)
        if word is None:
            self._perhaps(*(body for _, body in node.branches))
            return None
        for patterns, body in node.branches:
            known = [expand(pattern, self._variables) for pattern in patterns]
            if any(pattern is not None and fnmatch.fnmatchcase(word, pattern) for pattern in known):
                return self._all(body)
        return True

    def _for(self, node: For) -> bool | None:
        for word in node.words:
            value = expand(word, self._variables)
            if value is None or "*" in value:
                self._variables[node.name] = None
                self._perhaps(node.body)
            else:
                for part in value.split():
                    self._variables[node.name] = part
                    self._all(node.body)
        return None

    def _simple(self, node: Simple) -> bool | None:
        for assignment in node.assignments:
            name, _, value = assignment.partition("=")
            self._variables[name] = expand(value, self._variables)
        for path in node.writes:
            if not (expand(path, self._variables) or path).startswith("/var/log/"):
                self._note(f"it writes {path}")
        if not node.words:
            return True
        words: list[str | None] = []
        for word in node.words:
            words += self._arguments if word in ('"$@"', "$@") else (expand(word, self._variables),)
        if not words:
            return None
        if words[0] is None:
            self._note(f"it runs {node.words[0]}")
            return None
        if words[0] == "command" and words[1:] and words[1] not in ("-v", "-V"):
            return self._simple(Simple(node.words[1:], (), ()))
        name = posixpath.basename(words[0])
        if name in ("exit", "exec"):
            if name == "exec":
                self._note(self._shown("exec", node))
            if not self._uncertain:
                raise _Exit
            return None
        return self._command(name, words, node)

    def _command(self, name: str, words: list[str | None], node: Simple) -> bool | None:
        if name in self._functions and "/" not in (words[0] or ""):
            return self._call(name, tuple(words[1:]))
        if name in ("test", "["):
            return _test([word for word in words[1:] if word != "]"], self._exists)
        if name == "dpkg" and "--compare-versions" in words:
            return _compared(words[words.index("--compare-versions") + 1 :])
        if name in ("true", ":", "false"):
            return name != "false"
        if name == "return" and self._uncertain == self._uncertain_at_call:
            raise _Return
        if name in ("local", "export", "readonly"):
            self._declare(node)
            return True
        if name == "read":
            self._variables.update(dict.fromkeys(filter(None, node.words[1:])))
            return None
        if name == "." and (words[1] or "").endswith("/confmodule"):
            return True
        if name.startswith("db_"):
            return None
        if name == "update-alternatives":
            return self._alternatives(words, node)
        if name in _TOOLS:
            self._tool(words, node)
            return None
        if name == "ln" and self._link(words[1:]):
            return True
        if name == "trap" and len(words) > 2 and words[1] not in (None, "-"):
            self._perhaps(parse(words[1] or ""))
            return True
        # The diversion of a path that a merged /usr no longer has.
        if not _leaves_nothing(name, words) and not (name == "dpkg-divert" and "usr-is-merged" in str(node.words)):
            self._note(self._shown(name, node))
        return None

    def _link(self, words: list[str | None]) -> bool:
        """Note a link if it is made for certain, and tell so."""
        options = [word for word in words if word is not None and word.startswith("-")]
        rest = [word for word in words if word is not None and not word.startswith("-")]
        if self._uncertain or None in words or len(rest) != 2 or not rest[1].startswith("/"):
            return False
        if not all(re.fullmatch(r"-[sfnT]+", option) for option in options) or not any("s" in o for o in options):
            return False
        self._effects.links.append((rest[1], rest[0]))
        return True

    def _call(self, name: str, arguments: tuple[str | None, ...]) -> bool | None:
        if self._depth >= _ENDLESS:
            raise RecursionError
        kept = self._arguments, self._uncertain_at_call
        self._positional(arguments)
        self._uncertain_at_call = self._uncertain
        self._depth += 1
        try:
            return self._all(self._functions[name])
        except _Return:
            return None
        finally:
            self._depth -= 1
            arguments, self._uncertain_at_call = kept
            self._positional(arguments)

    def _declare(self, node: Simple) -> None:
        for word in node.words[1:]:
            name, equals, value = word.partition("=")
            if equals:
                self._variables[name] = expand(value, self._variables)

    def _tool(self, words: list[str | None], node: Simple) -> None:
        known = [word for word in words if word is not None]
        if len(known) != len(words):
            self._note(self._shown(known[0], node))
        elif tuple(known) not in self._effects.tools:
            self._effects.tools.append(tuple(known))

    def _alternatives(self, words: list[str | None], node: Simple) -> bool | None:
        if "--install" not in words:
            # Asks, or takes away what an earlier version made; a choice that was made by hand is none of a new image.
            return False if "--list" in words or "--query" in words else None
        rest = words[words.index("--install") + 1 :]
        own = rest[:4]
        if len(own) < 4 or any(word is None for word in own) or not re.fullmatch(r"-?\d+", own[3] or ""):
            self._note(self._shown("update-alternatives", node))
            return None
        slaves = []
        for at, word in enumerate(rest):
            slave = rest[at + 1 : at + 4]
            if word in ("--slave", "--follower") and len(slave) == 3 and None not in slave:
                slaves.append((slave[0] or "", slave[1] or "", slave[2] or ""))
        link, name, path, priority = (word or "" for word in own)
        self._effects.alternatives.append(Alternative(link, name, path, int(priority), tuple(slaves)))
        return True

    def _shown(self, name: str, node: Simple) -> str:
        rest = " ".join(node.words[1:])
        return f"it runs {name} {rest}".strip()[:160]

    def _note(self, sentence: str) -> None:
        if sentence not in self._effects.unknown:
            self._effects.unknown.append(sentence)


def _leaves_nothing(name: str, words: list[str | None]) -> bool:
    """Say whether a command leaves nothing that an image could use."""
    options = [word for word in words[1:] if word is not None]
    if name in _WRITING:
        return not any(re.match(_WRITING[name], option, re.DOTALL) for option in options)
    if name == "install":
        return options[:1] == ["-d"]
    if name == "dpkg-divert":
        return any(option in ("--list", "--remove", "--truename") for option in options)
    if re.fullmatch(r"python3(\.\d+)?", name):
        return any(re.fullmatch(r"(/.*/)?py_compile(\.py)?", option) for option in options)
    return name in _WITHOUT_TRACE


def _test(words: list[str | None], exists: Callable[[str], bool]) -> bool | None:
    """Return what `[` answers; None for what depends on files or on values that can't be known."""
    if words[:1] == ["!"]:
        answer = _test(words[1:], exists)
        return None if answer is None else not answer
    for operator in ("-o", "-a"):
        if operator in words[1:]:
            at = words.index(operator, 1)
            left, right = _test(words[:at], exists), _test(words[at + 1 :], exists)
            decisive = operator == "-o"
            if decisive in (left, right):
                return decisive
            return None if None in (left, right) else not decisive
    if any(word is None for word in words):
        return None
    if len(words) == 3 and words[1] in ("=", "=="):
        return words[0] == words[2]
    if len(words) == 3 and words[1] == "!=":
        return words[0] != words[2]
    if len(words) == 2 and words[0] in ("-n", "-z"):
        return bool(words[1]) is (words[0] == "-n")
    if len(words) == 2 and words[0] in ("-e", "-f", "-d", "-x", "-r", "-s", "-L", "-h"):
        if re.search(r"\.dpkg-(bak|backup|old|new|dist|remove|tmp)$", words[1] or ""):
            return False  # dpkg's copies of settings that an earlier version had
        # That the kind is right is taken for granted; it is the other branch that matters.
        return True if (words[1] or "").startswith("/") and exists(words[1] or "") else None
    if len(words) == 1:
        return bool(words[0])
    return None


def _compared(words: list[str | None]) -> bool | None:
    """Return what dpkg says of two versions, of which the first is none: nothing was installed before."""
    if len(words) < 3 or words[0] != "":
        return None
    operator = (words[1] or "").rstrip()
    if operator.endswith("-nl"):
        return operator[:2] in ("gt", "ge", "ne")
    return {"lt": True, "le": True, "<<": True, "<=": True, "<": True, "gt": False, "ge": False, ">>": False,
            ">=": False, ">": False, "eq": False, "=": False, "ne": True}.get(operator)  # fmt: skip # a table
