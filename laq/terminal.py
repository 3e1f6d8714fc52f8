"""The command line's looks: help in groups, errors in one line, Markdown as tables; types of options."""

import inspect
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import click

from laq.errors import LaqError
from laq.quantization.methods.registry import METHODS, check_name
from laq.quantization.options import Option
from laq.sections.study import check_bits

GROUPS: Final = {
    "Pipeline": "each command is a stage of dvc.yaml; `dvc repro` runs all that is stale",
    "Use": "what needs no more than your pictures and a network",
    "Share": "what others see, and whether it is true",
}
_INTERRUPTED: Final = 130  # the exit code of what Ctrl-C ends


class Command(click.Command):
    """A command that says what it reads and writes, and gives an example."""

    def __init__(self, *args: Any, group: str, reads: str, writes: str, example: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.group = group
        self.example = example
        self.about = {"Reads": reads, "Writes": writes, "Example": example}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's own)
        """Write what it reads, what it writes, and the example."""
        formatter.write_paragraph()
        formatter.write_dl([(f"{name}:", text) for name, text in self.about.items()])


class Commands(click.Group):
    """Lists commands in groups; tells bad input in one line and exits with code 2."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's own)
        """Write the commands of each group with their first sentences, and an example."""
        commands = [command for command in self.commands.values() if isinstance(command, Command)]
        width = max(len(str(command.name)) for command in commands)
        first = {command: inspect.cleandoc(command.help or "").partition("\n\n")[0] for command in commands}
        for group, about in GROUPS.items():
            own = [command for command in commands if command.group == group]
            with formatter.section(f"{group}: {about}"):
                formatter.write_dl([(f"{c.name:<{width}}", " ".join(first[c].split())) for c in own])
                formatter.write_text(f"For example: {own[-1].example}")

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Read the options before the command; one that is wrong is told in a line."""
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise  # the help is what is told
        except click.UsageError as error:
            _show_usage(error, str(info_name))
            raise click.exceptions.Exit(2) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what stops it is told in a line."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _show_usage(error, f"{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip())
            ctx.exit(2)
        except LaqError as error:
            for line in str(error).splitlines():
                click.echo(f"laq: {line}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            _end_workers()
            click.echo("\nlaq: interrupted; what is finished is kept, and the same command goes on", err=True)
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            raise  # click's own business: `laq … | head`
        except OSError as error:
            # A full disk, a folder that may not be written: the file and the reason say it all.
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"laq: {where}{error.strerror or error}", err=True)
            ctx.exit(2)


def _show_usage(error: click.UsageError, command: str) -> None:
    reason = error.format_message().removeprefix("Invalid value for ").rstrip(".")
    click.echo(f"laq: {reason}; `{command} --help` says what is allowed", err=True)


def _end_workers() -> None:
    """End joblib's processes now: those that Python ends at its exit leave warnings of leaked semaphores."""
    if loky := sys.modules.get("joblib.externals.loky.reusable_executor"):
        executor = getattr(loky, "_executor", None)
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)


def show_markdown(text: str) -> None:
    """Print Markdown: as it is, or drawn where standard output is a terminal."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console  # noqa: PLC0415 (which `--help` need not import)
    from rich.markdown import Markdown  # noqa: PLC0415

    Console(no_color="NO_COLOR" in os.environ).print(Markdown(text))


def show_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows: tabs between their cells, or a table where standard output is a terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415 (which `--help` need not import)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*titles, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(no_color="NO_COLOR" in os.environ).print(table)


class BitsType(click.ParamType["int | str"]):
    """What study.bits in params.yaml may hold."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """What the option holds, or an error that says what it may."""
        try:
            return check_bits(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class MethodType(click.ParamType["str"]):
    """A method of the registry."""

    name = "method"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 (click's own)
        """The methods, as the help shows them."""
        return f"[{'|'.join(METHODS)}][-tuned|-tuned-all]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """What the option holds, or an error that says what it may."""
        try:
            return check_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NumberType(click.ParamType["float | None"]):
    """A number that an option of the house allows, or an empty text for none.

    An entry point of MLflow can leave nothing out.
    """

    name = "number"

    def __init__(self, option: Option) -> None:
        self._option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """What the option holds, or an error that says what it may."""
        if value == "":
            return None
        for kind in (int, float):
            with suppress(ValueError):
                value = kind(value)
                break
        try:
            kept: float = self._option(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return kept
