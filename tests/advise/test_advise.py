"""The smallest network for some classes: the rule by hand, what is refused, and the command on a small project."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.stats import beta

from laq import advise as room
from laq import dataset, network
from laq.advise import figures
from laq.advise.candidates import as_study, describe_plan, for_integers, planned, quick
from laq.advise.choice import Wanted, chosen_by_estimates, judged, nearest
from laq.advise.question import Question
from laq.advise.report import Reported
from laq.advise.text import Findings, answer, for_terminal, markdown
from laq.cli import main
from laq.dataset import read_class_names, read_images
from laq.dataset.layout import Description, write_manifest, write_split
from laq.errors import LaqError
from laq.files import read_json, write_json
from laq.params import load_params
from laq.paths import CLASS_NAMES, DIVERGENCE, EMBEDDINGS, SUBSETS
from laq.pictures import Preprocessing
from laq.provenance import Stale, recording
from laq.quantization import load, read_metadata
from laq.run import OnnxClassifier
from laq.run.runtime import logits
from laq.study.selection import choosing
from laq.subsets.subset import Subset, describe
from laq.track.store import Store
from tests.conftest import ROOT, tiny_params, write_params
from tests.snapshots import check_snapshot

SUBSET = Subset("asked", "asked", (3, 1, 2), ("c", "a", "b"), 2.0, 1.0, 1.5, 1.5)
FLOAT = ("original", "float", "32", 400_000, 0, 0)
N = 2000  # choosing images, of which the original network knows 1700
REPORT = Reported(900, 84.5, 82.0, 86.8, 0.4, -0.7, 1.6)


def row(made: tuple[str, str, str, int, int, int]) -> dict[str, Any]:
    variant, method, bits, size, lost, gained = made
    return {
        "cell": f"asked.{variant}.{method}-{bits}", "variant": variant, "method": method, "bits": bits,
        "calibration": "none" if method in {"rtn", "float"} else "subset",
        "seed": pd.NA if method in {"rtn", "float"} else 0, "mean_bits": 2.48 if ":" in bits else float(bits),
        "size_bytes": size, "compression": FLOAT[3] / size, "n": N, "correct": 1700 - lost + gained,
        "lost": lost, "gained": gained, "training_kl_nats": (lost + gained) / N,
    }  # fmt: skip


def rows(*made: tuple[str, str, str, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame([row(one) for one in (*made, FLOAT)]).astype({"seed": "Int64"})


TABLE = rows(
    ("quantized", "rtn", "3", 30_700, 300, 10),
    ("quantized", "gpfq", "3", 30_720, 35, 5),
    ("finetuned_quantized", "gpfq", "3", 30_730, 12, 2),
    ("quantized", "gpfq", "4", 40_960, 4, 4),
    ("quantized", "qronos", "auto:2.5", 27_000, 70, 10),
    ("quantized", "rtn", "8", 76_800, 0, 0),
)


def chosen(table: pd.DataFrame, lose: float, kib: float = inf, **more: Any) -> list[str]:
    found = judged(table, Wanted(lose, max_bytes=1024 * kib, **more))
    return [name.removeprefix("asked.") for name in found.cell[found.chosen]]


def findings(lose: float, kib: float = inf, subset: Subset = SUBSET, table: pd.DataFrame = TABLE) -> Findings:
    wanted = Wanted(lose, max_bytes=1024 * kib)
    made = judged(table, wanted)
    told, names = "Half of them chose.", ("glyphs", "resnet20")
    return Findings(subset, made, wanted, told, names, 100, REPORT if made.chosen.any() else None)


def test_the_smallest_whose_bound_holds_is_chosen() -> None:
    # Estimates are 3, 0.5, 0 and 0 points; so far above them lie the bounds.
    assert chosen(TABLE, 4.0) == ["quantized.qronos-auto:2.5"]
    assert chosen(TABLE, 1.1) == ["finetuned_quantized.gpfq-3"]
    assert chosen(TABLE, 0.6) == ["quantized.gpfq-4"]
    assert chosen(TABLE, 0.3) == ["quantized.rtn-8"]
    assert chosen(TABLE, 0.1) == chosen(TABLE, 0) == []
    by_estimates = chosen_by_estimates(judged(TABLE, Wanted(0.6)))
    assert by_estimates
    assert by_estimates["cell"] == "asked.finetuned_quantized.gpfq-3"


def test_less_confidence_promises_more() -> None:
    assert chosen(TABLE, 3.5, confidence=0.5) == ["quantized.qronos-auto:2.5"]
    assert chosen(TABLE, 3.5, confidence=0.99) == ["finetuned_quantized.gpfq-3"]


def test_nothing_larger_than_the_limit_is_chosen_be_it_by_a_byte() -> None:
    assert chosen(TABLE, 1.1, 30_730 / 1024) == ["finetuned_quantized.gpfq-3"]
    assert chosen(TABLE, 1.1, 30_729 / 1024) == []
    assert chosen(TABLE, 2.4, 30_729 / 1024) == ["quantized.gpfq-3"]
    assert chosen(TABLE, 2.4, 29) == []


def test_of_two_chains_that_end_at_the_same_size_the_more_accurate_is_chosen() -> None:
    assert chosen(TABLE[TABLE["lost"] < 70], 5) == ["finetuned_quantized.gpfq-3"]


def test_a_chain_stops_at_the_first_that_fails_whatever_is_below() -> None:
    # On training images the smaller is not the nearer; by its luck with the choosing images it would pass.
    lucky = rows(
        ("quantized", "gpfq", "2", 20_000, 0, 0),
        ("quantized", "gpfq", "3", 30_000, 100, 10),
        ("quantized", "gpfq", "4", 40_000, 2, 2),
    )
    lucky["training_kl_nats"] = [0.5, 0.2, 0.1, 0.0]
    found = judged(lucky, Wanted(1)).set_index("bits")
    assert found.tested.to_dict() == {"2": False, "3": True, "4": True, "32": False}
    assert found.passed.to_dict() == {"2": False, "3": False, "4": True, "32": False}
    assert found.index[found.chosen].tolist() == ["4"]


def test_training_images_decide_which_of_a_size_is_tested() -> None:
    found = judged(TABLE, Wanted(2.4)).set_index("cell")
    assert not found.tested["asked.quantized.rtn-3"]
    assert found.tested["asked.quantized.gpfq-3"]
    worse = TABLE.assign(training_kl_nats=TABLE.training_kl_nats.where(TABLE.bits != "4", 9.0))
    # A larger file that is farther from the float network is left out, and does not end the chain.
    found = judged(worse, Wanted(2.4)).set_index("cell")
    assert not found.tested["asked.quantized.gpfq-4"]
    assert found.passed["asked.quantized.gpfq-3"]


def test_an_accuracy_to_keep_is_promised_by_its_exact_bound() -> None:
    expected = 100 * beta.ppf(0.025, 1670, N - 1670 + 1)
    table = judged(TABLE, Wanted(keep=expected - 1e-6)).set_index("cell")
    assert table.low_percent["asked.quantized.gpfq-3"] == pytest.approx(expected)
    assert table.passed["asked.quantized.gpfq-3"]
    assert not judged(TABLE, Wanted(keep=expected + 1e-3)).set_index("cell").passed["asked.quantized.gpfq-3"]


def test_where_nothing_will_do_what_is_nearest_is_named() -> None:
    wanted = Wanted(0.3, max_bytes=35 * 1024)
    near = nearest(judged(TABLE, wanted), wanted)
    assert near
    assert near["cell"] == "asked.finetuned_quantized.gpfq-3"
    assert nearest(judged(TABLE, Wanted(1, max_bytes=1024)), wanted) is None
    # The network in float would do, and is no candidate.
    assert chosen(rows(("quantized", "rtn", "3", 30_700, 300, 0)), 5) == []


def test_a_float_network_beats_no_candidate() -> None:
    found = judged(rows(("quantized", "rtn", "3", 500_000, 300, 0)), Wanted(0))
    assert found.set_index("method").pareto.to_dict() == {"rtn": True, "float": False}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_one_on_the_front_and_something_there_beats_every_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Sizes that are equal or far apart.
    sizes, lost = 10_000 + 500 * rng.integers(12, size=40), rng.integers(300, 330, 40)
    made = [
        ("quantized", "gpfq", "3", int(size), int(some), 0) for size, some in zip(sizes, lost, strict=True)
    ]
    found = judged(rows(*made), Wanted(0))[lambda table: table.method != "float"]

    def beaten(one: Any, by: pd.DataFrame) -> bool:
        as_good = (by.size_bytes <= one.size_bytes) & (by.top1_sub_percent >= one.top1_sub_percent)
        more = (by.size_bytes < one.size_bytes) | (by.top1_sub_percent > one.top1_sub_percent)
        return bool((as_good & more).any())

    front = found[found.pareto]
    assert 0 < len(front) < len(found)
    assert not any(beaten(one, found) for one in front.itertuples())
    assert all(beaten(one, front) for one in found[~found.pareto].itertuples())


AT_3 = "GPFQ at 3 bits on the fine-tuned network"
OTHERS = "on n = 900 other images it has 84.5 % top-1 (82.0 to 86.8) and loses 0.4 points (-0.7 to 1.6)"


def test_the_text_of_an_advice_is_the_one_kept() -> None:
    provenance = {"network": "resnet20", "dataset": "glyphs", "commit": "abc"}
    check_snapshot("advice.txt", markdown(findings(1.1, 40), provenance))


def test_the_answer_is_one_line_that_says_it_all() -> None:
    assert answer(findings(1.1, 40)) == (
        f"For c, a, b (3 classes of glyphs): {AT_3} takes 30.0 KiB (13 times smaller than float32) and, with 95 % "
        f"confidence, loses at most 1.1 points (chosen by n = 2000 images); {OTHERS}; the confidence costs nothing in size"
    )
    assert answer(findings(0.6)).endswith(
        f"the confidence costs 10.0 KiB: by its estimate alone {AT_3} would have been chosen"
    )
    assert "Qronos at auto:2.5 (2.48 bits a weight) on the original network takes 26.4 KiB" in answer(
        findings(9)
    )
    many = Subset("asked", "asked", tuple(range(6)), tuple("abcdef"), 2.0, 1.0, 1.5, 1.5)
    assert answer(findings(1, subset=many)).startswith("For a, b, c, … (6 classes of glyphs): ")


@pytest.mark.parametrize(
    ("lose", "kib", "told"),
    [
        (0.1, inf, "no candidate can be promised to lose at most 0.1 points with 95 % confidence; the nearest is round-to-nearest at 8 bits on the original network (75.0 KiB): by n = 2000 images it loses 0.0 points and at most 0.19; about 3900 images to choose by would suffice for it; by its estimate alone GPFQ at 4 bits"),
        (0.7, 35, f"of at most 35 KiB can be promised to lose at most 0.7 points with 95 % confidence; the nearest is {AT_3} (30.0 KiB): by n = 2000 images it loses 0.5 points and at most 0.96; about "),
        (0.3, 35, "its estimate leaves no room for the request, so that more images would not help: ask for less accuracy"),
        (0.0, inf, "its estimate leaves no room for the request, so that more images would not help: ask for less accuracy; by its estimate alone GPFQ at 4 bits"),
        (1.0, 10, "no candidate is that small: the smallest is Qronos at auto:2.5 (2.48 bits a weight) on the original network (26.4 KiB)"),
    ],
)  # fmt: skip
def test_where_nothing_will_do_one_line_says_what_is_nearest_and_what_would_help(
    lose: float, kib: float, told: str
) -> None:
    line = answer(findings(lose, kib))
    assert told in line
    assert "\n" not in line


def test_the_text_has_all_candidates_and_the_terminal_a_few() -> None:
    text = re.sub(" +", " ", markdown(findings(1.1, 40), {"commit": "abc"}))
    assert text.splitlines()[0] == answer(findings(1.1, 40))
    assert text.count("GPFQ") == 1 + 3
    assert "| → | fine-tuned | GPFQ | 3 | 30.0 | 13× | 84.5 | 0.5 | ≤ 1.0 | passed |" in text
    assert "| P | original | Qronos | auto:2.5 | 26.4 | 15× | 82.0 | 3.0 | ≤ 4.0 | |" in text
    assert "| | original | round-to-nearest | 3 |" in text
    assert "| | original | float | 32 | 390.6 | 1.0× | 85.0 | | | |" in text
    assert "The request was: at most 1.1 points lost, at most 40 KiB. Half of them chose." in text
    assert "; the 2 rows share the probability of error." in text
    assert "| commit | abc |" in text
    assert "```python" not in markdown(findings(0), {})
    few = for_terminal(findings(0.6), "data/advise")
    assert few.startswith("For c, a, b (3 classes of glyphs): GPFQ at 4 bits")
    table = few.split("\n\n")[1].splitlines()
    assert [line.split()[1:4] for line in table[1:3]] == [
        ["original", "Qronos", "auto:2.5"],
        ["fine-tuned", "GPFQ", "3"],
    ]
    assert len(table) == 1 + 4
    assert max(map(len, table)) <= 90


def test_candidates_alike_in_all_but_their_images_are_told_apart() -> None:
    others = TABLE[TABLE.method == "gpfq"].assign(seed=7, calibration="all")
    table = pd.concat([TABLE, others], ignore_index=True)
    text = re.sub(" +", " ", markdown(findings(1.1, table=table), {}))
    assert "| GPFQ, images of all classes, seed 7 | 4 |" in text
    assert "| round-to-nearest | 3 |" in text
    assert "seed" not in markdown(findings(1.1), {})


@pytest.mark.parametrize(
    "wanted", [Wanted(1, max_bytes=40_960), Wanted(0), Wanted(keep=85), Wanted(keep=100, max_bytes=99)]
)
def test_the_chart_shows_every_candidate_and_marks_the_request_and_the_choice(wanted: Wanted) -> None:
    far = rows(("quantized", "rtn", "2", 20_000, 1700, 0), ("quantized", "sgpfq", "8", 80_000, 0, 300))
    table = judged(pd.concat([TABLE, far[:2]], ignore_index=True), wanted)
    found = Findings(SUBSET, table, wanted, "", ("glyphs", "resnet20"), 100)
    quantized = table[table.method != "float"]
    value, low = (
        ("lost_points", "lost_low_points") if wanted.lose is not None else ("top1_sub_percent", "low_percent")
    )
    shown = figures.rows(quantized, found)
    assert shown.value.tolist() == quantized[value].tolist()
    bounded = (quantized.tested | quantized.pareto).to_numpy()
    assert shown.low[bounded].tolist() == quantized[low][bounded].tolist()
    assert shown.low[~bounded].isna().all()
    best = figures.front(quantized, found).value
    assert best.is_monotonic_decreasing if wanted.lose is not None else best.is_monotonic_increasing
    marked = figures.request(found)
    assert (marked.value, marked.lost) == (wanted.value, wanted.lose is not None)
    assert marked.kib in {wanted.max_bytes / 1024, inf}
    assert bool(marked.chosen) is (found.chosen is not None)
    assert len(figures.chart(found).to_dict()["datasets"]) >= 3


def test_a_question_names_classes_or_a_subset_and_one_accuracy() -> None:
    for given, found in (
        ({}, "none"),
        ({"classes": " "}, "none"),
        ({"classes": "a,b", "subset": "x"}, "both"),
    ):
        with pytest.raises(LaqError, match=f"--classes .* or --subset .*: give one of them, found {found}"):
            Question(**given)
    with pytest.raises(LaqError, match="--lose 0 and --keep 90: both say"):
        Question("a,b", lose=0.0, keep=90.0)
    usual = load_params(ROOT / "params.yaml").advise
    assert Question("a,b").wanted(usual) == Wanted(usual.lose, confidence=usual.confidence)
    assert Question("a,b", lose=0.0).wanted(usual) == Wanted(0.0)
    assert Question("a,b", keep=70.0, max_kb=2).wanted(usual) == Wanted(keep=70.0, max_bytes=2048)
    assert [Question("a,b", max_kb=size).max_bytes for size in (None, 0.0, 40.0)] == [inf, inf, 40960]


@pytest.fixture
def classes(project: Path) -> Path:
    dataset.FOLDER.mkdir(parents=True)
    write_split(dataset.FOLDER, "test", [np.zeros((5, 3, 8, 8), np.uint8)], range(5))
    names = ["maple_tree", "oak_tree", "palm_tree", "7", "rose"]
    write_manifest(dataset.FOLDER, "trees", Description(names, Preprocessing(8)))
    return project


def test_classes_are_names_or_numbers_in_the_order_given(classes: Path) -> None:
    found = Question("rose, 1,palm_tree,").subset_of()
    assert (found.classes, found.class_names) == ((4, 1, 2), ("rose", "oak_tree", "palm_tree"))
    assert found.kind == "asked"
    assert Question("7,0").subset_of().classes == (3, 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("oaktree,rose", "unknown class 'oaktree'; close: oak_tree, palm_tree, maple_tree"),
        ("rose,5", "unknown class '5'; allowed are 0 to 4 and the names in data/dataset/classes.json"),
        ("rose,-1", "unknown class '-1'; allowed are"),
        ("rose", "found rose; give two or more different ones"),
        ("rose,0,4", "found rose, maple_tree, rose; give two or more different ones"),
        (",", "found none; give two or more different ones"),
    ],
)
def test_classes_that_are_unknown_or_too_few_are_told_in_a_line(classes: Path, given: str, told: str) -> None:
    with pytest.raises(LaqError) as caught:
        Question(given).subset_of()
    assert str(caught.value).startswith(f"--classes: {told}")
    assert "\n" not in str(caught.value)


def test_an_unknown_subset_is_told_with_those_there_are(project: Path) -> None:
    write_json(SUBSETS, [asdict(SUBSET)])
    assert Question(subset="asked").subset_of() == SUBSET
    with pytest.raises(LaqError, match="--subset: found 'similar-9'; must be asked"):
        Question(subset="similar-9").subset_of()


def test_candidates_are_what_the_section_says_beside_the_original_in_float() -> None:
    params = load_params(ROOT / "params.yaml")
    cells = planned(SUBSET, as_study(params.study, params.advise))
    assert sum(cell.recipe is not None for cell in cells) == 7 * 3 * 2
    assert {cell.name for cell in cells if cell.recipe is None} == {
        "asked.original.float", "asked.finetuned.float",
    }  # fmt: skip
    tuned = params.advise.model_copy(update={"bases": ("finetuned",)})
    assert planned(SUBSET, as_study(params.study, tuned))[0].name == "asked.original.float"


def test_quick_candidates_are_of_the_primary_method_whatever_the_others_are() -> None:
    params = load_params(ROOT / "params.yaml")
    others = params.advise.model_copy(update={"methods": ("rtn",), "seeds": (0, 1)})
    fewer = quick(params.model_copy(update={"advise": others})).advise
    assert fewer.methods == (params.report.primary.method,)
    assert (fewer.bases, len(fewer.calibrations), fewer.seeds) == (("original",), 1, (0,))


def test_candidates_for_integers_have_no_more_bits_than_a_file_holds() -> None:
    params = load_params(ROOT / "params.yaml")
    asked = params.advise.model_copy(update={"bits": (3, 7, 8, "auto:6"), "activations": 8})
    rounded = params.model_copy(update={"advise": asked})
    assert for_integers(rounded).advise.bits == (3, 7)
    subset = describe(np.ones((3, 3)), ["a", "b", "c"], "one", "given", [0, 1])
    told = describe_plan(for_integers(rounded), subset, rounded.advise)
    assert told.endswith("; auto:6 left out, as bits that differ by layer may be too many for --max-ms")
    assert "left out" not in describe_plan(rounded, subset, rounded.advise)
    vnni = params.export.model_copy(update={"vnni": True})
    assert for_integers(rounded.model_copy(update={"export": vnni})).advise.bits == asked.bits
    in_float = params.model_copy(update={"advise": asked.model_copy(update={"activations": None})})
    assert for_integers(in_float).advise.bits == asked.bits
    mixed = rounded.model_copy(update={"advise": asked.model_copy(update={"bits": ("auto:6",)})})
    with pytest.raises(LaqError, match="advise.bits: found auto:6; with --max-ms"):
        for_integers(mixed)


def test_a_test_that_fails_before_that_of_the_nearest_candidate_is_told() -> None:
    unlucky = rows(("quantized", "rtn", "4", 40_960, 0, 0), ("quantized", "gpfq", "8", 76_800, 30, 0))
    unlucky["training_kl_nats"] = [0.1, 0.0, 0.0]
    found = findings(1, table=unlucky)
    assert (
        "the nearest is round-to-nearest at 4 bits on the original network (40.0 KiB): by n = 2000 images it loses "
        "0.0 points and at most 0.15; but GPFQ at 8 bits on the original network, which is tested before it, may lose "
        "2.03 points, and tests end with the first that fails"
    ) in answer(found)
    assert not for_terminal(found, "data/advise").startswith("For ")  # which the error says


def test_a_network_that_is_refused_is_told_without_arrow_or_promise() -> None:
    refused = replace(findings(1.1, 40), report=None, refused="its ONNX file takes longer than 5 ms")
    assert answer(refused) == (
        f"For c, a, b (3 classes of glyphs): no network is delivered: {AT_3} (30.0 KiB) was chosen by n = 2000 "
        "images, and refused, as its ONNX file takes longer than 5 ms"
    )
    for text in (markdown(refused, {}), for_terminal(refused, "data/advise")):
        assert text.startswith(answer(refused))
        assert "→" not in text
    assert "| fine-tuned | GPFQ | 3 |" in re.sub(" +", " ", markdown(refused, {}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose network is there, for eight cheap candidates."""
    folder = tmp_path_factory.mktemp("advise")
    params = tiny_params()
    block = params["glyphs"]
    block["dataset"] |= {"train_per_class": 4, "test_per_class": 10}
    block["network"]["training"]["epochs"] = 0
    block["advise"] |= {"bits": [2, 8], "methods": ["rtn", "gpfq"], "lose": 40.0}
    write_params(folder, params)
    shutil.copy(ROOT / "dvc.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        read = load_params()
        with recording("dataset", read.settings):
            dataset.run(read.dataset)
        with recording("network", read.settings):
            network.run(read.network)
            tell_classes_apart()
        yield folder


def tell_classes_apart() -> None:
    """Give the network a classifier by nearest means, which random features do for: without training."""
    classifier, train = network.load_network(), read_images(dataset.FOLDER, "train")
    with network.collecting_features(classifier) as collected:
        network.predict(classifier, train)
    features = torch.cat(collected)
    means = torch.stack([features[train.labels == label].mean(0) for label in range(100)])
    apart = means - features.mean(0)
    state = {"body.fc.weight": apart, "body.fc.bias": -(apart * means).sum(1) + apart.square().sum(1) / 2}
    network.save_tensors(network.FOLDER / network.WEIGHTS, {**classifier.state_dict(), **state})


def ask(*options: str) -> Result:
    return CliRunner().invoke(main, ["advise", "--jobs", "1", *options])


CLASSES = ("--classes", "chess_king,arrows_down,7")


def test_the_command_writes_the_smallest_network_with_the_evidence(place: Path) -> None:
    done = ask(*CLASSES, "--max-kb", "100")
    assert done.exit_code == 0, done.output
    made = place / room.FOLDER
    assert {path.name for path in made.iterdir()} == {
        "advice.md", "candidates.csv", "pareto.png", "network.safetensors", "network.json",
    }  # fmt: skip
    text = (made / "advice.md").read_text(encoding="utf-8")
    assert text.startswith("For chess_king, arrows_down, cards_heart (3 classes of glyphs): ")
    assert done.stdout.startswith(text.splitlines()[0])
    table = pd.read_csv(made / "candidates.csv")
    assert len(table) == 2 + 2 * 2 * 2
    (row,) = table[table.chosen].to_dict("records")
    about = read_json(made / "network.json")
    assert row["size_bytes"] == about["size_bytes"] == (made / "network.safetensors").stat().st_size
    assert about["classes"] == ["arrows_down", "cards_heart", "chess_king"]
    assert about["recipe"]["method"] == row["method"]
    assert row["size_bytes"] <= 1.005 * table[table.passed].size_bytes.min()
    assert row["lost_high_points"] <= 40


def test_what_will_be_measured_is_told_first_and_quick_measures_less(place: Path) -> None:
    done = ask(*CLASSES, "--max-kb", "100", "--quick")
    assert done.exit_code == 0, done.output
    assert "laq: 2 candidates for 3 classes: GPFQ at 2, 8 bits, of the network as it is; what" in done.stderr
    table = pd.read_csv(place / room.FOLDER / "candidates.csv")
    assert set(table.method) == {"float", "gpfq"}
    assert set(table.variant) == {"original", "quantized"}
    whole = ask(*CLASSES, "--max-kb", "100")
    assert (
        "laq: 8 candidates for 3 classes: round-to-nearest and GPFQ at 2, 8 bits, of the network as it is and the "
        "network that is fine-tuned on these classes first; what was measured before is read, and how "
        "long the rest takes is told once the network in float is measured"
    ) in whole.stderr


def test_the_lines_in_the_text_load_a_network_that_does_what_was_measured(place: Path) -> None:
    assert ask(*CLASSES).exit_code == 0
    text = (place / room.FOLDER / "advice.md").read_text(encoding="utf-8")
    lines = text.partition("```python\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 5
    names: dict[str, Any] = {}
    exec(lines, names)  # noqa: S102 (our own lines, as a user runs them)
    about = names["about"]
    images = read_images(dataset.FOLDER, "test").select(about["numbers"])
    with torch.inference_mode():
        logits = names["network"](images.images)
    assert logits.shape == (30, 3)
    right = np.array(
        [
            about["classes"][i] == images.class_names[k]
            for i, k in zip(logits.argmax(1), images.labels, strict=True)
        ]
    )
    table = pd.read_csv(place / room.FOLDER / "candidates.csv").set_index("cell")
    chose = choosing(images.labels.numpy())
    assert 100 * right[chose].mean() == pytest.approx(table.top1_sub_percent[about["cell"]], abs=1e-6)
    assert about["choosing"]["n"] == about["reporting"]["n"] == 15
    assert 100 * right[~chose].mean() == pytest.approx(about["reporting"]["top1_percent"])
    float_network = network.predict(network.load_network(), images)[:, about["numbers"]]
    known = np.array([about["classes"][i] for i in float_network.argmax(1)]) == [
        images.class_names[k] for k in images.labels
    ]
    lost = 100 * (known[~chose].mean() - right[~chose].mean())
    assert about["reporting"]["lost_points"] == pytest.approx(lost)
    assert f"on n = 15 other images it has {100 * right[~chose].mean():.1f} % top-1" in text
    assert "15 chose the network and the other 15 report on it, because the dataset has no validation" in text
    header = read_metadata(place / room.FOLDER / "network.safetensors")
    assert header.cut is not None
    assert header.cut.rows == tuple(about["numbers"])


def test_every_candidate_cut_to_its_classes_does_what_was_measured(place: Path, tmp_path: Path) -> None:
    params, subset = load_params(), Question(CLASSES[1]).subset_of()
    measured = room.measure(params, subset, room.Workers())
    export = room.SubsetExport(subset)
    images = read_images(dataset.FOLDER, "test").select(export.numbers)
    table = measured.table
    assert table.correct.nunique() > 2
    for row in table[table.method != "float"].to_dict("records"):
        whole = measured.folders[row["cell"]] / network.WEIGHTS
        export.write(tmp_path / "cut", whole)
        assert export.right(tmp_path / "cut", images)[measured.selection.rows].sum() == row["correct"]
        # Class by class, in the order that is told.
        full, cut = (load(path, network.load_network()) for path in (whole, tmp_path / "cut"))
        expected = network.predict(full, images)[:, list(export.numbers)]
        torch.testing.assert_close(network.predict(cut, images), expected)
        assert export.names == tuple(images.class_names[number] for number in export.numbers)
        # Of 100 rows 97 are gone: 64 codes, a step and a bias each; and a header tells of the rest.
        gone = whole.stat().st_size - row["size_bytes"]
        assert gone == pytest.approx(97 * (64 * int(row["bits"]) / 8 + 4 + 4), abs=200)


def test_asked_again_nothing_is_measured_again_and_all_bytes_are_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (place / room.FOLDER).iterdir()}

    first, before = ask(*CLASSES), contents()
    monkeypatch.setattr("laq.study.measure.quantize_each", None)
    again = ask(*CLASSES)
    assert again.exit_code == 0, again.output
    assert (again.stdout, contents()) == (first.stdout, before)
    # A smaller accuracy is another question to the same cells, as are the same classes as a subset.
    settings = load_params().settings
    with recording("embeddings", settings):
        EMBEDDINGS.mkdir()
    with recording("divergence", settings):
        names = read_class_names(dataset.FOLDER)
        DIVERGENCE.mkdir()
        np.save(CLASS_NAMES, np.array(names))
        np.save(DIVERGENCE / "matrix.npy", np.ones((len(names), len(names))))
    with recording("subsets", settings):
        divergences = {name: 1.0 for name in asdict(SUBSET) if name.endswith("divergence")}
        write_json(
            SUBSETS, [asdict(replace(Question(CLASSES[1]).subset_of(), name="random-1", **divergences))]
        )
    done = ask("--subset", "random-1", "--keep", "0")
    assert done.exit_code == 0, done.output
    assert read_json(place / room.FOLDER / "network.json")["recipe"]["bits"] == 2


def test_where_nothing_will_do_the_evidence_is_there_and_no_network(place: Path) -> None:
    assert ask(*CLASSES).exit_code == 0
    done = ask(*CLASSES, "--max-kb", "1")
    assert (done.exit_code, done.stderr.count("laq: ")) == (2, 2)  # with what is measured
    assert "→" not in done.stdout  # as none is chosen
    told = done.stderr.splitlines()[-1]
    assert told.startswith(
        "laq: For chess_king, arrows_down, cards_heart (3 classes of glyphs): no candidate of"
    )
    made = place / room.FOLDER
    assert {path.name for path in made.iterdir()} == {"advice.md", "candidates.csv", "pareto.png"}
    text = (made / "advice.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == told.removeprefix("laq: ")
    assert not pd.read_csv(made / "candidates.csv").chosen.any()


def test_a_network_that_is_fast_enough_is_also_an_onnx_file_and_a_slow_one_is_refused(place: Path) -> None:
    asked = load_params()
    integers = asked.model_copy(update={"advise": asked.advise.model_copy(update={"activations": 8})})
    quick = room.run(integers, Question(CLASSES[1], max_ms=1e6))
    assert not quick.refusal
    assert "data/advise/network.onnx takes " in quick.text.splitlines()[-1]
    classifier = OnnxClassifier(place / room.FOLDER / "network.onnx")
    assert classifier.about.classes == ("arrows_down", "cards_heart", "chess_king")
    assert classifier.about.recipe["activations"] == 8
    about = read_json(place / room.FOLDER / "network.json")
    assert about["recipe"] == classifier.about.recipe
    images = read_images(dataset.FOLDER, "test").select(about["numbers"])
    found = logits(classifier.session, images.images.numpy()).argmax(1)
    packed = load(place / room.FOLDER / "network.safetensors", network.load_network())
    assert (found == network.predict(packed, images).argmax(1).numpy()).mean() > 0.9
    slow = room.run(asked, Question(CLASSES[1], max_ms=1e-6))
    assert " is not delivered: its ONNX file takes " in slow.refusal
    assert ", and --max-ms allows 1e-06; " in slow.refusal
    assert "; set advise.activations: 8 in params.yaml, " in slow.refusal
    assert len(slow.refusal.splitlines()) == 1
    made = {path.name for path in (place / room.FOLDER).iterdir()}
    assert made == {"advice.md", "candidates.csv", "pareto.png"}
    text = (place / room.FOLDER / "advice.md").read_text(encoding="utf-8")
    assert "its ONNX file takes longer than the 1e-06 ms for a picture that --max-ms allows" in text
    assert "→" not in text + slow.text


def test_what_fails_in_timing_is_the_refusal_and_the_evidence_is_kept(place: Path) -> None:
    asked = load_params()
    eight = {"activations": 8, "bits": (8,), "methods": ("rtn",), "bases": ("original",)}
    integers = asked.model_copy(update={"advise": asked.advise.model_copy(update=eight)})
    failed = room.run(integers, Question(CLASSES[1], max_ms=1e6))
    assert failed.refusal.startswith(
        "round-to-nearest at 8 bits on the original network is not delivered: export: "
    )
    assert "overflow" in failed.refusal
    made = {path.name for path in (place / room.FOLDER).iterdir()}
    assert made == {"advice.md", "candidates.csv", "pareto.png"}
    assert "as its ONNX file could not be made or timed" in (place / room.FOLDER / "advice.md").read_text(
        "utf-8"
    )


def test_without_candidates_that_are_fine_tuned_nothing_is_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    monkeypatch.setattr("laq.advise.candidates.finetune", None)
    only = params.model_copy(update={"advise": params.advise.model_copy(update={"bases": ("original",)})})
    room.run(only, Question(CLASSES[1]), room.Workers())
    table = pd.read_csv(place / room.FOLDER / "candidates.csv")
    assert set(table.variant) == {"original", "quantized"}


def test_the_run_that_mlflow_started_gets_files_note_and_tags(
    place: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_database}")
    client = Store().client
    own = client.create_run(client.create_experiment("launched", place.as_uri())).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    assert ask(*CLASSES).exit_code == 0
    assert {file.path for file in client.list_artifacts(own)} == {
        path.name for path in (place / room.FOLDER).iterdir()
    }
    tags = client.get_run(own).data.tags
    assert tags["mlflow.note.content"].startswith("For chess_king, arrows_down, cards_heart")
    assert tags["laq.classes"] == "chess_king, arrows_down, cards_heart"


@pytest.mark.parametrize(
    ("options", "stage"),
    [(CLASSES, "dataset"), (("--subset", "similar-1"), "subsets")],
)
def test_what_the_pipeline_has_not_made_is_made_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], stage: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("laq.cli._repro", asked.append)
    # Nothing is there at first, and all of it after the pipeline has run.
    monkeypatch.setattr("laq.cli.find_stale", lambda *_: None if asked else Stale(stage, "not found"))
    monkeypatch.setattr(room, "describe_plan", lambda *_: "")
    monkeypatch.setattr(room.Question, "subset_of", lambda _: SUBSET)
    monkeypatch.setattr(room, "run", lambda *_: SimpleNamespace(text="", refusal=""))
    assert ask(*options).exit_code == 0
    assert asked == [stage]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--lose", "-1"), "'--lose': found -1; must be a number at least 0, at most 100"),
        (("--lose", "101"), "'--lose': found 101; must be a number at least 0, at most 100"),
        (("--keep", "nan"), "'--keep': found nan; must be a number at least 0, at most 100"),
        (("--max-kb", "small"), "'--max-kb': found 'small'; must be a number at least 0"),
        (("--lose", "1", "--keep", "90"), "--lose 1 and --keep 90: both say"),
        (("--subset", "similar-1"), "give one of them, found both"),
    ],
)
def test_options_out_of_range_or_two_for_one_thing_are_refused_before_any_work(
    project: Path, options: tuple[str, ...], told: str
) -> None:
    done = ask(*CLASSES, *options)
    assert done.exit_code == 2
    assert told in done.stderr
