"""Attention's projections are linears like others, in whatever form and by whichever way a network runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from laq.quantization import QuantizationError, Recipe, quantize
from laq.quantization.bits.sensitivity import sensitivities
from laq.quantization.execution.attention import linears_of_attention
from tests.quantization.ways import assert_same, by, error, noise, seeded


class Attending(nn.Module):
    """Attention with a linear upon it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Mixing(Attending):
    """Keys and values of two sequences."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.head(self.attention(query, key, value)[0].mean(1))


class Crossing(Attending):
    """Keys that are the values."""

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.attention(query, memory, memory)[0].mean(1))


class Called(nn.Module):
    """Calls attention's function with weights of linears, as CLIP's pooling does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.c = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        pooled, _ = F.multi_head_attention_forward(
            x[:1], x, x, 8, 2, None, bias, None, None, False, 0.0, self.c.weight, self.c.bias, training=False,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )  # fmt: skip
        return pooled[0]


class Padded(nn.Module):
    """Sequences of which zeros are padding; torch's fast path would set their outputs to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder_layer(), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=x[..., 0] == 0).mean(1))


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def inputs_of(tensors: list[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def padded() -> Tensor:
    images = noise(20, 5, 8)
    images[::2, 3:] = 0
    return images


_LAYER = ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
_SEPARATE = [f"attention.{name}_proj_weight" for name in "qkv"]
# What makes a network, its inputs, what is quantized, and what is not.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Tensor], list[str], list[str]]] = {
    "self-attention": (
        Attending, [noise(20, 5, 8)],
        ["attention.in_proj_weight", "attention.out_proj", "head"], [],
    ),
    "keys and values of other sizes": (
        lambda: Mixing(kdim=6, vdim=7), [noise(20, 5, 8), noise(20, 4, 6, seed=1), noise(20, 4, 7, seed=2)],
        [*_SEPARATE, "attention.out_proj", "head"], [],
    ),
    "keys that are parameters": (
        lambda: Mixing(kdim=8, vdim=7, add_bias_kv=True), [noise(20, 5, 8), noise(20, 4, 8, seed=1), noise(20, 4, 7, seed=2)],
        [*_SEPARATE, "attention.out_proj", "head"], ["attention.bias_k", "attention.bias_v"],
    ),
    "all of different origins": (
        Mixing, [noise(20, 5, 8), noise(20, 4, 8, seed=1), noise(20, 4, 8, seed=2)],
        ["attention.in_proj_weight", "attention.out_proj", "head"], [],
    ),
    "keys that are values": (
        Crossing, [noise(20, 5, 8), noise(20, 4, 8, seed=1)],
        ["attention.in_proj_weight", "attention.out_proj", "head"], [],
    ),
    "function": (Called, [noise(20, 5, 8)], ["q", "k", "v", "c"], []),
    "encoder's layer": (encoder_layer, [noise(20, 5, 8)], _LAYER, []),
    "decoder's layer": (
        lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), [noise(20, 5, 8), noise(20, 4, 8, seed=1)],
        [*_LAYER[:2], "multihead_attn.in_proj_weight", "multihead_attn.out_proj", *_LAYER[2:]], [],
    ),
    "padding": (
        Padded, [padded()],
        [f"encoder.layers.{i}.{name}" for i in range(2) for name in _LAYER] + ["head"], [],
    ),
}  # fmt: skip


WAYS = ("fx", "hooks")  # torch.fx traces none of these, which are exported then


@pytest.mark.filterwarnings("ignore:not quantized", "ignore:.*[nN]ested ?[tT]ensor")
@pytest.mark.parametrize("name", NETWORKS)
def test_projections_are_quantized_alike_by_whichever_way(name: str) -> None:
    make, inputs, layers, others = NETWORKS[name]
    network, results = seeded(make), []
    for way in WAYS:
        with by(way):
            results.append(quantize(network, inputs_of(inputs), Recipe(bits=4, batch_size=8)))
    assert_same(results)
    for result in results:
        assert [layer.name for layer in result.layers] == layers
        assert [other.name for other in result.not_quantized] == others
        assert result.not_quantized == results[0].not_quantized  # their reasons too
        # With gradients, torch takes no fast path.
        real = error(*(net(*inputs).detach() for net in (network, result.network)))
        assert result.relative_error == pytest.approx(real, rel=1e-6)
    for other in results[0].not_quantized:
        assert "repeat reads it" in other.reason
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("way", WAYS)
def test_a_bias_of_which_each_projection_adds_a_third_cannot_be_corrected(way: str) -> None:
    make, inputs, (layer, *_), _ = NETWORKS["keys and values of other sizes"]
    told = f"bias_correction: the calls of layer {layer} add no bias"
    with by(way), pytest.raises(QuantizationError, match=told):
        quantize(seeded(make), inputs_of(inputs), Recipe(bias_correction=True))


@pytest.mark.filterwarnings("ignore:.*[nN]ested ?[tT]ensor")
def test_what_fewer_bits_cost_counts_no_difference_between_torchs_paths() -> None:
    network, images = seeded(Padded), padded()
    with by("hooks"):
        trial = quantize(network, images, Recipe(bits=16, method="rtn"))
    found = sensitivities(network, images, [trial]).losses
    assert all(0 <= losses[16] < 1e-8 for losses in found.values())


def test_threads_that_quantize_at_once_do_not_take_the_linears_from_one_another() -> None:
    """The first to come leaves while the second is within, which is the last to put all back."""
    before = torch.backends.mha.get_fastpath_enabled(), F._in_projection_packed
    entered, left = Event(), Event()

    def first() -> None:
        with linears_of_attention():
            entered.set()
            within.wait(5)
        left.set()

    within = Event()
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(first)
        assert entered.wait(5)
        with linears_of_attention():
            during = torch.backends.mha.get_fastpath_enabled(), F._in_projection_packed
            within.set()
            assert left.wait(5)
            assert (torch.backends.mha.get_fastpath_enabled(), F._in_projection_packed) == during != before
        done.result()
    assert (torch.backends.mha.get_fastpath_enabled(), F._in_projection_packed) == before
