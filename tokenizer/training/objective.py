"""The two losses of a batch: the autoencoder's, then the discriminator's on the same videos.

An ``Objective`` holds what is learned or remembered beside the tokenizer: log-variance,
discriminator, LeCAM's means. Its state dict has the published names below ``loss.``; LPIPS is
fixed and no part of it. Steps are counted in batches.
"""

# B batch · C colour · T H W frames, rows, columns

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizer.errors import ShapeError
from tokenizer.training.discriminator import FrameDiscriminator, VideoDiscriminator
from tokenizer.training.losses import (
    Lecam,
    adaptive_weight,
    hinge_loss,
    linear_loss,
    negative_log_likelihood,
    non_saturating_loss,
    reconstruction_error,
    vanilla_loss,
)

Logs = dict[str, Tensor]
"""Name -> detached scalar."""


class DiscriminatorLoss(enum.Enum):
    """How logits become the discriminator's loss."""

    hinge = "hinge"
    vanilla = "vanilla"


class GeneratorLoss(enum.Enum):
    """How logits of reconstructions become the autoencoder's loss."""

    non_saturating = "non_saturating"
    linear = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms; the defaults are those of the published models."""

    perceptual_weight: float = 1.0
    """Of LPIPS, which counts for every value of its frame."""
    initial_log_variance: float = 0.0
    """Where the learned log-variance starts."""
    adversarial_weight: float = 0.2
    """Of the adversarial term, after its gradient was brought to the size of the others'."""
    adversarial_start: int = 10_000
    """Batches without a discriminator at first (published: 20,001 steps of two optimisers)."""
    lecam_weight: float = 0.005
    """Of the LeCAM penalty in the discriminator's loss."""
    dims: int = 2
    """2: the discriminator sees frames, 3: videos."""
    discriminator_loss: DiscriminatorLoss = DiscriminatorLoss.hinge
    """Loss of the discriminator."""
    generator_loss: GeneratorLoss = GeneratorLoss.non_saturating
    """Its counterpart in the autoencoder's loss."""

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims must be 2 (frames) or 3 (videos), got {self.dims}")


