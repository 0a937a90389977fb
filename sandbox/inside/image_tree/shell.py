"""The shell's grammar, as far as installation scripts of packages use it: text in, a tree of commands out. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

OPERATORS = ("&&", "||", ";;", ";", "|", "&", "(", ")", "\n")
_REDIRECTION = re.compile(r"(?P<fd>\d*)(?P<kind>>>|>\||>&|<<-|<<<|<<|<&|<>|>|<)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_0-9]+|[@*#?])(:?-[^{}$`]*)?\}|([A-Za-z_][A-Za-z0-9_]*|[0-9@*#?]))")


class NotUnderstood(ValueError):
    """The text is beyond this grammar; the message says what was met."""


class Simple(NamedTuple):
    """One command; words and assignments are still quoted. `writes` are the files that it is redirected to."""

    words: tuple[str, ...]
    assignments: tuple[str, ...]
    writes: tuple[str, ...]


class If(NamedTuple):
    """A condition with its two branches; a loop with a condition is one with a single branch."""

    condition: list[Node]
    then: list[Node]
    otherwise: list[Node]


class Case(NamedTuple):
    """A word, and patterns with what is done for them."""

    word: str
    branches: list[tuple[tuple[str, ...], list[Node]]]


class For(NamedTuple):
    """A loop over words."""

    name: str
    words: tuple[str, ...]
    body: list[Node]


class Function(NamedTuple):
    """A function that is defined here."""

    name: str
    body: list[Node]


class Chain(NamedTuple):
    """What stands left of `&&` or `||`, the operator, and what stands right of it."""

    left: Node
    operator: str
    right: Node


class Not(NamedTuple):
    """A command whose status is inverted."""

    node: Node


class Group(NamedTuple):
    """Commands in braces or parentheses, or the parts of a pipe."""

    nodes: list[Node]
    last_counts: bool


if TYPE_CHECKING:
    Node = Simple | If | Case | For | Function | Chain | Not | Group


class _Token(NamedTuple):
    kind: str  # "word", "operator" or "write"
    text: str


def parse(text: str) -> list[Node]:
    """Return the commands of a script. Raises `NotUnderstood`."""
    parser = _Parser(_tokens(text))
    nodes = parser.commands(frozenset())
    if parser.peek() is not None:
        raise NotUnderstood(f"an unexpected {parser.text()!r}")
    return nodes


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    endings: list[tuple[str, bool]] = []  # of the texts between the lines (<<EOF) that begin on the next line
    text = text.replace("\\\n", " ")
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            at = _line_end(text, at)
            continue
        operator = next((operator for operator in OPERATORS if text.startswith(operator, at)), None)
        redirection = _REDIRECTION.match(text, at)
        if redirection is not None:
            at = _redirection(text, redirection, tokens, endings)
        elif operator is not None:
            tokens.append(_Token("operator", operator))
            at += len(operator)
            if operator == "\n" and endings:
                at = _past_texts(text, at, endings)
        else:
            end = _word_end(text, at)
            tokens.append(_Token("word", text[at:end]))
            at = end
    return tokens


def _redirection(text: str, found: re.Match[str], tokens: list[_Token], endings: list[tuple[str, bool]]) -> int:
    at = found.end()
    while text[at : at + 1] in (" ", "\t"):
        at += 1
    end = _word_end(text, at)
    word, kind = text[at:end], found["kind"]
    if kind in ("<<", "<<-"):
        endings.append((word.strip("'\"\\"), kind == "<<-"))
    elif kind.startswith(">") and kind != ">&" and word != "/dev/null":
        tokens.append(_Token("write", word))
    return end


def _past_texts(text: str, at: int, endings: list[tuple[str, bool]]) -> int:
    while endings:
        ending, tabs = endings.pop(0)
        while at < len(text):
            end = _line_end(text, at)
            line = text[at:end]
            at = end + 1
            if (line.lstrip("\t") if tabs else line) == ending:
                break
    return at


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _word_end(text: str, at: int) -> int:
    """Return where the word that begins at `at` ends: quotes and substitutions belong to it."""
    while at < len(text) and text[at] not in " \t\n;&|()<>":
        at = _past(text, at)
    return at


def _past(text: str, at: int) -> int:
    """Return the place behind the character, quotation or substitution at `at`."""
    if text[at] == "\\":
        return at + 2
    if text[at] == "'":
        return _index(text, "'", at + 1) + 1
    if text[at] == '"':
        at += 1
        while at < len(text) and text[at] != '"':
            at = _past(text, at) if text[at] in "\\$`" else at + 1
        if at >= len(text):
            raise NotUnderstood("a quotation without end")
        return at + 1
    if text[at] == "`":
        return _index(text, "`", at + 1) + 1
    if text.startswith("$(", at):
        return _past_bracket(text, at + 2, ")")
    if text.startswith("${", at):
        return _past_bracket(text, at + 2, "}")
    return at + 1


def _past_bracket(text: str, at: int, closing: str) -> int:
    while at < len(text) and text[at] != closing:
        at = _past_bracket(text, at + 1, ")") if text[at] == "(" and closing == ")" else _past(text, at)
    if at >= len(text):
        raise NotUnderstood(f"a {closing!r} is missing")
    return at + 1


def _index(text: str, wanted: str, at: int) -> int:
    found = text.find(wanted, at)
    if found < 0:
        raise NotUnderstood(f"a {wanted} is missing")
    return found


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def text(self) -> str:
        token = self.peek()
        return "" if token is None else token.text

    def _is(self, kind: str, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == kind and token.text in texts

    def _take(self, kind: str, *texts: str) -> str:
        token = self.peek()
        if token is None or token.kind != kind or (texts and token.text not in texts):
            raise NotUnderstood(f"{self.text()!r} instead of {' or '.join(texts) or kind}")
        self._at += 1
        return token.text

    def _skip(self) -> None:
        while self._is("operator", "\n", ";", "&"):
            self._at += 1

    def commands(self, endings: frozenset[str]) -> list[Node]:
        """Read commands up to one of the words or operators of `endings`, which stays."""
        nodes: list[Node] = []
        while True:
            self._skip()
            if self.peek() is None or self.text() in endings:
                return nodes
            nodes.append(self._chain())

    def _chain(self) -> Node:
        node = self._pipe()
        while self._is("operator", "&&", "||"):
            operator = self._take("operator")
            while self._is("operator", "\n"):
                self._at += 1
            node = Chain(node, operator, self._pipe())
        return node

    def _pipe(self) -> Node:
        if self._is("word", "!"):
            self._at += 1
            return Not(self._pipe())
        nodes = [self._command()]
        while self._is("operator", "|"):
            self._at += 1
            while self._is("operator", "\n"):
                self._at += 1
            nodes.append(self._command())
        return nodes[0] if len(nodes) == 1 else Group(nodes, last_counts=False)

    def _command(self) -> Node:
        readers = {"if": self._if, "case": self._case, "for": self._for, "while": self._while, "until": self._while}
        token = self.peek()
        if token is not None and token.kind == "word" and token.text in readers:
            self._at += 1
            return self._redirected(readers[token.text]())
        if self._is("word", "{"):
            return self._redirected(Group(self._block("word", "{", "}"), last_counts=True))
        if self._is("operator", "("):
            return self._redirected(Group(self._block("operator", "(", ")"), last_counts=True))
        return self._simple()

    def _block(self, kind: str, opening: str, closing: str) -> list[Node]:
        self._take(kind, opening)
        nodes = self.commands(frozenset({closing}))
        self._take(kind, closing)
        return nodes

    def _redirected(self, node: Node) -> Node:
        """Return the node; a file that a whole block is redirected to counts as a command that writes it."""
        writes = []
        while self.peek() is not None and self._tokens[self._at].kind == "write":
            writes.append(self._take("write"))
        return Group([node, Simple((), (), tuple(writes))], last_counts=False) if writes else node

    def _if(self) -> Node:
        condition = self.commands(frozenset({"then"}))
        self._take("word", "then")
        then = self.commands(frozenset({"elif", "else", "fi"}))
        ending = self._take("word", "elif", "else", "fi")
        if ending == "elif":
            return If(condition, then, [self._if()])
        otherwise = []
        if ending == "else":
            otherwise = self.commands(frozenset({"fi"}))
            self._take("word", "fi")
        return If(condition, then, otherwise)

    def _while(self) -> Node:
        condition = self.commands(frozenset({"do"}))
        body = self._body()
        return If([Group([*condition, Simple(("read",), (), ())], last_counts=True)], body, [])

    def _body(self) -> list[Node]:
        self._skip()
        self._take("word", "do")
        body = self.commands(frozenset({"done"}))
        self._take("word", "done")
        return body

    def _for(self) -> Node:
        name = self._take("word")
        words: list[str] = ["$@"]
        if self._is("word", "in"):
            self._at += 1
            words = []
            while self.peek() is not None and self._tokens[self._at].kind == "word":
                words.append(self._take("word"))
        return For(name, tuple(words), self._body())

    def _case(self) -> Node:
        word = self._take("word")
        self._skip()
        self._take("word", "in")
        branches: list[tuple[tuple[str, ...], list[Node]]] = []
        self._skip()
        while not self._is("word", "esac"):
            if self._is("operator", "("):
                self._at += 1
            patterns = [self._take("word")]
            while self._is("operator", "|"):
                self._at += 1
                patterns.append(self._take("word"))
            self._take("operator", ")")
            branches.append((tuple(patterns), self.commands(frozenset({";;", "esac"}))))
            while self._is("operator", ";;", ";", "\n"):
                self._at += 1
        self._take("word", "esac")
        return Case(word, branches)

    def _simple(self) -> Node:
        words: list[str] = []
        assignments: list[str] = []
        writes: list[str] = []
        while True:
            token = self.peek()
            if token is None or token.kind == "operator":
                break
            self._at += 1
            if token.kind == "write":
                writes.append(token.text)
            elif not words and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", token.text):
                assignments.append(token.text)
            else:
                words.append(token.text)
        if len(words) == 1 and _NAME.match(words[0]) and self._is("operator", "("):
            self._at += 1
            self._take("operator", ")")
            self._skip()
            return Function(words[0], [self._command()])
        if not (words or assignments or writes):
            raise NotUnderstood(f"an unexpected {self.text()!r}")
        return Simple(tuple(words), tuple(assignments), tuple(writes))


def expand(word: str, variables: dict[str, str | None]) -> str | None:
    """Return a word without its quotes and with its variables; None where the value can't be known."""
    result: list[str] = []
    at = 0
    quoted = False
    while at < len(word):
        letter = word[at]
        if letter == '"':
            quoted = not quoted
            at += 1
        elif letter == "'" and not quoted:
            end = _index(word, "'", at + 1)
            result.append(word[at + 1 : end])
            at = end + 1
        elif letter == "\\":
            result.append(word[at + 1 : at + 2])
            at += 2
        elif letter == "`":
            return None
        elif letter == "$":
            found = _VARIABLE.match(word, at)
            if found is None:
                return None
            # What nobody has set here may come from elsewhere.
            value = variables.get(found[1] or found[3], None if found[2] is None else "")
            if value is None:
                return None
            result.append(value or (found[2] or "").lstrip(":")[1:])
            at = found.end()
        else:
            result.append(letter)
            at += 1
    return "".join(result)
