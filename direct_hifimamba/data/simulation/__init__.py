"""Multi-coil slices drawn at random, so that no two samples of a training are alike."""
