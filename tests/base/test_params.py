"""params.yaml: what is right is read, what is wrong is named in a line."""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from laq.errors import LaqError
from laq.params import load_params, study_names
from laq.quantization import QuantizationError, Recipe, parse_bits
from laq.sections.architecture import IMAGENET
from laq.sections.study import Study, bits_name, check_bits
from tests.conftest import ROOT, tiny_params, write_params


def test_dvc_writes_the_committed_parameters_as_they_are(tmp_path: Path) -> None:
    # Otherwise `dvc exp run -S` would change lines that nobody asked for.
    from dvc.utils.serialize import modify_yaml

    copied = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    with modify_yaml(copied) as params:
        params["study"] = str(params["study"])
    assert copied.read_text(encoding="utf-8") == (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_both_committed_studies_are_valid(tmp_path: Path) -> None:
    committed = load_params(ROOT / "params.yaml")
    assert committed.name == "glyphs"
    assert committed.study.bits == (2, 3, 4, 8)
    params = tiny_params() | {"study": "cifar100"}
    write_params(tmp_path, params)
    other = load_params(tmp_path / "params.yaml")
    assert other.dataset.name == "cifar100"
    kinds = ("similar", "dissimilar", "random", "even")
    assert sum(getattr(other.subsets, kind) for kind in kinds) * len(other.subsets.sizes) >= 30


MISTAKES: list[tuple[tuple[str, ...], Any, str]] = [
    (("study", "bitz"), 3, "glyphs.study.bitz: unknown key; known here: activation_range, activations, alphabet,"),
    (("studdy",), {}, "glyphs.studdy: unknown key; known here: advise, compare, dataset,"),
    (("network", "training", "lr"), 1, "glyphs.network.training.lr: unknown key; known here: batch_size,"),
    (("study", "bits"), "3", "glyphs.study.bits: found '3'; must be a list"),
    (("study", "bits"), [3, "x"], "glyphs.study.bits.1: found 'x'; must be a whole number from 2 to 24, or a text such as auto:3"),
    (("study", "bits"), [1], "glyphs.study.bits.0: found 1; must be a whole number from 2 to 24"),
    (("study", "bits"), [True], "glyphs.study.bits.0: found True; must be a whole number from 2 to 24"),
    (("study", "bits"), [[4, 4]], "glyphs.study.bits.0: found [4, 4]; must be a whole number from 2 to 24"),
    (("study", "bits"), [], "glyphs.study.bits: "),
    (("study", "methods"), ["awq"], "glyphs.study.methods.0: found 'awq'; must be rtn, gpfq, sgpfq, gpfq_l0, gpfq_l1, gptq, qronos, adaround, brecq, or one of these with -tuned or -tuned-all"),
    (("study", "methods"), ["qrono"], "glyphs.study.methods.0: found 'qrono'; must be rtn, gpfq, sgpfq, gpfq_l0, gpfq_l1, gptq, qronos, adaround, brecq, or one of these with -tuned or -tuned-all; did you mean qronos?"),
    (("study", "options"), {"gpfq_l2": {}}, "glyphs.study.options: found 'gpfq_l2'; must be rtn, gpfq,"),
    (("study", "options"), {"gpfq_l0": {"treshold": 1}}, "glyphs.study.options: found 'treshold', which gpfq_l0 does not have: it has threshold, form; did you mean threshold?"),
    (("study", "options"), {"gpfq_l0": {"threshold": -1}}, "glyphs.study.options.gpfq_l0.threshold: found -1; must be a number at least 0"),
    (("study", "options"), {"gptq": {"form": "auto"}}, "glyphs.study.options: found 'form', which gptq does not have: it has none"),
    (("study", "options"), {"gpfq": 3}, "glyphs.study.options.gpfq: found 3; must be a map of option names to values"),
    (("study", "options"), 3, "glyphs.study.options: found 3; must be a map of methods to their options"),
    (("study", "bits"), ["asc:2"], "glyphs.study.bits.0: found 'asc:2'; must be a whole number from 2 to 24, or a text such as"),
    (("study", "bits"), ["3 first:99"], "glyphs.study.bits.0: found '3 first:99'; must be a whole number from 2 to 24"),
    (("study", "bits"), ["auto:0"], "glyphs.study.bits.0: found 'auto:0'; must be a whole number from 2 to 24"),
    (("study", "bits"), ["8,99"], "glyphs.study.bits.0: found '8,99'; must be a whole number from 2 to 24"),
    (("study", "retain_rate"), 0, "glyphs.study.retain_rate: found 0; must be a number above 0, at most 1"),
    (("study", "calibration_images"), 2.5, "glyphs.study.calibration_images: found 2.5; must be a whole number"),
    (("dataset", "seed"), None, "glyphs.dataset.seed: missing; glyphs needs train_per_class, test_per_class and seed"),
    (("dataset", "seeds"), 1, "glyphs.dataset.seeds: unknown key; glyphs has train_per_class, test_per_class and seed"),
    (("dataset", "test_per_class"), 0, "glyphs.dataset.test_per_class: found 0; must be a whole number above 0"),
    (("dataset", "train_per_class"), True, "glyphs.dataset.train_per_class: found True; must be a whole number"),
    (("dataset", "name"), "cifar100", "glyphs.dataset.train_per_class: unknown key; cifar100 has no options"),
    (("dataset", "name"), "imagenet", "glyphs.dataset.name: found 'imagenet'; must be glyphs, folder, torchvision, cifar100"),
    (("network", "source"), "file", "glyphs.network.weights: missing; must be the path of a checkpoint where source is file"),
    (("network", "mean"), [0.5, 0.5, 0.5], "glyphs.network.std: missing; give both mean and std"),
    (("network", "source"), "hub", "glyphs.network.source: found 'hub'; must be train, file, pretrained"),
    (("network", "training", "learning_rate"), float("inf"), "learning_rate: found inf; must be a finite number"),
    (("study", "radius"), -1, "glyphs.study.radius: found -1; must be auto, mse, error, or a number above 0"),
    (("study", "radius"), "large", "glyphs.study.radius: found 'large'; must be auto, mse, error, or a number above 0"),
    (("study", "bits"), [3, 3], "glyphs.study.bits: found [3, 3]; each may stand but once"),
    (("study", "bits"), [3, "3"], "glyphs.study.bits: found [3, 3]; each may stand but once"),
    (("study", "tune"), "all", "glyphs.study.tune: found 'all'; must be a map of options to values; methods such as qronos-tuned"),
    (("study", "tune"), {"loss": "all"}, "glyphs.study.tune.loss: found 'all'; leave it out: methods such as qronos-tuned and"),
    (("study", "methods"), ["qronos-tune"], "adaround, brecq, or one of these with -tuned or -tuned-all; did you mean qronos-tuned?"),
    (("study", "tune"), {"step": 3}, "glyphs.study.tune: found 'step', which a tuning does not have: it has loss,"),
    (("study", "tune"), {"classes": [3]}, "glyphs.study.tune.classes: found [3]; leave it out: they are the subsets'"),
    (("study", "fuse"), "yes", "glyphs.study.fuse: found 'yes'; must be true or false"),
    (("study", "granularity"), "row", "glyphs.study.granularity: found 'row'; must be channel, layer"),
    (("name",), "mine", "glyphs.name: unknown key"),
    (("study", "also"), [{"bits": [99]}], "glyphs.study.also.0.bits.0: found 99; must be a whole number from 2 to 24"),
    (("study", "also"), [{"seed": 1}], "glyphs.study.also.0.seed: unknown key; known here: bases, bits, calibrations,"),
    (("study", "calibrations"), ["none"], "glyphs.study.calibrations.0: found 'none'; must be subset, all"),
    (("subsets", "sizes"), [1], "glyphs.subsets.sizes.0: found 1; must be at least 2"),
    (("subsets", "sizes"), [5, 5], "glyphs.subsets.sizes: found [5, 5]; each may stand but once"),
    (("subsets", "bands"), [{"count": 1, "minimum": 5, "maximum": 2}], "glyphs.subsets.bands.0.minimum: found 5; must be below the maximum 2"),
    (("report", "confidence"), 1.0, "glyphs.report.confidence: found 1.0; must be below 1"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_key_and_range(
    tmp_path: Path, key: tuple[str, ...], value: Any, message: str
) -> None:
    params = tiny_params()
    section = params["glyphs"]
    for part in key[:-1]:
        section = section[part]
    section[key[-1]] = value
    write_params(tmp_path, params)
    with pytest.raises(LaqError) as caught:
        load_params(tmp_path / "params.yaml")
    assert f"params.yaml: {message}" in str(caught.value) or message in str(caught.value)
    assert all("params.yaml: glyphs." in line for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: imagenet\nglyphs: {}\n", "study: found 'imagenet'; must name a block: glyphs"),
        ("glyphs: {}\n", "study: missing; must name a block: glyphs"),
        ("study: glyphs\nglyphs: 3\n", "glyphs: found 3; must be keys and values"),
        ("- 1\n", "found [1]; must be keys and values"),
        ("study: [\n", "not YAML"),
        ("study: glyphs\nglyphs: {}\n", "glyphs.dataset: missing; must be given"),
    ],
)
def test_a_broken_file_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(LaqError, match="params.yaml") as caught:
        load_params(tmp_path / "params.yaml")
    assert message in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(LaqError, match=r"not found; run laq in the project's folder"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alphabet", "ternary"),
        ("granularity", ["channel"]),
        ("radius", True),
        ("radius", 0),
        ("radius", "least"),
        ("percentile", 1.5),
        ("percentile", False),
        ("retain_rate", "half"),
        ("batch_size", 2.0),
        ("batch_size", True),
        ("fuse", 1),
        ("bias_correction", None),
        ("equalize", "yes"),
        ("ignore", "body.fc"),
        ("ignore", [3]),
    ],
)
def test_the_study_and_a_recipe_refuse_the_same_in_the_same_words(
    tmp_path: Path, option: str, value: Any
) -> None:
    content = tiny_params()
    content["glyphs"]["study"][option] = value
    write_params(tmp_path, content)
    with pytest.raises(LaqError) as of_the_study:
        load_params(tmp_path / "params.yaml")
    with pytest.raises(QuantizationError) as of_a_recipe:
        Recipe(**{option: value})
    assert str(of_the_study.value).endswith(f"glyphs.study.{of_a_recipe.value}")


def test_reading_parameters_imports_neither_torch_nor_numba() -> None:
    code = "import sys, laq.cli; print({'torch', 'numba', 'pandas', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("bits", "name"),
    [(3, "3bit"), ("12", "12bit"), ("auto:2.5", "auto_2.5"), ("3 first:8", "3_first_8"), ("8,4,4", "8_4_4")],
)
def test_bits_are_numbers_or_texts_with_names_for_files(bits: int | str, name: str) -> None:
    checked = check_bits(bits)
    assert bits_name(checked) == name
    parse_bits(checked)


