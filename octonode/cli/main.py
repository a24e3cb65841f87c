"""`octonode`: one command, one file a group of verbs. Errors become a line that says what to do, and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from octonode.cli import (
    ask,
    configuration,
    demo,
    engines,
    models,
    models_cache,
    models_fetches,
    models_fit,
    models_pins,
    models_quantize,
    models_trust,
    models_upload,
    models_versions,
    network,
    node,
    task_jobs,
    testnet,
)
from octonode.cli import run as run_verb
from octonode.errors import OctonodeError

app = typer.Typer(
    name="octonode",
    rich_markup_mode=None,  # rich costs a tenth of a second that --help need not pay
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)
for group in (node, network, run_verb, testnet, demo, engines):
    group.register(app)
models_fetches.register()
models_cache.register()
models_fit.register()
models_pins.register()
models_quantize.register()
models_trust.register()
models_versions.register()
models_upload.register()
task_jobs.register()
app.add_typer(models.app, name="models")
app.add_typer(ask.task_app, name="task")
app.add_typer(configuration.app, name="config")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"octonode {version('octonode')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Serve AI models to the world from any machine, and be served: peer to peer, no company in the middle."""


def run() -> None:
    """The console script. Never shows a traceback for an error that has a name."""
    try:
        app(prog_name="octonode")
    except OctonodeError as error:
        fail(error)
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
