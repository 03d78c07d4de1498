"""Import of optional packages."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional_package(name: str, purpose: str, extra: str) -> Iterator[None]:
    """Turn whatever the import of a package within this context raises into an ImportError that says what to do.

    Packages that do not fit others raise anything, such as an AttributeError of another version of NumPy.

    Parameters
    ----------
    name : str
    purpose : str
        What the package is for, as the subject of a sentence in the plural.
    extra : str
        Name of the optional dependencies that have it.
    """
    try:
        yield
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason = "" if missing else f", which cannot be imported ({type(error).__name__}: {error})"
        raise ImportError(
            f"{purpose} need {name}{reason}; install it: pip install 'direct-hifimamba[{extra}]'"
        ) from error
