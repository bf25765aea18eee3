"""The `mlotel` command: parses, calls, prints.

No option here repeats a configuration key: those are Hydra overrides. Nothing heavy is imported before a command runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand

from mlotel_cli.config.conf_folders import complete_override

app = typer.Typer(
    name="mlotel",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_PANEL = "Hydra"
_ROOT_EXAMPLES = """[bold]Start here[/]

mlotel doctor  # what this machine has
mlotel eval    # the built-in dummy pipeline, 2.5 minutes
make demo      # three trained models on a traffic video; in the repository

[bold]Read more[/]

mlotel COMMAND --help, README.md
"""
_EVAL_EXAMPLES = """[bold]Examples[/]

mlotel eval                                # the built-in dummy pipeline
mlotel eval experiment=quick               # its first 50 batches
mlotel eval -cd examples/lpr/conf          # a project: its conf folder
mlotel eval -cd examples/lpr/conf executor=pipelined data=night
mlotel eval eval.on_error=skip tracker.project=plates
mlotel eval eval.control=true              # also measures what spans cost
mlotel eval -m pipeline.time_scale=0.1,0.2 # a sweep: two runs, one group
mlotel eval --cfg job                      # prints every key, runs nothing

[bold]Read more[/]

README.md: your own pipeline in five minutes
examples/lpr/README.md: parallel stages, optimize=, figures
conf/: every key with a comment
"""
_PROFILE_EXAMPLES = """[bold]Examples[/]

mlotel profile                             # needs nsys: see mlotel doctor
mlotel profile profiler=torch              # needs no nsys
mlotel profile -cd examples/lpr/conf profile.batches=20
mlotel compare outputs/eval/RUN outputs/profile/RUN

[bold]Read more[/]

examples/lpr/README.md: what is recorded, and how much nsys disturbs
conf/profile.yaml, conf/profiler/: every key with a comment
"""
_MONITOR_EXAMPLES = """[bold]Examples[/]

mlotel monitor                             # the dummy pipeline, endlessly
mlotel monitor source=video source.uri=rtsp://HOST/PATH
mlotel monitor source=video source.uri=FILE source.loop=true
mlotel monitor telemetry.otlp.endpoint=http://127.0.0.1:4318

Ctrl-C or SIGTERM ends it in order. Status page: http://127.0.0.1:9464

[bold]Read more[/]

examples/monitoring/README.md: Prometheus, OTLP, W&B, what stays on disk
conf/monitor.yaml, conf/source/: every key with a comment
"""
_COMPARE_EXAMPLES = """[bold]Examples[/]

mlotel compare outputs/eval/RUN outputs/profile/RUN
mlotel compare outputs/eval/RUN outputs/eval/OTHER

Both runs need the same stages and some batches in common.
A stage that differs by more than 10 % gets a warning.
"""
_TRACE_EXAMPLES = """[bold]Examples[/]

mlotel trace outputs/eval/RUN
mlotel trace outputs/eval/RUN --batch worst
mlotel trace outputs/eval/RUN --batch 10-30 -o trace.svg
mlotel trace outputs/eval/RUN -b 10-30 -f perfetto -o trace.json

ui.perfetto.dev opens the Perfetto file.
"""
_RUNS_EXAMPLES = """[bold]Examples[/]

