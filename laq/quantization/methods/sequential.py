"""Sequential rounding along a layer's columns, which GPFQ, GPTQ and Qronos come down to.

For every neuron and t = 1 ... d, with what rounding the weights before t left behind::

    z_t = (A_t - Σ_{s<t} q_s H_st) / H_tt;   q_t = round(z_t)

The methods differ in A, which holds all that the weights w say, in the matrix H, and in how z_t is
rounded. Where A_t = Σ_{s≤t} w_s H_st, it need not be computed: z_t is w_t + Σ_{s<t} (w_s - q_s) H_st / H_tt.
Where H_tt is zero, z_t is w_t.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import ModuleType
from typing import Final, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.quantization.methods.problem import LayerProblem
from laq.quantization.threads import Pool

_BLOCK: Final = 64  # columns that compiled code takes at a time
_WIDE: Final = 8 * _BLOCK  # columns that matrix products take at a time
_ROWS: Final = 128  # neurons that a thread takes at most
_VANISHING: Final = 1e-300
_NO_NOISE: Final = np.empty((0, 0, 0))
_KINDS: Final = ("nearest", "stochastic", "hard", "soft")
Floats = NDArray[np.float64]
# The codes of a block of columns, and their levels less v, for their slice, H, a and v.
RoundBlock = Callable[[slice, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Levels(NamedTuple):
    """An alphabet for compiled code: ``steps`` (G, N), none of them zero; the codes' bounds and offset."""

    steps: Floats
    low: int
    high: int
    offset: float


class Rule(NamedTuple):
    """A rounding rule for compiled code: the number of its kind, λ, and noise (G, N, d) or nothing."""

    kind: int
    threshold: float
    noise: Floats


class Remainder(NamedTuple):
    """What is to be rounded, (G, N, B) each: z_t is v_t + (a_t - Σ_{s<t} (q_s - v_s) H_st) / H_tt."""

    a: Floats
    v: Floats


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


def upper_product(W: Tensor, G: Tensor, pool: Pool) -> Tensor:
    """W (G, N, d) times the upper triangle of G (G, d, d), in G's type: A_t = Σ_{s≤t} w_s G_st."""
    W = W.to(G)
    A = torch.empty_like(W)

    def fill(start: int) -> None:
        b = slice(start, start + _WIDE)
        A[..., b] = W[..., b] @ G[:, b, b].triu() + W[..., :start] @ G[:, :start, b]

    pool.run(fill, range(0, W.shape[2], _WIDE))
    return A


def round_sequentially(problem: LayerProblem, H: Tensor, pool: Pool, A: Tensor | None = None) -> Tensor:
    """The codes (G, N, d), int32, for H (G, d, d) and A (G, N, d), which is used up; None: W's own."""
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        rows = problem.part(g, n, slice(None))
        W = rows.W.to(H)
        a, v = (torch.zeros_like(W), W) if A is None else (A[g, n], torch.zeros_like(W))
        codes[g, n] = _round_neurons(_block_rounding(rows), H[g], a, v)

    pool.run(fill, slices(problem.W, _ROWS))
    return codes


def _block_rounding(problem: LayerProblem) -> RoundBlock:
    """What rounds the blocks of a problem's columns on its device."""
    device = problem.W.device
    if device.type == "cpu":
        return partial(_round_block, problem)
    kernels = _kernels_of(device) if device.type == "cuda" else None
    return partial(_round_block_vectorized, problem) if kernels is None else kernels.BlockRounding.of(problem)


@cache
def _kernels_of(device: torch.device) -> ModuleType | None:
    """The module of Triton's kernels if they run on a GPU; where they do not, that is said once."""
    try:
        from laq.quantization.methods import triton_kernels  # noqa: PLC0415 (Triton is for GPUs alone)

        triton_kernels.try_on(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever is amiss there, torch does the same work)
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        warnings.warn(
            f"{device}: Triton's kernels do not run on this GPU ({reason}); columns are rounded by torch, "
            "which is slower",
            stacklevel=2,
        )
        return None
    return triton_kernels


