"""The greedy walk along a layer's columns that all of GPFQ, GPTQ and Qronos come down to.

For every neuron and t = 1 ... d, with what the weights before t left behind::

    z_t = (A_t - Σ_{s<t} q_s H_st) / H_tt;   q_t = round(z_t)

The methods differ in A, which holds all that the weights w say, in the matrix H, and in how z_t is
rounded. Where A_t = Σ_{s≤t} w_s H_st, it need not be computed: z_t is w_t + Σ_{s<t} (w_s - q_s) H_st / H_tt.
Where H_tt is zero, z_t is w_t.
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
from laq.quantization.threads import Pool

_BLOCK: Final = 64  # columns that the compiled walk takes at a time
_WIDE: Final = 8 * _BLOCK  # columns that matrix products take at a time
_ROWS: Final = 128  # neurons that a thread takes at most
_KINDS: Final = ("nearest", "stochastic", "hard", "soft")
Floats = NDArray[np.float64]
Levels = tuple[Floats, int, int, float]
Rule = tuple[int, float, Floats]


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


def slices(W: Tensor, most: int) -> Iterator[tuple[slice, slice]]:
    """Groups and neurons of ``W`` (G, N, ...), up to ``most`` neurons at a time for any number of threads.

    The neurons of an only group are cut in two at least, for two threads. Other devices take all at once.
    """
    groups, neurons = W.shape[:2]
    if W.device.type != "cpu":
        yield slice(None), slice(None)
        return
    rows = min(most, neurons if groups > 1 else -(-neurons // 8) * 4)
    step = max(1, most // neurons)
    for g in range(0, groups, step):
        for n in range(0, neurons, rows):
            yield slice(g, g + step), slice(n, n + rows)


def targets(W: Tensor, G: Tensor, pool: Pool) -> Tensor:
    """A (G, N, d) of weights W (G, N, d): A_t = Σ_{s≤t} w_s G_st, G being (G, d, d) and of A's type."""
    W = W.to(G)
    A = torch.empty_like(W)

    def fill(start: int) -> None:
        b = slice(start, start + _WIDE)
        A[..., b] = W[..., b] @ G[:, b, b].triu() + W[..., :start] @ G[:, :start, b]

    pool.run(fill, range(0, W.shape[2], _WIDE))
    return A


def walk(problem: Problem, H: Tensor, pool: Pool, A: Tensor | None = None) -> Tensor:
    """The codes (G, N, d), int32, for H (G, d, d) and A (G, N, d), which is used up; None: W's own."""
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        rows = problem.part(g, n, slice(None))
        W = rows.W.to(H)
        left, V = (torch.zeros_like(W), W) if A is None else (A[g, n], torch.zeros_like(W))
        codes[g, n] = _walk_rows(rows, H[g], left, V)

    pool.run(fill, slices(problem.W, _ROWS))
    return codes


def _walk_rows(problem: Problem, H: Tensor, left: Tensor, V: Tensor) -> Tensor:
    """The codes of some neurons, z_t being v_t + (left_t - Σ_{s<t} (q_s - v_s) H_st) / H_tt."""
    d = left.shape[2]
    E, codes = torch.empty_like(left), torch.empty_like(left, dtype=torch.int32)
    for start in range(0, d, _BLOCK):
        wide, b = start - start % _WIDE, slice(start, start + _BLOCK)
        if start == wide and start > 0:
            after = slice(start, start + _WIDE)
            left[..., after] -= E[..., :start] @ H[:, :start, after]
        left[..., b] -= E[..., wide:start] @ H[:, wide:start, b]
        part = problem.part(slice(None), slice(None), b)
        codes[..., b] = _walk_block_of(part, H[:, b, b], left[..., b], V[..., b])
        E[..., b] = problem.alphabet.decode(codes[..., b]) - V[..., b]
    return codes