def test_names_of_long_bits_are_short_and_different() -> None:
    lists = ["8," + "4," * 99 + last for last in "48"]
    names = [bits_name(bits) for bits in lists]
    assert len(set(names)) == 2
    assert all(len(name) < 80 and name.startswith("8_4_4_4") for name in names)


def test_the_study_offers_the_whole_recipe() -> None:
    left_to_the_engine = {"method", "memory_gib"}
    of_a_cell = {"seed"}
    assert {field.name for field in fields(Recipe)} - left_to_the_engine - of_a_cell <= set(
        Study.model_fields
    )


def test_the_networks_that_embed_are_torchvisions_with_imagenet_weights() -> None:
    from torchvision import models

    assert set(IMAGENET) == set(models.list_models(module=models))


def test_numbers_are_read_as_dvc_writes_them(tmp_path: Path) -> None:
    content = tiny_params()
    content["glyphs"]["finetune"] |= {"learning_rate": "RATE", "weight_decay": "DECAY"}
    write_params(tmp_path, content)
    path = tmp_path / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("RATE", "5e-05").replace("DECAY", "1e-2")
    path.write_text(text, encoding="utf-8")
    tuned = load_params(path).finetune
    assert (tuned.learning_rate, tuned.weight_decay) == (0.00005, 0.01)


