"""Tuning: a quantized network comes nearer to the float one, or is left, and is still made of codes and steps."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.quantization import (
    QuantizationError,
    QuantizedNetwork,
    Recipe,
    choose_bits,
    export_onnx,
    load_quantized,
    parse_bits,
    quantize,
    quantize_each,
    save,
)
from laq.quantization.bits.sensitivity import sensitivities
from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.images import calibration_batches
from laq.quantization.calibration.split import Split
from laq.quantization.execution.base import errors_of
from laq.quantization.tuning.settings import Tuning, tuning_of
from laq.quantization.tuning.tune import TemperedDivergence
from tests.quantization.test_activations import Block, pictures
from tests.quantization.ways import by

CLASSES = (1, 2, 4)
TUNING = Tuning(classes=CLASSES, steps=60, codes_rate=0.03, scales_rate=0.01)
RECIPE = Recipe(bits=2, method="gpfq", tune=TUNING, seed=3)
IMAGES = 48
QUIET = pytest.mark.filterwarnings("ignore:tune:UserWarning")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    made = Block().eval()
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    made.norm.running_var.fill_(0.5)
    return made


@pytest.fixture(scope="module")
def tuned(network: nn.Module) -> QuantizedNetwork:
    return quantize(network, pictures(IMAGES), RECIPE)


def split() -> Split:
    return Split.of([Batch((pictures(IMAGES),))], RECIPE.held_back, RECIPE.seed)


def logits(network: nn.Module, images: Batch) -> Tensor:
    with torch.no_grad():
        return network(*images.args)


def divergence(network: nn.Module, other: nn.Module, images: Batch) -> float:
    p, q = (
        (logits(n, images)[:, CLASSES] / TUNING.temperature).double().softmax(1) for n in (network, other)
    )
    return float((p * (p / q).log()).sum(1).mean() * TUNING.temperature**2)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = state(one), state(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_network_comes_nearer_on_images_that_nobody_learned_from(
    network: nn.Module, tuned: QuantizedNetwork
) -> None:
    untuned = quantize(network, split().learned.args[0], replace(RECIPE, tune=None, held_back=0))
    told = tuned.tuned
    assert told is not None
    assert told.taken
    assert (told.learned, told.held_back) == (42, 6)
    held_back = split().held_back
    assert told.divergence_before == pytest.approx(divergence(network, untuned.network, held_back), rel=1e-3)
    assert told.divergence_after == pytest.approx(divergence(network, tuned.network, held_back), rel=1e-3)
    assert told.divergence_after is not None
    assert told.divergence_after < 0.7 * told.divergence_before
    moved = sum(int((a.codes != b.codes).sum()) for a, b in zip(tuned.layers, untuned.layers, strict=True))
    assert told.codes_moved == moved > 0
    assert 0 < told.passes <= TUNING.steps * TUNING.batch_size / 42
    assert tuned.tuning_seconds > 0


def test_weights_are_codes_of_the_alphabet_times_steps_to_the_bit(tuned: QuantizedNetwork) -> None:
    for layer in tuned.layers:
        weights = tuned.network.get_parameter(layer.parameter)
        assert torch.equal(weights, layer.alphabet.decode(layer.codes)), layer.name
        assert layer.codes.dtype == torch.int32
        assert layer.alphabet.low <= int(layer.codes.min()) <= int(layer.codes.max()) <= layer.alphabet.high


def test_errors_are_those_of_the_tuned_network(network: nn.Module, tuned: QuantizedNetwork) -> None:
    learned = split().learned
    Y, Y_q = (logits(n, learned) for n in (network, tuned.network))
    assert tuned.relative_error == pytest.approx(float((Y - Y_q).norm() / Y.norm()), rel=1e-4)
    first = tuned.layers[0]
    X = learned.args[0]
    W, W_q = network.first.weight.detach(), tuned.network.get_parameter("first.weight").detach()
    Y, Y_q = (F.conv2d(X, w, padding=1) for w in (W, W_q))
    assert first.relative_error == pytest.approx(float((Y - Y_q).norm() / Y.norm()), rel=1e-4)


def test_a_file_holds_it_all_and_is_the_same_twice_by_any_number_of_threads(
    network: nn.Module, tuned: QuantizedNetwork, tmp_path: Path
) -> None:
    before, threads = state(network), torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        again = quantize(network, list(pictures(IMAGES).split(13)), RECIPE)
    finally:
        torch.set_num_threads(threads)
    save(tmp_path / "a", tuned)
    save(tmp_path / "b", again)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = load_quantized(tmp_path / "a", network)
    assert same(read.network, tuned.network)
    assert (read.tuned, read.recipe) == (tuned.tuned, tuned.recipe)
    assert all(torch.equal(state(network)[name], tensor) for name, tensor in before.items())


def test_a_network_that_gets_no_nearer_is_left_as_it_was(network: nn.Module) -> None:
    still = replace(RECIPE, tune=replace(TUNING, codes_rate=0, scales_rate=0))
    with pytest.warns(UserWarning, match="tune: on the images held back the tuned network is no nearer"):
        left = quantize(network, pictures(IMAGES), still)
    untuned = quantize(network, split().learned.args[0], replace(RECIPE, tune=None, held_back=0))
    assert left.tuned is not None
    assert not left.tuned.taken
    assert left.tuned.codes_moved == 0
    assert same(left.network, untuned.network)
    assert left.relative_error == pytest.approx(untuned.relative_error, rel=1e-6)
    assert [one.relative_error for one in left.layers] == pytest.approx(
        [one.relative_error for one in untuned.layers], rel=1e-6
    )


@QUIET
@pytest.mark.parametrize(("codes_rate", "scales_rate"), [(0.0, 0.01), (0.03, 0.0)])
def test_each_part_can_be_kept(network: nn.Module, codes_rate: float, scales_rate: float) -> None:
    part = replace(TUNING, codes_rate=codes_rate, scales_rate=scales_rate, steps=30)
    done = quantize(network, pictures(IMAGES), replace(RECIPE, tune=part))
    untuned = quantize(network, split().learned.args[0], replace(RECIPE, tune=None, held_back=0))
    assert done.tuned is not None
    for new, old in zip(done.layers, untuned.layers, strict=True):
        assert codes_rate or torch.equal(new.codes, old.codes)
        assert scales_rate or torch.equal(new.alphabet.step, old.alphabet.step)
    assert scales_rate or torch.equal(done.network.norm.bias, untuned.network.norm.bias)
    if done.tuned.taken:
        assert not same(done.network, untuned.network)


@QUIET
def test_several_tunings_of_one_pass_are_those_of_each(network: nn.Module, tuned: QuantizedNetwork) -> None:
    every = replace(RECIPE, tune=replace(TUNING, loss="all", steps=20))
    both = quantize_each(network, pictures(IMAGES), [RECIPE, every])
    assert same(both[0].network, tuned.network)
    assert both[0].tuned == tuned.tuned
    assert same(both[1].network, quantize(network, pictures(IMAGES), every).network)


@QUIET
@pytest.mark.parametrize(
    "options",
    [{"granularity": "layer"}, {"alphabet": "twos_complement"}, {"alphabet": "midrise"}, {"fuse": True}],
    ids=str,
)
def test_alphabets_keep_their_kind(network: nn.Module, options: dict[str, Any], tmp_path: Path) -> None:
    recipe = replace(RECIPE, tune=replace(TUNING, steps=20), **options)
    done = quantize(network, pictures(IMAGES), recipe)
    save(tmp_path / "file", done)
    assert same(load_quantized(tmp_path / "file", network).network, done.network)
    for layer in done.layers:
        assert torch.equal(done.network.get_parameter(layer.parameter), layer.alphabet.decode(layer.codes))
        if options.get("granularity") == "layer":
            assert len(layer.alphabet.step.unique()) == 1


@QUIET
def test_it_learns_through_rounded_activations_and_a_runtime_computes_the_same(
    network: nn.Module, tmp_path: Path
) -> None:
    recipe = Recipe(bits=4, activations=6, tune=replace(TUNING, steps=30))
    done = quantize(network, pictures(IMAGES), recipe)
    export_onnx(tmp_path / "file.onnx", done, pictures(2))
    session = onnxruntime.InferenceSession(tmp_path / "file.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pictures(8).numpy()})[0]
    with torch.no_grad():
        expected = done.network(pictures(8)).numpy()
    # Ties between two codes of an activation may fall either way.
    assert np.median(np.abs(found - expected)) < 0.02 * np.abs(expected).max()


def test_a_shifted_bias_is_counted_when_errors_are_measured_again(network: nn.Module) -> None:
    recipe = replace(RECIPE, bias_correction=True, tune=replace(TUNING, codes_rate=0, scales_rate=0, steps=1))
    with pytest.warns(UserWarning, match="no nearer"):
        left = quantize(network, pictures(IMAGES), recipe)
    untuned = quantize(network, split().learned.args[0], replace(recipe, tune=None, held_back=0))
    assert left.relative_error == pytest.approx(untuned.relative_error, rel=1e-6)


def test_a_tuning_that_leaves_all_bounds_is_not_taken(network: nn.Module, tmp_path: Path) -> None:
    wild = replace(RECIPE, tune=replace(TUNING, codes_rate=0, scales_rate=1e30, steps=3))
    with pytest.warns(UserWarning, match="no nearer to the float one"):
        left = quantize(network, pictures(IMAGES), wild)
    assert left.tuned is not None
    assert left.tuned.divergence_after is None
    save(tmp_path / "file", left)
    assert load_quantized(tmp_path / "file", network).tuned == left.tuned


def test_a_budget_of_bits_is_allocated_without_tuning_and_without_images_held_back(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[Tensor]()

    def noted(network: nn.Module, images: Any, *others: Any) -> Any:
        measured.append(torch.cat([batch.args[0] for batch in calibration_batches(network, images, IMAGES)]))
        return sensitivities(network, images, *others)

    monkeypatch.setattr("laq.quantization.bits.allocate.sensitivities", noted)
    budget, plain = parse_bits("auto:3"), replace(RECIPE, tune=None, held_back=0)
    found = choose_bits(budget, network, pictures(IMAGES), RECIPE, CLASSES)
    assert found == choose_bits(budget, network, split().learned.args[0], plain, CLASSES)
    assert torch.equal(measured[0], measured[1])


@QUIET
@pytest.mark.parametrize("way", ["fx", "hooks"])
def test_errors_are_measured_once(network: nn.Module, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    done = list[int]()

    def counted(outputs: Any) -> Any:
        found = errors_of(outputs)
        done.append(len(found))
        return found

    recipe = replace(RECIPE, batch_size=IMAGES, tune=replace(TUNING, steps=2))
    for module in ("lockstep", "layerwise"):
        monkeypatch.setattr(f"laq.quantization.execution.{module}.errors_of", counted)
    with by(way):
        layers = quantize(network, pictures(IMAGES), recipe).layers
    assert len(done) == len(layers) + 1  # of the outputs


def test_only_the_classes_that_count_are_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 6, generator=generator)
    of_some = TemperedDivergence(CLASSES, 2.0)
    p, q = ((t[:, CLASSES] / 2).softmax(1) for t in (b, a))
    assert of_some(a, b).item() == pytest.approx(4 * float((p * (p / q).log()).sum()), rel=1e-4)
    others = a.clone()
    others[:, [0, 3, 5]] += 7
    assert torch.equal(of_some(others, b), of_some(a, b))
    assert not torch.equal(TemperedDivergence(None, 2.0)(others, b), TemperedDivergence(None, 2.0)(a, b))


@pytest.mark.parametrize("method", ["gpfq", "brecq"])
def test_what_was_learned_by_heart_shows_on_images_held_back(
    network: nn.Module, method: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, method=method, tune=None, options={"iterations": 5} if method == "brecq" else {})
    result = quantize(network, pictures(IMAGES), recipe)
    plain = quantize(network, split().learned.args[0], replace(recipe, held_back=0))
    assert same(result.network, plain.network)
    assert result.relative_error == plain.relative_error
    assert plain.held_back_error is None
    Y, Y_q = (logits(n, split().held_back) for n in (network, result.network))
    assert result.held_back_error == pytest.approx(float((Y - Y_q).norm() / Y.norm()), rel=1e-5)
    save(tmp_path / "file", result)
    assert load_quantized(tmp_path / "file", network).held_back_error == result.held_back_error


def test_the_error_on_images_held_back_is_that_of_the_tuned_network(
    network: nn.Module, tuned: QuantizedNetwork
) -> None:
    Y, Y_q = (logits(n, split().held_back) for n in (network, tuned.network))
    assert tuned.held_back_error == pytest.approx(float((Y - Y_q).norm() / Y.norm()), rel=1e-5)


def test_a_recipe_of_a_former_file_held_images_back_for_its_tuning() -> None:
    written = asdict(RECIPE) | {"tune": asdict(TUNING) | {"held_back": 0.25}}
    del written["held_back"]
    assert Recipe.from_json(written) == replace(RECIPE, held_back=0.25)


def test_images_are_held_back_by_the_seed_whatever_their_batches() -> None:
    whole = split()
    parts = Split.of([Batch((part,)) for part in pictures(IMAGES).split(7)], RECIPE.held_back, RECIPE.seed)
    assert torch.equal(whole.held_back.args[0], parts.held_back.args[0])
    assert torch.equal(whole.learned.args[0], parts.learned.args[0])
    together = torch.cat([whole.learned.args[0], whole.held_back.args[0]]).flatten(1).sum(1)
    assert torch.equal(together.sort().values, pictures(IMAGES).flatten(1).sum(1).sort().values)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("subsets", "loss: found 'subsets'; must be subset, all; did you mean subset?"),
        ({"step": 3}, "found 'step', which a tuning does not have: it has loss, classes, steps, batch_size,"),
        ({"steps": 0}, "steps: found 0; must be a whole number above 0"),
        ({"classes": [1, 1]}, "classes: found [1, 1]; must be different numbers of classes"),
        ({"codes_rate": -1}, "codes_rate: found -1; must be a number at least 0"),
        (3, "found 3; must be none, subset, all, or a map of options to values"),
    ],
)
def test_what_is_no_tuning_is_told_in_a_line(written: Any, message: str) -> None:
    with pytest.raises(QuantizationError) as caught:
        Recipe(tune=written)
    assert str(caught.value).startswith(f"tune: {message}")


def test_a_loss_alone_or_a_map_makes_a_tuning() -> None:
    assert tuning_of(None) is None
    assert Recipe(tune="all").tune == Tuning(loss="all") == tuning_of({"loss": "all"})  # type: ignore[arg-type]


def test_what_cannot_be_tuned_is_refused_in_a_line(network: nn.Module) -> None:
    infinite = copy.deepcopy(network)
    infinite.fc.bias.data[0] = torch.inf
    every = replace(RECIPE, tune=replace(TUNING, loss="all"))
    refused: list[tuple[nn.Module, Any, list[Recipe], str]] = [
        (
            network,
            pictures(8),
            [Recipe(tune=Tuning())],
            "tune: found the loss subset without classes; name th",
        ),
        (
            network,
            pictures(8),
            [Recipe(tune=Tuning(classes=(1, 5)))],
            "tune: found class 5; must be from 0 to 4",
        ),
        (network, pictures(8), [every, replace(RECIPE, tune=None)], "tune: recipes of one pass must all be"),
        (
            network,
            pictures(8),
            [every, replace(every, seed=9)],
            "seed: recipes of one pass must agree; found 3 and 9",
        ),
        (network, pictures(1), [every], "held_back: found one calibration image; give two at least"),
        (
            network,
            [pictures(2), pictures(2)[..., :4]],
            [every],
            "held_back: calibration images differ in shape",
        ),
        (infinite, pictures(8), [every], "tune: the float network's outputs are not finite"),
    ]
    for given, images, recipes, message in refused:
        with pytest.raises(QuantizationError, match=message):
            quantize_each(given, images, recipes)