mlotel runs
mlotel runs outputs/eval --json
"""


TraceFormat = Literal["perfetto", "otlp-json", "svg"]
ConfigKind = Literal["job", "hydra", "all"]
InfoKind = Literal["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


class HydraCommand(TyperCommand):
    """A command that takes Hydra's flags; a bare --info means `--info all`, as in Hydra."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Complete a bare --info before the options are read."""
        kinds = get_args(InfoKind)
        for position in reversed([n for n, text in enumerate(args) if text in ("--info", "-i")]):
            if args[position + 1 : position + 2] == [] or args[position + 1] not in kinds:
                args.insert(position + 1, "all")
        return super().parse_args(ctx, args)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: key=value or group=option.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Sweep: run every combination, such as a=1,2.", rich_help_panel=_PANEL)
]
Cfg = Annotated[
    ConfigKind | None, typer.Option("--cfg", "-c", help="Print the configuration; run nothing.", rich_help_panel=_PANEL)
]
Package = Annotated[
    str | None, typer.Option("--package", "-p", help="With --cfg: print only this part.", rich_help_panel=_PANEL)
]
Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: fill in every ${...}.", rich_help_panel=_PANEL)]
Info = Annotated[
    InfoKind | None,
    typer.Option(
        "--info",
        "-i",
        metavar="WHAT",
        help="Print how the configuration is composed: all, config, defaults, defaults-tree, plugins or searchpath.",
        rich_help_panel=_PANEL,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir", "-cd", help="Your conf folder. Its files win over the built-in ones.", rich_help_panel=_PANEL
    ),
]
ConfigName = Annotated[
    str | None,
    typer.Option(
        "--config-name", "-cn", help="Configuration file to start from, without .yaml.", rich_help_panel=_PANEL
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from mlotel_cli.hardware import version_of

        typer.echo(f"mlotel {version_of('mlotel') or 'not installed'}")
        raise typer.Exit


@app.callback(epilog=_ROOT_EXAMPLES)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Measure accuracy and latency of every batch of a torch pipeline, together."""


def _hydra_command(mode: str, *, summary: str, epilog: str) -> Callable[..., None]:
    """Add the command of a mode that runs under Hydra; they all take the same flags."""

    def command(
        overrides: Overrides = None,
        multirun: Multirun = False,
        cfg: Cfg = None,
        package: Package = None,
        resolve: Resolve = False,
        info: Info = None,
        config_dir: ConfigDir = None,
        config_name: ConfigName = None,
        debug: Debug = False,
    ) -> None:
        from mlotel_cli.launch import HydraFlags, launch

        flags = HydraFlags(multirun, cfg, package, resolve, info, config_dir, config_name, debug)
        raise typer.Exit(launch(mode, flags, overrides or []))

    return app.command(mode, cls=HydraCommand, help=summary, epilog=epilog)(command)


evaluate = _hydra_command(
    "eval", summary="Measure accuracy and latency of every batch of a labelled data set.", epilog=_EVAL_EXAMPLES
)
profile = _hydra_command(
    "profile",
    summary="Run the pipeline under nsys, and attribute GPU work to its spans.",
    epilog=_PROFILE_EXAMPLES,
)
monitor = _hydra_command(
    "monitor",
    summary="Measure the same pipeline on live input, around the clock.",
    epilog=_MONITOR_EXAMPLES,
)


@app.command(epilog=_COMPARE_EXAMPLES)
def compare(
    eval_run: Annotated[Path, typer.Argument(help="Run directory, such as an evaluation's.", show_default=False)],
    profile_run: Annotated[Path, typer.Argument(help="Another one, such as a profile's.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Show what each stage took in two runs, side by side."""
    from mlotel_cli.compare.compare_command import main

    raise typer.Exit(main(eval_run, profile_run, debug=debug))


@app.command(epilog=_TRACE_EXAMPLES)
def trace(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    batch: Annotated[
        str | None,
        typer.Option("--batch", "-b", help="Which to draw: N, A-B, median, p95, worst, failed.", show_default="median"),
    ] = None,
    form: Annotated[TraceFormat | None, typer.Option("--format", "-f", help="Write a file for another viewer.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; else stdout.")] = None,
    debug: Debug = False,
) -> None:
    """List the slow batches of a run, and draw where their time went."""
    from mlotel_cli.trace.trace_command import main

    raise typer.Exit(main(run, batch=batch, form=form, output=output, debug=debug))


@app.command(epilog=_RUNS_EXAMPLES)
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder that holds the runs.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs of a folder, newest first, with their main figures."""
    from mlotel_cli.runs import main

    raise typer.Exit(main(folder, as_json=as_json, debug=debug))


@app.command()
def doctor() -> None:
    """Show what this machine has, and how to get what is missing."""
    from mlotel_cli.doctor import print_findings

    print_findings()
