"""Divergences against closed forms, and the files that they end in."""

from hashlib import sha256
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from laq import divergence
from laq.divergence import class_divergence, read_matrix
from laq.divergence.estimators import gaussian_divergence, knn_divergence, symmetrised
from laq.divergence.files import read_name
from laq.divergence.reduction import pca, reduce
from laq.errors import LaqError
from laq.sections.base import Given
from laq.sections.divergence import Divergence
from tests.conftest import PREDECESSOR, needs

PARAMS = Divergence(
    reduction="none", components=2, umap_neighbours=5, estimator="gaussian", knn_neighbours=3, seed=0
)


def write_embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Seven classes of 20 images, in the project's folder."""
    divergence.EMBEDDINGS.mkdir(parents=True)
    labels, rng = np.repeat(np.arange(7), 20), np.random.default_rng(0)
    features = (rng.normal(size=(140, 4)) + labels[:, None]).astype("f4")
    np.save(divergence.EMBEDDINGS / "features.npy", features)
    np.save(divergence.EMBEDDINGS / "labels.npy", labels)
    np.save(divergence.EMBEDDINGS / "class_names.npy", np.array(list("abcdefg")))
    return features, labels


def clouds(sizes: tuple[int, ...] = (200, 300, 150), d: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(i, 1 + 0.3 * i, (n, d)) @ rng.normal(size=(d, d)) for i, n in enumerate(sizes)]


def test_gaussian_divergence_is_torchs_closed_form() -> None:
    points = clouds()
    found, kind = gaussian_divergence(points)
    fitted = [
        MultivariateNormal(torch.tensor(c.mean(0)), torch.tensor(np.cov(c, rowvar=False))) for c in points
    ]
    expected = [[kl_divergence(p, q).item() for q in fitted] for p in fitted]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert kind == "empirical"


def test_singular_covariances_are_shrunk_for_all_classes() -> None:
    few = clouds((4, 300, 150), d=6)
    found, kind = gaussian_divergence(few)
    assert kind == "ledoit-wolf"
    assert np.isfinite(found).all()
    assert (found[~np.eye(3, dtype=bool)] > 0).all()
    identical = [np.zeros((5, 2)), np.ones((5, 2)), np.random.default_rng(0).normal(size=(9, 2))]
    assert np.isfinite(gaussian_divergence(identical)[0]).all()


def test_knn_divergence_comes_near_the_closed_form() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.normal(0, 1, (4000, 2)), rng.normal(1, 1.5, (5000, 2))
    exact = kl_divergence(
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
        MultivariateNormal(torch.ones(2), 1.5**2 * torch.eye(2)),
    ).item()
    found = knn_divergence([p, q], k=10)
    assert found[0, 1] == pytest.approx(exact, abs=0.1)
    assert abs(found[0, 0]) < 0.2


def test_knn_divergence_is_the_formula_summed_by_hand() -> None:
    p, q, k = clouds((6, 8, 2), 2)[0], clouds((6, 8, 2), 2)[1], 2

    def distance(x: np.ndarray, cloud: np.ndarray, rank: int) -> float:
        return float(np.sort(np.linalg.norm(cloud - x, axis=1))[rank])

    terms = [np.log(distance(x, q, k - 1) / distance(x, p, k)) for x in p]
    expected = 2 / 6 * sum(terms) + np.log(8 / 5)
    assert knn_divergence([p, q], k)[0, 1] == pytest.approx(expected)
    with pytest.raises(ValueError, match="6 neighbours need more than 6 points a class, the fewest are 6"):
        knn_divergence([p, q], 6)


def test_symmetrised_is_the_mean_of_both_directions() -> None:
    found = symmetrised(np.array([[0.1, 2.0], [4.0, 0.0]]))
    assert found.tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize(("reduction", "width"), [("none", 5), ("pca", 2), ("umap", 2)])
def test_reductions_are_seeded_and_of_the_size_asked_for(
    monkeypatch: pytest.MonkeyPatch, reduction: str, width: int
) -> None:
    # Compiling UMAP takes half a minute, and so few points seconds without.
    monkeypatch.setattr(numba.config, "DISABLE_JIT", reduction == "umap")
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    params = PARAMS.model_copy(update={"reduction": reduction})
    first, second = reduce(features, params), reduce(features, params)
    assert first.shape == (20, width)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("estimator", ["gaussian", "knn"])
def test_the_stage_writes_the_predecessors_format_and_where_classes_lie(
    project: Path, estimator: str
) -> None:
    write_embeddings()
    divergence.run(PARAMS.model_copy(update={"estimator": estimator}))
    matrix = np.load(divergence.FOLDER / "matrix.npy")
    names = np.load(divergence.FOLDER / "class_names.npy", allow_pickle=False)
    assert matrix.dtype == np.float64
    assert np.array_equal(matrix, matrix.T)
    assert (np.diag(matrix) == 0).all()
    assert names.tolist() == list("abcdefg")
    plane = np.load(divergence.FOLDER / "plane.npy")
    assert plane.shape == (7, 5)
    assert (plane[:, 2] * plane[:, 4] >= plane[:, 3] ** 2).all()  # covariances


def test_too_few_images_are_told_in_a_line() -> None:
    points, labels = np.zeros((3, 2)), np.array([0, 0, 1])
    with pytest.raises(LaqError, match="every class needs at least 2 training images"):
        class_divergence(points, labels, PARAMS)
    with pytest.raises(LaqError, match="divergence: 3 neighbours need more than 3 points"):
        class_divergence(
            np.zeros((4, 2)), np.array([0, 0, 1, 1]), PARAMS.model_copy(update={"estimator": "knn"})
        )


