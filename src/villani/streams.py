"""Counter-based randomness: every draw is a function of (seed, purpose, indices), never of what was drawn before.

Philox streams keyed through `numpy.random.SeedSequence`, drawn on the CPU whatever the device, so that a resumed run,
or one split over processes, sees the same bits. No torch.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; part of its key, so that no two purposes share bits."""

    GROUPS = 0
    PROBE = 1
    LABELS = 2
    SKETCH = 3
    DIRECTION = 4
    BATCHES = 5
    NOISE = 6
    START = 7
    ACCEPT = 8
    KRYLOV = 10
    SPECTRUM = 11
    CHAIN_START = 20
    CHAIN_NOISE = 21
    DROPOUT = 22
    DRIFT = 23
    DOCUMENTS = 24
    LIVE = 40
    GUARD = 41


def stream(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """The random stream of (seed, purpose, indices); all non-negative integers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *indices))
    return np.random.Generator(np.random.Philox(sequence))


def word(seed: int, purpose: Purpose, *indices: int) -> int:
    """64 bits of (seed, purpose, indices), to seed a generator of another library with."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *indices))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
