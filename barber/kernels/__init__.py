"""Pure tensor functions: scores, masks, swaps, weight updates. No modules, no devices, no progress."""
