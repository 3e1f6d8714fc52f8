"""Rounding by the residual: column after column, with the residual u = (w - q) X̃ of every neuron in full.

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

from laq.quantization.methods.problem import LayerProblem
from laq.quantization.methods.sequential import (
    Floats,
    Levels,
    Rule,
    compiled_levels,
    compiled_rule,
    floats,
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
    """B columns of a layer's inputs: the target is z_t = (⟨u, D_t⟩ + w_t a_t) / b_t, or w_t where b_t is 0.

    Attributes:
        X: (G, B, m), which the weights add to the residuals.
        X_q: (G, B, m), which the levels take away.
        D: (G, B, m), which residuals are multiplied with.
        a: (G, B), in float64.
        b: (G, B), in float64.
    """

    X: Any
    X_q: Any
    D: Any
    a: Any
    b: Any


class Step(NamedTuple):
    """What becomes of all residuals at a column: u ← u + w x - q x̃, then its product with ``following``.

    Columns are (m,), or a segment of that; w and q are (N,).
    """

    x: _Array
    x_q: _Array
    following: _Array
    w: _Array
    q: _Array


def gpfq_columns(X: Tensor, X_q: Tensor, pool: Pool) -> Columns:
    """GPFQ's: residuals are multiplied with X̃_t, a is ⟨X_t, X̃_t⟩ and b is ‖X̃_t‖²."""
    a, b = X.new_empty(2, *X.shape[:2], dtype=torch.float64)
    if X.device.type != "cpu":
        torch.sum(X * X_q, 2, dtype=torch.float64, out=a)
        torch.sum(X_q * X_q, 2, dtype=torch.float64, out=b)
        return Columns(X, X_q, X_q, a, b)

    def fill(start: int) -> None:
        some = slice(start, start + _COLUMNS)
        products = _products(X[:, some].numpy(), X_q[:, some].numpy())
        a[:, some], b[:, some] = torch.from_numpy(products)

    pool.run(fill, range(0, X.shape[1], _COLUMNS))
    return Columns(X, X_q, X_q, a, b)


def round_by_residual(problem: LayerProblem, U: Tensor, columns: Columns, pool: Pool) -> Tensor:
    """The codes (G, N, B), int32; brings the neurons' residuals ``U`` (G, N, m) up to date."""
    if U.device.type != "cpu":
        return _round_vectorized(problem, U, columns)
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        rows = problem.part(g, n, slice(None))
        some = Columns(*(t[g].numpy() for t in columns))
        levels, rule = compiled_levels(rows), compiled_rule(rows)
        found = _round_compiled(U[g, n].numpy(), some, floats(rows.W), levels, rule)
        codes[g, n] = torch.from_numpy(found)

    pool.run(fill, slices(problem.W, _ROWS))
    return codes


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDER)
def _round_compiled(U: _Array, columns: Columns, W: Floats, levels: Levels, rule: Rule) -> NDArray[np.int32]:
    X, X_q, D, a, b = columns
    steps, offset = levels.steps, levels.offset
    codes = np.empty(W.shape, np.int32)
    groups, neurons, last = U.shape[0], U.shape[1], W.shape[2] - 1
    w, q, sums = np.zeros(neurons, U.dtype), np.zeros(neurons, U.dtype), np.empty(neurons)
    for g in range(groups):
        w[:] = q[:] = 0
        _update(U[g], Step(X[g, 0], X_q[g, 0], D[g, 0], w, q), sums)
        for t in range(last + 1):
            for n in range(neurons):
                z = (sums[n] + W[g, n, t] * a[g, t]) / b[g, t] if b[g, t] > 0 else W[g, n, t]
                code = nearest_code(z, (g, n, t), levels, rule)
                codes[g, n, t] = code
                w[n], q[n] = W[g, n, t], (code + offset) * steps[g, n]
            _update(U[g], Step(X[g, t], X_q[g, t], D[g, min(t + 1, last)], w, q), sums)
    return codes


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDER)
def _update(U: _Array, step: Step, sums: Floats) -> None:
    """Take the step for residuals U (N, m), and set ``sums`` (N,) to their products with what follows."""
    x, x_q, following, w, q = step
    neurons, m = U.shape
    fours = neurons - neurons % 4
    sums[:] = 0
    for start in range(0, m, _SEGMENT):
        s = slice(start, min(start + _SEGMENT, m))
        segment = Step(x[s], x_q[s], following[s], w, q)
        for n in range(0, fours, 4):
            _update_four((U[n][s], U[n + 1][s], U[n + 2][s], U[n + 3][s]), segment, sums, n)
        for n in range(fours, neurons):
            _update_one(U[n][s], segment, sums, n)


