"""The machine that results are made on."""

import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name and the vector units that torch uses of it, on which last digits may depend."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {torch.backends.cpu.get_cpu_capability()}"


def adds_in_32_bits() -> bool:
    """Whether the processor adds products of 8 bits in 32 bits, as far as the system tells: VNNI, or ARM."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return platform.machine() in {"arm64", "aarch64"} or bool(flags & {"avx512_vnni", "avx_vnni"})
