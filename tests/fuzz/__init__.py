"""Files from strangers, mutated at random: bundles, checkpoints, images. `python -m tests.fuzz.campaign --help`."""
