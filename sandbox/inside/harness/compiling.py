"""Compiles and executes a user's program, in which top-level `return` and `await` work."""

from __future__ import annotations

from sandbox.inside.harness.unseen import unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator
    from types import CodeType
    from typing import Any


NOWHERE = "/dev/null/script"  # below what is no directory, so that no file can have this name
CO_COROUTINE = 0x80


class Returned:
    """Where the code of a program leaves what its top-level `return` gives: `(X,)`, or `()` for one without a value."""

    value: tuple[Any, ...] | None = None


def compile_program(source: str, filename: str) -> CodeType:
    """Compile a user's program in which top-level `return` and `await` work.

    Line numbers stay the user's own. `execute` runs the code that this gives. Raises SyntaxError, and nothing else, for
    text that is no program. `filename` is only what errors and tracebacks call it: to show a line of a program that
    does not compile, Python opens the file of the name that it was given, whatever that is.
    """
    import _imp
    import warnings

    code: CodeType
    kind, problem = SyntaxError, ""
    place: tuple[Any, ...] = (1, 1, "")
    with warnings.catch_warnings(record=True) as given:
        try:
            code = _compiled(source)
        except (RecursionError, MemoryError):
            problem = "the program is nested too deeply to compile"
        except UnicodeError:
            problem = "the program contains a character that is not valid Unicode text"
        except SyntaxError as error:
            kind, problem, place = type(error), error.msg, _place(error, source)
    if problem:
        raise kind(problem, (filename, *place))
    # as importlib does with a cached module that was moved
    _imp._fix_co_filename(code, filename)  # type: ignore[attr-defined]
    # a program with a top-level `return` is compiled twice
    told = {(str(warning.message), warning.category, warning.lineno): warning for warning in given}
    for warning in told.values():
        warnings.warn_explicit(warning.message, warning.category, filename, warning.lineno)
    return code


def _compiled(source: str) -> CodeType:
    """Compile a program under a name that no file has. Raises SyntaxError, and what the compiler can't cope with."""
    import warnings
    from _ast import PyCF_ALLOW_TOP_LEVEL_AWAIT as top_level_await

    if "\0" in source:  # Python before 3.12 raises ValueError, later ones don't say where
        line = source.split("\0", 1)[0].count("\n") + 1
        raise SyntaxError("source code cannot contain null bytes", (NOWHERE, line, 1, ""))
    try:
        code: CodeType = compile(source, NOWHERE, "exec", top_level_await, dont_inherit=True)
    except SyntaxError:
        returned = Returned()
        mark = f"return {id(returned)}"
        tree = _with_return(source, mark)
        if tree is None:
            raise
        with warnings.catch_warnings():
            # Python 3.14 has warned of the program's own statements there, and must not of ours
            warnings.filterwarnings("ignore", ".* in a 'finally' block")
            code = compile(tree, NOWHERE, "exec", top_level_await, dont_inherit=True)
        code = code.replace(co_consts=tuple(returned if value == mark else value for value in code.co_consts))
    return code


def _place(error: SyntaxError, source: str) -> tuple[Any, ...]:
    """Return where a program is wrong as SyntaxError takes it: line, column, text and, if known, the end."""
    line, end = error.lineno or 1, getattr(error, "end_lineno", None)
    columns = [error.offset or 1, getattr(error, "end_offset", None) or 0]
    text = error.text
    if text is None:  # found after parsing, where Python has no text left and counts the bytes of a line
        text = "".join(source_lines(source)[line - 1 : line])
        data = text.encode(errors="replace")
        columns = [len(data[: column - 1].decode(errors="ignore")) + 1 if column > 0 else column for column in columns]
    return (line, columns[0], text, end, columns[1]) if end else (line, columns[0], text)


