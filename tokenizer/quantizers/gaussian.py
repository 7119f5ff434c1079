"""Diagonal Gaussian bottleneck of the continuous (KL) models (arXiv 2412.13061, section 3)."""

# B batch · c latent channels · t h w latent frames, rows, columns

import torch
from torch import Tensor, nn

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Gaussian(nn.Module):
    """Reads the encoder's output as mean and log-variance; has no parameters."""

    def forward(self, h_Bcthw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (clamped to [-30, 20]), float32, half of the channels each."""
        mean_Bcthw, log_variance_Bcthw = h_Bcthw.float().chunk(2, dim=1)
        return mean_Bcthw.contiguous(), log_variance_Bcthw.clamp(*LOG_VARIANCE_RANGE)

    def sample(
        self, mean_Bcthw: Tensor, log_variance_Bcthw: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw ``mean + exp(log_variance / 2) * noise``.

        The noise comes from the generator, or from torch's global one on the CPU, so that it does
        not depend on the device of the model.
        """
        noise_Bcthw = torch.randn(
            mean_Bcthw.shape,
            generator=generator,
            device="cpu" if generator is None else generator.device,
            dtype=torch.float32,
        )
        return mean_Bcthw + torch.exp(0.5 * log_variance_Bcthw) * noise_Bcthw.to(mean_Bcthw.device)
