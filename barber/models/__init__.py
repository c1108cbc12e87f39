"""Decoder models: structure, replay of module calls, loading (whole or layerwise) and saving."""
