"""What a benchmark compares: SPEC.yaml, checked and with its defaults written out."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    PlainSerializer,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from direct_hifimamba.benchmark.folder import slug
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.validation import CONFIG, first_error, refuse_unknown_keys

MIN_ITERATIONS = 6
"""DIRECT writes nothing before that."""

COSINE: Literal["cosine"] = "cosine"
STEPS: Literal["steps"] = "steps"
BART: Literal["BART pics"] = "BART pics"
CLASSICAL_SLUGS = {slug(label) for label in ("zero-filled", BART)}


def _resolve(value: Any, info: "ValidationInfo[Path]") -> Path:
    """Return the absolute path of one that is relative to the specification."""
    if not isinstance(value, str):
        raise ValueError(f"expected a path, not {value!r}")
    return (info.context / value).resolve()


def _relative(path: Path, info: SerializationInfo) -> str:
    """Return a path relative to the folder into which the specification is written."""
    return Path(os.path.relpath(path, info.context)).as_posix()


def _check_distinct(values: list[Any]) -> list[Any]:
    if len({f"{value:g}" if isinstance(value, float) else value for value in values}) < len(values):
        # Names of folders have six digits of a learning rate.
        raise ValueError(f"expected values that differ, learning rates in their first six digits, but got {values}")
    return values


def _check_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; expected one of {', '.join(METRICS)}")
    return name


File = Annotated[FilePath, BeforeValidator(_resolve), PlainSerializer(_relative)]
Folder = Annotated[DirectoryPath, BeforeValidator(_resolve), PlainSerializer(_relative)]
Positive = Annotated[float, Field(gt=0)]
Metric = Annotated[str, AfterValidator(_check_metric)]


class _Section(BaseModel):
    """A part of a specification."""

    model_config = ConfigDict(**CONFIG, frozen=True)
    _known = model_validator(mode="before")(refuse_unknown_keys)


class Splits(_Section):
    """Names of the folders, without the suffix for the acceleration that the last two have."""

    training: str = "train"
    validation: str = "val"
    test: str = "test"


class Budget(_Section):
    """How long a model is trained: either `iterations` or `minutes`."""

    iterations: Annotated[int, Field(ge=MIN_ITERATIONS)] | None = None
    minutes: Positive | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.iterations is None) == (self.minutes is None):
            raise ValueError("expected one of iterations and minutes")
        return self


class Model(_Section):
    """A model: configurations that are merged last, overrides as in `config compose`, and how its weights begin.

    `scaled_parameters` maps shell patterns for names of parameters to factors of their initial values. With
    `initial_weights`, the label of another model, parameters of the same name and shape begin with the values that are
    drawn for that model, whatever its own `scaled_parameters` and `initial_weights`: differences between the two models
    are then not due to the random initialisation.
    """

    configs: list[File]
    overrides: list[str] = []
    scaled_parameters: dict[str, float] = {}
    initial_weights: str | None = None


class Search(_Section):
    """The search for a learning rate on the validation split: the same for every model.

    The default of `budget` is a quarter of that of the benchmark.
    """

    learning_rates: Annotated[list[Positive], Field(min_length=1), AfterValidator(_check_distinct)]
    budget: Budget | None = None
    metric: Metric = "fastmri_psnr"


class Specification(_Section):
    """A benchmark; paths are absolute.

    A file may have the key `extends` as well: another specification in its folder, whose keys apply where it has none.

    Attributes
    ----------
    name, description : str
        The description stands in all reports.
    data : Path
        Prepared folder.
    splits : Splits
    configs : list of Path
        Shared parts, merged first.
    accelerations : dict
        By the suffix of the folders: the configurations that are merged for the mask.
    models : dict
        By their labels.
    baseline : str
        Label of the model to which differences are taken. Default: the first model.
    budget : Budget
    warm_up : float
        Fraction of the iterations.
    schedule : str
        `cosine`, or `steps` for that of the configurations.
    search : Search, optional
    classical : list of str
        Reconstructions without training beside the zero-filled one: `BART pics`.
    metrics : list of str
        Metrics that are computed in addition to the fastMRI ones, such as `hfen`, see
        :mod:`direct_hifimamba.benchmark.score.metrics`.
    validations : int
        How often the models are evaluated on the validation split of the first acceleration while they train, for the
        learning curves of the report. The time of these evaluations is not part of a budget.
    seeds : list of ints
    device : str
    """

    name: str
    description: str = ""
    data: Folder
    splits: Splits = Splits()
    configs: list[File]
    accelerations: Annotated[dict[str, list[File]], Field(min_length=1)]
    models: Annotated[dict[str, Model], Field(min_length=1)]
    baseline: str = Field(default_factory=lambda values: next(iter(values["models"])))
    budget: Budget
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.05
    schedule: Literal["cosine", "steps"] = COSINE
    search: Search | None = None
    classical: list[Literal["BART pics"]] = []
    metrics: list[Metric] = []
    validations: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), AfterValidator(_check_distinct)
    ] = [0]
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        labels: dict[str, str | None] = {"baseline": self.baseline}
        labels |= {f"models.{label}.initial_weights": model.initial_weights for label, model in self.models.items()}
        for key, label in labels.items():
            if label is not None and label not in self.models:
                raise ValueError(f"{key} is {label!r}; expected one of the models {', '.join(self.models)}")
        taken: dict[str, str] = {}
        for label in self.models:
            if slug(label) in CLASSICAL_SLUGS:
                raise ValueError(f"a model has the label {label!r}, which is that of a classical reconstruction")
            if slug(label) in taken:
                raise ValueError(f"models have the labels {taken[slug(label)]!r} and {label!r}; expected other letters")
            taken[slug(label)] = label
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a specification.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If a key is unknown or missing, or a value is invalid.
        """
        values = _read(path)
        if "extends" in values:
            base = path.parent / str(values.pop("extends"))
            inherited = _read(base)
            if base.parent.resolve() != path.parent.resolve() or "extends" in inherited:
                raise ValueError(
                    f"{path}: extends is {str(base)!r}; expected a specification in the same folder, to which its "
                    "paths are relative, that extends no other."
                )
            values = inherited | values
        try:
            return cls.model_validate(values, context=path.parent.resolve())
        except ValidationError as error:
            raise ValueError(f"{path}: {first_error(error)}") from error

    def to_yaml(self, folder: Path) -> str:
        """Return the specification as YAML, with paths relative to `folder` and every default written out."""
        values = self.model_dump(context=folder, exclude_none=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)

    @property
    def has_minutes(self) -> bool:
        """Whether a budget is one of time."""
        budgets = [self.budget, *([self.search.budget] if self.search else [])]
        return any(budget is not None and budget.minutes is not None for budget in budgets)

    def folder(self, split: str, acceleration: str) -> Path:
        """Return the folder of the validation or test split with the masks of an acceleration."""
        return self.data / f"{split}_{acceleration}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is {values!r}; expected keys with values.")
    return {str(key): value for key, value in values.items()}