def test_another_studys_block_may_be_unfinished(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params() | {"mine": {"dataset": {"name": "mine"}}})
    assert load_params(tmp_path / "params.yaml").name == "glyphs"


@pytest.mark.parametrize(
    ("further", "wrong"),
    [
        ({"bits": [2]}, ""),
        ({"bits": [2], "methods": ["gpfq"]}, ""),
        ({"bits": [2], "methods": ["rtn"]}, "report.primary.bits: found 2; must be what the study measures by gpfq"),
        ({"bits": [2], "bases": ["finetuned"]}, "report.primary.bits: found 2; must be what"),
    ],
)  # fmt: skip
def test_what_the_report_asks_first_may_be_a_further_cell_of_the_original_network(
    tmp_path: Path, further: dict[str, Any], wrong: str
) -> None:
    content = tiny_params()
    content["glyphs"]["study"]["also"] = [further]
    content["glyphs"]["report"]["primary"]["bits"] = 2
    write_params(tmp_path, content)
    with pytest.raises(LaqError, match=wrong) if wrong else nullcontext():
        load_params(tmp_path / "params.yaml")


def test_one_key_chooses_the_predecessors_divergence(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"study": "cifar100"}
    params["cifar100"]["divergence"]["reduction"] = "umap"
    write_params(tmp_path, params)
    asked = load_params(tmp_path / "params.yaml").divergence
    assert asked.name == "umap-gaussian"
    assert asked.others == ("umap-knn", "features-gaussian", "features-knn")


@pytest.mark.parametrize("study", study_names(ROOT / "params.yaml"))
def test_every_committed_study_is_valid(tmp_path: Path, study: str) -> None:
    write_params(
        tmp_path, yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"study": study}
    )
    assert load_params(tmp_path / "params.yaml").name == study
