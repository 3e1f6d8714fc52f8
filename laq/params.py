"""``params.yaml`` as frozen objects: every key known, typed and in range, or one line that says not.

The file names a study and holds a block for each; a block has one section per pipeline stage::

    study: glyphs          # the block that runs
    glyphs:
      dataset: {...}
      network: {...}
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from laq.dataset.registry import Dataset
from laq.errors import LaqError
from laq.files import digest
from laq.quantization.bits.spec import parse_bits
from laq.quantization.methods.registry import find_method
from laq.quantization.options import (
    HIGHEST,
    LOWEST,
    OPTIONS,
    AlphabetKind,
    Granularity,
    QuantizationError,
    Radius,
)

FILE = Path("params.yaml")
Alternative = Literal[
    "umap-gaussian", "umap-knn", "pca-gaussian", "pca-knn", "features-gaussian", "features-knn"
]
_LONGEST_NAME = 60
Base = Literal["original", "finetuned"]
Calibration = Literal["subset", "all"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Colour = tuple[float, float, float]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Spread = Annotated[float, Field(gt=0)]


def check_bits(value: Any) -> int | str:
    """A number of bits, or a text that says what each layer gets (``laq.quantization.parse_bits``).

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip() if type(value) in {int, str} else ""
    bits = int(text) if re.fullmatch(r"\d+", text, re.ASCII) else text
    try:
        parse_bits(bits)
    except QuantizationError as error:
        raise ValueError(
            f"found {value!r}; must be {LOWEST} to {HIGHEST}, or a text such as auto:3, auto:96000B, asc:4, "
            'desc:4, "3 first:8 last:8", "8,4,4" or "body.fc=8 *=3", whose numbers of bits are within that'
        ) from error
    return bits


def _check_method(value: Any) -> str:
    return find_method(value).name


def _check_options(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"found {value!r}; must be a map of methods to their options")  # noqa: TRY004
    return {name: dict(find_method(name).check(options)) for name, options in value.items()}


def bits_name(bits: int | str) -> str:
    """A name for files and metrics: 3bit, auto_3; what file systems find too long ends in a hash."""
    if str(bits).isdigit():
        return f"{bits}bit"
    name = re.sub(r"[^A-Za-z0-9.]+", "_", str(bits)).strip("_")
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest(bits)[:8]}"


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"each may stand but once, found {list(values)}")
    return values


_T = TypeVar("_T")
Bits = Annotated[int | str, BeforeValidator(check_bits)]
MethodName = Annotated[str, BeforeValidator(_check_method)]
Several = Annotated[tuple[_T, ...], Field(min_length=1), AfterValidator(_different)]


class Section(BaseModel):
    """A part of ``params.yaml``: frozen, and with no keys but those named here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(Section):
    """How to train: one recipe, whatever the network.

    ``bfloat16`` is mixed precision: products in bfloat16, weights and what they learn in float32.
    ``auto`` is a GPU where torch sees one, or else the CPU.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["one_cycle", "constant"]
    epochs: Count
    batch_size: Positive
    crop: Annotated[int, Field(ge=0, le=16)]
    flip: bool
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    seed: Seed


