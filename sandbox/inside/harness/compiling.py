"""Compiles and executes a user's program, in which top-level `return` and `await` work."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator
    from types import CodeType
    from typing import Any


NOWHERE = "/dev/null/script"  # below what is no directory, so that no file can have this name
BODY = "<module>"  # not an identifier, so no name of the user's can collide
CO_COROUTINE = 0x80


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
    for warning in given:
        warnings.warn_explicit(warning.message, warning.category, filename, warning.lineno)
    return code


def _compiled(source: str) -> CodeType:
    """Compile a program under a name that no file has. Raises SyntaxError, and what the compiler can't cope with."""
    from _ast import PyCF_ALLOW_TOP_LEVEL_AWAIT as top_level_await

    if "\0" in source:  # Python before 3.12 raises ValueError, later ones don't say where
        line = source.split("\0", 1)[0].count("\n") + 1
        raise SyntaxError("source code cannot contain null bytes", (NOWHERE, line, 1, ""))
    try:
        code: CodeType = compile(source, NOWHERE, "exec", top_level_await, dont_inherit=True)
    except SyntaxError:
        tree = _with_return(source)
        if tree is None:
            raise
        code = compile(tree, NOWHERE, "exec", dont_inherit=True)
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


def _with_return(source: str) -> ast.Module | None:
    """Return the program with its body in a function, or None when it has no top-level `return`."""
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first attempt has already given them
        tree = ast.parse(source, NOWHERE)
    scope = list(_scope(tree.body))
    if not any(isinstance(node, ast.Return) for node in scope):
        return None
    for node in scope:
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            # In the wrapping function it would silently turn the program into a generator.
            raise SyntaxError("'yield' outside function", (NOWHERE, node.lineno, node.col_offset + 1, None))
    head, body = _split_head(tree.body)
    names = sorted({name for node in scope for name in _bound_names(node)})
    prefix = "async " if any(_awaits(node) for node in scope) else ""
    wrapper = ast.parse(f"{prefix}def body(): pass").body[0]
    assert isinstance(wrapper, (ast.FunctionDef, ast.AsyncFunctionDef))
    wrapper.name = BODY
    rewritten = [_rewriter().visit(statement) for statement in body]
    wrapper.body = [*([ast.Global(names)] if names else []), *rewritten]
    tree.body = [*head, wrapper]
    return ast.fix_missing_locations(tree)


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


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that `node` binds or deletes in its scope."""
    import ast

    kind = type(node).__name__
    name: str | None = None
    if isinstance(node, ast.Name):
        name = None if isinstance(node.ctx, ast.Load) else node.id
    elif isinstance(node, ast.alias):
        name = node.asname or node.name.split(".")[0]
    elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef", "ExceptHandler", "MatchAs", "MatchStar"):
        name = getattr(node, "name", None)
    elif kind == "MatchMapping":
        name = getattr(node, "rest", None)
    if name is not None and name != "*":
        yield name


def _awaits(node: ast.AST) -> bool:
    import ast

    return isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or bool(getattr(node, "is_async", 0))


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


def _rewriter() -> ast.NodeTransformer:
    """Return the transformer that makes top-level statements mean the same inside a function."""
    import ast

    class Rewriter(ast.NodeTransformer):
        def nested(self, node: ast.AST) -> ast.AST:
            return node

        visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = nested  # noqa: N815

        def visit_Return(self, node: ast.Return) -> ast.AST:
            # `return X` gives (X,), so that a bare `return` (None) is told apart from `return None`.
            if node.value is not None:
                boxed = ast.Tuple([node.value], ast.Load())
                node.value = ast.copy_location(boxed, node.value)
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            if not isinstance(node.target, ast.Name):
                return node
            # An annotated name can't be declared global.
            plain = ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else ast.Pass()
            return ast.copy_location(plain, node)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
            if node.names[0].name != "*":
                return node
            # `import *` is allowed at module level only: execute it there.
            statement = f"from {'.' * node.level}{node.module or ''} import *"
            call = ast.parse(f"__import__('builtins').exec({statement!r}, globals())").body[0]
            for child in ast.walk(call):
                if hasattr(child, "lineno"):
                    ast.copy_location(child, node)
            return call

    return Rewriter()


def execute(code: CodeType, namespace: dict[str, Any]) -> None:
    """Run what `compile_program` gave; a top-level `return X` sets `result` in `namespace`."""
    if code.co_flags & CO_COROUTINE:
        import asyncio

        asyncio.run(eval(code, namespace))  # noqa: S307 - a code object with a top-level await
        return
    exec(code, namespace)
    function = namespace.pop(BODY, None)
    if function is None:
        return
    value = function()
    if function.__code__.co_flags & CO_COROUTINE:
        import asyncio

        value = asyncio.run(value)
    if value is not None:
        namespace["result"] = value[0]
