"""A pruning run as a stream of events: initial masks, the rebuild of every sub-block, the refit of kept weights."""
