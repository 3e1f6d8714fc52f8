"""Transfer learning: a new head for other classes, learned from features; then all of the network."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import Tensor, nn

from laq.architectures import Classifier, classifier_head
from laq.dataset.images import ImageSet
from laq.errors import LaqError, within
from laq.network.evaluation import batch_size, collecting_features
from laq.network.training import fit_best, trainer
from laq.progress import progress
from laq.sections.network import Transfer

# Inverse strengths of the penalty on the head's weights, for features of variance 1.
_STRENGTHS: Final = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
_USUAL: Final = 1e-2  # where classes have too few images to choose among these
_FOLDS: Final = 5
_ITERATIONS: Final = 500
_TOLERANCE: Final = 1e-3  # of the gradient; smaller ones take longer and change no accuracy
_SMALL: Final = 1e-6  # beside the spread of a feature, which is 0 where the feature is constant
_NEVER: Final = -1e3  # the output of a class without images
Array = NDArray[Any]


def adapt_to_classes(
    network: Classifier,
    train: ImageSet,
    validation: ImageSet | None,
    config: Transfer,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Give the network a head for the classes, then train all of it, if that is asked for.

    The head learns from training images alone. Validation images choose the best epoch of the training; where
    there are none, a share of the training images is kept out and takes their place.

    Returns:
        What was chosen, and how well it does on images that it did not learn from.

    Raises:
        LaqError: the network does not end with a Linear layer.
    """
    _check_head(network, train)
    if config.training is None:
        return {"head": asdict(learn_head(network, train, config))}
    if validation is None:
        train, validation = split_by_share(train, config.validation, config.seed)
    head = learn_head(network, train, config)
    with within("network.transfer.training"):
        best = fit_best(network, train, validation, config.training, checkpoint)
    training = {
        "images": len(train),
        "validation_images": len(validation),
        "epochs": config.training.epochs,
        "best_epoch": best.epoch,
        "validation_top1": best.top1,
        "trained_on": trainer(config.training),
    }
    return {"head": asdict(head), "training": training}


def _check_head(network: Classifier, data: ImageSet) -> None:
    """See that the last Linear layer's outputs are the network's."""
    images = data.take(torch.arange(min(2, len(data)))).images
    with torch.inference_mode():
        try:
            with collecting_features(network) as features:
                outputs = network(images)
            ends = torch.equal(classifier_head(network)(features[-1]), outputs)
        except (LaqError, IndexError):
            ends = False
    if not ends:
        raise LaqError(
            f"network.transfer: {network.design.architecture} does not end with a Linear layer, which a new "
            "head would take the place of; leave transfer out, or take another network"
        )


@dataclass(frozen=True)
class Head:
    """A head that has been learned: its penalty, and its cross-validated top-1 in percent.

    ``cross_validated_top1`` is None where a class has too few images to leave some out.
    """

    strength: float
    cross_validated_top1: float | None


def split_by_share(data: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw a share of each class's images, at least one and not all; returns the others and those drawn."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for number in range(len(data.class_names)):
        own = (data.labels == number).nonzero()[:, 0]
        count = min(max(1, round(share * len(own))), len(own) - 1)
        drawn.append(own[torch.randperm(len(own), generator=generator)[: max(count, 0)]])
    rows = torch.cat(drawn).sort().values
    left = torch.ones(len(data), dtype=torch.bool)
    left[rows] = False
    return data.take(left.nonzero()[:, 0]), data.take(rows)


def learn_head(network: Classifier, data: ImageSet, config: Transfer) -> Head:
    """Give the network's head, which has an output per class, weights learned on the features of ``data``.

    It is a logistic regression with a penalty on the weights, whose strength has the best accuracy in a
    cross-validation that leaves out a fifth of each class's images at a time, with their mirror images.
    A head that is only the start of a training is not worth that search, and has the usual strength.
    """
    head = classifier_head(network)
    features, labels = _features(network, data, flip=config.flip), data.labels.numpy()
    copies = len(features) // len(labels)
    # A head without a bias takes the features as they are.
    mean = features.mean(0) if head.bias is not None else np.zeros(features.shape[1], np.float32)
    spread = features.std(0) + _SMALL
    # The penalty is weighed against a sum over images, of which mirror images are none of their own.
    model = LogisticRegression(
        C=_USUAL / copies, max_iter=_ITERATIONS, tol=_TOLERANCE, fit_intercept=head.bias is not None
    )
    normalised, of_all, top1 = (features - mean) / spread, np.tile(labels, copies), None
    if folds := [] if config.training else _folds(labels, copies, config.seed):
        strengths = [strength / copies for strength in _STRENGTHS]
        search = GridSearchCV(model, {"C": strengths}, cv=folds, refit=False).fit(normalised, of_all)
        model, top1 = model.set_params(**search.best_params_), 100 * float(search.best_score_)
    _write(head, model.fit(normalised, of_all), mean, spread)
    return Head(model.C * copies, top1)


def _folds(labels: Array, copies: int, seed: int) -> list[tuple[Array, Array]]:
    """Rows to learn from, with their copies, and rows to score; none where a class has one image."""
    count = min(_FOLDS, int(np.unique_counts(labels).counts.min()))
    if count < 2:
        return []
    split = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)
    starts = len(labels) * np.arange(copies)[:, None]
    return [((starts + learned).ravel(), scored) for learned, scored in split]


def _features(network: nn.Module, data: ImageSet, *, flip: bool) -> Array:
    """The penultimate features (n, f) of every image, and then, with ``flip``, of their mirror images."""
    size = batch_size(network, data)
    parts: list[list[Tensor]] = [[], []]
    batches = progress(data.batches(size), "features", unit="batch", total=-(-len(data) // size))
    for images in batches:
        for part, shown in zip(parts, (images, images.flip(-1)) if flip else (images,), strict=False):
            with torch.inference_mode(), collecting_features(network) as features:
                network(shown)
            part.extend(features)
    return torch.cat([*parts[0], *parts[1]]).numpy()


def _write(head: nn.Linear, model: LogisticRegression, mean: Array, spread: Array) -> None:
    """Put a regression on normalised features into a head; a class without images has the least output."""
    weights, biases = model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(model.classes_) == 2:  # for which there is one row: that of the second class against the first
        weights, biases = (np.concatenate([-found, found]) / 2 for found in (weights, biases))
    weight = np.zeros((head.out_features, head.in_features), np.float32)
    bias = np.full(head.out_features, _NEVER, np.float32)
    weight[model.classes_] = weights / spread
    bias[model.classes_] = biases - weight[model.classes_] @ mean
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
