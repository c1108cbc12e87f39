"""Calibration and evaluation tokens: from the hub, from local files, from the bundled stories."""
