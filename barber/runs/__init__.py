"""Run directories: how a run is recorded, read, resumed and applied to a model."""
