"""Decoder models: their structure, replayed calls, loading whole or layer by layer, saving."""
