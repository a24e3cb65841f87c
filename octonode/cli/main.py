"""`octonode`: one command, one file a group of verbs. Errors become a line that says what to do, and an exit code."""

from __future__ import annotations

import sys

import typer

from octonode.cli import ask, configuration, demo, models, network, node, testnet
from octonode.errors import ExitCode, OctonodeError

app = typer.Typer(
    name="octonode",
    help="Serve AI models to the world from any machine, and be served: peer to peer, no company in the middle.",
    rich_markup_mode=None,  # rich costs a tenth of a second that --help need not pay
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)
for group in (node, network, ask, testnet, demo):
    group.register(app)
app.add_typer(models.app, name="models")
app.add_typer(ask.task_app, name="task")
app.add_typer(configuration.app, name="config")


def run() -> None:
    """The console script. Never shows a traceback for an error that has a name."""
    try:
        app()
    except OctonodeError as error:
        fail(error)
    except BrokenPipeError:  # `octonode logs | head`
        sys.stderr.close()
        sys.exit(ExitCode.DONE)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: OctonodeError) -> None:
    """Print the error for a person, or as JSON where the verb was asked for JSON, and leave with its exit code."""
    if "--json" in sys.argv:
        import json

        print(json.dumps({"error": {"code": error.code, "message": error.message, **error.detail}}), file=sys.stderr)
    else:
        print(f"octonode: {error.message}", file=sys.stderr)
        if error.retry_after_seconds:
            print(f"octonode: try again in {error.retry_after_seconds:.0f} s", file=sys.stderr)
    sys.exit(error.row.exit_code)


if __name__ == "__main__":
    run()
