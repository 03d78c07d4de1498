"""Seeds that depend on the name of a file, but not on its folder."""


def seed_from_name(name: str, seed: int) -> tuple[int, ...]:
    """Return the seed for a named file or volume and a seed of the user.

    DIRECT seeds a mask with the whole path of its file, so that masks change when data is moved. This seed depends on
    the name only. It is valid for :func:`numpy.random.default_rng` and for DIRECT's mask functions.

    Parameters
    ----------
    name : str
        Name of a file or of a volume, without folders.
    seed : int
        Seed of the user, from 0 to 2**32 - 1.

    Returns
    -------
    tuple of ints

    Raises
    ------
    ValueError
        If the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"The seed is {seed}; expected a whole number from 0 to {2**32 - 1}.")
    return (seed, *name.encode())
