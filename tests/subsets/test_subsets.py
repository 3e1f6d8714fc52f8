"""Subsets: the predecessor's statistics and choices, and the promises of each kind."""

import ast
import csv
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from laq import dataset, network
from laq.errors import LaqError
from laq.params import load_params
from laq.sections.base import Given
from laq.sections.subsets import Band, Subsets
from laq.subsets import choose_subsets, describe, greedy, in_band, nearest_to, read_log
from tests.conftest import PREDECESSOR, ROOT, needs, tiny_params, write_params
from tests.project import environment

PARAMS = Subsets(sizes=(4,), similar=2, dissimilar=2, random=2, seed=0)
NAMES = [f"class_{i}" for i in range(12)]


def divergences(classes: int = 12) -> np.ndarray:
    places = np.random.default_rng(0).normal(size=(classes, 2))
    return np.square(places[:, None] - places[None]).sum(2)


def logged() -> Iterator[tuple[str, dict[str, str]]]:
    for path in sorted((PREDECESSOR / "logs").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield path.name, row


@needs(PREDECESSOR)
def test_statistics_equal_every_row_of_the_predecessors_logs() -> None:
    matrix = np.load(PREDECESSOR / "cifar100_kl_div_matrix.npy")
    names = np.load(PREDECESSOR / "cifar100_class_names.npy").tolist()
    rows = list(logged())
    for log, row in rows:
        classes = [names.index(c) for c in ast.literal_eval(row["Subset_Classes"])]
        s = describe(matrix, names, "log-1", "log", classes)
        found = [s.max_divergence, s.min_divergence, s.mean_divergence, s.median_divergence]
        expected = [float(row[k]) for k in ("Max_KL", "Min_KL", "Avg_KL", "Median_KL")]
        assert found == pytest.approx(expected, rel=1e-9), log
    assert len(rows) == 233


@needs(PREDECESSOR)
def test_the_predecessors_similar_and_dissimilar_subsets_come_out_of_its_matrix() -> None:
    matrix = np.load(PREDECESSOR / "cifar100_kl_div_matrix.npy")
    names = np.load(PREDECESSOR / "cifar100_class_names.npy").tolist()
    reproduced = {"similar": 0, "dissimilar": 0, "neither": 0}
    for _, row in logged():
        classes = [names.index(c) for c in ast.literal_eval(row["Subset_Classes"])]
        kinds = [
            kind
            for kind in ("similar", "dissimilar")
            if any(set(greedy(matrix, start, len(classes), kind)) == set(classes) for start in classes)
        ]
        reproduced[kinds[0] if kinds else "neither"] += 1
    # A third of the predecessor's runs are of each kind, the last third random.
    assert reproduced == {"similar": 78, "dissimilar": 78, "neither": 77}


@needs(PREDECESSOR)
def test_a_log_is_read_with_each_subset_once() -> None:
    names = np.load(PREDECESSOR / "cifar100_class_names.npy").tolist()
    path = PREDECESSOR / "logs" / "Quantization_Log_resnet50_3bit.csv"
    subsets = read_log(path.read_bytes(), names)
    assert len(subsets) == len({tuple(s) for s in subsets})
    assert subsets[0][:3] == [names.index(n) for n in ("willow_tree", "forest", "road")]


def test_greedy_takes_the_nearest_or_farthest_on_average() -> None:
    matrix = np.array([[0, 1, 5, 9], [1, 0, 7, 2], [5, 7, 0, 3], [9, 2, 3, 0.0]])
    assert greedy(matrix, 0, 3, "similar") == [0, 1, 3]
    assert greedy(matrix, 0, 3, "dissimilar") == [0, 3, 2]
    assert greedy(matrix, 2, 4, "similar") == [2, 3, 1, 0]


def test_every_kind_is_there_seeded_and_described() -> None:
    params = PARAMS.model_copy(
        update={"given": ((0, "class_3", 5),), "bands": (Band(count=1, minimum=0.1, maximum=9),)}
    )
    subsets = choose_subsets(divergences(), NAMES, params)
    assert subsets == choose_subsets(divergences(), NAMES, params)
    assert [s.name for s in subsets] == [
        "similar-1", "similar-2", "dissimilar-1", "dissimilar-2", "random-1", "random-2", "band-1", "given-1",
    ]  # fmt: skip
    assert all(len(set(s.classes)) == 4 for s in subsets[:-1])
    assert subsets[-1].class_names == ("class_0", "class_3", "class_5")
    assert {s.kind for s in subsets} == {"similar", "dissimilar", "random", "band", "given"}
    assert subsets[0].mean_divergence < subsets[2].mean_divergence
    other = choose_subsets(divergences(), NAMES, params.model_copy(update={"seed": 1}))
    assert other != subsets


def test_adding_one_kind_does_not_change_another() -> None:
    more = PARAMS.model_copy(update={"similar": 5})
    few, many = choose_subsets(divergences(), NAMES, PARAMS), choose_subsets(divergences(), NAMES, more)
    assert [s for s in many if s.kind != "similar"] == [s for s in few if s.kind != "similar"]


def test_a_smaller_study_is_part_of_a_larger_one() -> None:
    sizes = {"sizes": (3, 5), "even": 2}
    few = choose_subsets(divergences(), NAMES, PARAMS.model_copy(update=sizes))
    more = {"similar": 4, "dissimilar": 3, "random": 6, "even": 5}
    many = choose_subsets(divergences(), NAMES, PARAMS.model_copy(update=sizes | more))
    assert len(few) == 2 * 2 * 4
    assert len(many) == 2 * (4 + 3 + 6 + 5)
    assert {s.name: s for s in few}.items() <= {s.name: s for s in many}.items()
    assert {(s.name, s.kind, len(s.classes)) for s in few} >= {
        ("even3-1", "even", 3),
        ("random5-2", "random", 5),
    }


def test_even_subsets_fill_the_axis_between_the_most_similar_and_the_most_dissimilar() -> None:
    params = PARAMS.model_copy(update={"similar": 6, "dissimilar": 6, "random": 0, "even": 12})
    matrix = divergences(40)
    subsets = choose_subsets(matrix, [f"class_{i}" for i in range(40)], params)
    means = {
        kind: [s.mean_divergence for s in subsets if s.kind == kind] for kind in ("similar", "dissimilar")
    }
    even = np.sort(np.log([s.mean_divergence for s in subsets if s.kind == "even"]))
    low, high = np.log(min(means["similar"])), np.log(max(means["dissimilar"]))
    places = (even - low) / (high - low)
    assert np.diff(places).max() < 3 / 12  # no gap
    assert places[0] < 0.25
    assert places[-1] > 0.75


def test_classes_are_added_so_that_the_mean_divergence_comes_near_to_what_is_wanted() -> None:
    matrix = np.array([[0, 1, 5, 9], [1, 0, 7, 2], [5, 7, 0, 3], [9, 2, 3, 0.0]])
    assert nearest_to(matrix, 0, 2, 5.2) == [0, 2]
    # 0 and 2 have 5; with 1 the mean is (5 + 1 + 7) / 3, with 3 it is (5 + 9 + 3) / 3.
    assert nearest_to(matrix, 0, 3, 4.4) == [0, 2, 1]
    assert nearest_to(matrix, 0, 3, 5.6) == [0, 2, 3]


@pytest.mark.parametrize("bounds", [(0.2, 1.5), (2.0, 6.0)])
def test_band_subsets_have_their_mean_divergence_in_the_band(bounds: tuple[float, float]) -> None:
    band = Band(count=3, minimum=bounds[0], maximum=bounds[1])
    for classes in in_band(divergences(), 4, band, np.random.default_rng(0)):
        assert (
            bounds[0]
            <= describe(divergences(), NAMES, "band-1", "band", classes).mean_divergence
            <= bounds[1]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (13,)}, "subsets.sizes: 13 classes wanted, there are 12"),
        ({"similar": 13}, "subsets.similar: 13 wanted"),
        ({"given": (("apple", 1),)}, "unknown class 'apple'; classes are 0 to 11 or names such as class_0"),
        ({"given": ((99, 1),)}, "unknown class 99"),
        ({"given": ((1, "class_1"),)}, "subset given-1: needs two or more different classes"),
        ({"bands": (Band(count=1, minimum=1e6, maximum=2e6),)}, "found 0; widen the band"),
        (
            {"log": Given(path="nowhere.csv", sha256="0" * 64)},
            "subsets.log: nowhere.csv: No such file or directory; name a",
        ),
        (
            {"even": 1, "sizes": (2,)},
            "subsets.even: the most similar 2 classes have a mean divergence of -1,",
        ),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(change: dict[str, object], message: str) -> None:
    matrix = divergences()
    matrix[0, 1] = matrix[1, 0] = -1  # as k-NN estimates may be
    with pytest.raises(LaqError, match=message) as caught:
        choose_subsets(matrix, NAMES, PARAMS.model_copy(update=change))
    assert "\n" not in str(caught.value)


