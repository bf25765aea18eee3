"""The `mlotel` command: parses, calls, prints.

No option here repeats a configuration key: those are Hydra overrides. Nothing heavy is imported before a command runs.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mlotel_cli.config.completion import complete_override

app = typer.Typer(
    name="mlotel",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_PANEL = "Hydra"
_EXAMPLES = """[bold]Examples[/]

mlotel eval
mlotel eval pipeline=dummy pipeline.time_scale=0.1 eval.max_batches=100
mlotel eval -cd my_project/conf data=night
mlotel eval -m pipeline.time_scale=0.1,0.2
mlotel eval --cfg job
"""
_PROFILE_EXAMPLES = """[bold]Examples[/]

mlotel profile
mlotel profile -cd my_project/conf profile.batches=200
mlotel profile profiler=torch
mlotel compare outputs/eval/RUN outputs/profile/RUN
"""
_MONITOR_EXAMPLES = """[bold]Examples[/]

mlotel monitor
mlotel monitor source=video source.uri=rtsp://127.0.0.1:8554/gate
mlotel monitor -cd my_project/conf source=video source.uri=traffic.mp4 source.loop=true
"""
_TRACE_EXAMPLES = """[bold]Examples[/]

mlotel trace outputs/eval/RUN
mlotel trace outputs/eval/RUN --batch worst
mlotel trace outputs/eval/RUN --batch 10-30 --format perfetto -o trace.json
"""


class TraceFormat(StrEnum):
    """What --format writes."""

    perfetto = "perfetto"
    otlp_json = "otlp-json"
    svg = "svg"


class ConfigKind(StrEnum):
    """What --cfg prints."""

    job = "job"
    hydra = "hydra"
    all = "all"


class InfoKind(StrEnum):
    """What --info prints."""

    all = "all"
    config = "config"
    defaults = "defaults"
    defaults_tree = "defaults-tree"
    plugins = "plugins"
    searchpath = "searchpath"


class HydraCommand(TyperCommand):
    """A command that takes Hydra's flags; a bare --info means `--info all`, as in Hydra."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Complete a bare --info before the options are read."""
        kinds = {kind.value for kind in InfoKind}
        for position in reversed([n for n, text in enumerate(args) if text in ("--info", "-i")]):
            if args[position + 1 : position + 2] == [] or args[position + 1] not in kinds:
                args.insert(position + 1, InfoKind.all)
        return super().parse_args(ctx, args)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: key=value, group=option.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Sweep: run every combination of a=1,2.", rich_help_panel=_PANEL)
]
Cfg = Annotated[
    ConfigKind | None, typer.Option("--cfg", "-c", help="Print the configuration, do not run.", rich_help_panel=_PANEL)
]
Package = Annotated[
    str | None, typer.Option("--package", "-p", help="With --cfg: only this part of it.", rich_help_panel=_PANEL)
]
Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve ${...}.", rich_help_panel=_PANEL)]
Info = Annotated[
    InfoKind | None,
    typer.Option("--info", "-i", help="Print how the configuration is composed.", rich_help_panel=_PANEL),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", "-cd", help="Your conf folder; its files win.", rich_help_panel=_PANEL),
]
ConfigName = Annotated[
    str | None,
    typer.Option("--config-name", "-cn", help="Primary file, without .yaml.", rich_help_panel=_PANEL),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from mlotel_cli.hardware import version_of

        typer.echo(f"mlotel {version_of('mlotel') or 'not installed'}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Annotate a pipeline once; see accuracy and latency of every batch together."""


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
    "eval", summary="Measure accuracy and latency of every batch of a labelled data set.", epilog=_EXAMPLES
)
profile = _hydra_command(
    "profile",
    summary="Record the same spans under Nsight Systems, with the device's work attributed to them.",
    epilog=_PROFILE_EXAMPLES,
)
monitor = _hydra_command(
    "monitor",
    summary="Run the pipeline on live input around the clock, with the same spans.",
    epilog=_MONITOR_EXAMPLES,
)


@app.command()
def compare(
    eval_run: Annotated[Path, typer.Argument(help="Run directory of the evaluation.", show_default=False)],
    profile_run: Annotated[Path, typer.Argument(help="Run directory of the profile.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Show what each stage took in both runs, and where the profiler disturbed it."""
    from mlotel_cli.compare.compare_command import main

    raise typer.Exit(main(eval_run, profile_run, debug=debug))


@app.command(epilog=_TRACE_EXAMPLES)
def trace(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    batch: Annotated[
        str | None, typer.Option("--batch", "-b", help="N, A-B, median, p95, worst or failed.", show_default="median")
    ] = None,
    form: Annotated[
        TraceFormat | None, typer.Option("--format", "-f", help="Write a file for another viewer instead of drawing.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="That file; without it, stdout.")] = None,
    debug: Debug = False,
) -> None:
    """Show the batches worth a look, and who waited for whom in one of them."""
    from mlotel_cli.trace.trace_command import main

    raise typer.Exit(main(run, batch=batch, form=form, output=output, debug=debug))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to look below.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List all runs of a folder, newest first, with their headline figures."""
    from mlotel_cli.runs import main

    raise typer.Exit(main(folder, as_json=as_json))


@app.command()
def doctor() -> None:
    """Show what this machine has, and the fix for what is missing."""
    from mlotel_cli.doctor import print_findings

    print_findings()
