"""A hook of MkDocs: the page of commands tells what each reads and writes, as `--help` does."""

import inspect
from typing import Any

from laq.cli import main
from laq.terminal import Command


def on_config(config: Any) -> Any:
    """Let the texts that mkdocs-click shows end with what each command reads and writes."""
    for command in main.commands.values():
        if isinstance(command, Command):
            about = "\n".join(f"- {name}: {_shown(name, text)}" for name, text in command.about.items())
            command.help = f"{inspect.cleandoc(command.help or '')}\n\n{about}\n"
    return config


def _shown(name: str, text: str) -> str:
    return f"`{text}`" if name == "Example" else text
