from typing import Annotated

from villani.commands.blocks import SeedBlock, Settings
from villani.commands.option import Option


class ToySettings(SeedBlock, Settings):
    """Throw dice. Example: villani toy --throws 6"""

    name = "toy"
    throws: Annotated[int, Option("how many", "Dice")] = 3


SETTINGS = ToySettings
