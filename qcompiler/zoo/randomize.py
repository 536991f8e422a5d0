"""Random weights a quantizer can be tested on: batch norms fit what they see, then are jittered.

Freshly constructed batch norms are the identity and activations grow or vanish with depth; both
hide errors. Here every statistic is measured on noise and moved off by a known spread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

# Spread of the jitter, in standard deviations of the channel (mean, bias) or as a factor (the
# others): about what trained ImageNet networks show, and enough to make every channel different.
MEAN_SPREAD = 0.3
VARIANCE_RANGE = (0.6, 1.6)
WEIGHT_RANGE = (0.5, 1.5)
BIAS_SPREAD = 0.3
VARIANCE_FLOOR = 1e-3


def randomize_(module: Module, example_inputs: tuple[Tensor, ...], seed: int = 0) -> Module:
    """Give `module` kaiming weights and jittered batch norms, in place, and put it in eval mode.

    The batch norms are fitted in one pass over `example_inputs`, in the order they run. The same
    seed, inputs, torch build and thread count give the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for layer in module.modules():
            _randomize_weights(layer, generator)
        norms = [m for m in module.modules() if isinstance(m, NORMS)]
        hooks = [norm.register_forward_pre_hook(_fit_to_input(generator)) for norm in norms]
        module(*example_inputs)
    for hook in hooks:
        hook.remove()
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    """float32 standard normal numbers of a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _randomize_weights(layer: nn.Module, generator: torch.Generator) -> None:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0.0, 0.1, generator=generator)


def _fit_to_input(generator: torch.Generator) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def fit(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, NORMS)

        def normal() -> Tensor:
            return torch.randn(norm.num_features, generator=generator)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(norm.num_features, generator=generator)

        channels = inputs[0].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        variance = variance.clamp(min=VARIANCE_FLOOR)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean + MEAN_SPREAD * variance.sqrt() * normal())
        norm.running_var.copy_(variance * uniform(*VARIANCE_RANGE))
        norm.weight.copy_(uniform(*WEIGHT_RANGE))
        norm.bias.copy_(BIAS_SPREAD * normal())

    return fit
