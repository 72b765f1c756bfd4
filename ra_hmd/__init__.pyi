"""Types of the names that `ra_hmd` imports when they are first used."""

from ra_hmd.api import Bank as Bank
from ra_hmd.api import Detector as Detector
from ra_hmd.api import Features as Features
from ra_hmd.api import Meme as Meme
from ra_hmd.api import Verdict as Verdict
from ra_hmd.api import create_bank as create_bank
from ra_hmd.api import evaluate as evaluate
from ra_hmd.api import extract as extract

__version__: str
