"""GPFQ's recursion as it is stated: column after column, with the residual of every neuron in full.

A step adds ``w_t X_t - q_t X̃_t`` to a neuron's residual and then needs its product with X̃_{t+1}: both take
one pass over the residual, in which four neurons share the reading of the three columns. That keeps a
core's arithmetic about as busy as a product of matrices does, and is less of it.
"""

from typing import Any, Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.quantization.pool import Pool
from laq.quantization.walk import Floats, Levels, Problem, Rule, compiled, nearest_code, nearest_codes

_ROWS: Final = 16  # neurons that a thread takes at most
_SEGMENT: Final = 1024  # entries of columns that stay in the innermost cache
_REORDER: Final = {"reassoc", "contract"}  # sums in the order that suits the processor, always the same
_Array = NDArray[Any]  # of float32 or float64, as the network is


def follow(problem: Problem, U: Tensor, X: Tensor, X_q: Tensor, pool: Pool) -> Tensor:
    """The codes (G, N, B), int32, of B columns' weights (G, N, B).

    Args:
        problem: the weights.
        U: the neurons' residuals (G, N, m) up to here, which are brought up to date.
        X: the columns (G, B, m) of the analog network's inputs.
        X_q: those of the quantized network's.
        pool: threads.
    """
    if U.device.type != "cpu":
        return _follow_vectorized(problem, U, X, X_q)
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        columns = (X[g].numpy(), X_q[g].numpy())
        found = _follow(U[g, n].numpy(), columns, *compiled(problem.part(g, n, slice(None))))
        codes[g, n] = torch.from_numpy(found)

    for _ in pool.map(fill, problem.slices(_ROWS)):
        pass
    return codes


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _follow(
    U: _Array, columns: tuple[_Array, _Array], W: Floats, levels: Levels, rule: Rule
) -> NDArray[np.int32]:
    X, X_q = columns
    steps, _, _, offset = levels
    codes = np.empty(W.shape, np.int32)
    groups, neurons, last = U.shape[0], U.shape[1], W.shape[2] - 1
    w, q, sums = np.zeros(neurons, U.dtype), np.zeros(neurons, U.dtype), np.empty(neurons)
    for g in range(groups):
        w[:] = q[:] = 0
        _advance(U[g], (X[g, 0], X_q[g, 0], X_q[g, 0]), (w, q), sums)
        for t in range(last + 1):
            x, x_q = X[g, t], X_q[g, t]
            energy, cross = _dot(x_q, x_q), _dot(x, x_q)
            for n in range(neurons):
                z = (sums[n] + W[g, n, t] * cross) / energy if energy > 0 else W[g, n, t]
                code = nearest_code(z, (g, n, t), levels, rule)
                codes[g, n, t] = code
                w[n], q[n] = W[g, n, t], (code + offset) * steps[g, n]
            _advance(U[g], (x, x_q, X_q[g, min(t + 1, last)]), (w, q), sums)
    return codes


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _advance(
    U: _Array, columns: tuple[_Array, _Array, _Array], factors: tuple[_Array, _Array], sums: Floats
) -> None:
    """Add w x - q x̃ to the residuals U (N, m), and set ``sums`` (N,) to their products with the next x̃."""
    x, x_q, after = columns
    neurons, m = U.shape
    fours = neurons - neurons % 4
    sums[:] = 0
    for start in range(0, m, _SEGMENT):
        s = slice(start, min(start + _SEGMENT, m))
        part = (x[s], x_q[s], after[s])
        for n in range(0, fours, 4):
            _advance_four((U[n][s], U[n + 1][s], U[n + 2][s], U[n + 3][s]), part, factors, sums, n)
        for n in range(fours, neurons):
            _advance_one(U[n][s], part, factors, sums, n)


# Inlined: the calls would take longer than the work where columns are short.
@numba.njit(inline="always")
def _advance_four(
    U: tuple[_Array, _Array, _Array, _Array],
    columns: tuple[_Array, _Array, _Array],
    factors: tuple[_Array, _Array],
    sums: Floats,
    n: int,
) -> None:
    """The same for neurons n to n + 3, adding to ``sums``."""
    u0, u1, u2, u3 = U
    x, x_q, after = columns
    w, q = factors
    w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
    q0, q1, q2, q3 = q[n], q[n + 1], q[n + 2], q[n + 3]
    s0 = s1 = s2 = s3 = x.dtype.type(0)
    for i in range(len(x)):
        a, b, c = x[i], x_q[i], after[i]
        v0, v1 = u0[i] + w0 * a - q0 * b, u1[i] + w1 * a - q1 * b
        v2, v3 = u2[i] + w2 * a - q2 * b, u3[i] + w3 * a - q3 * b
        u0[i], u1[i], u2[i], u3[i] = v0, v1, v2, v3
        s0, s1, s2, s3 = s0 + v0 * c, s1 + v1 * c, s2 + v2 * c, s3 + v3 * c
    sums[n] += s0
    sums[n + 1] += s1
    sums[n + 2] += s2
    sums[n + 3] += s3


@numba.njit(inline="always")
def _advance_one(
    u: _Array,
    columns: tuple[_Array, _Array, _Array],
    factors: tuple[_Array, _Array],
    sums: Floats,
    n: int,
) -> None:
    """The same for neuron n alone."""
    x, x_q, after = columns
    w, q = factors[0][n], factors[1][n]
    total = x.dtype.type(0)
    for i in range(len(x)):
        v = u[i] + w * x[i] - q * x_q[i]
        u[i] = v
        total += v * after[i]
    sums[n] += total


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _dot(x: _Array, y: _Array) -> float:
    """⟨x, y⟩."""
    product = 0.0
    for start in range(0, len(x), _SEGMENT):
        stop = min(start + _SEGMENT, len(x))
        product += _short_dot(x[start:stop], y[start:stop])
    return product


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _short_dot(x: _Array, y: _Array) -> Any:
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


def _follow_vectorized(problem: Problem, U: Tensor, X: Tensor, X_q: Tensor) -> Tensor:
    """The same in torch, all neurons at once: for devices other than the CPU."""
    W, alphabet = problem.W, problem.alphabet
    codes = torch.empty_like(W, dtype=torch.int32)
    for t in range(W.shape[2]):
        w, x_q = W[..., t, None], X_q[:, t, :, None]
        U += w * X[:, t, None]
        energy = X_q[:, t].square().sum(1)[:, None]
        z = torch.where(energy > 0, (U @ x_q)[..., 0] / energy.clamp(min=1e-30), w[..., 0])
        codes[..., t] = nearest_codes(problem, z, t)
        U -= alphabet.decode(codes[..., t, None]) * X_q[:, t, None]
    return codes