def test_identical_points_are_refused_by_the_knn_estimator() -> None:
    p, q, _ = clouds()
    p[:7] = p[0]
    with pytest.raises(ValueError, match="6 or more identical points have no k-NN divergence"):
        knn_divergence([p, q], 5)


def theirs(path: str = "theirs.npy") -> Given:
    """The matrix in the file; of a file that is missing, one with some hash."""
    there = Path(path).exists()
    return Given(path=path, sha256=sha256(Path(path).read_bytes()).hexdigest() if there else "0" * 64)


def test_alternatives_lie_beside_the_studys_own(project: Path) -> None:
    features, labels = write_embeddings()
    divergence.run(PARAMS)
    own = (divergence.FOLDER / "matrix.npy").read_bytes()
    assert list((divergence.FOLDER / divergence.ALTERNATIVES).iterdir()) == []
    given = np.arange(49.0).reshape(7, 7) + np.arange(49.0).reshape(7, 7).T
    np.save("theirs.npy", given)
    ways = ("features-knn", "pca-gaussian", "pca-knn")
    asked = (*ways, PARAMS.name)  # the study's own is no alternative to itself
    divergence.run(PARAMS.model_copy(update={"alternatives": asked, "given": {"theirs": theirs()}}))
    assert (divergence.FOLDER / "matrix.npy").read_bytes() == own
    found = {f.stem: np.load(f) for f in (divergence.FOLDER / divergence.ALTERNATIVES).iterdir()}
    assert set(found) == {*ways, "theirs"}
    assert read_name() == "features-gaussian"
    assert np.array_equal(found["theirs"], given)
    for name, (reduction, estimator) in {
        "features-knn": ("none", "knn"),
        "pca-gaussian": ("pca", "gaussian"),
        "pca-knn": ("pca", "knn"),
    }.items():
        way = PARAMS.model_copy(update={"reduction": reduction, "estimator": estimator})
        expected, _ = class_divergence(reduce(features, way), labels, way)
        assert np.array_equal(found[name], expected)


def test_an_alternatives_reduction_is_the_studys_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embeddings()
    reductions: list[str] = []

    def counted(features: np.ndarray, params: Divergence) -> np.ndarray:
        reductions.append(params.reduction)
        return reduce(features, params)

    monkeypatch.setattr(divergence, "reduce", counted)
    ways = ("pca-knn", "features-gaussian", "features-knn")
    divergence.run(PARAMS.model_copy(update={"reduction": "pca", "alternatives": ways}))
    assert reductions == ["pca", "none"]


SQUARE = np.ones((7, 7))
X = {"path": "x.npy", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "theirs.npy: No such file or directory; name a file from the project's folder"),
        (b"text", "theirs.npy: not a .npy file of numbers"),
        (np.array([["a"]]), "theirs.npy: not a .npy file of numbers"),
        (np.ones((6, 7)), r"theirs.npy: has the shape \(6, 7\); must be \(7, 7\)"),
        (np.where(np.eye(7) > 0, np.nan, SQUARE), "theirs.npy: holds numbers that are not finite"),
        (np.triu(SQUARE), "theirs.npy: is not symmetric"),
    ],
    ids=["missing", "text", "letters", "shape", "nan", "directed"],
)
def test_a_given_matrix_that_is_none_is_told_in_a_line(
    project: Path, content: np.ndarray | bytes | None, message: str
) -> None:
    write_embeddings()
    if isinstance(content, bytes):
        Path("theirs.npy").write_bytes(content)
    elif content is not None:
        np.save("theirs.npy", content)
    with pytest.raises(LaqError, match=f"divergence.given.mine: {message}") as caught:
        divergence.run(PARAMS.model_copy(update={"given": {"mine": theirs()}}))
    assert "\n" not in str(caught.value)
    assert not divergence.FOLDER.exists()


def test_a_given_matrix_that_has_changed_is_refused(project: Path) -> None:
    write_embeddings()
    np.save("theirs.npy", SQUARE)
    known = theirs()
    np.save("theirs.npy", 2 * SQUARE)
    with pytest.raises(LaqError, match=f"SHA-256 is {theirs().sha256}, params.yaml says {known.sha256}"):
        divergence.run(PARAMS.model_copy(update={"given": {"mine": known}}))
    assert not divergence.FOLDER.exists()


def test_names_of_given_matrices_are_no_ways_of_our_own() -> None:
    with pytest.raises(ValueError, match="found umap-knn, the name of a way of its own"):
        Divergence(**{**PARAMS.model_dump(), "alternatives": ("umap-knn",), "given": {"umap-knn": X}})
    with pytest.raises(ValueError, match="must be a name of at most 60 letters"):
        Divergence(**{**PARAMS.model_dump(), "given": {"../x": X}})
    assert PARAMS.name == "features-gaussian"


@needs(PREDECESSOR / "cifar100_kl_div_matrix.npy")
def test_the_predecessors_matrix_can_be_given() -> None:
    given = theirs(str(PREDECESSOR / "cifar100_kl_div_matrix.npy"))
    found = read_matrix(given, "predecessor", 100)
    assert found.shape == (100, 100)
    assert found.max() == pytest.approx(192.25, abs=0.01)


def test_many_features_have_the_same_components_without_being_decomposed_or_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = np.random.default_rng(0).normal(size=(300, 8)) * np.arange(1, 9) + 5
    before, expected = features.copy(), pca(features, 3)
    monkeypatch.setattr("laq.divergence.reduction._LARGE", 0)
    found = pca(features, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-8, atol=1e-8)
    assert np.array_equal(features, before)
