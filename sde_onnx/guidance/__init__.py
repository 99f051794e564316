"""What stands around a score, or changes a solver's loop, so that images agree with something that is known."""
