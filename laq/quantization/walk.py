"""The greedy walk along a layer's columns that all of GPFQ, GPTQ and Qronos come down to.

For every neuron and t = 1 ... d, with what the weights before t left behind::

    z_t = (Σ_{s<t} (w_s G_st - q_s H_st) + w_t G_tt) / H_tt;   q_t = round(z_t)

The methods differ in the matrices G and H, in w, and in how z_t is rounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.quantization.alphabet import Alphabet
from laq.quantization.pool import Pool

BLOCK: Final = 64  # columns walked at a time in the covariance form
ROWS: Final = 16  # neurons that a thread takes: the same for any number of threads
_KINDS: Final = ("nearest", "stochastic", "hard", "soft")
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """How a target z becomes a level, z being in steps of the alphabet.

    - ``nearest``;
    - ``stochastic``: the level below or above, the likelier the nearer (Zhang and Saab 2023); ``noise``
      (G, N, d) holds numbers drawn from [0, 1);
    - ``hard``: 0 if |z| ≤ λ, else the nearest (Zhang, Zhou and Saab 2023, L0); λ is ``threshold``;
    - ``soft``: the nearest to sign(z) max(|z| - λ, 0) (the same, L1).
    """

    kind: Literal["nearest", "stochastic", "hard", "soft"] = "nearest"
    threshold: float = 0.0
    noise: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """Weights ``W`` (G, N, d), the levels that they may take (steps (G, N, 1)) and how to round."""

    W: Tensor
    alphabet: Alphabet
    rounding: Rounding = Rounding()

    def part(self, groups: slice, neurons: slice, columns: slice) -> "Problem":
        """Some of the weights."""
        noise = self.rounding.noise
        return Problem(
            self.W[groups, neurons, columns],
            self.alphabet.with_step(self.alphabet.step[groups, neurons]),
            self.rounding if noise is None else replace(self.rounding, noise=noise[groups, neurons, columns]),
        )

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Groups and neurons, about ``ROWS`` neurons at a time."""
        groups, neurons, _ = self.W.shape
        step = max(1, ROWS // neurons)
        for g in range(0, groups, step):
            for n in range(0, neurons, ROWS):
                yield slice(g, g + step), slice(n, n + ROWS)


def walk(problem: Problem, G: Tensor, H: Tensor, pool: Pool, A: Tensor | None = None) -> Tensor:
    """The codes (G, N, d), int32; G and H are (G, d, d) and A (G, N, d), what is added to z_t H_tt."""
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        at_start = None if A is None else A[g, n]
        codes[g, n] = _walk_rows(problem.part(g, n, slice(None)), G[g], H[g], at_start)

    for _ in pool.map(fill, problem.slices()):
        pass
    return codes


def _walk_rows(problem: Problem, G: Tensor, H: Tensor, A: Tensor | None) -> Tensor:
    """The codes of some neurons, block by block."""
    W = problem.W.double()
    Q = torch.empty_like(W)
    codes = torch.empty_like(W, dtype=torch.int32)
    for start in range(0, W.shape[2], BLOCK):
        b = slice(start, start + BLOCK)
        inner = W[..., :start] @ G[:, :start, b] - Q[..., :start] @ H[:, :start, b]
        if A is not None:
            inner += A[..., b]
        part = problem.part(slice(None), slice(None), b)
        codes[..., b] = _walk_block_of(part, inner, G[:, b, b], H[:, b, b])
        Q[..., b] = problem.alphabet.decode(codes[..., b])
    return codes


def _walk_block_of(problem: Problem, A: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The codes of one block of B columns: A is (G, N, B), G and H are (G, B, B), in float64."""
    if A.device.type != "cpu":
        return _walk_vectorized(problem, A.clone(), G, H)
    r, alphabet = problem.rounding, problem.alphabet
    noise = torch.empty(0, 0, 0) if r.noise is None else r.noise
    a, w, g, h, steps, u = (_array(t) for t in (A, problem.W, G, H, alphabet.step[..., 0], noise))
    levels = (steps, alphabet.low, alphabet.high, alphabet.offset)
    return torch.from_numpy(_walk_block(a, w, (g, h), levels, (_KINDS.index(r.kind), r.threshold, u)))


def _array(tensor: Tensor) -> _Floats:
    array: _Floats = tensor.detach().double().contiguous().numpy()
    return array


@numba.njit(nogil=True, cache=True)
def _walk_block(
    A: _Floats,
    W: _Floats,
    matrices: tuple[_Floats, _Floats],
    levels: tuple[_Floats, int, int, float],
    rounding: tuple[int, float, _Floats],
) -> NDArray[np.int32]:
    """``matrices`` are G and H, ``levels`` the alphabet, ``rounding`` the kind's number, λ and noise."""
    G, H = matrices
    steps, low, high, offset = levels
    kind, threshold, noise = rounding
    codes = np.empty(W.shape, np.int32)
    groups, neurons, columns = W.shape
    for g in range(groups):
        for n in range(neurons):
            inner, step = A[g, n].copy(), steps[g, n]
            for t in range(columns):
                w, energy = W[g, n, t], H[g, t, t]
                z = ((inner[t] + w * G[g, t, t]) / energy if energy > 0 else w) / step
                if kind >= 2 and abs(z) <= threshold:
                    z = 0.0
                elif kind == 3:
                    z -= np.copysign(threshold, z)
                z -= offset
                code = np.floor(z + noise[g, n, t]) if kind == 1 else np.rint(z)
                code = min(max(code, low), high)
                codes[g, n, t] = code
                q = (code + offset) * step
                for s in range(t + 1, columns):
                    inner[s] += w * G[g, t, s] - q * H[g, t, s]
    return codes


def _walk_vectorized(problem: Problem, inner: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The same in torch, all neurons at once: for devices other than the CPU."""
    W, alphabet = problem.W.double(), problem.alphabet
    step = alphabet.step[..., 0].double()
    codes = torch.empty_like(W)
    for t in range(W.shape[2]):
        w, energy = W[..., t], H[:, t, t, None]
        z = (
            torch.where(energy > 0, (inner[..., t] + w * G[:, t, t, None]) / energy.clamp(min=1e-300), w)
            / step
        )
        code = _round(z, problem.rounding, alphabet.offset, t).clamp(alphabet.low, alphabet.high)
        codes[..., t] = code
        q = (code + alphabet.offset) * step
        inner[..., t + 1 :] += w[..., None] * G[:, None, t, t + 1 :] - q[..., None] * H[:, None, t, t + 1 :]
    return codes.to(torch.int32)


def _round(z: Tensor, rounding: Rounding, offset: float, t: int) -> Tensor:
    if rounding.kind == "hard":
        z = torch.where(z.abs() <= rounding.threshold, 0, z)
    elif rounding.kind == "soft":
        z = z.sign() * (z.abs() - rounding.threshold).clamp(min=0)
    if rounding.noise is not None:
        return (z - offset + rounding.noise[..., t].to(z)).floor()
    return (z - offset).round()
