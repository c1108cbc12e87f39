"""Calibration and evaluation tokens: from the Hugging Face hub, local files and the bundled stories."""
