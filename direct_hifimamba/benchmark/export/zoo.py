"""A trained model as DIRECT's model zoo offers it: configuration and weights, rows of its table, and a model card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from omegaconf import DictConfig, OmegaConf

import direct_hifimamba
from direct_hifimamba.files import fill_folder
from direct_hifimamba.plugin import serves
from direct_hifimamba.reconstruction.engines import build_networks, load_weights
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from direct_hifimamba.training.compose import compose, validate

SECTIONS = ("model", "additional_models", "physics", "inference")
"""What the configurations of the zoo consist of."""

COLUMNS = {"SSIM": 3, "pSNR": 1, "VIF": 3, "NMSE": 4}
"""Metrics of the zoo's table, and their decimals."""

METRICS_NAME = "metrics_inference.json"
NOTHING = r"\-"
TIMES = "\N{MULTIPLICATION SIGN}"
PAPERS = {
    "hifimamba": "HiFi-MambaV2: [arXiv:2511.18534](https://arxiv.org/abs/2511.18534)",
    "mambarecon": "MambaRecon, not the authors' code: [arXiv:2409.12401](https://arxiv.org/abs/2409.12401)",
    "mambaroll": "MambaRoll, not the authors' code: [arXiv:2412.09331](https://arxiv.org/abs/2412.09331)",
}
"""What to cite, by the folder of the model in `direct_hifimamba/nn`."""
HUB = "https://huggingface.co"


def export_zoo(
    run: Path,
    output: Path,
    name: str | None = None,
    inference: Sequence[Path] = (),
    metrics: Sequence[Path] = (),
    repository: str | None = None,
) -> list[str]:
    """Write a trained model in the form of DIRECT's model zoo.

    Parameters
    ----------
    run : Path
        Folder that holds a training of `direct train`, such as that of a run of a benchmark. The last checkpoint is
        taken.
    output : Path
        New or empty folder.
    name : str, optional
        Default: name of the model's class in lower case. The acceleration is appended to it if the section `inference`
        draws masks of one acceleration, as in `varnet_5x`.
    inference : sequence of Path
        YAML files with a section `inference`, one for every pair to write. Default: that of the run alone.
    metrics : sequence of Path
        Files `metrics_inference.json` of `direct predict`, in folders that are named after the acceleration, such as
        `poisson_5x`. Default: those of the run of a benchmark.
    repository : str, optional
        Repository on the Hugging Face hub to link to, such as `user/models`.

    Returns
    -------
    list of str
        Names of the pairs.

    Raises
    ------
    OSError
        If a file is missing, or `output` is not empty.
    ValueError
        If the configuration does not fit DIRECT, or the checkpoint does not fit the configuration.
    """
    trained = sorted(run.rglob("last_model.txt"))
    if len(trained) != 1:
        raise FileNotFoundError(f"{run} has {len(trained)} trainings (last_model.txt); expected one of direct train.")
    last, config_path = trained[0], trained[0].with_name(CONFIG_NAME)
    config = compose([config_path], ["training=null", "validation=null"])
    files = [OmegaConf.load(path) for path in inference]
    sections = [OmegaConf.select(file, "inference") for file in files or [config]]
    if None in sections:
        raise ValueError(f"{(*inference, config_path)[sections.index(None)]} has no section 'inference'; add one.")
    networks = build_networks(config)
    models = {"model": networks.model, **networks.additional_models}
    load_weights(models, last.with_name(f"model_{last.read_text().strip()}.pt"), config_path)
    weights = {key: model.state_dict() for key, model in models.items()}

    title = config.model.model_name.rpartition(".")[2]
    metrics = metrics or sorted(run.glob(f"predictions/*/{METRICS_NAME}"))
    pairs: list[str] = []
    rows: list[list[str]] = []
    with fill_folder(output) as partial:
        for section in sections:
            accelerations = (section.dataset.transforms.get("masking") or {}).get("accelerations") or []
            acceleration = f"{accelerations[0]:g}" if len(accelerations) == 1 else ""
            suffix = acceleration and f"_{acceleration}x"
            pair = f"{name or title.lower()}{suffix}"
            if pair in pairs:
                raise ValueError(f"Two files of --inference would become {pair}; expected different accelerations.")
            pair_config = OmegaConf.masked_copy(config, [key for key in SECTIONS if config.get(key)])
            pair_config.inference = section
            validate(pair_config)
            OmegaConf.save(pair_config, partial / f"{pair}.yaml")
            torch.save(weights, partial / f"{pair}.pt")
            scored = [path for path in metrics if path.resolve().parent.name.endswith(suffix)]
            unscored = [f"{acceleration}{TIMES}" if acceleration else NOTHING, *[NOTHING] * len(COLUMNS)]
            pairs.append(pair)
            rows += [[pair, *cells] for cells in [_cells(path) for path in scored] or [unscored]]
        (partial / "table.rst").write_text(_table(title, rows, repository), encoding="utf-8")
        (partial / "README.md").write_text(_model_card(title, rows, config, repository), encoding="utf-8")
    return pairs


