"""The same work wherever it is done: in this process, in others here, on a Dask cluster; and what goes wrong."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from laq.errors import LaqError
from laq.parallel import Workers, run_all


def halve(number: int) -> float:
    if number == 3:
        raise LaqError("three is odd")
    return 2 / number


def where(_: int) -> tuple[int, str, int]:
    return os.getpid(), str(Path.cwd()), torch.get_num_threads()


def slow(folder: Path, number: int) -> int:
    """Leave a mark when it begins, and take long enough to be killed."""
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(1)
    return number


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [Workers(), Workers(jobs=2)])
def test_what_fails_is_told_and_stops_nothing_else(workers: Workers) -> None:
    done = {d.item: d for d in run_all(halve, [1, 2, 3, 0, 4], workers)}
    assert {item: d.result for item, d in done.items()} == {1: 2, 2: 1, 3: None, 0: None, 4: 0.5}
    assert done[3].failure == "three is odd"
    assert done[0].failure == "ZeroDivisionError: division by zero"
    assert not done[4].failure


@pytest.mark.usefixtures("two_threads")
def test_work_is_done_where_the_caller_stands_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    here = next(iter(run_all(where, [0], Workers()))).result
    assert here == (os.getpid(), str(tmp_path), 1)
    assert torch.get_num_threads() == threads
    there = [d.result for d in run_all(where, [0, 1], Workers(jobs=2))]
    assert {(folder, used) for _, folder, used in filter(None, there)} == {(str(tmp_path), 1)}
    assert os.getpid() not in {process for process, _, _ in filter(None, there)}


def test_a_killed_process_is_told_in_a_line() -> None:
    with pytest.raises(
        LaqError, match="a process that worked was killed, .* with fewer --jobs than 2"
    ) as caught:
        list(run_all(killed, [1, 2, 3], Workers(jobs=2)))
    assert "\n" not in str(caught.value)


def test_no_scheduler_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laq.parallel._ANSWERS_WITHIN", 0.5)
    with pytest.raises(LaqError, match="--scheduler tcp://127.0.0.1:9: no Dask scheduler answers") as caught:
        list(run_all(halve, [1], Workers(scheduler="tcp://127.0.0.1:9")))
    assert "\n" not in str(caught.value)


def test_two_workers_of_a_cluster_do_the_same(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = {d.item: d for d in run_all(halve, [1, 2, 3, 4], Workers(scheduler=cluster))}
    assert {item: d.result for item, d in done.items()} == {1: 2, 2: 1, 3: None, 4: 0.5}
    assert done[3].failure == "three is odd"
    places = [d.result for d in run_all(where, range(6), Workers(scheduler=cluster))]
    assert {(folder, used) for _, folder, used in filter(None, places)} == {(str(tmp_path), 1)}


def test_a_worker_killed_in_the_middle_loses_nothing(cluster: str, tmp_path: Path) -> None:
    """The last test of the cluster, which has one worker less afterwards."""
    results, victim = [], 0
    for done in run_all(partial(slow, tmp_path), range(8), Workers(scheduler=cluster)):
        results.append(done.result)
        marks = sorted(tmp_path.iterdir(), key=lambda mark: mark.stat().st_mtime)
        begun = [mark.name.split("-") for mark in marks]
        working = [int(process) for number, process in begun if int(number) not in results]
        if not victim and working:
            victim = working[-1]  # at what began last
            os.kill(victim, signal.SIGKILL)
    assert victim
    assert sorted(result for result in results if result is not None) == list(range(8))
    assert len(list(tmp_path.iterdir())) > 8  # what the killed one had begun was begun anew
