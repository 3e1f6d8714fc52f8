"""ONNX files in onnxruntime, which need not be installed for anything else."""

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laq.errors import LaqError
from laq.files import need

REMEDY: Final = "give a whole file that `laq export` wrote"
_OLDEST: Final = (1, 20)  # that computes in the integers of such files
_INSTALL: Final = "`pip install 'laq[onnx]'`"
_FATAL: Final = 4  # of the runtime's own log, which would repeat what errors say
_LONGEST: Final = 120  # characters of the runtime's reason


def open_file(path: Path, threads: int = 1) -> Any:
    """The file in a session of onnxruntime on the CPU.

    Raises:
        LaqError: onnxruntime is missing or too old, or the file is missing, damaged or none that it can run.
    """
    runtime = find_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, _FATAL
    # Threads that go on spinning after a run would slow the next one, of another session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = need(path, REMEDY).read_bytes()
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no class in common
        reason = " ".join(str(error).split()).rpartition(" : ")[2].rstrip(".")
        raise LaqError(
            f"{path}: onnxruntime {runtime.__version__} cannot read it ({reason:.{_LONGEST}}); {REMEDY}"
        ) from error


def logits(session: Any, images: NDArray[Any]) -> NDArray[np.float32]:
    """What a file of one input and one output says of images (n, …), float32 (n, classes)."""
    outputs: NDArray[np.float32]
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
    return outputs


def find_runtime() -> Any:
    """The package onnxruntime.

    Raises:
        LaqError: it is missing or too old.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise LaqError(f"ONNX files are run by onnxruntime, which is not installed: {_INSTALL}") from error
    version = tuple(int(part) for part in runtime.__version__.split(".")[:2])
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise LaqError(
            f"onnxruntime: found version {runtime.__version__}; must be {oldest} or later: {_INSTALL}"
        )
    return runtime
