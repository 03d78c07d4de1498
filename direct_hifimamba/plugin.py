"""The plugin hook: `direct.nn.<model>` is another name of `direct_hifimamba.nn.<model>`, except for `layers`.

DIRECT has no registry of models. From ``model_name: hifimamba.hifimamba.HiFiMambaV2`` it derives the names of modules
under `direct.nn` and imports them, so these names are made importable here. This file may import the standard library
only, as `direct_hifimamba_hook` runs it inside every ``import torch``.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALIAS = "direct.nn"
ORIGINAL = f"{__package__}.nn"


def _original_name(alias: str) -> str:
    return ORIGINAL + alias.removeprefix(ALIAS)


def register_data_sets() -> None:
    """Make our data sets and metrics known to DIRECT in this process. Calling it again changes nothing.

    DIRECT looks them up in its own modules after it has imported the model, so that importing one of ours is enough.
    """
    importlib.import_module(f"{__package__}.data.registration").register_data_sets()


class _AliasLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, so that the import system creates an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty `module` by the original; if that is a package, let `module` look up its names there.

        A package cannot itself be returned: its `__path__` would make the path finder load its modules a second time.

        Raises
        ------
        ImportError
            If the original cannot be imported.
        """
        try:
            original = importlib.import_module(_original_name(module.__name__))
            register_data_sets()
        except (AttributeError, ModuleNotFoundError) as error:
            # DIRECT takes these two for a misspelt model_name and exits with "Path ... does not exist".
            raise ImportError(f"{module.__name__} cannot be loaded: {error}.") from error
        if hasattr(original, "__path__"):
            module.__getattr__ = lambda name: getattr(original, name)  # type: ignore[method-assign]
        else:
            sys.modules[module.__name__] = original


class AliasFinder(MetaPathFinder):
    """Finds the models of `direct_hifimamba.nn`, and the modules in their folders, under `direct.nn`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module under the alias; None for other names and for modules we do not have."""
        model, _, module = fullname.removeprefix(f"{ALIAS}.").partition(".")
        if not fullname.startswith(f"{ALIAS}.") or model == "layers":
            return None
        if module and path:  # Only packages of DIRECT have a path; under the alias ours have none.
            return None
        if importlib.util.find_spec(_original_name(fullname)) is None:
            return None
        return ModuleSpec(fullname, _AliasLoader(), is_package=True)  # is_package makes __path__ an empty list


_FINDER = AliasFinder()


def serves(model_name: str) -> bool:
    """Return whether a model of a configuration, such as ``hifimamba.hifimamba.HiFiMambaV2``, is one of ours.

    DIRECT ignores case in the names of modules.
    """
    return _FINDER.find_spec(f"{ALIAS}.{model_name.partition('.')[0].lower()}") is not None


def register() -> None:
    """Make the models importable under `direct.nn` in this process. Calling it again changes nothing.

    The finder is the last one, so that a model of DIRECT takes precedence over one of ours with the same name.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
