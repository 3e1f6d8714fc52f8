"""GPFQ, greedy path-following quantization, in its blocked form.

Neuron by neuron, with ``u = 0`` at first and for t = 1 ... d (Lybrand and Saab 2021; Zhang, Zhou and
Saab 2023, equation 5)::

    u ← u + w_t X_t;   q_t = nearest(⟨X̃_t, u⟩ / ‖X̃_t‖²);   u ← u - q_t X̃_t

where X_t and X̃_t are the t-th columns of the analog and the quantized network's inputs. The same
codes come from walking in blocks of B columns: with A = Uᵀ X̃_b, C = X_bᵀ X̃_b and H = X̃_bᵀ X̃_b (three
matrix products) the recursion inside a block needs B numbers per neuron instead of m, and
U ← U + X_b W_bᵀ - X̃_b Q_bᵀ brings the residual up to date. All in all 6 N m d operations, nearly all
of them inside matrix products.
"""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.quantization.alphabet import Alphabet

BLOCK = 128
_Floats = NDArray[np.floating]


def gpfq(W: Tensor, X: Tensor, X_q: Tensor, alphabet: Alphabet, block: int = BLOCK) -> Tensor:
    """Quantize the weights of one layer.

    Args:
        W: weights (G, N, d): G groups of N neurons with d weights.
        X: the analog network's inputs (G, m, d), m samples.
        X_q: the quantized network's inputs (G, m, d).
        alphabet: levels, with steps (G, N, 1).
        block: columns to walk at a time; changes the speed, not the codes.

    Returns:
        Codes (G, N, d), int64. Where an input column is zero, any code gives the same output, and
        the weight's nearest level is taken.
    """
    groups, neurons, columns = W.shape
    U = W.new_zeros(groups, X.shape[1], neurons)
    codes = torch.empty_like(W)
    for start in range(0, columns, block):
        b = slice(start, start + block)
        X_b, X_qb, W_b = X[..., b], X_q[..., b], W[..., b].contiguous()
        A = U.mT @ X_qb
        C, H = X_b.mT @ X_qb, X_qb.mT @ X_qb
        codes[..., b] = Q_b = _solve(A, W_b, C, H, alphabet)
        if start + block < columns:
            U.baddbmm_(X_b, W_b.mT).baddbmm_(X_qb, alphabet.decode(Q_b).mT, alpha=-1)
    return codes.to(torch.int64).clamp_(alphabet.low, alphabet.high)


def _solve(A: Tensor, W: Tensor, C: Tensor, H: Tensor, alphabet: Alphabet) -> Tensor:
    """The codes of one block, as floats: A (G, N, B) is used up, C and H are (G, B, B)."""
    step = alphabet.step[..., 0]
    a, w, c, h, s = (t.detach().contiguous().numpy() for t in (A, W, C, H, step))
    return torch.from_numpy(_walk(a, w, c, h, (s, alphabet.low, alphabet.high)))


@numba.njit(parallel=True, cache=True)
def _walk(A: _Floats, W: _Floats, C: _Floats, H: _Floats, levels: tuple[_Floats, int, int]) -> _Floats:
    """The recursion inside a block, for every neuron; ``levels`` are the alphabet's step, low and high."""
    step, low, high = levels
    codes = np.empty_like(W)
    groups, neurons, columns = W.shape
    for i in numba.prange(groups * neurons):
        g, n = i // neurons, i % neurons
        inner = A[g, n]  # ⟨X̃_t, u⟩ for the columns ahead
        for t in range(columns):
            w = W[g, n, t]
            energy = H[g, t, t]
            target = (inner[t] + w * C[g, t, t]) / energy if energy > 0 else w
            code = min(max(np.rint(target / step[g, n]), low), high)
            codes[g, n, t] = code
            q = code * step[g, n]
            for s in range(t + 1, columns):
                inner[s] += w * C[g, t, s] - q * H[g, t, s]
    return codes