class Network(Section):
    """The network under study and where its weights come from."""

    source: Literal["train", "file", "hub"]
    architecture: str
    input_size: Positive = 32
    mean: Colour | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    weights: str | None = None
    sha256: Sha256 | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source == "train" and self.training is None:
            raise ValueError("source train needs the section training")
        if self.source == "file" and None in {self.weights, self.sha256}:
            raise ValueError("source file needs weights (the path of a state dict) and its sha256")
        if self.source == "hub" and not self.architecture.startswith(("timm:", "torchhub:")):
            raise ValueError("source hub needs an architecture timm:NAME or torchhub:OWNER/REPO:MODEL")
        if self.source == "hub" and self.mean is None:
            raise ValueError("source hub needs the mean and std that its weights were trained with")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together, or neither (then: the training images')")
        return self


class Embeddings(Section):
    """Whose penultimate features stand for an image.

    ``own``: the study's network; else a torchvision network with its ImageNet weights.
    """

    network: str


class Given(Section):
    """A matrix of divergences from elsewhere: a .npy file (from the project's folder) and its hash."""

    path: str
    sha256: Sha256


class Divergence(Section):
    """From features to the divergence of every pair of classes, in the study's own way and in others.

    ``alternatives`` are made of the same features, ``features`` standing for no reduction; ``given`` are
    matrices (C, C) in nats from elsewhere, by name.
    """

    reduction: Literal["umap", "pca", "none"]
    components: Positive
    umap_neighbours: Annotated[int, Field(ge=2)]
    estimator: Literal["gaussian", "knn"]
    knn_neighbours: Positive
    alternatives: Annotated[tuple[Alternative, ...], AfterValidator(_different)] = ()
    given: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")], Given] = {}
    seed: Seed

    @property
    def name(self) -> str:
        """The study's own way, named as an alternative would be."""
        return f"{'features' if self.reduction == 'none' else self.reduction}-{self.estimator}"

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if taken := {self.name, *self.alternatives} & set(self.given):
            raise ValueError(
                f"given: {', '.join(sorted(taken))} is the name of a way of its own; take another"
            )
        return self


class Band(Section):
    """Subsets whose mean pairwise divergence lies between two bounds."""

    count: Positive
    minimum: Annotated[float, Field(ge=0)]
    maximum: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must be below maximum {self.maximum}")
        return self


class Subsets(Section):
    """Which classes to keep: so many subsets of each kind and size."""

    sizes: Several[Annotated[int, Field(ge=2)]]
    similar: Count
    dissimilar: Count
    random: Count
    even: Count = 0
    bands: tuple[Band, ...] = ()
    given: tuple[tuple[str | int, ...], ...] = ()
    log: str | None = None
    seed: Seed


class Grid(Section):
    """A factorial grid of cells: every combination of these factors.

    Methods that need no images leave out calibrations and seeds.
    """

    bits: Several[Bits]
    methods: Several[MethodName]
    bases: Several[Base]
    calibrations: Several[Calibration]
    seeds: Several[Seed]


class Further(Section):
    """Cells beside those of the study's grid; a factor that is left out is as there."""

    bits: Several[Bits] | None = None
    methods: Several[MethodName] | None = None
    bases: Several[Base] | None = None
    calibrations: Several[Calibration] | None = None
    seeds: Several[Seed] | None = None


class Study(Grid):
    """What to quantize how, for each subset: options of ``Recipe``, and those of methods by their names."""

    also: tuple[Further, ...] = ()
    alphabet: Annotated[AlphabetKind, BeforeValidator(OPTIONS["alphabet"])]
    granularity: Annotated[Granularity, BeforeValidator(OPTIONS["granularity"])]
    radius: Annotated[Radius, BeforeValidator(OPTIONS["radius"])]
    percentile: Annotated[float, BeforeValidator(OPTIONS["percentile"])]
    fuse: Annotated[bool, BeforeValidator(OPTIONS["fuse"])]
    bias_correction: Annotated[bool, BeforeValidator(OPTIONS["bias_correction"])]
    calibration_images: Positive
    retain_rate: Annotated[float, BeforeValidator(OPTIONS["retain_rate"])]
    batch_size: Annotated[int, BeforeValidator(OPTIONS["batch_size"])]
    ignore: Annotated[tuple[str, ...], BeforeValidator(OPTIONS["ignore"])]
    options: Annotated[dict[str, dict[str, Any]], BeforeValidator(_check_options)] = {}
    keep_networks: bool

    def restricted(self, **factors: Any) -> "Study":
        """The study with these factors in the place of its own (keys of ``Grid``); its networks are kept."""
        return self.model_copy(update={**factors, "also": (), "keep_networks": True})

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The study's own grid, then the further ones."""
        own = {name: getattr(self, name) for name in Grid.model_fields}
        further = ({**own, **more.model_dump(exclude_none=True)} for more in self.also)
        return tuple(Grid.model_construct(**fields) for fields in (own, *further))

    @property
    def fine_tunes(self) -> bool:
        """Whether any cell's network is a fine-tuned one."""
        return any("finetuned" in grid.bases for grid in self.grids)


class Report(Section):
    """How sure to be of what is said.

    No p-value is below 1 / (1 + ``permutations``), and Holm's correction multiplies it by up to the number
    of questions asked at once.
    """

    bootstrap_samples: Annotated[int, Field(ge=100)]
    permutations: Annotated[int, Field(ge=99)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed


class Track(Section):
    """What becomes of the results in MLflow's registry of models."""

    champion_kib: Annotated[float, Field(gt=0)]

    @property
    def champion_bytes(self) -> float:
        """The most that the best network of a subset may take."""
        return 1024 * self.champion_kib


class Quantize(Section):
    """What the command ``quantize`` does unless it is told otherwise."""

    subset: str
    bits: Bits
    method: MethodName


class Compare(Section):
    """Which two studies the command ``compare`` puts beside each other."""

    first: str
    second: str


class Advise(Grid):
    """Which networks the command ``advise`` chooses from, and the points of accuracy they may lose."""

    lose: Annotated[float, Field(ge=0, le=100)]


class Params(Section):
    """One study: a section per pipeline stage, and one per command with options of its own."""

    name: str
    dataset: Dataset
    network: Network
    embeddings: Embeddings
    divergence: Divergence
    subsets: Subsets
    finetune: Training
    study: Study
    report: Report
    track: Track
    quantize: Quantize
    compare: Compare
    advise: Advise


def load_params(path: Path = FILE) -> Params:
    """Read the study that ``path`` names.

    Raises:
        LaqError: the file is missing, is not YAML, or a key, type or range in it is wrong.
    """
    content = _read_yaml(path)
    name = content.get("study")
    blocks = [str(key) for key in content if key != "study"]
    if not isinstance(name, str) or name not in blocks:
        raise LaqError(f"{path}: study is {name!r}; it must name a block: {', '.join(blocks)}")
    try:
        # Through JSON, where strict types still let a list stand for a tuple.
        block = {str(key): value for key, value in _mapping(content[name], path, name).items()}
        if "name" in block:
            raise LaqError(f"{path}: {name}.name: unknown key; the block's own key is the study's name")
        return Params.model_validate_json(json.dumps({**block, "name": name}, default=str))
    except ValidationError as error:
        raise LaqError("\n".join(_lines(error, path, name))) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LaqError(f"{path}: not found; run laq in the project's folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LaqError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return _mapping(content, path, "the file")


def _mapping(content: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise LaqError(f"{path}: {where} must hold keys and values, found {content!r}")
    return content


def _lines(error: ValidationError, path: Path, name: str) -> Iterator[str]:
    """One line per mistake: file, key, what is wrong, what was found."""
    for mistake in error.errors():
        key = ".".join(str(part) for part in (name, *mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown key; known here: {', '.join(_known_keys(mistake['loc'][:-1]))}"
        found = "" if mistake["type"] in {"missing", "value_error"} else f" (found {mistake['input']!r})"
        yield f"{path}: {key}: {message}{found}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys that the section at ``location`` allows."""
    section: type[BaseModel] = Params
    for part in location:
        field = section.model_fields.get(str(part))
        candidates = [] if field is None else _sections_in(field.annotation)
        if candidates:
            section = candidates[0]
    return sorted(key for key in section.model_fields if key != "name" or section is Dataset)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections_in(part)]
