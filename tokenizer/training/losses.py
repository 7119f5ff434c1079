"""The losses of VidTok's training, each one function of tensors (arXiv 2412.13061, section 3).

Reconstruction counts by frame, summed over its values and not averaged, so these are large numbers;
the adaptive weight brings the adversarial part to their size. Everything is computed in float32.
"""

# N frames (B * T) · C H W colour, rows, columns · samples: frames, or videos for a 3-D critic

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_ADAPTIVE_WEIGHT = 1e4
LECAM_DECAY = 0.999


def reconstruction_error(
    x_hat_NCHW: Tensor,
    x_NCHW: Tensor,
    perceptual_N: Tensor | None = None,
    perceptual_weight: float = 1.0,
) -> Tensor:
    """Absolute difference plus the weighted perceptual distance of the frame, ``[N, C, H, W]``.

    The distance is added to every value, so in a sum over a frame it counts C * H * W times.
    """
    error_NCHW = (x_NCHW.float() - x_hat_NCHW.float()).abs()
    if perceptual_N is None:
        return error_NCHW
    return error_NCHW + perceptual_weight * perceptual_N.float().view(-1, 1, 1, 1)


def negative_log_likelihood(error_NCHW: Tensor, log_variance: Tensor) -> Tensor:
    """Laplacian of one learned log-variance (scalar): sum over a frame, mean over frames."""
    return (error_NCHW / log_variance.exp() + log_variance).sum() / len(error_NCHW)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Of the discriminator: real logits above 1 and fake ones below -1 cost nothing."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def vanilla_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Of the discriminator: cross-entropy of real against fake."""
    real, fake = F.softplus(-real_logits.float()).mean(), F.softplus(fake_logits.float()).mean()
    return (real + fake) / 2


def non_saturating_loss(fake_logits: Tensor) -> Tensor:
    """Of the generator: cross-entropy of each sample's mean logit with *real*, mean over samples.

    Args:
        fake_logits: ``[samples, ...]``.
    """
    return F.softplus(-fake_logits.float().flatten(1).mean(dim=1)).mean()


def linear_loss(fake_logits: Tensor) -> Tensor:
    """Of the generator: minus the mean logit."""
    return -fake_logits.float().mean()


def adaptive_weight(nll_gradient: Tensor, generator_gradient: Tensor) -> Tensor:
    """Ratio of the two losses' gradients at the decoder's last weight, detached, at most 1e4."""
    ratio = nll_gradient.float().norm() / (generator_gradient.float().norm() + 1e-4)
    weight: Tensor = ratio.clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
    return weight


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence from the standard normal, summed over a video's latents, mean over videos.

    Args:
        mean: ``[B, c, t, h, w]``.
        log_variance: likewise.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum() / (2 * len(mean))


class Lecam(nn.Module):
    """LeCAM regularisation (arXiv 2104.03310): logits stay near the other side's running mean.

    The two running means are buffers, so that a resumed training goes on with them.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, decay: float = LECAM_DECAY) -> None:
        super().__init__()
        self.decay = decay
        for name in ("real_mean", "fake_mean"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Move the running means to the logits, then the penalty."""
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        with torch.no_grad():
            self.real_mean.lerp_(real_logits.mean(), 1 - self.decay)
            self.fake_mean.lerp_(fake_logits.mean(), 1 - self.decay)
        # Read, not referred to: the buffers move on before the backward pass of accumulated steps.
        real_mean, fake_mean = self.real_mean.clone(), self.fake_mean.clone()
        real = F.relu(real_logits - fake_mean).square().mean()
        return real + F.relu(real_mean - fake_logits).square().mean()
