"""The empty environment in which `mlflow run` starts a project's commands: `python -m laq.environment`.

For a project without an environment of its own MLflow makes one that holds nothing, by pyenv, and fails
where there is no pyenv. Made before, by venv, it is taken as it is. The commands themselves run in the
environment that `laq` is installed in, since nothing of theirs is found in the empty one.
"""

import venv
from pathlib import Path

from mlflow.environment_variables import MLFLOW_ENV_ROOT
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.virtualenv import _get_virtualenv_name


def empty_environment() -> Path:
    """Make the environment unless it is there; returns its folder."""
    name: str = _get_virtualenv_name(_PythonEnv(), Path())  # type: ignore[no-untyped-call]
    root: str = MLFLOW_ENV_ROOT.get()  # type: ignore[no-untyped-call]
    folder = Path(root) / name
    if not folder.exists():
        venv.create(folder, with_pip=True)
    return folder


if __name__ == "__main__":
    empty_environment()
