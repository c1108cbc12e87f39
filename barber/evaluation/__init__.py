"""Evaluation of a model: perplexity, text generation and zero-shot tasks."""
