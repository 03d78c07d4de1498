"""What a benchmark compares: SPEC.yaml, checked and with its defaults written out."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from direct_hifimamba.benchmark.folder import slug

MIN_ITERATIONS = 6
"""DIRECT writes nothing before that."""

COSINE, STEPS = "cosine", "steps"
CLASSICAL_SLUGS = {slug(label) for label in ("zero-filled", "BART pics")}


@dataclass(frozen=True)
class Splits:
    """Names of the folders, but for the suffix with the acceleration that the last two have."""

    training: str = "train"
    validation: str = "val"
    test: str = "test"


@dataclass(frozen=True)
class Budget:
    """How long a model is trained: one of the two is given."""

    iterations: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Model:
    """A model: configurations that are merged last, overrides as in `config compose`, and how its weights begin.

    Attributes
    ----------
    configs : tuple of Path
    overrides : tuple of str
    scaled_parameters : dict
        Shell patterns for names of parameters, and what the initial values of those are multiplied with.
    initial_weights : str, optional
        Label of a model. Parameters of the same name and shape begin with what is drawn for that model, whatever its
        own `scaled_parameters` and `initial_weights`: less of a difference to it is then one of the draw.
    """

    configs: tuple[Path, ...]
    overrides: tuple[str, ...] = ()
    scaled_parameters: Mapping[str, float] = field(default_factory=dict)
    initial_weights: str | None = None


@dataclass(frozen=True)
class Search:
    """The search for a learning rate on the validation split: the same for every model."""

    learning_rates: tuple[float, ...]
    budget: Budget
    metric: str = "fastmri_psnr"


@dataclass(frozen=True)
class Specification:
    """A benchmark; paths are absolute.

    A file may have the key `extends` as well: another specification in its folder, whose keys hold where it has none.

    Attributes
    ----------
    name, description : str
        The description stands in all reports.
    data : Path
        Prepared folder.
    splits : Splits
    configs : tuple of Path
        Shared parts, merged first.
    accelerations : dict
        By the suffix of the folders: the configurations that are merged for the mask.
    models : dict
        By their labels.
    baseline : str
        Label of the model that differences are taken to.
    budget : Budget
    warm_up : float
        Fraction of the iterations.
    schedule : str
        `cosine`, or `steps` for that of the configurations.
    search : Search, optional
    seeds : tuple of ints
    device : str
    """

    name: str
    description: str
    data: Path
    splits: Splits
    configs: tuple[Path, ...]
    accelerations: Mapping[str, tuple[Path, ...]]
    models: Mapping[str, Model]
    baseline: str
    budget: Budget
    warm_up: float = 0.05
    schedule: str = COSINE
    search: Search | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a specification.

        Raises
        ------
        OSError
            If the file, or one that it names, cannot be read.
        ValueError
            If a key is unknown or missing, or a value of no use.
        """
        return cls(**_Reader(path).fields())

    def to_yaml(self, folder: Path) -> str:
        """The specification as YAML, with paths relative to `folder` and every default written out."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return Path(os.path.relpath(value, folder)).as_posix()
            if isinstance(value, Mapping):
                return {key: plain(entry) for key, entry in value.items()}
            if isinstance(value, tuple):
                return [plain(entry) for entry in value]
            return value

        values = asdict(self)
        for budget in (values["budget"], (values["search"] or {}).get("budget", {})):
            for key in [key for key, value in budget.items() if value is None]:
                del budget[key]
        return yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True, width=120)

    @property
    def has_minutes(self) -> bool:
        """Whether a budget is one of time."""
        budgets = [self.budget, *([self.search.budget] if self.search else [])]
        return any(budget.minutes is not None for budget in budgets)

    def folder(self, split: str, acceleration: str) -> Path:
        """The folder of the validation or test split with the masks of an acceleration."""
        return self.data / f"{split}_{acceleration}"


class _Reader:
    """Reads the keys of a specification; every error names the file, the key and what was expected."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{path} is no valid YAML: {error}") from error
        self._values = self._mapping(values, "the file")

    def _extended(self) -> dict[str, Any]:
        """The values, with those of the specification that it extends where it has none; keys count as a whole."""
        values = dict(self._values)
        if "extends" not in values:
            return values
        base = self._existing(values.pop("extends"), "extends")
        if base.parent != self._path.parent.resolve():
            self._fail("extends", str(base), "a specification in the same folder, as paths in it are relative to that")
        inherited = _Reader(base)._values
        if "extends" in inherited:
            self._fail("extends", str(base), "a specification that extends no other")
        return inherited | values

    def fields(self) -> dict[str, Any]:
        values = self._known(self._extended(), Specification, "the file")
        for key in ("name", "data", "configs", "accelerations", "models", "budget"):
            if values.get(key) is None:
                self._fail(key, None, "a value; it has no default")
        models = {label: self._model(label, model) for label, model in self._labels(values, "models")}
        for label, model in models.items():
            if model.initial_weights is not None:
                self._one_of(model.initial_weights, f"models.{label}.initial_weights", tuple(models))
        self._check_slugs(models)
        baseline = str(values.get("baseline", next(iter(models))))
        if baseline not in models:
            self._fail("baseline", baseline, f"one of the models {', '.join(models)}")
        accelerations = self._labels(values, "accelerations")
        return {
            "name": str(values["name"]),
            "description": str(values.get("description") or ""),
            "data": self._existing(values["data"], "data", is_folder=True),
            "splits": self._splits(values.get("splits") or {}),
            "configs": self._files(values["configs"], "configs"),
            "accelerations": {name: self._files(paths, f"accelerations.{name}") for name, paths in accelerations},
            "models": models,
            "baseline": baseline,
            "budget": self._budget(values["budget"], "budget"),
            "warm_up": self._number(values.get("warm_up", 0.05), "warm_up", "a fraction from 0 to 1", 0, 1),
            "schedule": self._one_of(values.get("schedule", COSINE), "schedule", (COSINE, STEPS)),
            "search": self._search(values["search"]) if values.get("search") is not None else None,
            "seeds": self._seeds(values.get("seeds", [0])),
            "device": self._one_of(values.get("device", "cpu"), "device", ("cpu", "cuda")),
        }

    def _fail(self, key: str, value: Any, expected: str) -> NoReturn:
        raise ValueError(f"{self._path}: {key} is {value!r}; expected {expected}.")

    def _mapping(self, value: Any, key: str) -> dict[Any, Any]:
        if not isinstance(value, dict):
            self._fail(key, value, "keys with values")
        return value

    def _known(self, value: Any, schema: Any, key: str) -> dict[str, Any]:
        known = list(schema.__dataclass_fields__)
        for name in self._mapping(value, key):
            if name not in known:
                nearest = get_close_matches(str(name), known, cutoff=0.5) or known
                self._fail(f"a key of {key}", name, " or ".join(nearest))
        return value

    def _labels(self, values: dict[str, Any], key: str) -> list[tuple[str, Any]]:
        entries = self._mapping(values[key], key)
        if not entries:
            self._fail(key, entries, "at least one entry")
        return [(str(label), entry) for label, entry in entries.items()]

    def _check_slugs(self, models: Mapping[str, Model]) -> None:
        taken: dict[str, str] = {}
        for label in models:
            if slug(label) in CLASSICAL_SLUGS:
                self._fail("a label of models", label, "another one; this row is there anyway")
            if slug(label) in taken:
                self._fail("a label of models", label, f"one that differs more from {taken[slug(label)]!r}")
            taken[slug(label)] = label

    def _existing(self, value: Any, key: str, is_folder: bool = False) -> Path:
        path = (self._path.parent / str(value)).resolve()
        if not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise FileNotFoundError(
                f"{self._path}: {key} is {str(value)!r}; there is no {kind} {path}. Paths are relative to the "
                "specification."
            )
        return path

    def _files(self, value: Any, key: str) -> tuple[Path, ...]:
        if not isinstance(value, list):
            self._fail(key, value, "a list of files")
        return tuple(self._existing(path, key) for path in value)

    def _splits(self, value: Any) -> Splits:
        return Splits(**{key: str(name) for key, name in self._known(value, Splits, "splits").items()})

    def _model(self, label: str, value: Any) -> Model:
        key = f"models.{label}"
        values = self._known(value, Model, key)
        overrides = values.get("overrides") or []
        if not isinstance(overrides, list):
            self._fail(f"{key}.overrides", overrides, "a list such as [training.weight_decay=0.01]")
        scales = self._mapping(values.get("scaled_parameters") or {}, f"{key}.scaled_parameters")
        return Model(
            self._files(values.get("configs"), f"{key}.configs"),
            tuple(map(str, overrides)),
            {
                str(pattern): self._number(scale, f"{key}.scaled_parameters.{pattern}", "a number")
                for pattern, scale in scales.items()
            },
            None if values.get("initial_weights") is None else str(values["initial_weights"]),
        )

    def _budget(self, value: Any, key: str) -> Budget:
        values = self._known(value, Budget, key)
        if len(values) != 1:
            self._fail(key, value, "one of iterations and minutes")
        if "minutes" in values:
            return Budget(minutes=self._number(values["minutes"], f"{key}.minutes", "a number above 0", 1e-9))
        iterations = values["iterations"]
        if not isinstance(iterations, int) or iterations < MIN_ITERATIONS:
            self._fail(f"{key}.iterations", iterations, f"an integer, at least {MIN_ITERATIONS}")
        return Budget(iterations=iterations)

    def _search(self, value: Any) -> Search:
        values = self._known(value, Search, "search")
        rates = values.get("learning_rates")
        if not isinstance(rates, list) or not rates:
            self._fail("search.learning_rates", rates, "a list of numbers")
        rates = [self._number(rate, "search.learning_rates", "numbers above 0", 1e-12) for rate in rates]
        if len({f"{rate:g}" for rate in rates}) < len(rates):  # as in the names of folders
            self._fail("search.learning_rates", rates, "numbers that differ in their first six digits")
        return Search(
            tuple(rates),
            self._budget(values.get("budget"), "search.budget"),
            str(values.get("metric", Search.metric)),
        )

    def _seeds(self, value: Any) -> tuple[int, ...]:
        valid = isinstance(value, list) and value and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
        if not valid or len(set(value)) < len(value):
            self._fail("seeds", value, "a list of different integers from 0 to 2**32 - 1")
        return tuple(value)

    def _number(
        self, value: Any, key: str, expected: str, smallest: float = -math.inf, largest: float = math.inf
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._fail(key, value, expected)
        if not smallest <= value <= largest:
            self._fail(key, value, expected)
        return float(value)

    def _one_of(self, value: Any, key: str, allowed: tuple[str, ...]) -> str:
        if value not in allowed:
            self._fail(key, value, " or ".join(allowed))
        return value