def push(folder: Path, repository: str) -> str:
    """Upload what :func:`export_zoo` has written to the Hugging Face hub, and return the address.

    The hub is that of the environment variable HF_ENDPOINT, and the user that of HF_TOKEN or `hf auth login`.

    Raises
    ------
    OSError
        If the upload fails. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add models")
    except Exception as error:  # of its HTTP library, too
        raise OSError(
            f"{folder} could not be uploaded to {repository}: {error} Repeat it with: hf upload {repository} {folder}"
        ) from error
    return str(url)


def _cells(path: Path) -> list[str]:
    """Acceleration and mean scores of a file of metrics; those of Calgary-Campinas, if it has them, and of fastMRI."""
    volumes = json.loads(path.read_text(encoding="utf-8")).values()
    folder = path.resolve().parent.name
    number = re.search(r"(\d+)x$", folder)
    cells = [f"{number[1]}{TIMES}" if number else folder]
    for column, decimals in COLUMNS.items():
        keys = (f"{family}_{column.lower()}_metric" for family in ("calgary_campinas", "fastmri"))
        scores = next(filter(None, ([volume[key] for volume in volumes if key in volume] for key in keys)), None)
        cells.append(f"{fmean(scores):.{decimals}f}" if scores else NOTHING)
    return cells


def _table(title: str, rows: Sequence[Sequence[str]], repository: str | None) -> str:
    """Rows for the table of DIRECT's documentation, in reStructuredText."""
    lines = []
    for name, *cells in rows:
        link = f"`{name} <{HUB}/{repository}/blob/main/{name}.pt>`__" if repository else name
        lines += [f"   * - {title}\n", *(f"     - {cell}\n" for cell in (link, *cells))]
    return "".join(lines)


def _model_card(title: str, rows: Sequence[Sequence[str]], config: DictConfig, repository: str | None) -> str:
    first = rows[0][0]
    names = [model.model_name for model in (config.model, *(config.get("additional_models") or {}).values())]
    needs_plugin = any(map(serves, names))
    packages = f"direct-recon and direct-hifimamba {direct_hifimamba.__version__}" if needs_plugin else "direct-recon"
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    papers = [PAPERS[folder] for folder in (name.partition(".")[0].lower() for name in names) if folder in PAPERS]
    paper = "".join(f"- {entry}\n" for entry in papers)
    return f"""---
pipeline_tag: image-to-image
tags: [direct, mri, reconstruction]
---

# {title} for DIRECT

Weights (`<name>.pt`) of {title} and the configurations (`<name>.yaml`) with which DIRECT reconstructs images.

| name | acceleration | {" | ".join(COLUMNS)} |
|{"---|" * (2 + len(COLUMNS))}
{table}
Means over volumes of DIRECT's metrics: SSIM, pSNR and VIF in their Calgary-Campinas form where it was computed, and
otherwise, like NMSE, in their fastMRI form.

## Use

With {packages} installed:

```
hf download {repository or "REPOSITORY"} --local-dir models
direct predict predictions --cfg models/{first}.yaml --checkpoint models/{first}.pt --data-root DATA
```

## Cite

- DIRECT: [doi:10.21105/joss.04278](https://doi.org/10.21105/joss.04278)
{paper}"""
