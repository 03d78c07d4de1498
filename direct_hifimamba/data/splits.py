"""Which files of a download belong to which split of a prepared data set."""

import hashlib
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from direct_hifimamba.data.data_sets import DATA_SETS, listed_subjects
from direct_hifimamba.data.protocol import Settings
from direct_hifimamba.data.references import SourceError


@dataclass(frozen=True)
class Task:
    """File of the download, and where it is to be prepared."""

    settings: Settings
    source: Path
    source_name: str
    dest: Path
    split: str

    @property
    def name(self) -> str:
        """Name of the prepared file, on which its masks depend."""
        return DATA_SETS[self.settings.data_set].file_name(self.source)

    @property
    def path(self) -> Path:
        """Path of the prepared file."""
        return self.dest / self.split / self.name

    def identity(self) -> dict[str, Any]:
        """Return the settings and the source that the provenance of the prepared file must have."""
        source = {"name": self.source_name, "num_bytes": self.source.stat().st_size}
        return {"settings": self.settings.to_json(), "source": source}


class Split(NamedTuple):
    """Folder of the download, the files in it that are to be prepared, and the reasons for which others are not."""

    folder: Path
    tasks: list[Task]
    skipped: dict[str, str]


def find_splits(source: Path, dest: Path, settings: Settings, names: Sequence[str] | None = None) -> dict[str, Split]:
    """Return the splits to prepare.

    Parameters
    ----------
    source : Path
        The download, unpacked.
    dest : Path
        Folder of the prepared data set.
    settings : Settings
    names : sequence of str, optional
        Default: the splits that the download has.

    Raises
    ------
    FileNotFoundError
        If the download lacks the splits.
    FileExistsError
        If a file was prepared before in another split.
    ValueError
        If a split is unknown, has several folders, two files of one name or too few subjects, or if no file has one of
        the acquisitions.
    """
    folders = _find_folders(source, settings, names)
    splits = {name: _find_files(folder, name, dest, settings) for name, folder in folders.items()}
    _check_acquisitions(settings, [task for split in splits.values() for task in split.tasks])
    splits = {name: _keep_members(name, split, settings) for name, split in splits.items()}
    for name, split in splits.items():
        _check_other_splits(name, split, dest, settings)
    return splits


def _find_folders(source: Path, settings: Settings, names: Sequence[str] | None) -> dict[str, Path]:
    known = settings.folders
    if unknown := set(names or ()).difference(known):
        raise ValueError(f"{settings.data_set} has no split {', '.join(unknown)}; expected some of {', '.join(known)}.")
    folders = {name: known[name] for name in names or known}
    found = {name: _find_folder(source, folder) for name, folder in folders.items()}
    missing = list(dict.fromkeys(folders[name] for name, path in found.items() if path is None))
    if missing and (names or not any(found.values())):
        raise FileNotFoundError(f"{source} has no folder {' or '.join(missing)}; expected the unpacked download.")
    for name, table in DATA_SETS[settings.data_set].lists.items():
        path = found.get(name)
        if path is not None and not (path.parent / table).is_file():
            if names:
                raise FileNotFoundError(f"{path.parent} has no {table}, which lists the subjects of {name}.")
            del found[name]
    return {name: path for name, path in found.items() if path is not None}


def _find_folder(source: Path, name: str) -> Path | None:
    """Return the folder of a name: in the download itself, or the only one somewhere below; None if there is none."""
    if (source / name).is_dir():
        return source / name
    found = sorted(path for path in source.glob(f"*/**/{name}") if path.is_dir())
    if len(found) > 1:
        raise ValueError(f"{source} holds several folders {name}: {', '.join(map(str, found))}. Choose one above it.")
    return found[0] if found else None


def _walk(folder: Path) -> list[Path]:
    """Return the files in a folder and in linked folders, each folder once, although links may lead to it again."""
    files = []
    seen = set()
    for root, folders, names in folder.walk(follow_symlinks=True):
        if root.resolve() in seen:
            folders.clear()
            continue
        seen.add(root.resolve())
        folders.sort(key=lambda name: (root / name).is_symlink())  # the folder itself before a link to it
        files += [root / name for name in names]
    return sorted(files)


