"""The commands that read a recorded run: its report, its tables."""
