"""Other tools' quantization of weights and activations, for `benchmarks/integers.py`.

They are installed beside laq for the benchmark alone: `pip install nncf aimet-onnx brevitas`. Each takes the
same float network and calibration images X (n, 3, h, w), with what its own documentation proposes; steps are
per channel for weights and per tensor for activations. NNCF's file is run by onnxruntime, AIMET and Brevitas
are run in their own simulations.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laq.run.runtime import logits, open_file

Pixels = NDArray[np.float32]
_BATCH: Final = 16
Outputs = Callable[[Tensor], Pixels]  # images -> logits
# The network, calibration images and the float network's ONNX file -> what gives logits of images.
Peer = Callable[[nn.Module, Tensor, Path], Outputs]


def in_onnxruntime(path: Path) -> Outputs:
    """What onnxruntime computes with a file."""
    session = open_file(path)
    return lambda images: logits(session, images.numpy())


def by_nncf(_: nn.Module, X: Tensor, in_float: Path) -> Outputs:
    """NNCF's post-training quantization of the ONNX file, 8 bits; for x86 it takes half the range."""
    nncf, onnx = import_module("nncf"), import_module("onnx")
    dataset = nncf.Dataset([part.numpy() for part in X.split(1)], lambda image: {"pixels": image})
    model = nncf.quantize(
        onnx.load(in_float), dataset, subset_size=len(X), target_device=nncf.TargetDevice.CPU
    )
    path = in_float.with_name("nncf.onnx")
    onnx.save(model, path)
    return in_onnxruntime(path)


def by_aimet(weights: int, activations: int) -> Peer:
    """AIMET's simulation of an ONNX file, steps by its enhanced rule, per channel."""

    def made(_: nn.Module, X: Tensor, in_float: Path) -> Outputs:
        aimet, onnx = import_module("aimet_onnx"), import_module("onnx")
        folder = Path(str(import_module("aimet_onnx.common.quantsim_config").__file__)).parent
        simulated = aimet.QuantizationSimModel(
            onnx.load(in_float),
            param_type=f"int{weights}",
            activation_type=f"int{activations}",
            quant_scheme="tf_enhanced",
            config_file=str(folder / "default_config_per_channel.json"),
        )
        simulated.compute_encodings([{"pixels": part.numpy()} for part in X.split(_BATCH)])
        return lambda images: logits(simulated.session, images.numpy())

    return made


def by_brevitas(weights: int, activations: int, solver: str = "") -> Peer:
    """Brevitas: batch norms merged, layers equalized, ranges by a percentile, biases corrected."""

    def made(body: nn.Module, X: Tensor, _: Path) -> Outputs:
        common = import_module("brevitas_examples.imagenet_classification.ptq.ptq_common")
        graph = import_module("brevitas.graph.quantize")
        images = [(part, None) for part in X.split(_BATCH)]
        prepared = graph.preprocess_for_quantize(body, equalize_iters=20, merge_bn=True)
        network = common.quantize_model(
            prepared, "fx", weights, activations, 32, "per_channel", 99.999, "sym", "float_scale", "int"
        )
        common.calibrate(images, network)
        with torch.inference_mode():
            network(X[:_BATCH])  # the solvers below ask that the quantizers have run
        if solver == "GPFQ":
            common.apply_gpfq(images, network, act_order=False)
        elif solver == "GPTQ":
            common.apply_gptq(images, network, act_order=False, use_quant_activations=True)
        common.apply_bias_correction(images, network)
        return lambda pictures: torch.cat(list(_outputs(network, pictures))).numpy()

    return made


@torch.inference_mode()
def _outputs(network: nn.Module, images: Tensor) -> Iterator[Tensor]:
    for part in images.split(100):
        outputs: Any = network(part)
        yield getattr(outputs, "value", outputs)


PEERS: Final[dict[str, Peer]] = {
    "NNCF W8A8": by_nncf,
    "AIMET W8A8": by_aimet(8, 8),
    "AIMET W4A8": by_aimet(4, 8),
    "AIMET W4A4": by_aimet(4, 4),
    "Brevitas W8A8": by_brevitas(8, 8),
    "Brevitas W4A8": by_brevitas(4, 8),
    "Brevitas W4A8, GPFQ": by_brevitas(4, 8, "GPFQ"),
    "Brevitas W4A8, GPTQ": by_brevitas(4, 8, "GPTQ"),
    "Brevitas W4A4": by_brevitas(4, 4),
    "Brevitas W4A4, GPFQ": by_brevitas(4, 4, "GPFQ"),
    "Brevitas W4A4, GPTQ": by_brevitas(4, 4, "GPTQ"),
}
