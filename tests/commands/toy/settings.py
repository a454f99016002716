from villani.commands.blocks import SeedBlock, Settings
from villani.commands.option import option


class ToySettings(SeedBlock, Settings):
    """Throw dice. Example: villani toy --throws 6"""

    name = "toy"
    throws: int = option(3, "how many", "Dice")


SETTINGS = ToySettings
