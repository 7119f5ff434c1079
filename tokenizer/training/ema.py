"""Running mean of weights, which reconstructs better than the last step's weights alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MAX_DECAY = 0.999


class Ema(nn.Module):
    """Mean of a model's learned parameters over its updates, the later the heavier.

    Update k keeps ``min(decay, (1 + k) / (10 + k))`` of the mean, so early ones forget fast. The
    state has the names that published checkpoints have below ``model_ema.``: those of the
    parameters without dots, ``decay`` and ``num_updates``.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = MAX_DECAY) -> None:
        """Starts from the weights of the model, whose set of learned parameters must not change.

        Raises:
            ValueError: a decay outside [0, 1].
        """
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a running mean must be in [0, 1], got {decay}")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int32))
        for name, parameter in _learned(model):
            self.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of the model, after its optimiser's step."""
        self.num_updates += 1
        # As tensors: reading them would make a GPU wait.
        kept = torch.minimum(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in _learned(model):
            mean = self.get_buffer(name)
            mean.sub_((1 - kept) * (mean - parameter))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model the mean as its weights, for good."""
        for name, parameter in _learned(model):
            parameter.copy_(self.get_buffer(name))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the mean as its weights inside, and its own again afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in _learned(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in _learned(model):
                    parameter.copy_(own[name])


def _learned(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that learn, by names without dots, which buffers must not have."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(".", ""), parameter