def test_a_log_that_numpy_2_wrote_is_read(tmp_path: Path) -> None:
    cells = [str([np.str_(NAMES[3]), np.int64(1)]), str([NAMES[0], NAMES[2]])]
    assert cells[0].startswith("[np.str_('")
    pd.DataFrame({"Subset_Classes": cells}).to_csv(tmp_path / "log.csv", index=False)
    assert read_log((tmp_path / "log.csv").read_bytes(), NAMES) == [[3, 1], [0, 2]]


def test_another_log_is_not_taken_for_the_one_that_was_named(project: Path) -> None:
    Path("log.csv").write_text(f'Subset_Classes\n"{NAMES[:2]}"\n', encoding="utf-8")
    named = Given(path="log.csv", sha256=hashlib.sha256(Path("log.csv").read_bytes()).hexdigest())
    params = PARAMS.model_copy(update={"log": named})
    assert choose_subsets(divergences(), NAMES, params)[-1].classes == (0, 1)
    Path("log.csv").write_text(f'Subset_Classes\n"{NAMES[:3]}"\n', encoding="utf-8")
    with pytest.raises(
        LaqError, match=f"subsets.log: log.csv: SHA-256 is .*, params.yaml says {named.sha256}"
    ):
        choose_subsets(divergences(), NAMES, params)