def source_lines(source: str) -> list[str]:
    """Return the lines of a program as Python counts them: form feeds and the like end none."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line + "\n" for line in lines]


def _with_return(source: str, mark: str) -> ast.Module | None:
    """Return the program without its top-level `return`s, or None when it has none.

    It stays the code of a module. Around it is a loop that runs once, and each `return` puts its value into an
    attribute of the constant `mark`, which the compiled code has replaced, and breaks out of every loop that it is in.
    So `finally`, `with` and `except` do what they do for a `return`, because that is what they do for a `break`.
    """
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first attempt has already given them
        tree = ast.parse(source, NOWHERE)
    if not _returns(tree.body):
        return None
    head, body = _split_head(tree.body)
    last = body[-1]
    _break_instead(body, mark)
    loop = _statements("while True: pass", body[0])[0]
    assert isinstance(loop, ast.While)
    loop.body = [*body, *_statements(f"{mark!r}.value = None\nbreak", last)]
    tree.body = [*head, loop]
    return tree


def _returns(statements: list[ast.stmt]) -> bool:
    import ast

    return any(isinstance(node, ast.Return) for node in _scope(statements))


def _statements(text: str, place: ast.AST) -> list[ast.stmt]:
    """Return statements of ours, as if they stood at the place of one of the program."""
    import ast

    made = ast.parse(text)
    for node in ast.walk(made):
        ast.copy_location(node, place)
    return made.body


def _break_instead(program: list[ast.stmt], mark: str) -> None:
    """Replace each `return` of these statements, which are to stand in a loop, by leaving that loop.

    A loop of the program that is left by a `return` is told apart by an attribute of its own: set before our `break`,
    unset before one of the program's and when the loop ends by itself. After the loop, it says whether to leave on.
    """
    import ast

    loops = 0
    pending: list[tuple[list[ast.stmt], str | None]] = [(program, None)]  # and the loop that they are in
    while pending:
        statements, inside = pending.pop()
        leave = f"{mark!r}.{inside} = True\nbreak" if inside else "break"
        replaced: list[ast.stmt] = []
        for statement in statements:
            after: list[ast.stmt] = []
            if isinstance(statement, ast.Return):
                replaced += _kept(statement, mark) + _statements(leave, statement)
                continue
            if isinstance(statement, (ast.Break, ast.Continue)):
                _check_inside(statement, inside)
                if inside and isinstance(statement, ast.Break):
                    replaced += _statements(f"{mark!r}.{inside} = False", statement)
            elif isinstance(statement, (ast.For, ast.AsyncFor, ast.While)):
                name = ""
                if _returns(statement.body):
                    loops += 1
                    name = f"loop{loops}"
                    statement.orelse[:0] = _statements(f"{mark!r}.{name} = False", statement)
                    after = _statements(f"if {mark!r}.{name}: pass", statement)
                    after[0].body = _statements(leave, statement)  # type: ignore[attr-defined]
                pending += [(statement.body, name), (statement.orelse, inside)]
            else:
                pending += [(block, inside) for block in _blocks(statement)]
            replaced += [statement, *after]
        statements[:] = replaced


def _kept(statement: ast.Return, mark: str) -> list[ast.stmt]:
    """Return the assignment that keeps the value of a `return`."""
    import ast

    kept = _statements(f"{mark!r}.value = ()", statement)
    if statement.value is not None:
        kept[0].value.elts.append(statement.value)  # type: ignore[attr-defined]
    assert isinstance(kept[0], ast.Assign)
    return kept


def _check_inside(statement: ast.stmt, inside: str | None) -> None:
    """Raise the SyntaxError that a statement would be without our loop around the program."""
    import ast

    if inside is None:
        problem = "'break' outside loop" if isinstance(statement, ast.Break) else "'continue' not properly in loop"
        raise SyntaxError(problem, (NOWHERE, statement.lineno, statement.col_offset + 1, None))


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """Yield the lists of statements that belong to the same scope and the same loop as this statement."""
    import ast

    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    for part in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        for field in ("body", "orelse", "finalbody"):
            yield getattr(part, field, [])


def _scope(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of this scope, leaving out the bodies of functions, lambdas and classes."""
    import ast

    stack = list(statements)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            stack += [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.ClassDef):
            stack += [*node.decorator_list, *node.bases, *node.keywords]
        elif isinstance(node, ast.Lambda):
            stack.append(node.args)
        else:
            stack += ast.iter_child_nodes(node)


def _split_head(body: list[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Split off what must stay at the top of a module: the docstring and `from __future__` imports."""
    import ast

    end = 0
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        end = 1
    while end < len(body):
        statement = body[end]
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            break
        end += 1
    return body[:end], body[end:]


@unseen
def execute(code: CodeType, namespace: dict[str, Any]) -> None:
    """Run what `compile_program` gave; a top-level `return X` sets `result` in `namespace`."""
    if code.co_flags & CO_COROUTINE:
        import asyncio

        asyncio.run(eval(code, namespace))  # noqa: S307 - a code object with a top-level await
    else:
        exec(code, namespace)
    for constant in code.co_consts:
        if type(constant) is Returned and constant.value:
            namespace["result"] = constant.value[0]
