"""What a model can do: perplexity, text, zero-shot tasks."""
