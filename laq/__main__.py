"""The command ``laq``; ``python -m laq``, which the pipeline's stages call, runs the code beside them."""

import os
import sys


def main() -> None:
    """Run the command line; a package that `pip install laq` alone does not bring is told in a line."""
    # MLflow would tell its makers of its use, and changes the environment of a running program for that.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Small tables, whose bars of progress would fill the terminal.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from laq.cli import main as commands  # noqa: PLC0415 (which imports click)

        commands()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "laq":
            raise
        install = "`pip install 'laq[pipeline]'` brings what the commands need"
        sys.stderr.write(f"laq: {package} is not installed; {install}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
