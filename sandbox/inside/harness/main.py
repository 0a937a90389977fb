"""Process 1 from its first line: connects, says ready, prepares where asked to, serves."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket

from sandbox.inside.harness.cells import CellMaker
from sandbox.inside.harness.child import Child
from sandbox.inside.harness.connection import Connection, HarnessError
from sandbox.inside.harness.directory import leave_path
from sandbox.inside.harness.json_text import json_encoder, json_value
from sandbox.inside.harness.preload import preload
from sandbox.inside.harness.process import close_project_ids, hide
from sandbox.inside.harness.serving import FAREWELL_S, live, say_ready, serve
from sandbox.inside.harness.unseen import go_on_from_the_top, unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


@unseen
def _prepared(connection: Connection, app_dir: str) -> tuple[bool, Child | None, bytes, bytearray]:
    """Say ready, and again after preparing where that is asked for.

    Return whether modules were preloaded, the program's process if it was forked, and the next frame. A process that is
    to make cells does so, and never returns.
    """
    close_project_ids()
    say_ready(connection)
    hide()
    kind, body = connection.read()
    if kind != b"P":
        return False, None, kind, body
    import resource  # noqa: F401 - for the report

    order = json_value(body)
    names, makes_cells = order["modules"], order.get("cell")
    modules, unfit = preload(names, app_dir) if names or makes_cells else ([], None)
    encode = json_encoder()
    said = f',"preloaded":{encode(modules)},"unfit":{encode(unfit)}'
    if makes_cells:
        maker = CellMaker(connection, app_dir, makes_cells)
        say_ready(connection, said)
        maker.make_cells()
    child = Child(connection, app_dir, preloaded=bool(names), ahead=True)
    if not child.settled():
        raise HarnessError("the program's process did not get ready")
    say_ready(connection, said)
    return (bool(names), child, *connection.read())


def main(socket_path: str, app_dir: str = "/app") -> NoReturn:
    """Run one job over the socket, in the working directory `app_dir`, and exit; never returns."""

    @unseen
    def life() -> None:
        leave_path()
        os.chdir(app_dir)
        opened = socket(AF_UNIX, SOCK_STREAM)
        opened.connect(socket_path)
        connection = Connection(opened)
        serve(connection, app_dir, *_prepared(connection, app_dir))
        connection.settle(FAREWELL_S)

    go_on_from_the_top(live, life)
