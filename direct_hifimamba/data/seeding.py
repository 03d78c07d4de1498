"""Seeds that depend on what a file is called, never on where it lies."""


def seed_from_name(name: str, seed: int) -> tuple[int, ...]:
    """Seed material that belongs to one named thing under one user seed.

    DIRECT seeds a mask with the whole path of its file, so that moved data get other masks. This depends on the name
    alone. The result is a valid seed for :func:`numpy.random.default_rng` and for DIRECT's mask functions.

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
