"""The commands beside the published flags, one file each: its arguments, and what it does with them."""