def _find_files(folder: Path, split: str, dest: Path, settings: Settings) -> Split:
    pattern = DATA_SETS[settings.data_set].pattern
    tasks: dict[str, Task] = {}
    skipped = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            continue
        if not re.fullmatch(pattern, path.name):
            skipped[name] = f"its name does not match {pattern}"
            continue
        task = Task(settings, path, name, dest, split)
        other = tasks.setdefault(task.name, task)
        if other is not task:
            raise ValueError(f"{other.source} and {path} would both become {task.name}; remove one of them.")
    return Split(folder, list(tasks.values()), skipped)


def _check_acquisitions(settings: Settings, tasks: Sequence[Task]) -> None:
    """Check that each of several kinds of measurement occurs, because nothing else would reveal a misspelt one."""
    if len(settings.acquisitions) < 2:
        return
    found = set()
    for task in tasks:
        with suppress(SourceError):  # which is reported when the file is prepared
            found.add(DATA_SETS[settings.data_set].acquisition_of(task.source))
    missing = [str(name) for name in settings.acquisitions if name not in found]
    if missing:
        raise ValueError(
            f"No file has the acquisition {' or '.join(missing)}; there are {', '.join(sorted(map(str, found)))}."
        )


def _keep_members(name: str, split: Split, settings: Settings) -> Split:
    """Leave out the files whose subjects belong to another of the splits that share the folder."""
    sharing = settings.splits_sharing_folder(name)
    if len(sharing) == 1 or not split.tasks:
        return split
    members: dict[str, str] = {}
    for other, table in DATA_SETS[settings.data_set].lists.items():
        path = split.folder.parent / table
        if other in sharing and path.is_file():
            members |= dict.fromkeys(listed_subjects(path), other)
    subjects = {task.source_name: _subject(task) for task in split.tasks}
    if settings.divide is not None and settings.divide[0] in sharing:
        members |= _divide(settings.divide, set(subjects.values()) - members.keys(), settings.seed)
    owners = {file: members.get(subject, sharing[0]) for file, subject in subjects.items()}
    others = {file: f"its subject belongs to {owner}" for file, owner in owners.items() if owner != name}
    tasks = [task for task in split.tasks if task.source_name not in others]
    return Split(split.folder, tasks, split.skipped | others)


def _subject(task: Task) -> str:
    try:
        return DATA_SETS[task.settings.data_set].subject_of(task.source)
    except SourceError:  # which is reported when the file is prepared
        return task.name


def _divide(division: tuple[str, str, float], subjects: Set[str], seed: int) -> dict[str, str]:
    """Choose the subjects of the new split; the choice depends on their names and on the seed only."""
    divided, new, fraction = division
    count = round(fraction * len(subjects))
    if not 0 < count < len(subjects):
        raise ValueError(
            f"{new} would get {count} of the {len(subjects)} subjects of {divided}; choose another fraction than "
            f"{fraction:g}."
        )
    drawn = sorted(subjects, key=lambda subject: hashlib.sha256(f"{seed} {subject}".encode()).digest())
    return dict.fromkeys(drawn[:count], new)


def _check_other_splits(name: str, split: Split, dest: Path, settings: Settings) -> None:
    """Check that no file was prepared before in another split, by an earlier version or from another download."""
    for task in split.tasks:
        for other in settings.splits_sharing_folder(name):
            if other != name and (dest / other / task.name).exists():
                raise FileExistsError(
                    f"{dest / other / task.name} was prepared before, but belongs to {name}; choose a new folder."
                )


def find_leaks(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which files show a subject, or come from a file, that another split has as well: a list of phrases.

    Parameters
    ----------
    splits : mapping
        `splits` of the protocol.
    """
    owners: dict[tuple[str, str], tuple[str, str]] = {}
    leaks = []
    for split, content in splits.items():
        for name, record in content["files"].items():
            identities = ("subject", record.get("subject")), ("source", record["source"].get("sha256"))
            for kind, value in identities:
                other, other_name = owners.setdefault((kind, value), (split, name)) if value else (split, name)
                if other != split:
                    leaks.append(f"{split}/{name} has the same {kind} as {other}/{other_name}, {value}")
                    break
    return leaks
