"""Where the outputs of each stage lie, from the project's folder; ``dvc.yaml`` names the same places."""

from pathlib import Path
from typing import Final

DATASET: Final = Path("data/dataset")
NETWORK: Final = Path("data/network")
DESIGN: Final = "network.json"  # of a network: its design and where its weights come from
WEIGHTS: Final = "network.safetensors"  # of a network, in whichever folder
EMBEDDINGS: Final = Path("data/embeddings")
DIVERGENCE: Final = Path("data/divergence")
CLASS_NAMES: Final = DIVERGENCE / "class_names.npy"
SUBSETS: Final = Path("data/subsets.json")
FINETUNE: Final = Path("data/finetune")
STUDY: Final = Path("data/study")
REPORT: Final = Path("data/report")


def finetuned_weights(folder: Path, subset: str) -> Path:
    """Where in ``FINETUNE``'s folder the weights of the network lie that is fine-tuned for a subset."""
    return folder / f"{subset}.safetensors"


CIFAR100_COPY: Final = "LAQ_CIFAR100"  # the variable that names a copy of CIFAR-100
