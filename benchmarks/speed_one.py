"""Takes one measurement of the speed benchmark; `speed.py` starts it in a process of its own."""

import ctypes
import gc
import importlib
import json
import os
import platform
import resource
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import click
import torch
from speed_cases import load, probe
from speed_contender import Contender, Outcome
from speed_plan import OURS, Job
from speed_quality import quality
from torch import Tensor, nn

from laq.files import write_json
from laq.git import commit
from laq.imports import code_digest

_MIB: Final = 2**20
_GEMM_SIDE: Final = 2048
_PACKAGES: Final = ("torch", "torchvision", "numba", "numpy", "brevitas")


@click.command()
@click.argument("job")
@click.argument("out", type=click.Path(path_type=Path))
def main(job: str, out: Path) -> None:
    """Measure JOB (JSON) and write the record to OUT."""
    write_json(out, measure(Job(**json.loads(job))))


def measure(job: Job) -> dict[str, Any]:
    """The record of a job."""
    network, images = (t.to(job.device) for t in load(job.case, job.images))
    family, _, method = job.contender.partition("-")
    contender: Contender = importlib.import_module(f"speed_{family}").contender(method)
    # Import and compile before the clock starts. The others' time hardly depends on the network, so that a
    # small one is enough; the engine compiles for the layers it meets, so that it meets those of the case.
    contender(probe(images.shape[-1]).to(job.device), images[:2], job.bits)
    if job.contender in OURS:
        contender(network, images[:2], job.bits)
    figures, outcome = timed(contender, job, network, images)
    found = quality(network, outcome.weights(), images)
    found.check(network, job.bits)
    return {
        **vars(job),
        **figures,
        **asdict(found),
        "solver_seconds": outcome.solver_seconds,
        "solver_flops": outcome.solver_flops,
        "gemm_flops": gemm_flops(job.device) if job.contender in OURS else None,
        **commit(),
        "code": code_digest("laq.quantization"),
        "versions": versions(),
        "machine": machine(job.device),
    }


def timed(
    contender: Contender, job: Job, network: nn.Module, images: Tensor
) -> tuple[dict[str, float], Outcome]:
    """Time, memory and outcome of the quantization, and how many cores other processes kept busy."""
    before = forget_peak(job.device)
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    outcome = contender(network, images, job.bits)
    synchronize(job.device)
    seconds, own = time.perf_counter() - start, time.process_time() - own
    others = max(0.0, busy_seconds() - busy - own) / seconds
    after = peak(job.device)
    memory = {"before_mib": before, "peak_mib": after, "rise_mib": after - before}
    return {"seconds": seconds, "cpu_seconds": own, "others_cores": others, **memory}, outcome


def busy_seconds() -> float:
    """Seconds that all cores together were busy with any process, or taken by the host (on Linux)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields)
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def forget_peak(device: str) -> float:
    """Reset the peak of memory (on Linux); returns the memory in use, in MiB."""
    gc.collect()
    if device != "cpu":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / _MIB
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still held would hide later allocations
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / _MIB


def peak(device: str) -> float:
    """The peak of memory since ``forget_peak``, in MiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / _MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def gemm_flops(device: str) -> float:
    """Operations per second of a float32 matrix product: the best of 5 runs after one to warm up."""
    a, b = (torch.rand(_GEMM_SIDE, _GEMM_SIDE, device=device) for _ in range(2))
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * _GEMM_SIDE**3 / min(seconds[1:])


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, Any]:
    """The processor, the cores and threads to use, the memory, and the accelerator if there is one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * resource.getpagesize() / 2**30),
        "gpu": None if device == "cpu" else torch.cuda.get_device_name(device),
    }


if __name__ == "__main__":
    main()
