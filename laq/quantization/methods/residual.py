"""GPFQ's recursion as it is stated: column after column, with the residual of every neuron in full.

A step adds ``w_t X_t - q_t X̃_t`` to a neuron's residual and then needs its product with the next column:
both take one pass over the residual, in which four neurons share the reading of the three columns. That
keeps a core's arithmetic about as busy as a product of matrices does, and is less of it.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.quantization.methods.sequential import (
    Floats,
    Levels,
    Problem,
    Rule,
    compiled,
    nearest_code,
    nearest_codes,
    slices,
)
from laq.quantization.threads import Pool

_ROWS: Final = 16  # neurons that a thread takes at most
_COLUMNS: Final = 128  # columns of which a thread takes products at a time
_SEGMENT: Final = 1024  # entries of columns that stay in the innermost cache
_REORDER: Final = {"reassoc", "contract"}  # sums in the order that suits the processor, always the same
_Array = NDArray[Any]  # of float32 or float64, as the network is


class Columns(NamedTuple):
    """What a path meets at B columns: a target is z_t = (⟨u, D_t⟩ + w_t a_t) / b_t, or w_t where b_t is 0.

    Attributes:
        X: columns (G, B, m) that the weights add to the residuals.
        X_q: those that the levels take away.
        D: the columns that residuals are multiplied with.
        scales: a and b, (2, G, B), in float64.
    """

    X: Tensor
    X_q: Tensor
    D: Tensor
    scales: Tensor


def gpfq_columns(X: Tensor, X_q: Tensor, pool: Pool) -> Columns:
    """GPFQ's: residuals are multiplied with X̃_t, a is ⟨X_t, X̃_t⟩ and b is ‖X̃_t‖²."""
    scales = X.new_empty(2, *X.shape[:2], dtype=torch.float64)
    if X.device.type != "cpu":
        torch.sum(X * X_q, 2, dtype=torch.float64, out=scales[0])
        torch.sum(X_q * X_q, 2, dtype=torch.float64, out=scales[1])
        return Columns(X, X_q, X_q, scales)

    def fill(start: int) -> None:
        b = slice(start, start + _COLUMNS)
        scales[:, :, b] = torch.from_numpy(_products(X[:, b].numpy(), X_q[:, b].numpy()))

    pool.run(fill, range(0, X.shape[1], _COLUMNS))
    return Columns(X, X_q, X_q, scales)


def follow(problem: Problem, U: Tensor, columns: Columns, pool: Pool) -> Tensor:
    """The codes (G, N, B), int32; brings the neurons' residuals ``U`` (G, N, m) up to date."""
    if U.device.type != "cpu":
        return _follow_vectorized(problem, U, columns)
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        X, X_q, D, a, b = (t[g].numpy() for t in (*columns[:3], *columns.scales))
        weights = compiled(problem.part(g, n, slice(None)))
        found = _follow(U[g, n].numpy(), ((X, X_q, D), (a, b)), *weights)
        codes[g, n] = torch.from_numpy(found)

    pool.run(fill, slices(problem.W, _ROWS))
    return codes


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _follow(
    U: _Array,
    columns: tuple[tuple[_Array, _Array, _Array], tuple[Floats, Floats]],
    W: Floats,
    levels: Levels,
    rule: Rule,
) -> NDArray[np.int32]:
    (X, X_q, D), (a, b) = columns
    steps, _, _, offset = levels
    codes = np.empty(W.shape, np.int32)
    groups, neurons, last = U.shape[0], U.shape[1], W.shape[2] - 1
    w, q, sums = np.zeros(neurons, U.dtype), np.zeros(neurons, U.dtype), np.empty(neurons)
    for g in range(groups):
        w[:] = q[:] = 0
        _advance(U[g], (X[g, 0], X_q[g, 0], D[g, 0]), (w, q), sums)
        for t in range(last + 1):
            for n in range(neurons):
                z = (sums[n] + W[g, n, t] * a[g, t]) / b[g, t] if b[g, t] > 0 else W[g, n, t]
                code = nearest_code(z, (g, n, t), levels, rule)
                codes[g, n, t] = code
                w[n], q[n] = W[g, n, t], (code + offset) * steps[g, n]
            _advance(U[g], (X[g, t], X_q[g, t], D[g, min(t + 1, last)]), (w, q), sums)
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
def _products(X: _Array, X_q: _Array) -> Floats:
    """⟨X_t, X̃_t⟩ and ‖X̃_t‖² for every column, (2, G, B)."""
    result = np.empty((2, *X.shape[:2]))
    for g in range(X.shape[0]):
        for t in range(X.shape[1]):
            result[0, g, t], result[1, g, t] = _dot(X[g, t], X_q[g, t]), _dot(X_q[g, t], X_q[g, t])
    return result


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


def _follow_vectorized(problem: Problem, U: Tensor, columns: Columns) -> Tensor:
    """The same in torch, all neurons at once: for devices other than the CPU."""
    X, X_q, D, (a, b) = columns
    codes = torch.empty_like(problem.W, dtype=torch.int32)
    for t in range(problem.W.shape[2]):
        w, energy = problem.W[..., t].double(), b[:, None, t]
        z = (U @ D[:, t, :, None])[..., 0] + w * a[:, None, t]
        codes[..., t] = nearest_codes(problem, torch.where(energy > 0, z / energy.clamp(min=1e-300), w), t)
        q = problem.alphabet.decode(codes[..., t, None])
        U += problem.W[..., t, None] * X[:, None, t] - q * X_q[:, None, t]
    return codes
