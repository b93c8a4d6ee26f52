"""S5 to S7: hard pictures, ordinary ones, and how pictures look."""

from hostile.decoding import hard, looks, ordinary
from hostile.decoding.caller import BASELINES
from hostile.outcome import Suite

SUITES = (
    Suite("S5", "any picture ends in 2 s and 512 MB, decoded or refused", hard.attack, BASELINES),
    Suite("S6", "ordinary pictures are accepted, with the right pixels", ordinary.attack, BASELINES),
    Suite("S7", "pictures look as meant, results tell nothing of metadata", looks.attack, BASELINES),
)
