"""The `harness` command. It imports neither torch nor docker: each command imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import os
import sys

import typer

from harness.commands import data, demo, env, evaluate, experiment, export, regrade, rewrite, show, synth, train
from harness_trajectories.errors import UserError

app = typer.Typer(
    name="harness",
    help="Train and evaluate software-engineering agents: step-wise supervised RL on expert trajectories, SWE-bench in sandboxes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Trajectories: import, look at, check, export, generate.", no_args_is_help=True)
env_app = typer.Typer(help="Environments: list, write your own, check it.", no_args_is_help=True)
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose configuration is given as --a.b=c."""
STOPPED = 130
"""What typer returns on Ctrl-C."""

data_app.command("import")(data.import_)
data_app.command("stats")(data.stats)
data_app.command("show")(show.show)
data_app.command("lint")(data.lint)
data_app.command("export")(export.export)
data_app.command("rewrite")(rewrite.rewrite)
data_app.command("synth", context_settings=OPEN)(synth.synth)
env_app.command("list")(env.list_)
env_app.command("new")(env.new)
env_app.command("check", context_settings=OPEN)(env.check)
app.add_typer(data_app, name="data")
app.command("train", context_settings=OPEN)(train.train)
app.command("eval", context_settings=OPEN)(evaluate.evaluate)
app.command("regrade")(regrade.regrade)
app.add_typer(env_app, name="env")
app.command("experiment", context_settings=OPEN)(experiment.experiment)
app.command("demo")(demo.demo)


def main() -> None:
    """Run a command. Exit code 0: done, 1: the work failed, 2: bad usage or bad input, 130: stopped by Ctrl-C."""
    sys.exit(_run())


def _processes() -> contextlib.AbstractContextManager[None]:
    """Of a command that torchrun has started several times."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()
    from harness.train.processes import together

    return together()


def _run() -> int:
    try:
        with _processes():
            code = app(standalone_mode=False)
        if code == STOPPED:
            print("stopped; the same command takes it up again", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "harness")
        print(f"error: {error.format_message() or 'no command given'} (see: {command} --help)", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("HARNESS_DEBUG"):
            raise
        print(f"error: {type(error).__name__}: {error}\n(HARNESS_DEBUG=1 shows where)", file=sys.stderr)
        return 1