def _round_neurons(round_block: RoundBlock, H: Tensor, a: Tensor, v: Tensor) -> Tensor:
    """The codes of some neurons (``Remainder`` says of a and v, (G, N, d), what they are)."""
    d = a.shape[2]
    E, codes = torch.empty_like(a), torch.empty_like(a, dtype=torch.int32)
    for start in range(0, d, _BLOCK):
        wide, b = start - start % _WIDE, slice(start, start + _BLOCK)
        if start == wide and start > 0:
            after = slice(start, start + _WIDE)
            a[..., after] -= E[..., :start] @ H[:, :start, after]
        a[..., b] -= E[..., wide:start] @ H[:, wide:start, b]
        codes[..., b], E[..., b] = round_block(b, H[:, b, b], a[..., b], v[..., b])
    return codes


def _round_block(problem: LayerProblem, b: slice, H: Tensor, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of a block of B columns, and levels less v: H is (G, B, B), the others are (G, N, B)."""
    problem = problem.part(slice(None), slice(None), b)
    remainder = Remainder(floats(a), floats(v))
    codes = _round_block_compiled(
        floats(H), remainder, floats(problem.W), compiled_levels(problem), compiled_rule(problem)
    )
    found = torch.from_numpy(codes)
    return found, problem.alphabet.decode(found) - v


def compiled_levels(problem: LayerProblem) -> Levels:
    """The alphabet for compiled code."""
    alphabet = problem.alphabet
    steps = floats(alphabet.step[..., 0])
    if not steps.all():
        # Compiled code divides by steps; to any network, levels of this size are zero.
        steps = np.where(steps == 0, _VANISHING, steps)
    return Levels(steps, alphabet.low, alphabet.high, alphabet.offset)


def compiled_rule(problem: LayerProblem) -> Rule:
    """The rounding rule for compiled code."""
    rule = problem.rule
    noise = _NO_NOISE if rule.noise is None else floats(rule.noise)
    return Rule(_KINDS.index(rule.kind), rule.threshold, noise)


def floats(tensor: Tensor) -> Floats:
    """A tensor for compiled code."""
    array: Floats = tensor.detach().double().contiguous().numpy()
    return array


@numba.njit(nogil=True, cache=True)
def _round_block_compiled(
    H: Floats, remainder: Remainder, W: Floats, levels: Levels, rule: Rule
) -> NDArray[np.int32]:
    a, V = remainder
    steps, _, _, offset = levels
    codes = np.empty(W.shape, np.int32)
    groups, neurons, columns = W.shape
    for g in range(groups):
        for n in range(neurons):
            ahead = a[g, n].copy()
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


def _round_block_vectorized(
    problem: LayerProblem, b: slice, H: Tensor, a: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in torch, all neurons at once: for devices that Triton has no code for."""
    problem = problem.part(slice(None), slice(None), b)
    step = problem.alphabet.step[..., 0].double()
    a, codes = a.clone(), torch.empty_like(a, dtype=torch.int32)
    for t in range(a.shape[2]):
        energy = H[:, t, t, None]
        z = v[..., t] + a[..., t] / energy.clamp(min=1e-300)
        codes[..., t] = nearest_codes(problem, torch.where(energy > 0, z, problem.W[..., t].double()), t)
        e = (codes[..., t] + problem.alphabet.offset) * step - v[..., t]
        a[..., t + 1 :] -= e[..., None] * H[:, None, t, t + 1 :]
    return codes, problem.alphabet.decode(codes) - v


def nearest_codes(problem: LayerProblem, z: Tensor, t: int) -> Tensor:
    """The codes (G, N) of all weights of column t for their targets z (G, N)."""
    alphabet, rule = problem.alphabet, problem.rule
    z = alphabet.in_steps(z[..., None])[..., 0]
    if rule.kind == "hard":
        z = torch.where(z.abs() <= rule.threshold, 0, z)
    elif rule.kind == "soft":
        z = z.sign() * (z.abs() - rule.threshold).clamp(min=0)
    z = z - alphabet.offset
    code = z.round() if rule.noise is None else (z + rule.noise[..., t].to(z)).floor()
    return code.clamp(alphabet.low, alphabet.high)