class Objective(nn.Module):
    """Losses of a training, with what they learn; train mode counts for its discriminator."""

    def __init__(
        self, config: ObjectiveConfig, lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        """Args: lpips gives distances ``[N]`` of frames in [-1, 1]; needed unless its weight is 0.

        Raises:
            ValueError: a perceptual weight without a network for it.
        """
        super().__init__()
        if lpips is None and config.perceptual_weight != 0:
            raise ValueError("perceptual_weight is not 0, so lpips must be given")
        self.config, self.lpips = config, lpips
        self.logvar = nn.Parameter(torch.tensor(config.initial_log_variance))
        self.discriminator = FrameDiscriminator() if config.dims == 2 else VideoDiscriminator()
        self.lecam = Lecam()

    def is_adversarial(self, batch: int) -> bool:
        """Whether the discriminator takes part: before, its optimiser must not step."""
        return batch >= self.config.adversarial_start

    def remembered(self) -> list[Tensor]:
        """Floating-point buffers that steps move: statistics of batch norm and LeCAM's means.

        Those of LPIPS are fixed: a mean over ranks would round them.
        """
        moving = (self.discriminator, self.lecam)
        buffers = (buffer for module in moving for buffer in module.buffers())
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def autoencoder_loss(
        self,
        x_hat_BCTHW: Tensor,
        x_BCTHW: Tensor,
        penalty: Tensor | float,
        batch: int,
        last_weight: Tensor,
    ) -> tuple[Tensor, Logs]:
        """Loss of encoder, decoder and log-variance, and its parts.

        Gradients do not reach the discriminator's parameters.

        Args:
            x_hat_BCTHW: reconstruction, about [-1, 1], with its graph.
            x_BCTHW: videos in [-1, 1].
            penalty: of the quantiser, already weighted (``FsqPenalty``, or 1e-6 * ``kl_loss``).
            batch: batches of this training before this one.
            last_weight: weight of the decoder's last convolution.
        """
        if not self.is_adversarial(batch):
            nll, logs = self._likelihood(x_hat_BCTHW, x_BCTHW)
            loss = nll + penalty
        else:
            # Both losses are followed back once, to the reconstruction. There they are weighed and
            # added, and the decoder is passed once.
            seen_BCTHW = x_hat_BCTHW.detach().requires_grad_()
            nll, logs = self._likelihood(seen_BCTHW, x_BCTHW)
            nll_x, nll_logvar = torch.autograd.grad(nll, (seen_BCTHW, self.logvar))
            with _constant(self.discriminator):
                generator = self._generator_loss(self.discriminator(self._judged(seen_BCTHW)))
            (generator_x,) = torch.autograd.grad(generator, seen_BCTHW)
            at_last = [
                torch.autograd.grad(x_hat_BCTHW, last_weight, gradient, retain_graph=True)[0]
                for gradient in (nll_x, generator_x)
            ]
            weight = self.config.adversarial_weight * adaptive_weight(*at_last)
            logs |= {"g_loss": generator, "d_weight": weight}
            value = nll + weight * generator
            x_gradient = nll_x + weight * generator_x
            loss = penalty + _with_gradients(
                value, (x_hat_BCTHW, x_gradient), (self.logvar, nll_logvar)
            )
        return loss, {name: value.detach() for name, value in (logs | {"loss": loss}).items()}

    def _likelihood(self, x_hat_BCTHW: Tensor, x_BCTHW: Tensor) -> tuple[Tensor, Logs]:
        """Negative log-likelihood, LPIPS included, and its parts."""
        x_hat_NCHW, x_NCHW = _frames(x_hat_BCTHW, x_BCTHW)
        distance_N = None
        if self.lpips is not None and self.config.perceptual_weight != 0:
            distance_N = self.lpips(x_hat_NCHW, x_NCHW)
        error = reconstruction_error(x_hat_NCHW, x_NCHW, distance_N, self.config.perceptual_weight)
        nll = negative_log_likelihood(error, self.logvar)
        logs = {"nll_loss": nll, "rec_loss": error.mean(), "logvar": self.logvar}
        if distance_N is not None:
            logs["p_loss"] = distance_N.mean()
        return nll, logs

    def discriminator_loss(
        self, x_hat_BCTHW: Tensor, x_BCTHW: Tensor, batch: int
    ) -> tuple[Tensor, Logs]:
        """Loss of the discriminator on videos and their (detached) reconstructions.

        Before ``adversarial_start`` it is 0 and has no graph; running means move all the same.
        """
        _frames(x_hat_BCTHW, x_BCTHW)
        active = self.is_adversarial(batch)
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            real_logits = self.discriminator(self._judged(x_BCTHW.detach()))
            fake_logits = self.discriminator(self._judged(x_hat_BCTHW.detach()))
            penalty = self.lecam(real_logits, fake_logits)
            plain = self._discriminator_loss(real_logits, fake_logits)
            loss = plain + self.config.lecam_weight * penalty
        logs = {
            "non_saturated_d_loss": plain,
            "lecam_loss": penalty,
            "logits_real": real_logits.mean(),
            "logits_fake": fake_logits.mean(),
            "disc_loss": loss if active else torch.zeros_like(loss),
        }
        return logs["disc_loss"], {name: value.detach() for name, value in logs.items()}

    def _judged(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW.transpose(1, 2).flatten(0, 1) if self.config.dims == 2 else x_BCTHW

    def _generator_loss(self, fake_logits: Tensor) -> Tensor:
        is_linear = self.config.generator_loss is GeneratorLoss.linear
        return linear_loss(fake_logits) if is_linear else non_saturating_loss(fake_logits)

    def _discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        is_hinge = self.config.discriminator_loss is DiscriminatorLoss.hinge
        return (hinge_loss if is_hinge else vanilla_loss)(real_logits, fake_logits)


def _frames(x_hat_BCTHW: Tensor, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both as frames [N, C, H, W]."""
    if x_BCTHW.ndim != 5 or x_hat_BCTHW.shape != x_BCTHW.shape or 0 in x_BCTHW.shape:
        expected = f"two of one shape [B, C, T, H, W], such as {list(x_BCTHW.shape)}"
        raise ShapeError("videos to compare", expected, str(list(x_hat_BCTHW.shape)))
    return x_hat_BCTHW.transpose(1, 2).flatten(0, 1), x_BCTHW.transpose(1, 2).flatten(0, 1)


def _with_gradients(value: Tensor, *known: tuple[Tensor, Tensor]) -> Tensor:
    """A loss of this value whose backward pass gives these tensors these gradients."""
    carrier = torch.stack([(tensor * gradient).sum() for tensor, gradient in known]).sum()
    return value.detach() + (carrier - carrier.detach())


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Parameters are constants of the graph that is built inside."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
