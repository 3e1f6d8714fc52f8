"""A function applied to many items by joblib: in processes of this machine, or by a Dask cluster's workers.

Each item is computed by one thread, so its result does not depend on where that was.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from laq.cache import remove_unfinished
from laq.errors import LaqError
from laq.files import project_root

# What the disk has said to one piece of work it says to all.
_OF_THE_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}
# Seconds without work after which a process ends, also one whose parent was killed. For joblib's five minutes
# it would hold its memory.
_IDLE: Final = 10
_ANSWERS_WITHIN: Final = 10.0  # seconds, or no scheduler is there
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workers:
    """Where the work is done: in ``jobs`` processes here, or on the workers of a Dask scheduler.

    A Dask scheduler's workers must see the project's folder under the same path (a shared file system) and
    have the same packages.
    """

    jobs: int = 1
    scheduler: str = ""


def workers(jobs: int | None, scheduler: str) -> Workers:
    """The workers of the options ``--jobs`` and ``--scheduler``; by default a process for every core."""
    return Workers(jobs or joblib.cpu_count(), scheduler)


@dataclass(frozen=True)
class Outcome(Generic[_Item, _Result]):
    """The outcome of a piece of work: its result, or else why there is none."""

    item: _Item
    result: _Result | None
    failure: str = ""


def run_all(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: Workers
) -> Iterator[Outcome[_Item, _Result]]:
    """Call ``function`` with each of ``items``, started in their order; yields outcomes as they come.

    An exception in one is its outcome, and stops none of the others.

    Raises:
        LaqError: there is no scheduler at the address, or a process here was killed.
        OSError: there is no room on the disk, or it may not be written.
    """
    if not items:
        return  # without processes or a scheduler, of which none is needed
    with _backend(workers, len(items)) as jobs:
        attempt = partial(_attempt, function, Path.cwd(), project_root())
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        try:
            for place, result, failure in parallel(
                joblib.delayed(attempt)(*numbered) for numbered in enumerate(items)
            ):
                yield Outcome(items[place], result, failure)
        except TimeoutError as error:
            raise LaqError(f"--scheduler {workers.scheduler}: it has no workers ({error})") from error
        except TerminatedWorkerError as error:
            raise LaqError(
                "a process that worked was killed, perhaps for lack of memory; what is finished is kept: "
                f"run it again, with fewer --jobs than {workers.jobs} if there is too little memory"
            ) from error
        finally:
            remove_unfinished()  # by the processes that joblib kills when one of them has raised something


@contextmanager
def _backend(workers: Workers, items: int) -> Iterator[int]:
    """Set where joblib sends the work; yields the number of processes."""
    if not workers.scheduler:
        with (
            joblib.parallel_config("loky", inner_max_num_threads=1, idle_worker_timeout=_IDLE),
            warnings.catch_warnings(),
        ):
            # One that has ended after idle seconds is started again.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            yield min(workers.jobs, items)
        return
    with _client(workers.scheduler) as client, joblib.parallel_config("dask", client=client):
        yield -1


@contextmanager
def _client(address: str) -> Iterator[object]:
    try:
        from distributed import Client  # noqa: PLC0415 (optional, and slow to import)
    except ImportError as error:
        raise LaqError(
            f"--scheduler {address} needs the package distributed: pip install 'laq[dask]'"
        ) from error
    try:
        client = Client(address, timeout=_ANSWERS_WITHIN)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise LaqError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
    with client:
        yield client


def _attempt(
    function: Callable[[_Item], _Result], folder: Path, root: Path, place: int, item: _Item
) -> tuple[int, _Result | None, str]:
    """Compute one item in the caller's folder, on one thread; returns its place, result and failure."""
    threads = torch.get_num_threads()
    os.chdir(folder)
    if project_root() != root:
        os.environ["DVC_ROOT"] = str(root)
    try:
        torch.set_num_threads(1)
        return place, function(item), ""
    except LaqError as error:
        return place, None, str(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        # Whatever else it is, it is the outcome, and the others go on.
        return place, None, f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
