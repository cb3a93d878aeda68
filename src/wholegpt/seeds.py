"""Seeds made of several integers."""

import numpy as np


def mix_seed(*parts: int) -> int:
    """Return one 63-bit seed from several integers, so that (seed, step) needs no stored random state."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
