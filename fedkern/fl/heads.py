"""A model's last layer: what methods take for the classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_layer(model: nn.Module) -> Any:
    """The last linear or convolutional layer in the order of ``model.modules()``.

    Raises:
        ConfigError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, _KINDS)]
    if not layers:
        raise ConfigError(
            "model: wanted a Linear or Conv layer at the end, got a model without one"
        )
    return layers[-1]


class TwoHeads(nn.Linear):
    """Two linear classifiers of the same features: FedRoD's generic and its personal one.

    The weight holds one below the other, [2 C, in]. The personal one sends no gradient to the
    features.

    Attributes:
        personal: what evaluation shows: both heads' logits added up, or the generic one's.
    """

    personal = False

    @classmethod
    def become(cls, layer: nn.Linear) -> None:
        """Makes a linear layer the generic head, with a personal one of zeros below it."""
        layer.__class__ = cls
        layer.out_features *= 2
        for name, parameter in [*layer.named_parameters()]:
            values = torch.cat([parameter.detach(), torch.zeros_like(parameter)])
            setattr(layer, name, nn.Parameter(values, parameter.requires_grad))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., 2 C] in training mode, the generic ones first; else [..., C]."""
        weights = self.weight.chunk(2)
        biases = (None, None) if self.bias is None else self.bias.chunk(2)
        generic = F.linear(features, weights[0], biases[0])
        if not (self.training or self.personal):
            return generic
        personal = F.linear(features.detach(), weights[1], biases[1])
        return torch.cat([generic, personal], -1) if self.training else generic + personal
