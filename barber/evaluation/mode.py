"""Call a model for measurement: in eval mode, without gradients, its modules' own flags kept."""

from __future__ import annotations

from functools import wraps

import torch


def evaluating(function):
    """Call `function(model, ...)` in eval mode and without gradients; each module keeps its own training flag."""

    @wraps(function)
    @torch.no_grad()
    def call(model, *args):
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return function(model, *args)
        finally:
            for module, flag in flags:
                module.training = flag

    return call
