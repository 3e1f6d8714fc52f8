"""Sequential rounding of a block of columns on a GPU: one launch of a kernel of Triton.

A program takes some neurons of one group and goes over the block's columns with what lies ahead of them in
registers, while the block of H, 32 KiB of float64, stays in the processor's cache. Operations are those of
``sequential.py``'s compiled code in the same order, and products are not fused with sums: for the same
numbers the codes are the same.

Groups share nothing, so that several problems with as many weights are one launch: their groups stand side by
side, each with levels and a rounding rule of its own.

This module imports Triton; ``sequential.py`` imports it where a GPU is at work.
"""

from dataclasses import dataclass
from typing import Final, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from laq.quantization.alphabet import Alphabet
from laq.quantization.methods.problem import LayerProblem

_ROWS: Final = 16  # neurons of a program: not yet measured on a GPU
_WARPS: Final = 4  # of 32 threads, for a program: not yet measured on a GPU
# Of these only the types count: a variant for each network's sizes would take seconds to compile each.
_POINTERS: Final = ("H", "a", "v", "W", "noise", "steps", "levels", "codes", "E")
_SIZES: Final = (
    "neurons", "columns", "H_group", "H_row", "a_group", "a_row", "v_group", "v_row", "W_group", "W_row",
)  # fmt: skip


@dataclass(frozen=True)
class BlockRounding:
    """What tells the kernel how to round the weights of one or several problems, whose groups are G in all.

    Attributes:
        W: (G, N, d), where a column's energy is zero.
        noise: (G, N, d), or nothing: only stochastic rounding reads it.
        steps: (G, N), in the weights' type.
        levels: (G, 6) in float64: the lowest and the highest code and their offset; the size up to which
            targets become zero, and by how much others shrink; 1 where rounding is stochastic, else 0.
    """

    W: Tensor
    noise: Tensor
    steps: Tensor
    levels: Tensor

    @classmethod
    def of(cls, *problems: LayerProblem) -> Self:
        """Of problems with weights (G', N, d) each, all of the same shape and type."""
        W = torch.cat([problem.W for problem in problems])
        levels = torch.tensor([_levels(problem) for problem in problems], dtype=torch.float64)
        noise = W
        if any(problem.rule.noise is not None for problem in problems):
            noise = torch.cat([_noise(problem) for problem in problems])
        return cls(
            W,
            noise,
            torch.cat([problem.alphabet.step[..., 0] for problem in problems]).contiguous(),
            levels.repeat_interleave(len(W) // len(problems), 0).to(W.device),
        )

    def __call__(self, b: slice, H: Tensor, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of the columns ``b``, int32, and their levels less v, in float64: (G, N, B) each.

        H is (G, B, B), a and v are (G, N, B), all in float64; they may be parts of larger tensors.
        """
        # The kernel takes numbers of a row to lie side by side, which those of transposed weights do not.
        H, a, v = (t if t.stride(2) == 1 else t.contiguous() for t in (H, a, v))
        groups, neurons, columns = a.shape
        codes, E = torch.empty(a.shape, dtype=torch.int32, device=a.device), a.new_empty(a.shape)
        # Of several GPUs, Triton takes the current one.
        with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
            _round_columns[groups, triton.cdiv(neurons, _ROWS)](
                *(H, a, v, self.W[..., b], self.noise[..., b], self.steps, self.levels, codes, E),
                *(neurons, columns, *(t.stride(i) for t in (H, a, v, self.W) for i in (0, 1))),
                ROWS=_ROWS,
                BLOCK=triton.next_power_of_2(columns),
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )
        return codes, E


def try_on(device: torch.device) -> None:
    """Round one weight on a device; raises whatever keeps the kernel from it."""
    W = torch.ones(1, 1, 1, device=device)
    one = W.double()
    problem = LayerProblem(W, Alphabet(W, -1, 1))
    BlockRounding.of(problem)(slice(0, 1), one, one, torch.zeros_like(one))
    torch.cuda.synchronize(device)


def _levels(problem: LayerProblem) -> tuple[float, ...]:
    alphabet, rule = problem.alphabet, problem.rule
    zero = rule.threshold if rule.kind in {"hard", "soft"} else -1.0
    shrunk = rule.threshold if rule.kind == "soft" else 0.0
    return alphabet.low, alphabet.high, alphabet.offset, zero, shrunk, rule.kind == "stochastic"


def _noise(problem: LayerProblem) -> Tensor:
    noise = problem.rule.noise
    return torch.zeros_like(problem.W, dtype=torch.float64) if noise is None else noise.double()


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_POINTERS)  # type: ignore[untyped-decorator]
def _round_columns(  # noqa: PLR0913, PLR0917 (a kernel takes numbers and pointers)
    H: tl.tensor, a: tl.tensor, v: tl.tensor, W: tl.tensor, noise: tl.tensor, steps: tl.tensor,
    levels: tl.tensor, codes: tl.tensor, E: tl.tensor, neurons: int, columns: int,
    H_group: int, H_row: int, a_group: int, a_row: int, v_group: int, v_row: int,
    W_group: int, W_row: int, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Some neurons of a group: at each column their codes, and what the errors leave to all columns ahead."""
    g = tl.program_id(0).to(tl.int64)
    n, s = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, BLOCK)
    known, within = n < neurons, s < columns
    H += g * H_group
    v, at, out = v + g * v_group + n * v_row, g * W_group + n * W_row, (g * neurons + n) * columns
    ahead = tl.load(a + g * a_group + n[:, None] * a_row + s[None, :], known[:, None] & within[None, :], 0.0)
    levels += 6 * g
    low, high, offset = tl.load(levels), tl.load(levels + 1), tl.load(levels + 2)
    zero, shrunk, stochastic = tl.load(levels + 3), tl.load(levels + 4), tl.load(levels + 5)
    own = tl.load(steps + g * neurons + n, known, 1.0)
    # Compiled code does the same where a step is zero: to any network, levels of this size are zero.
    step = tl.where(own == 0, 1e-300, own.to(tl.float64))
    for t in range(columns):
        now = tl.load(v + t, known, 0.0)
        energy = tl.load(H + t * H_row + t)
        z = now + tl.sum(tl.where((s == t)[None, :], ahead, 0.0), 1) / tl.where(energy > 0, energy, 1.0)
        z = tl.where(energy > 0, z, tl.load(W + at + t, known, 0.0).to(tl.float64)) / step
        z = tl.where(tl.abs(z) <= zero, 0.0, z - tl.where(z < 0, -shrunk, shrunk)) - offset
        if stochastic > 0:
            z = tl.floor(z + tl.load(noise + at + t, known, 0.0).to(tl.float64))
        # Among numbers of this size the next one is 1 away, and ties go to the even one.
        code = tl.minimum(tl.maximum(z, low), high) + 6755399441055744.0 - 6755399441055744.0
        level = (code.to(own.dtype) + offset.to(own.dtype)) * own
        tl.store(codes + out + t, code.to(tl.int32), known)
        tl.store(E + out + t, level.to(tl.float64) - now, known)
        error = (code + offset) * step - now
        ahead -= error[:, None] * tl.load(H + t * H_row + s, within, 0.0)[None, :]