# Inlined: the calls would take longer than the work where columns are short.
@numba.njit(inline="always")
def _update_four(U: tuple[_Array, _Array, _Array, _Array], step: Step, sums: Floats, n: int) -> None:
    """The same for a segment of neurons n to n + 3, adding to ``sums``."""
    u0, u1, u2, u3 = U
    x, x_q, following, w, q = step
    w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
    q0, q1, q2, q3 = q[n], q[n + 1], q[n + 2], q[n + 3]
    s0 = s1 = s2 = s3 = x.dtype.type(0)
    for i in range(len(x)):
        a, b, c = x[i], x_q[i], following[i]
        v0, v1 = u0[i] + w0 * a - q0 * b, u1[i] + w1 * a - q1 * b
        v2, v3 = u2[i] + w2 * a - q2 * b, u3[i] + w3 * a - q3 * b
        u0[i], u1[i], u2[i], u3[i] = v0, v1, v2, v3
        s0, s1, s2, s3 = s0 + v0 * c, s1 + v1 * c, s2 + v2 * c, s3 + v3 * c
    sums[n] += s0
    sums[n + 1] += s1
    sums[n + 2] += s2
    sums[n + 3] += s3


@numba.njit(inline="always")
def _update_one(u: _Array, step: Step, sums: Floats, n: int) -> None:
    """The same for neuron n alone."""
    x, x_q, following, w, q = step
    w_n, q_n = w[n], q[n]
    total = x.dtype.type(0)
    for i in range(len(x)):
        v = u[i] + w_n * x[i] - q_n * x_q[i]
        u[i] = v
        total += v * following[i]
    sums[n] += total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDER)
def _products(X: _Array, X_q: _Array) -> Floats:
    """⟨X_t, X̃_t⟩ and ‖X̃_t‖² for every column, (2, G, B)."""
    result = np.empty((2, *X.shape[:2]))
    for g in range(X.shape[0]):
        for t in range(X.shape[1]):
            result[0, g, t], result[1, g, t] = _dot(X[g, t], X_q[g, t]), _dot(X_q[g, t], X_q[g, t])
    return result


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDER)
def _dot(x: _Array, y: _Array) -> float:
    """⟨x, y⟩."""
    product = 0.0
    for start in range(0, len(x), _SEGMENT):
        stop = min(start + _SEGMENT, len(x))
        product += _short_dot(x[start:stop], y[start:stop])
    return product


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDER)
def _short_dot(x: _Array, y: _Array) -> Any:
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


def _round_vectorized(problem: LayerProblem, U: Tensor, columns: Columns) -> Tensor:
    """The same in torch, all neurons at once: for devices other than the CPU."""
    X, X_q, D, a, b = columns
    codes = torch.empty_like(problem.W, dtype=torch.int32)
    for t in range(problem.W.shape[2]):
        w, energy = problem.W[..., t].double(), b[:, None, t]
        z = (U @ D[:, t, :, None])[..., 0] + w * a[:, None, t]
        codes[..., t] = nearest_codes(problem, torch.where(energy > 0, z / energy.clamp(min=1e-300), w), t)
        q = problem.alphabet.decode(codes[..., t, None])
        U += problem.W[..., t, None] * X[:, None, t] - q * X_q[:, None, t]
    return codes
