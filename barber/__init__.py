"""Barber: one-shot pruning masks, rebuilt where the sub-block's error says so (LLM-Barber, arXiv 2408.10631)."""
