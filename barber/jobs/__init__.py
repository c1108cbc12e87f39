"""A whole job: load, calibrate, evaluate, prune, evaluate again, save; and what the command line asks and reports."""
