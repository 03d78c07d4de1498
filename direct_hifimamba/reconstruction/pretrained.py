"""Trained weights that are part of the package: their files, and the model card that says where they are valid.

A folder in `weights/` holds one model:

| file | content |
|---|---|
| `config.yaml` | the configuration of the training |
| `seed_<number>.pt` | weights of one training each, without optimiser; the image is the mean of their images |
| `card.yaml` | the model card; `direct-hifimamba weights NAME` prints it as Markdown |
| `calibration.json` | of `direct-hifimamba calibrate NAME`: what the spread of the images says of their error |
| `SHA256SUMS` | checksums of configuration and weights, as `sha256sum` writes them |

`projects/multicoil/release.py` writes configuration, weights and checksums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from direct_hifimamba.files import hash_file
from direct_hifimamba.reconstruction.domain import Domain

FOLDER = Path(__file__).parent / "weights"
CONFIG_NAME, CARD_NAME, CHECKSUMS_NAME = "config.yaml", "card.yaml", "SHA256SUMS"
CALIBRATION_NAME = "calibration.json"


@dataclass(frozen=True)
class Pretrained:
    """Trained weights.

    Attributes
    ----------
    name : str
    config_path : Path
        Configuration of the training.
    checkpoints : tuple of Path
        One file per training, as `direct train --initialization-checkpoint` reads it.
    card : dict
        The model card.
    """

    name: str
    config_path: Path
    checkpoints: tuple[Path, ...]
    card: Mapping[str, Any]

    @property
    def calibration_path(self) -> Path:
        """File of :class:`Calibration` for the released ensemble."""
        return self.config_path.parent / CALIBRATION_NAME

    @property
    def flips(self) -> bool:
        """Whether the image is also the mean over flipped slices, see :class:`Reconstructor`."""
        return bool(self.card["flips"])

    @property
    def domain(self) -> Domain:
        """The k-space that the networks were trained with."""
        stored = self.card["domain"].items()
        ranges: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored}
        return Domain(**ranges)


def list_pretrained() -> list[str]:
    """Return the names of all weights in the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD_NAME}"))


def find_pretrained(name: str) -> Pretrained:
    """Find weights by their name, and compare their files with the checksums.

    Raises
    ------
    ValueError
        If the name is unknown, or if a file is not what was released.
    """
    if name not in list_pretrained():
        raise ValueError(f"There are no weights {name!r} in the package; expected {_or(list_pretrained())}.")
    root = FOLDER / name
    lines = (root / CHECKSUMS_NAME).read_text().splitlines()
    checksums = {file: checksum for checksum, file in (line.split() for line in lines)}
    for file, checksum in checksums.items():
        if not (root / file).is_file() or hash_file(root / file) != checksum:
            raise ValueError(
                f"{root / file} is not the file of the release: its SHA-256 is not {checksum}. Install the package "
                "again."
            )
    checkpoints = tuple(root / file for file in sorted(checksums) if file.endswith(".pt"))
    card = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(root / CARD_NAME)))
    return Pretrained(name, root / CONFIG_NAME, checkpoints, card)


def is_pretrained(checkpoint: Path | str) -> bool:
    """Return whether a word is the name of weights in the package; a file of that name is a checkpoint instead.

    Raises
    ------
    FileNotFoundError
        If it is neither a file nor a name.
    """
    if Path(checkpoint).is_file():
        return False
    if str(checkpoint) in list_pretrained():
        return True
    raise FileNotFoundError(
        f"{checkpoint} is neither a file nor the name of weights in the package; expected a checkpoint such as "
        f"model_99999.pt of direct train, or {_or(list_pretrained())}."
    )


def is_ensemble(checkpoints: Sequence[Path | str], flips: bool | None = None) -> bool:
    """Return whether checkpoints, or weights in the package, give several images of a slice, whose mean is the result.

    `flips` is as in :class:`Reconstructor`; None means what the model card says, and False for checkpoints.
    """
    if len(checkpoints) > 1 or not is_pretrained(checkpoints[0]):
        return len(checkpoints) > 1 or bool(flips)
    pretrained = find_pretrained(str(checkpoints[0]))
    return len(pretrained.checkpoints) > 1 or (pretrained.flips if flips is None else flips)


def format_card(pretrained: Pretrained) -> str:
    """Return a model card as Markdown."""
    card, domain = pretrained.card, pretrained.domain
    ranges = [
        ("height and width", f"{domain.size[0]} to {domain.size[1]} pixels"),
        ("coils", f"{domain.coils[0]} to {domain.coils[1]}"),
        ("acceleration", f"{domain.acceleration[0]:g} to {domain.acceleration[1]:g}"),
        ("samples without a gap around the centre", f"at least {domain.calibration}"),
        ("signal-to-noise ratio", f"at least {domain.snr:g}"),
        ("sampling", ", ".join(domain.sampling)),
    ]
    files = (pretrained.config_path, *pretrained.checkpoints)
    parts = [
        f"# Weights `{pretrained.name}`",
        card["summary"],
        "## Not for",
        "\n".join(f"- {line}" for line in card["not_for"]),
        "## Trained with",
        _table(("k-space", "range"), ranges),
        card["training"],
        "```\n" + card["commands"].rstrip() + "\n```",
        _table(("data", "from", "licence"), [(row["data"], row["source"], row["licence"]) for row in card["data"]]),
        "## Scores",
        card["scoring"],
        _table(list(card["scores"][0]), [list(map(str, row.values())) for row in card["scores"]]),
        "## Files",
        f"Revision of the code: {card['revision']}. Licence of the weights: {card['licence']}.",
        _table(("file", "SHA-256"), [(f"`{path.name}`", hash_file(path)) for path in files]),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _or(names: list[str]) -> str:
    return " or ".join(names)
