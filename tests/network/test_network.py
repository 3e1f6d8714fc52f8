"""Networks: known sizes, honest scores, training that can be killed, weights that must fit."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from torch import nn

from laq import network as stage
from laq.architectures import NetworkDesign, build, seeded
from laq.dataset import ImageSet
from laq.embeddings import DepthwiseByTaps, embed, foreign_network
from laq.errors import LaqError
from laq.files import md5, read_json
from laq.network import WEIGHTS, collecting_features, evaluate, fit, make_network, score
from laq.network.training import augment, has_bfloat16, training_device
from laq.network.weights import load_tensors, save_tensors
from laq.pictures import Preprocessing
from laq.sections.embeddings import Embeddings
from laq.sections.network import Network, Training
from tests.conftest import ROOT
from tests.network import load_checkpoint

DESIGN = NetworkDesign("resnet20", 10, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SMALL = NetworkDesign("resnet8", 10, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RECIPE = Training(
    optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, schedule="one_cycle",
    epochs=3, batch_size=16, crop=2, flip=True, seed=0,
)  # fmt: skip


def images(count: int = 40, classes: int = 10, size: int = 32) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, tuple(f"class_{i}" for i in range(classes)))


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in network.state_dict().values()])


@pytest.mark.parametrize(("depth", "millions"), [(8, 0.08), (20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_depth_and_size(depth: int, millions: float) -> None:
    network = build(NetworkDesign(f"resnet{depth}", 10, 32, (0.5,) * 3, (0.5,) * 3))
    main = [
        n
        for n, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n
    ]
    assert len(main) == depth
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_weights_come_from_the_seed_and_leave_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = build(DESIGN, 1), build(DESIGN, 1), build(DESIGN, 2)
    assert torch.equal(flat(first), flat(same))
    assert not torch.equal(flat(first), flat(other))
    assert torch.equal(torch.random.get_rng_state(), before)
    with seeded(3):
        drawn = torch.rand(2)
    with seeded(3):
        assert torch.equal(torch.rand(2), drawn)


def test_a_classifier_scales_and_normalises_raw_pixels() -> None:
    network, pixels = build(DESIGN), images(4).images
    by_hand = network.body((pixels.float() / 255 - 0.5) / 0.25)
    assert torch.equal(network(pixels), by_hand)
    large = build(NetworkDesign("resnet20", 10, 48, (0.5,) * 3, (0.25,) * 3))
    scaled = F.interpolate(pixels.float() / 255, (48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(large(pixels), large.body((scaled - 0.5) / 0.25))


def test_scores_are_counted_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return table[pixels[:, 0, 0, 0].long()]

    data = images(60)
    data.images[:, 0, 0, 0] = torch.arange(60, dtype=torch.uint8)
    table = torch.randn(60, 10, generator=torch.Generator().manual_seed(1))
    scores = evaluate(Fixed(), data, [7, 2, 4])
    rows = [i for i in range(60) if i % 10 in {2, 4, 7}]
    ranked = {i: table[i].argsort(descending=True).tolist() for i in rows}
    assert scores.top1_all == pytest.approx(100 * np.mean([ranked[i][0] == i % 10 for i in rows]))
    assert scores.top5_all == pytest.approx(100 * np.mean([i % 10 in ranked[i][:5] for i in rows]))
    among = {i: [c for c in ranked[i] if c in {2, 4, 7}] for i in rows}
    assert scores.top1_sub == pytest.approx(100 * np.mean([among[i][0] == i % 10 for i in rows]))
    assert scores.top5_sub == 100
    assert scores.balanced_top1_sub == pytest.approx(scores.top1_sub)


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    logits, labels = torch.eye(10)[[2, 2, 2, 4, 7, 7]], torch.tensor([2, 2, 4, 4, 7, 2])
    scores = score(logits, labels, [2, 4, 7])
    assert scores.top1_all == pytest.approx(100 * 4 / 6)
    assert (
        scores.balanced_top1_all == scores.balanced_top1_sub == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
    )


def test_augmentation_shifts_and_mirrors_and_nothing_else() -> None:
    pixels = images(50).images
    assert torch.equal(augment(pixels, 0, flip=False, generator=torch.Generator()), pixels)
    moved = augment(pixels, 2, flip=True, generator=torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(pixels, moved, strict=True):
        padded = F.pad(before, (2,) * 4)
        matches = [
            (y, x, mirrored)
            for mirrored in (False, True)
            for y in range(5)
            for x in range(5)
            if torch.equal(
                padded[:, y : y + 32, x : x + 32].flip(2) if mirrored else padded[:, y : y + 32, x : x + 32],
                after,
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert len(seen) > 20


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
mixed_precision = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no AVX-512")


@pytest.mark.parametrize(
    ("precision", "device"),
    [
        ("float32", "cpu"),
        pytest.param("bfloat16", "cpu", marks=mixed_precision),
        pytest.param("float32", "cuda", marks=gpu),
        pytest.param("bfloat16", "auto", marks=gpu),
    ],
)
def test_training_learns_and_is_the_same_every_time(precision: str, device: str) -> None:
    data, networks = images(size=16), [build(SMALL, 5) for _ in range(2)]
    data.images.div_(10, rounding_mode="floor").add_(20 * data.labels[:, None, None, None].byte())
    changes = {"epochs": 30, "crop": 0, "flip": False, "precision": precision, "device": device}
    for network in networks:
        fit(network, data, RECIPE.model_copy(update=changes), "train")
    assert torch.equal(flat(networks[0]), flat(networks[1]))
    assert not networks[0].training
    assert evaluate(networks[0], data, range(10)).top1_all > 50


@mixed_precision
def test_mixed_precision_keeps_weights_in_float32_and_stays_close() -> None:
    networks = {precision: build(DESIGN) for precision in ("float32", "bfloat16")}
    for precision, network in networks.items():
        fit(network, images(), RECIPE.model_copy(update={"epochs": 1, "precision": precision}))
    exact, mixed = networks.values()
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    moved = flat(exact) - flat(build(DESIGN))
    assert 0 < (flat(mixed) - flat(exact)).norm() < 0.2 * moved.norm()


def test_mixed_precision_is_refused_where_it_would_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    network = build(DESIGN)
    with pytest.raises(LaqError, match=r"precision: found bfloat16, .* set it to float32"):
        fit(network, images(), RECIPE.model_copy(update={"precision": "bfloat16"}))
    fit(network, images(), RECIPE.model_copy(update={"epochs": 1}))


@gpu
def test_a_gpu_trains_what_the_cpu_does(tmp_path: Path) -> None:
    trained = [build(DESIGN) for _ in range(3)]
    for network, device in zip(trained, ("cpu", "cuda", "cuda"), strict=True):
        checkpoint = tmp_path / f"{device}.pt"
        fit(network, images(), RECIPE.model_copy(update={"epochs": 1, "device": device}), "", checkpoint)
    assert {p.device.type for p in trained[1].parameters()} == {"cpu"}
    moved = flat(trained[0]) - flat(build(DESIGN))
    assert (flat(trained[1]) - flat(trained[0])).norm() < 0.01 * moved.norm()
    assert torch.equal(flat(trained[2]), flat(trained[1]))  # from the checkpoint


def test_a_gpu_is_taken_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = {d: RECIPE.model_copy(update={"device": d}) for d in ("cpu", "cuda", "auto")}
    assert training_device(asked["auto"]).type == training_device(asked["cpu"]).type == "cpu"
    with pytest.raises(
        LaqError, match="device: found cuda, but torch sees no GPU here; set it to auto or cpu"
    ):
        fit(build(DESIGN), images(), asked["cuda"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [training_device(c).type for c in asked.values()] == ["cpu", "cuda", "cuda"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_killed_after_an_epoch_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config, checkpoint = RECIPE.model_copy(update={"optimizer": optimizer}), tmp_path / "training.pt"
    whole = build(SMALL)
    fit(whole, images(), config, "train")
    killed = build(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("laq.network.training._epoch_seed", fail_at(1))
        with pytest.raises(KeyboardInterrupt):
            fit(killed, images(), config, "train", checkpoint)
    assert checkpoint.exists()
    resumed = build(SMALL, seed=9)
    fit(resumed, images(), config, "train", checkpoint)
    assert torch.equal(flat(resumed), flat(whole))
    again = build(SMALL, seed=10)
    fit(again, images(), config, "train", checkpoint)
    assert torch.equal(flat(again), flat(whole))


DIVERGED = "learning_rate: the loss is not finite after epoch 1; lower it"


@pytest.mark.parametrize("batch_size", [16, 40])  # 40: one step, after which no loss of the epoch comes
def test_training_that_diverges_stops_and_leaves_no_checkpoint(tmp_path: Path, batch_size: int) -> None:
    config = RECIPE.model_copy(update={"learning_rate": 1e30, "batch_size": batch_size})
    with pytest.raises(LaqError, match=f"^{DIVERGED}$"):
        fit(build(SMALL), images(), config, checkpoint=tmp_path / "training.pt")
    assert not list(tmp_path.iterdir())


def fail_at(last: int):  # type: ignore[no-untyped-def]
    def seed(base: int, epoch: int) -> int:
        if epoch == last:
            raise KeyboardInterrupt
        return base * 100_003 + epoch

    return seed


def test_tensors_survive_the_disk_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, build(DESIGN).state_dict())
    assert torch.equal(
        torch.cat([t.flatten().double() for t in load_tensors(path).values()]).sort().values,
        flat(build(DESIGN)).sort().values,
    )
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LaqError, match="not a whole safetensors file"):
        load_tensors(path)
    with pytest.raises(LaqError, match="not found; run `dvc repro`"):
        load_tensors(tmp_path / "none.safetensors")


def test_weights_of_another_network_are_refused_with_the_difference(project: Path) -> None:
    torch.save(build(NetworkDesign("resnet32", 10, 32, (0.5,) * 3, (0.5,) * 3)).body.state_dict(), "deep.pt")
    with pytest.raises(LaqError, match=r"deep.pt: weights of another network .* \d+ unknown \(layer1.3"):
        load_checkpoint(build(DESIGN).body, "deep.pt", None)
    torch.save({"state_dict": build(DESIGN).body.state_dict()}, "fits.pt")
    assert len(load_checkpoint(build(DESIGN, 3).body, "fits.pt", None)) == 64
    with pytest.raises(LaqError, match=r"fc.weight \(10, 64\) instead of \(100, 64\)"):
        load_checkpoint(
            build(NetworkDesign("resnet20", 100, 32, (0.5,) * 3, (0.5,) * 3)).body, "fits.pt", None
        )
    with pytest.raises(LaqError, match=r"SHA-256 is .*, network.sha256 in params.yaml says 0000"):
        load_checkpoint(build(DESIGN).body, "fits.pt", "0" * 64)
    with pytest.raises(LaqError, match=r"no file 'none.pt'.*network.source: train"):
        load_checkpoint(build(DESIGN).body, "none.pt", None)
    torch.save([1, 2], "list.pt")
    with pytest.raises(LaqError, match="holds no state dict"):
        load_checkpoint(build(DESIGN).body, "list.pt", None)


def test_a_pickle_that_is_more_than_weights_is_refused(project: Path) -> None:
    torch.save(build(DESIGN), "module.pt")
    with pytest.raises(LaqError, match="not a file of plain weights"):
        load_checkpoint(build(DESIGN).body, "module.pt", None)
    Path("noise.pt").write_bytes(b"noise" * 100)
    with pytest.raises(LaqError, match="not a file of plain weights"):
        load_checkpoint(build(DESIGN).body, "noise.pt", None)


@pytest.fixture(scope="module")
def committed() -> Network:
    """The section of the committed study that reads the weights of the repository."""
    block = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["cifar100"]
    params = Network.model_validate_json(json.dumps(block["network"]))
    return params.model_copy(update={"weights": str(ROOT / str(params.weights))})


@pytest.mark.parametrize("published", ["cifar100", "cifar100_seeds"])
def test_the_committed_weights_are_those_of_the_published_results(
    committed: Network, published: str, tmp_path: Path
) -> None:
    network, origin = make_network(committed, images(100, classes=100))
    assert origin["source"] == "file"
    save_tensors(tmp_path / WEIGHTS, network.state_dict())
    provenance = read_json(ROOT / "results" / published / "provenance.json")
    assert md5(tmp_path / WEIGHTS) == provenance["published_inputs"]["network_md5"]


def test_weights_for_another_number_of_classes_are_refused(committed: Network) -> None:
    with pytest.raises(LaqError, match="100 outputs for 10 classes"):
        make_network(committed, images())


@pytest.mark.parametrize(
    ("how", "kernel"),
    [
        ({"padding": 1}, (3, 3)),
        ({"stride": 2, "padding": 2}, (5, 5)),
        ({"stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)}, (3, 3)),
        ({"stride": 3, "padding": [1]}, (3, 5)),
        ({"padding": "same"}, (3, 3)),
    ],
)
def test_depthwise_convolutions_by_taps_are_torchs(how: dict[str, Any], kernel: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    X, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 6, 13, 17), (6, 1, *kernel), (6,))
    )
    expected = nn.functional.conv2d(X, weight, bias, groups=6, **how)
    with DepthwiseByTaps():
        assert torch.allclose(nn.functional.conv2d(X, weight, bias, groups=6, **how), expected, atol=1e-13)
        whole = nn.functional.conv2d(X, torch.randn(4, 6, 3, 3, dtype=torch.float64), None, 1)
    assert whole.shape == (2, 4, 11, 15)


def test_timm_networks_are_built_by_name_and_embedded() -> None:
    network = build(NetworkDesign("timm:resnet10t", 10, 64, (0.5,) * 3, (0.5,) * 3))
    features = np.concatenate(list(embed(network, images(8))))
    assert features.shape == (8, network.body.num_features)
    with torch.no_grad():
        logits = network.body.fc(torch.from_numpy(features).float())
    torch.testing.assert_close(logits, network(images(8).images).detach(), rtol=1e-3, atol=1e-4)


def test_features_are_formed_in_float64_from_the_pixels_on() -> None:
    network = build(NetworkDesign("resnet8", 10, 48, (0.4,) * 3, (0.2,) * 3), seed=1)
    data = images(30)
    before = flat(network)
    features = np.concatenate(list(embed(network, data)))
    inputs = F.interpolate(data.images.double() / 255, (48, 48), mode="bilinear", antialias=True)
    exact = deepcopy(network).double()
    with torch.no_grad(), collecting_features(exact) as expected:
        exact.body((inputs - exact.preprocess.mean) / exact.preprocess.std)
    np.testing.assert_allclose(features, expected[0].numpy(), rtol=1e-11, atol=1e-12)
    assert torch.equal(flat(network), before)
    assert network(data.images).dtype == torch.float32


def hub(model: str) -> Network:
    architecture = f"torchhub:someone/somewhere:{model}"
    return Network(source="pretrained", architecture=architecture, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_torch_hub_networks_come_from_a_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "import torch",
        "def tiny(pretrained=False):",
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))",
    ]
    (project / "hubconf.py").write_text("\n".join(lines), encoding="utf-8")
    load = torch.hub.load
    monkeypatch.setattr(torch.hub, "load", lambda repo, *a, **k: load(str(project), *a, source="local", **k))
    network, origin = make_network(hub("tiny"), images())
    assert origin["source"] == "pretrained"
    assert network(images(3).images).shape == (3, 10)
    with pytest.raises(LaqError, match="10 outputs for 7 classes"):
        make_network(hub("tiny"), images(70, classes=7))
    with pytest.raises(LaqError, match=r"torchhub:someone/somewhere:huge cannot be loaded: .*huge"):
        make_network(hub("huge"), images())


def test_unknown_architectures_are_told_with_the_known_ones() -> None:
    with pytest.raises(LaqError, match="found 'resnet21'; must be resnet8, .*; did you mean resnet32"):
        build(NetworkDesign("resnet21", 10, 32, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(LaqError, match="found 'timm:nonsense'; must be a network of timm"):
        build(NetworkDesign("timm:nonsense", 10, 32, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(LaqError, match="embeddings.network: found 'torchvision:nonsense'; must be"):
        foreign_network(Embeddings(network="torchvision:nonsense"), Preprocessing(32))


def test_imagenet_weights_that_cannot_be_downloaded_name_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(
        LaqError, match=r"ImageNet weights of resnet18 cannot be downloaded .*resnet18-\w+\.pth .*own"
    ):
        foreign_network(Embeddings(network="resnet18"), Preprocessing(32))


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no route to host")


def test_the_stage_writes_weights_design_and_scores(project: Path) -> None:
    from laq import dataset
    from laq.dataset.registry import Dataset

    dataset.run(Dataset(name="glyphs", train_per_class=2, test_per_class=1, seed=0))
    stage.run(
        Network(
            source="train",
            architecture="resnet20",
            training=RECIPE.model_copy(update={"epochs": 1, "batch_size": 50}),
        )
    )
    record = read_json(stage.FOLDER / "network.json")
    network = stage.load_network()
    assert network.design == stage.read_design()
    assert network.design.classes == 100
    test = dataset.read_images(dataset.FOLDER, "test")
    assert record["test_top1_percent"] == evaluate(network, test, range(100)).top1_all
    trainer = f"CPU, torch {torch.__version__}"
    assert record["origin"] == {"source": "train", "images": 200, "epochs": 1, "trained_on": trainer}


def test_files_that_are_damaged_or_something_else_are_told_in_a_line(project: Path) -> None:
    torch.save(build(DESIGN).body.state_dict(), "whole.pt")
    whole = Path("whole.pt").read_bytes()
    for content in (b"", b"hello world", bytes(range(256)) * 4, whole[: len(whole) // 2]):
        Path("broken.pt").write_bytes(content)
        with pytest.raises(LaqError, match="not a file of plain weights") as caught:
            load_checkpoint(build(DESIGN).body, "broken.pt", None)
        assert "\n" not in str(caught.value)


def test_an_input_size_that_a_network_cannot_take_is_told_in_a_line() -> None:
    with pytest.raises(LaqError, match=r"alexnet cannot take images of 32 pixels a side .network.input_size"):
        make_network(Network(source="train", architecture="alexnet", training=RECIPE), images())
