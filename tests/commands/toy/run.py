from functools import partial

import numpy as np

from tests.commands.toy.record import ToyRecord
from villani.commands.running import Outcome

THROWN: list[int] = []


def run(settings, work):
    work.open("toy", "dice", settings.model_dump(), settings.model_dump())

    def throw(number):
        THROWN.append(number)
        return {"dots": np.random.default_rng([settings.seed, number]).integers(1, 7, 1)}

    rows = work.map({f"throw/{i}": partial(throw, i) for i in range(settings.throws)})
    return Outcome([ToyRecord(command=settings.command(), throws=[int(row["dots"][0]) for row in rows])])