def _walk_block_of(problem: Problem, H: Tensor, left: Tensor, V: Tensor) -> Tensor:
    """The same for one block of B columns: H is (G, B, B), the others (G, N, B)."""
    if left.device.type != "cpu":
        return _walk_vectorized(problem, H.double(), left.double(), V.double())
    return torch.from_numpy(_walk_block(floats(H), (floats(left), floats(V)), *compiled(problem)))


def compiled(problem: Problem) -> tuple[Floats, Levels, Rule]:
    """A problem as the compiled walks take it: weights, alphabet, and the rounding's kind, λ and noise."""
    alphabet, rounding = problem.alphabet, problem.rounding
    levels = (floats(alphabet.step[..., 0]), alphabet.low, alphabet.high, alphabet.offset)
    noise = torch.empty(0, 0, 0) if rounding.noise is None else rounding.noise
    return floats(problem.W), levels, (_KINDS.index(rounding.kind), rounding.threshold, floats(noise))


def floats(tensor: Tensor) -> Floats:
    """A tensor for compiled code."""
    array: Floats = tensor.detach().double().contiguous().numpy()
    return array


@numba.njit(nogil=True, cache=True)
def _walk_block(
    H: Floats, state: tuple[Floats, Floats], W: Floats, levels: Levels, rule: Rule
) -> NDArray[np.int32]:
    left, V = state
    steps, _, _, offset = levels
    codes = np.empty(W.shape, np.int32)
    groups, neurons, columns = W.shape
    for g in range(groups):
        for n in range(neurons):
            ahead = left[g, n].copy()
            for t in range(columns):
                v = V[g, n, t]
                z = v + ahead[t] / H[g, t, t] if H[g, t, t] > 0 else W[g, n, t]
                code = nearest_code(z, (g, n, t), levels, rule)
                codes[g, n, t] = code
                e = (code + offset) * steps[g, n] - v
                for s in range(t + 1, columns):
                    ahead[s] -= e * H[g, t, s]
    return codes


@numba.njit(nogil=True, cache=True)
def nearest_code(z: float, at: tuple[int, int, int], levels: Levels, rule: Rule) -> float:
    """The code of the weight ``at`` (group, neuron, column) for its target z."""
    steps, low, high, offset = levels
    kind, threshold, noise = rule
    z /= steps[at[0], at[1]]
    if kind >= 2 and abs(z) <= threshold:
        z = 0.0
    elif kind == 3:
        z -= np.copysign(threshold, z)
    z -= offset
    code: float = np.floor(z + noise[at]) if kind == 1 else np.rint(z)
    return min(max(code, low), high)


def _walk_vectorized(problem: Problem, H: Tensor, left: Tensor, V: Tensor) -> Tensor:
    """The same in torch, all neurons at once: for devices other than the CPU."""
    step = problem.alphabet.step[..., 0].double()
    left, codes = left.clone(), torch.empty_like(left, dtype=torch.int32)
    for t in range(left.shape[2]):
        energy, v = H[:, t, t, None], V[..., t]
        z = torch.where(energy > 0, v + left[..., t] / energy.clamp(min=1e-300), problem.W[..., t].double())
        codes[..., t] = nearest_codes(problem, z, t)
        e = (codes[..., t] + problem.alphabet.offset) * step - v
        left[..., t + 1 :] -= e[..., None] * H[:, None, t, t + 1 :]
    return codes


def nearest_codes(problem: Problem, z: Tensor, t: int) -> Tensor:
    """The codes (G, N) of all weights of column t for their targets z (G, N)."""
    alphabet, rounding = problem.alphabet, problem.rounding
    z = z / alphabet.step[..., 0]
    if rounding.kind == "hard":
        z = torch.where(z.abs() <= rounding.threshold, 0, z)
    elif rounding.kind == "soft":
        z = z.sign() * (z.abs() - rounding.threshold).clamp(min=0)
    z = z - alphabet.offset
    code = z.round() if rounding.noise is None else (z + rounding.noise[..., t].to(z)).floor()
    return code.clamp(alphabet.low, alphabet.high)
