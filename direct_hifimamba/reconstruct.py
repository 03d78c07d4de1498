"""The Python interface of reconstruction, as README shows it."""

from direct_hifimamba.reconstruction.reconstructor import Reconstructor as Reconstructor
