"""The command line: ``fedkern run``, ``fedkern compare`` and ``fedkern info``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import torch
import typer
from rich.console import Console
from rich.table import Table

import fedkern
from fedkern import fl
from fedkern.fl.methods import check_options
from fedkern.fl.progress import Progress
from fedkern.fl.report import (
    Result,
    RunFolder,
    plot_clients,
    plot_curves,
    summarise,
    summary_table,
)

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


def _with_settings(command: Command) -> Command:
    """Gives a command an option for every field of `RunConfig` and of the methods, as **settings.

    The fields are the only place that names and describes the options.
    """
    options: dict[str, tuple[Field[Any], Any]] = {}
    owners: list[Any] = [fl.RunConfig, *fl.METHODS.values()]
    for owner in owners:
        hints = get_type_hints(owner)
        options.update({field.name: (field, hints[field.name]) for field in fields(owner)})
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name, (field, kind) in options.items():
        flags = (f"--{name.replace('_', '-')}",)  # spelled out: no --no-download
        default = "" if field.default is None or kind is bool else f" (default {field.default})"
        option = typer.Option(*flags, help=field.metadata["help"] + default)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
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
        _experiment([method], seeds, out, overwrite, settings)


@app.command()
@_with_settings
def compare(
    methods: Annotated[list[str], typer.Argument(help=f"from {', '.join(fl.METHODS)}")],
    seeds: Seeds = 3,
    out: Out = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Runs several methods on the same partitions, initial models, sampled clients and batches."""
    with _user_errors():
        _experiment(methods, seeds, out, overwrite, settings)


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


def _experiment(
    names: list[str], seeds: int, out: Path | None, overwrite: bool, settings: dict[str, Any]
) -> None:
    """Runs every method under every seed. Nothing is written before everything is checked."""
    own = {field.name for field in fields(fl.RunConfig)}
    options = {key: value for key, value in settings.items() if key not in own}
    if len(set(names)) < len(names):
        raise fl.ConfigError(f"methods: wanted each method once, got {' '.join(names)}")
    if seeds < 1:
        raise fl.ConfigError(f"seeds: wanted an integer >= 1, got {seeds}")
    methods = {name: fl.build_method(name, **options) for name in names}
    check_options(names, **options)
    config = fl.RunConfig.for_dataset(
        **{key: value for key, value in settings.items() if key in own and value is not None}
    )
    if out is None:
        title = "-".join([Path(config.dataset).stem, *names])
        out = Path("runs") / f"{title}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(out, overwrite=overwrite)

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits on CUDA too
    dataset = fl.load_dataset(config.dataset, config.data_root, download=config.download)
    partitions = {
        seed: fl.make_partition(
            config.partition, dataset.y_train, config.clients, alpha=config.alpha, seed=seed
        )
        for seed in range(config.seed, config.seed + seeds)
    }
    fl.build_model(config.model, dataset, fl.generator(config.seed, "model"))  # does it fit?

    with folder:
        exit_code = _carry_out(folder, config, methods, dataset, partitions)
    if exit_code:
        raise typer.Exit(exit_code)


def _carry_out(
    folder: RunFolder,
    config: fl.RunConfig,
    methods: dict[str, fl.Method],
    dataset: fl.Dataset,
    partitions: dict[int, fl.Partition],
) -> int:
    """Writes, simulates, reports; the exit status. A run that stops early is reported as it is."""
    folder.write_json(
        "config.json",
        {
            "methods": {name: vars(method) for name, method in methods.items()},
            "seeds": list(partitions),
            **vars(config),
            "threads": torch.get_num_threads(),
            "device": str(config.torch_device()),
            "build": {key: str(value) for key, value in fedkern.build_info().items()},
        },
    )
    label_counts = partitions[config.seed].label_counts(dataset.y_train, dataset.num_classes)
    plot_clients(label_counts, folder.path / "clients.png")
    console = Console()
    for seed, partition in partitions.items():
        line = f"seed {seed}: {partition.discarded} of {len(dataset.y_train)} training samples "
        line += f"discarded, clients without data: {len(partition.clients_without_data)}"
        console.print(line, highlight=False)

    results: list[Result] = []
    status, exit_code = "complete", 0
    try:
        _simulate_all(folder, config, methods, dataset, partitions, results, console)
    except KeyboardInterrupt:
        status, exit_code = "interrupted", 130
    except fl.NonFiniteModelError as error:
        status, exit_code = str(error), 1

    results = [result for result in results if result.rounds]
    folder.write_json("summary.json", summarise(results, partitions, status))
    if results:
        plot_curves(results, folder.path / "curves.png")
        console.print(summary_table(results))
    typer.echo(f"fedkern: {status}; results are in {folder.path}", err=exit_code != 0)
    if results:
        typer.echo(f"curves: {folder.path / 'curves.png'}")
    return exit_code


def _simulate_all(
    folder: RunFolder,
    config: fl.RunConfig,
    methods: dict[str, fl.Method],
    dataset: fl.Dataset,
    partitions: dict[int, fl.Partition],
    results: list[Result],
    console: Console,
) -> None:
    """Fills `results` and the folder's history; what is there when it is interrupted, stays."""
    device = config.torch_device()
    on_device = dataset.to(device)
    with Progress(console, len(partitions) * len(methods) * config.rounds) as progress:
        for seed, partition in partitions.items():
            seeded = replace(config, seed=seed)
            for name, method in methods.items():
                result = Result(name, seed)
                results.append(result)
                model = fl.build_model(config.model, dataset, fl.generator(seed, "model"))
                rounds = fl.simulate(method, model.to(device), on_device, partition, seeded)
                for round in rounds:
                    result.rounds.append(round)
                    folder.add(name, seed, round)
                    progress.show(f"{name} seed {seed}", round, config.rounds)