def test_a_log_without_the_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(LaqError, match="has no readable column Subset_Classes"):
        read_log((tmp_path / "log.csv").read_bytes(), NAMES)


def test_greedy_subsets_of_one_kind_are_all_different() -> None:
    params = PARAMS.model_copy(update={"sizes": (9,), "similar": 3, "dissimilar": 3})
    subsets = choose_subsets(divergences(), NAMES, params)
    for kind in ("similar", "dissimilar"):
        assert len({frozenset(s.classes) for s in subsets if s.kind == kind}) == 3
    with pytest.raises(LaqError, match="subsets.similar: 2 wanted, but all starts lead to 1 different ones"):
        choose_subsets(divergences(), NAMES, PARAMS.model_copy(update={"sizes": (12,)}))


@pytest.mark.parametrize("cell", ["5", "[1", "[[1], [2]]"])
def test_a_log_with_other_things_in_the_column_is_refused(tmp_path: Path, cell: str) -> None:
    (tmp_path / "log.csv").write_text(f'Subset_Classes\n"{cell}"\n', encoding="utf-8")
    with pytest.raises(LaqError, match="has no readable column Subset_Classes"):
        read_log((tmp_path / "log.csv").read_bytes(), NAMES)


STAGES = """
from laq import divergence, embeddings, subsets
from laq.params import load_params
params = load_params()
embeddings.run(params.embeddings)
divergence.run(params.divergence)
subsets.run(params.subsets)
"""
OLD = {
    "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "1",
}  # fmt: skip
NEW = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    "OMP_NUM_THREADS": "2",
}  # fmt: skip


def test_subsets_are_the_same_bytes_on_another_processor(project: Path) -> None:
    params = tiny_params()
    params["glyphs"]["network"]["training"]["epochs"] = 0
    params["glyphs"]["subsets"] |= {"sizes": [3, 8], "similar": 5, "dissimilar": 5, "even": 5}
    write_params(project, params)
    dataset.run(load_params().dataset)
    network.run(load_params().network)
    files: dict[str, list[bytes]] = {
        name: [] for name in ("embeddings/features.npy", "divergence/matrix.npy", "subsets.json")
    }
    for processor in (OLD, NEW):
        variables = environment() | {"PYTHONPATH": str(ROOT)} | processor
        subprocess.run([sys.executable, "-c", STAGES], cwd=project, env=variables, check=True)
        for name, found in files.items():
            found.append((project / "data" / name).read_bytes())
    features, matrix, subsets = (old == new for old, new in files.values())
    assert not features, "the variables that stand for processors change nothing any more"
    assert matrix
    assert subsets
