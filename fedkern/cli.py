"""The command line: ``fedkern run``, ``compare``, ``methods`` and ``info``."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

import fedkern
from fedkern import fl
from fedkern.fl import config_file
from fedkern.fl.experiment import Experiment
from fedkern.fl.methods import PARTS, describe, settings_of
from fedkern.fl.ranks import Ranks, joined_ranks
from fedkern.fl.report import CHECKPOINTS, RunFolder, file_name

app = typer.Typer(
    name="fedkern",
    help="Federated learning with fused kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Command = TypeVar("Command", bound=Callable[..., None])

# Options of run and compare that are no `setting`.
_COMMON: dict[str, tuple[type[Any], str]] = {
    "config": (Path, "TOML file of options (rounds = 100); those given here go before its own"),
    "seeds": (int, "how many seeds, from --seed upwards (default: run 1, compare 3)"),
    "out": (Path, "folder of the results (default runs/DATASET-METHODS-TIME)"),
    "overwrite": (bool, "replace a run that lies there"),
    "resume": (Path, "folder of a run to go on with, with its own options; --rounds may be more"),
}
_PART_HELP = {
    "loss": "what clients minimise, by default the method's own",
    "aggregation": "how the server combines the clients' models, by default mean",
    "server_optimizer": "what the server does with the clients' mean, by default avg",
}


def _with_settings(command: Command) -> Command:
    """Gives a command the common options and one for every `setting` of run, methods and parts.

    It gets them as **settings, None for those not given. The settings are the only place that
    names and describes theirs.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

    def add(name: str, kind: Any, help: str) -> None:
        annotation = Annotated[kind | None, typer.Option(help=help)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))

    for name, (kind, help) in _COMMON.items():
        add(name, kind, help)
    for name, (field, kind) in config_file.setting_fields().items():
        default = (
            "" if kind is bool or field.default in (None, "") else f" (default {field.default})"
        )
        add(name, kind, field.metadata["help"] + default)
    for part, kinds in PARTS.items():
        add(part, str, f"{_PART_HELP[part]}: {', '.join(kinds)}")
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@app.command()
@_with_settings
def run(
    method: Annotated[
        str | None, typer.Option(help=f"one of {', '.join(fl.METHODS)} (default fedga)")
    ] = None,
    **settings: Any,
) -> None:
    """Runs one method, or what a file says: DIR/config.toml of an earlier run repeats it.

    The defaults shown are those of digits; other data sets have their own.
    """
    settings["methods"] = None if method is None else [method]
    with _user_errors():
        _run_experiment({"methods": ["fedga"], "seeds": 1}, settings)


@app.command()
@_with_settings
def compare(
    methods: Annotated[
        list[str] | None, typer.Argument(help=f"from {', '.join(fl.METHODS)}")
    ] = None,
    **settings: Any,
) -> None:
    """Runs several methods on the same partitions, initial models, sampled clients and batches.

    A method may have options of its own: 'floco --loss calibrated_ce'.
    """
    settings["methods"] = methods or None
    with _user_errors():
        _run_experiment({"methods": [], "seeds": 3}, settings)


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
    except (fl.RunError, OSError) as error:  # of another rank than the first; of files
        typer.echo(f"fedkern: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("fedkern: interrupted", err=True)
        raise typer.Exit(130) from error


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that what is open is closed and a checkpoint written."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_experiment(defaults: dict[str, Any], given: dict[str, Any]) -> None:
    """Runs every method under every seed. Nothing is written before everything is checked.

    Settings are those `given` on the command line, then those of its file, then the `defaults`.
    """
    file, resumed = given["config"], given.pop("resume")
    if resumed is not None:
        for name in ("config", "out", "overwrite"):
            if value := given[name]:
                got = value if value is True else repr(str(value))
                raise fl.ConfigError(f"{name}: wanted nothing with --resume, got {got}")
        file = resumed / "config.toml"
        if not file.is_file():
            raise fl.ConfigError(f"resume: wanted a folder with a config.toml, got {resumed}")
    del given["config"]
    before = config_file.read(file) if file else {}
    settings = config_file.merge(defaults, before, given)
    out, overwrite = resumed or settings.pop("out", None), settings.pop("overwrite", False)
    experiment = Experiment.prepare(settings.pop("methods"), settings.pop("seeds"), settings)
    with _sigterm_exits(), joined_ranks(experiment.config.torch_device()) as ranks:
        if ranks.rank > 0:
            experiment.assist(ranks)
            return
        if resumed is not None:
            experiment.check_resumable(resumed, before)
        if out is None:
            title = f"{Path(experiment.config.dataset).stem}-{file_name(*experiment.methods)}"
            out = f"runs/{title}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder(Path(out), overwrite=overwrite, resumed=resumed is not None)
        _report(experiment, folder, ranks)


def _report(experiment: Experiment, folder: RunFolder, ranks: Ranks) -> None:
    """Runs an experiment, and says how it has ended and where its results are."""
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has room for a table of many methods
    with folder:
        _, status, exit_code = experiment.run(folder, console, ranks)
    out = folder.path
    typer.echo(f"fedkern: {status}; results are in {out}", err=exit_code != 0)
    if exit_code and any((out / CHECKPOINTS).glob("*/*.checkpoint")):
        typer.echo(f"fedkern: `fedkern run --resume {out}` goes on with it", err=True)
    for picture in ("curves.png", "simplex.png"):
        if (out / picture).exists():
            typer.echo(f"{Path(picture).stem}: {out / picture}")
    if exit_code:
        raise typer.Exit(exit_code)
