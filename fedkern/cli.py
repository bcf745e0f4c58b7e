"""The command line: ``fedkern run``, ``compare``, ``methods`` and ``info``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.table import Table

import fedkern
from fedkern import fl
from fedkern.fl.experiment import Experiment
from fedkern.fl.methods import PARTS, describe, settings_of
from fedkern.fl.report import RunFolder, file_name

app = typer.Typer(
    name="fedkern",
    help="Federated learning with fused kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Command = TypeVar("Command", bound=Callable[..., None])
Out = Annotated[
    Path | None, typer.Option(help="folder of the results (default runs/DATASET-METHODS-TIME)")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a run that lies there")]
Seeds = Annotated[int, typer.Option(help="how many seeds, from --seed upwards")]


_PART_HELP = {
    "loss": "what clients minimise, by default the method's own",
    "server_optimizer": "what the server does with the clients' mean, by default avg",
}


def _with_settings(command: Command) -> Command:
    """Gives a command an option for every `setting` of run, methods and parts, as **settings.

    The settings are the only place that names and describes the options.
    """
    options: dict[str, tuple[Field[Any], Any]] = {}
    parts = [kind for kinds in PARTS.values() for kind in kinds.values()]
    owners: list[Any] = [fl.RunConfig, *fl.METHODS.values(), *parts]
    for owner in owners:
        hints = get_type_hints(owner)
        for field in settings_of(owner):  # the first owner's default is the one that is shown
            options.setdefault(field.name, (field, hints[field.name]))
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

    def add(name: str, kind: Any, option: Any) -> None:
        annotation = Annotated[kind | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))

    for name, (field, kind) in options.items():
        flags = (f"--{name.replace('_', '-')}",)  # spelled out: no --no-download
        default = (
            "" if kind is bool or field.default in (None, "") else f" (default {field.default})"
        )
        option = typer.Option(*flags, help=field.metadata["help"] + default)
        add(name, kind, option)
    for part, kinds in PARTS.items():
        add(part, str, typer.Option(help=f"{_PART_HELP[part]}: {', '.join(kinds)}"))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@app.command()
@_with_settings
def run(
    method: Annotated[str, typer.Option(help=f"one of {', '.join(fl.METHODS)}")] = "fedga",
    seeds: Seeds = 1,
    out: Out = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Runs one method. The defaults shown are those of digits; other data sets have their own."""
    with _user_errors():
        _run_experiment([method], seeds, out, overwrite, settings)


@app.command()
@_with_settings
def compare(
    methods: Annotated[list[str], typer.Argument(help=f"from {', '.join(fl.METHODS)}")],
    seeds: Seeds = 3,
    out: Out = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Runs several methods on the same partitions, initial models, sampled clients and batches.

    A method may have options of its own: 'floco --loss calibrated_ce'.
    """
    with _user_errors():
        _run_experiment(methods, seeds, out, overwrite, settings)


@app.command()
def methods() -> None:
    """Lists the methods: what each is, its paper, options, what lasts from round to round."""
    console = Console()
    for name, kind in fl.METHODS.items():
        table = Table(show_header=False, box=None, pad_edge=False)
        console.print(f"{name}: {_first_line(kind)}", style="bold", highlight=False)
        table.add_row("  paper", kind.paper)
        table.add_row("  keeps", kind.keeps or "nothing")
        table.add_row("  options", f"{_options_of(kind)}, --loss {describe(kind())['loss']}")
        for compat, faults in kind.faults.items():
            table.add_row(f"  --compat {compat}", faults)
        console.print(table, highlight=False)
    for part, kinds in PARTS.items():
        console.print(f"--{part.replace('_', '-')}", style="bold", highlight=False)
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, kind in kinds.items():
            table.add_row(f"  {name}", f"{_first_line(kind)} {_options_of(kind)}")
        console.print(table, highlight=False)


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _options_of(kind: type[Any]) -> str:
    options = {f.name: f.default for f in settings_of(kind) if f.default != ""}
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())


@app.command()
def info() -> None:
    """Shows what this installation was built with and runs on."""
    table = Table(show_header=False)
    for key, value in fedkern.build_info().items():
        table.add_row(str(key), str(value))
    Console().print(table)


def main() -> None:
    """The console script. Like every error here, a bad option is one line and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        message = getattr(error, "format_message", None)  # typer's own errors have one
        if message is None:
            raise
        if message():  # not so where the help has been shown instead
            typer.echo(f"fedkern: {message()}", err=True)
        status = getattr(error, "exit_code", 2)
    sys.exit(status)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turns what a user did wrong into one line and exit status 2, Ctrl-C into 130."""
    try:
        yield
    except fl.ConfigError as error:
        typer.echo(f"fedkern: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("fedkern: interrupted", err=True)
        raise typer.Exit(130) from error


def _run_experiment(
    methods: list[str], seeds: int, out: Path | None, overwrite: bool, settings: dict[str, Any]
) -> None:
    """Runs every method under every seed. Nothing is written before everything is checked."""
    experiment = Experiment.prepare(methods, seeds, settings)
    if out is None:
        names = map(file_name, experiment.methods)
        title = "-".join([Path(experiment.config.dataset).stem, *names])
        out = Path("runs") / f"{title}-{datetime.now():%Y%m%d-%H%M%S}"
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has room for a table of many methods
    with RunFolder(out, overwrite=overwrite) as folder:
        _, status, exit_code = experiment.run(folder, console)
    typer.echo(f"fedkern: {status}; results are in {out}", err=exit_code != 0)
    for picture in ("curves.png", "simplex.png"):
        if (out / picture).exists():
            typer.echo(f"{Path(picture).stem}: {out / picture}")
    if exit_code:
        raise typer.Exit(exit_code)
