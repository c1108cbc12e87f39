"""Settings of the whole suite: no network, no deadlines, and one thread, since small tensors gain nothing from more."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from hypothesis import settings

settings.register_profile("barber", deadline=None)
settings.load_profile("barber")
torch.set_num_threads(1)
