"""`sandbox`: the group, the one error handler, and the exit statuses.

| status | meaning |
|---|---|
| 0 | the program succeeded, or the command did |
| 1 | the program failed |
| 2 | wrong usage, bad input or an unknown name |
| 3 | the program ended without a result |
| 4 | this host can't enforce the policy (`doctor`: no policy can run) |
| 5 | too many processes |
| 6 | too much output, result, files or log records |
| 7 | the program was killed |
| 10 | the policy forbids the request |
| 11 | the image is unavailable or not admitted |
| 12 | a build failed |
| 13 | Podman is missing, too old or broken |
| 14 | too much at once |
| 15 | the caller has no right to this |
| 70 | a defect of this program, or a sandbox that broke the protocol |
| 75 | the run still goes on (`result`) |
| 124 | the program timed out |
| 130 | cancelled |
| 137 | the program ran out of memory |
| 141 | the reader of standard output went away |
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from sandbox import __version__
from sandbox.cli import completion
from sandbox.cli.colour import marked, wanted
from sandbox.errors import EngineUnavailable, Internal, SandboxError

# Of what a tool said about a failed build, this much is shown.
SHOWN_LINES = 12
SHOWN_CHARS = 300
AGAIN_S = 0.01
# Imported only when called: each command pays for what it needs.
COMMANDS = {
    "completion": "sandbox.cli.completion:completion",
    "config": "sandbox.cli.config:config",
    "doctor": "sandbox.cli.doctor:doctor",
    "env": "sandbox.cli.environment:environment",
    "image": "sandbox.cli.image:image",
    "logs": "sandbox.cli.logs:logs",
    "policy": "sandbox.cli.policy:policy",
    "ps": "sandbox.cli.runs:ps",
    "result": "sandbox.cli.later:result",
    "run": "sandbox.cli.run:run",
    "runs": "sandbox.cli.runs:runs",
    "serve": "sandbox.cli.serve:serve",
    "stop": "sandbox.cli.runs:stop",
    "template": "sandbox.cli.template:template",
    "top": "sandbox.cli.top:top",
    "uninstall": "sandbox.cli.uninstall:uninstall",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return sorted(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; a wrong name is answered with the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sandbox")
@click.option(
    "--policy-dir",
    "policy_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Look for policies here first. May be given more than once.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, *, policy_dirs: tuple[Path, ...], debug: bool) -> None:
    """Run untrusted Python in rootless, verified Podman sandboxes."""
    ctx.obj = {**(ctx.obj or {}), "policy_dirs": list(policy_dirs), "debug": debug}


def report(error: SandboxError) -> None:
    """Print one error for its reader."""
    from sandbox.cli.screen import escaped
    from sandbox.printable import printable

    marked(f"sandbox: {error.code}: ", err=True, nl=False, fg="red")
    click.echo(printable(error.message), err=True)
    if error.hint:
        click.echo(f"  what to do: {printable(error.hint)}", err=True)
    if said := said_by_tool(error.facts.get("output")):
        click.echo(f"  what the tool said last:\n{escaped(said)}", err=True)


def said_by_tool(output: object) -> str:
    """Return the last useful lines of a tool as a block, from the fact `output`: a text or a list of lines."""
    lines = output.splitlines() if isinstance(output, str) else output if isinstance(output, list) else []
    useful = [str(line)[:SHOWN_CHARS] for line in lines if str(line).strip()]
    return "\n".join(f"    {line}" for line in useful[-SHOWN_LINES:])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if completion.asked():
        sys.exit(completion.answer(cli))
    sys.unraisablehook = interrupted_again
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_command(arguments, debug=debug))


def interrupted_again(lost: sys.UnraisableHookArgs) -> None:
    """Have a Ctrl-C come again that came while Python took an object apart, where it drops whatever is raised.

    See https://docs.python.org/3/reference/datamodel.html#object.__del__. Everything else is reported as always.
    """
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    import threading

    # Not here and now: what this hook raises is dropped, too. And to this thread: another's signal would not end its
    # waiting.
    again = threading.Timer(AGAIN_S, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    again.daemon = True
    again.start()


def run_command(arguments: list[str] | None, *, debug: bool) -> Any:
    """Run one command line; return its exit status."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return (
            cli(
                args=arguments,
                standalone_mode=False,
                prog_name="sandbox",
                obj={"own_process": True},
                color=wanted(os.environ),
            )
            or 0
        )
    except SandboxError as error:
        if debug:
            traceback.print_exc()
        report(error)
        return error.exit_status
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        if isinstance(error, click.NoSuchOption) and error.option_name == "--debug":
            click.echo("  --debug goes before the command: sandbox --debug run …", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f" ({error.filename})" if error.filename else ""
        report(
            EngineUnavailable(
                f"the system refused: {error.strerror or error}{where}",
                hint="free some space, or correct the permissions, then try again",
            )
        )
        return EngineUnavailable.exit_status
    except Exception as error:  # noqa: BLE001 - the last resort: a defect still gets one clear sentence
        if debug:
            traceback.print_exc()
        report(
            Internal(
                f"unexpected {type(error).__name__}: {error}",
                hint="run it again with --debug, and report what it prints",
            )
        )
        return Internal.exit_status
