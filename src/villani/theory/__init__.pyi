"""The modules of mathematics that are offered to users; `villani/_lazy.py` reads it too."""

from . import constants as constants
from . import exact as exact
from . import pac_bayes as pac_bayes
from . import rates as rates
