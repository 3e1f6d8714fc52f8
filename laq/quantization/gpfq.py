"""GPFQ, greedy path-following quantization, in two exact forms.

Neuron by neuron, with ``u = 0`` at first and for t = 1 ... d (Lybrand and Saab 2021; Zhang, Zhou and
Saab 2023, equation 5)::

    u ← u + w_t X_t;   q_t = nearest(⟨X̃_t, u⟩ / ‖X̃_t‖²);   u ← u - q_t X̃_t

where X_t and X̃_t are the t-th columns of the analog and the quantized network's inputs.

**Residual form.** The same codes come from walking in blocks of B columns: with A = U X̃_bᵀ,
G = X_b X̃_bᵀ and H = X̃_b X̃_bᵀ the recursion inside a block needs B numbers per neuron instead of m, and
U ← U + W_b X_b - Q_b X̃_b brings the residual up to date. With U, X_b and X̃_b stacked, these are two
matrix products per block.

**Covariance form.** With G = X X̃ᵀ and H = X̃ X̃ᵀ over all columns, ⟨X̃_t, u⟩ is
Σ_{s≤t} w_s G_st - Σ_{s<t} q_s H_st, and inputs are not needed any more.

Sums over patches are in float32 inside a chunk of images and in float64 across chunks; the walk is in
float64.
"""

from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.inputs import Inputs, padded_width
from laq.quantization.patches import Patches
from laq.quantization.walk import Problem, walk


@dataclass(frozen=True)
class Solution:
    """Codes (G, N, d), int32, and per neuron (G, N) the squared error, up to a constant of the neuron."""

    codes: Tensor
    errors: Tensor


def gpfq_covariance(problem: Problem, inputs: Inputs) -> Solution:
    """GPFQ in its covariance form."""
    G, H = inputs.covariances()
    codes = walk(problem, G, H, inputs.pool)
    return Solution(codes, covariance_errors(problem, codes, G, H))


def covariance_errors(problem: Problem, codes: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """‖w X - q X̃‖² - ‖w X‖² = q H qᵀ - 2 w G qᵀ for every neuron, (G, N)."""
    W, Q = problem.W.double(), problem.alphabet.decode(codes).double()
    return ((Q @ H - 2 * (W @ G)) * Q).sum(-1)


def gpfq_residual(problem: Problem, inputs: Inputs) -> Solution:
    """GPFQ in its residual form; the errors are ‖u‖², exactly."""
    (_, neurons, d), pool = problem.W.shape, inputs.pool
    width = inputs.width(neurons)
    padded = padded_width(width)
    patches = pool.map(lambda make: make(), inputs.chunks)
    chunks = [_Chunk(some, problem.W, padded) for some in patches]
    codes = torch.empty_like(problem.W, dtype=torch.int32)
    update = None
    for start in range(0, d, width):
        b = slice(start, min(start + width, d))
        B = b.stop - b.start
        parts = pool.map(partial(_Chunk.advance, b=b, update=update), chunks)
        A, G, H = torch.split(reduce(add, (part.double() for part in parts)), [neurons, padded, padded], 1)
        block = problem.part(slice(None), slice(None), b)
        codes[..., b] = walk(block, G[:, :B, :B], H[:, :B, :B], pool, A[..., :B])
        update = F.pad(torch.stack([block.W, -problem.alphabet.decode(codes[..., b])], 2), (0, padded - B))
    errors = reduce(add, pool.map(partial(_Chunk.finish, update=update), chunks))
    return Solution(codes, errors)


class _Chunk:
    """The residual U (G, N, m) of some images, and a block's X_b and X̃_b below it.

    Blocks are padded with rows of zeros to a width that suits matrix products.
    """

    def __init__(self, patches: Patches, W: Tensor, width: int) -> None:
        self.patches = patches
        self.neurons = W.shape[1]
        self.width = width
        self.stack = W.new_zeros(W.shape[0], self.neurons + 2 * width, patches.m)
        self.U, self.X, self.X_q = torch.split(self.stack, [self.neurons, width, width], 1)

    def advance(self, b: slice, update: Tensor | None) -> Tensor:
        """Bring U up to date with the last block, and return [U; X_b; X̃_b] X̃_bᵀ for the block ``b``."""
        self._update(update)
        B = b.stop - b.start
        for block, which in ((self.X, self.patches.X), (self.X_q, self.patches.X_q)):
            self.patches.write(which, b, block[:, :B])
            block[:, B:] = 0
        products: Tensor = self.stack @ self.X_q.mT
        return products

    def finish(self, update: Tensor | None) -> Tensor:
        """The squares of the neurons' residuals, (G, N)."""
        self._update(update)
        norms: Tensor = torch.linalg.vector_norm(self.U, dim=2, dtype=torch.float64)
        return norms.square()

    def _update(self, update: Tensor | None) -> None:
        if update is not None:  # (G, N, 2, width): weights and minus their levels
            self.U.baddbmm_(update.flatten(2), self.stack[:, self.neurons :])
