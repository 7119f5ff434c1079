"""Entropy and commitment terms of FSQ training, without a table of tokens x codes.

Token n chooses code j with probability ``softmax_j(2 * inverse_temperature * <z_n, c_j>)``. A code
is one step per channel, so this is a product of one small softmax per channel: the entropy of a
token is the sum of its channels' entropies. The mean over tokens is no product; it is taken as
``high^T low / N``, low and high being the joint probabilities of the first and the last channels
(512 each for 262,144 codes). Both are exact. Tokens go through in blocks that the backward pass
computes again, so memory depends on the block and the codebook, not on the number of tokens.
"""

# B batch · c latent channels · t h w latent frames, rows, columns · N tokens · K codes

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from tokenizer.errors import ShapeError

MIN_PROBABILITY = 1e-5
"""Below it the logarithm in the codebook's entropy is that of this, as published."""
INVERSE_TEMPERATURE = 100.0
BLOCK_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class FsqPenalty:
    """What FSQ adds to the autoencoder's loss; the defaults are those of the published models."""

    entropy_weight: float = 0.1
    """Of the entropy term after annealing."""
    annealing_batches: int = 2000
    """Batches in which its weight falls to that; 0: none."""
    annealing_factor: float = 3.0
    """How many times as large it is at first."""
    commitment_weight: float = 0.25
    """Of the distance to the chosen code."""
    diversity_gamma: float = 1.0
    """Weight of the codebook's entropy against that of a token."""

    def __call__(
        self, z_Bcthw: Tensor, codes_Bcthw: Tensor, levels: Sequence[int], batch: int
    ) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            z_Bcthw: what the encoder gave, before the quantiser.
            codes_Bcthw: what the quantiser made of it.
            levels: steps per channel.
            batch: batches of this training before this one.
        """
        entropy = entropy_loss(z_Bcthw, levels, self.diversity_gamma)
        weight = annealed(self.entropy_weight, batch, self.annealing_batches, self.annealing_factor)
        return weight * entropy + self.commitment_weight * commitment_loss(z_Bcthw, codes_Bcthw)


def annealed(weight: float, batch: int, num_batches: int, factor: float) -> float:
    """``factor * weight`` at batch 0, falling in a line to ``weight`` at ``num_batches``.

    >>> [annealed(1.0, batch, 2000, 3.0) for batch in (0, 500, 2000, 5000)]
    [3.0, 2.5, 1.0, 1.0]
    """
    if batch >= num_batches:
        return weight
    return weight * (factor - batch / num_batches * (factor - 1))


def commitment_loss(z_Bcthw: Tensor, codes_Bcthw: Tensor) -> Tensor:
    """Mean squared distance to the chosen code, which is a constant."""
    return (z_Bcthw.float() - codes_Bcthw.float().detach()).square().mean()


def entropy_loss(
    z_Bcthw: Tensor,
    levels: Sequence[int],
    diversity_gamma: float = 1.0,
    *,
    inverse_temperature: float = INVERSE_TEMPERATURE,
    block_tokens: int = BLOCK_TOKENS,
) -> Tensor:
    """Mean entropy of a token's choice, less ``diversity_gamma`` times that of the codebook, nats.

    Tokens shall be sure, and all of them together use every code.

    Raises:
        ShapeError: the channels are not one per level.
    """
    token_entropy, marginal_K = code_probabilities(
        z_Bcthw, levels, inverse_temperature=inverse_temperature, block_tokens=block_tokens
    )
    marginal_K = _mean_over_ranks(marginal_K)
    codebook = -(marginal_K * marginal_K.clamp(min=MIN_PROBABILITY).log()).sum()
    return token_entropy - diversity_gamma * codebook


def code_probabilities(
    z_Bcthw: Tensor,
    levels: Sequence[int],
    *,
    inverse_temperature: float = INVERSE_TEMPERATURE,
    block_tokens: int = BLOCK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Mean entropy of the tokens' choices, nats, and the mean probability of each code.

    Args:
        z_Bcthw: float ``[B, c, t, h, w]``, before the quantiser; computed in float32.
        levels: steps per channel.
        inverse_temperature: how sharply codes of the same direction are preferred.
        block_tokens: tokens whose joint probabilities are in memory at once.

    Returns:
        A scalar, and float32 ``[K]`` in the order of the indices, with the sum 1.

    Raises:
        ShapeError: the channels are not one per level.
    """
    if z_Bcthw.ndim < 2 or z_Bcthw.shape[1] != len(levels) or z_Bcthw.numel() == 0:
        expected = f"[B, {len(levels)}, ...] for the levels {list(levels)}"
        raise ShapeError("latents", expected, str(list(z_Bcthw.shape)))
    z_Nc = z_Bcthw.movedim(1, -1).flatten(0, -2)
    # Autocast would round the products of probabilities.
    with torch.autocast(z_Nc.device.type, enabled=False):
        z_Nc = z_Nc.float()
        entropy, marginal_K = z_Nc.new_zeros(()), z_Nc.new_zeros(math.prod(levels))
        for block_Nc in torch.split(z_Nc, block_tokens):
            block_entropy, block_marginal_K = checkpoint(
                _block_sums,
                block_Nc,
                levels,
                inverse_temperature,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            entropy, marginal_K = entropy + block_entropy, marginal_K + block_marginal_K
        return entropy / len(z_Nc), marginal_K / len(z_Nc)


def _block_sums(
    z_Nc: Tensor, levels: Sequence[int], inverse_temperature: float
) -> tuple[Tensor, Tensor]:
    """Sums over tokens: of their entropies, and of the probabilities of each code [K]."""
    logarithms = []
    for channel, level in enumerate(levels):
        steps = (torch.arange(level, device=z_Nc.device) - level // 2) / (level // 2)
        logits = 2 * inverse_temperature * z_Nc[:, channel, None] * steps
        logarithms.append(logits.log_softmax(dim=1))
    entropy = -torch.stack([(log.exp() * log).sum() for log in logarithms]).sum()
    cut = _cut(levels)
    low, high = _joint(logarithms[:cut], z_Nc), _joint(logarithms[cut:], z_Nc)
    return entropy, (high.T @ low).flatten()


def _joint(logarithms: Sequence[Tensor], z_Nc: Tensor) -> Tensor:
    """Probabilities [N, product of levels]; the first channel runs fastest, as in an index."""
    joint = z_Nc.new_zeros(len(z_Nc), 1)
    for log in logarithms:
        joint = (log[:, :, None] + joint[:, None, :]).flatten(1)
    return joint.exp()


def _cut(levels: Sequence[int]) -> int:
    """Where to part the channels so that the two joint tables are smallest together.

    >>> _cut([8] * 6), _cut([8, 5, 5, 5]), _cut([7])
    (3, 2, 0)
    """
    return min(
        range(len(levels)), key=lambda cut: math.prod(levels[:cut]) + math.prod(levels[cut:])
    )


def _mean_over_ranks(marginal_K: Tensor) -> Tensor:
    """The mean of all processes of a distributed training; gradients go to this rank's own part.

    Every rank's loss is the same function of the same mean, and DDP averages the ranks' gradients:
    the average is then the gradient of that function, with nothing to send in the backward pass.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return marginal_K
    mean_K = marginal_K.detach().clone()
    distributed.all_reduce(mean_K)
    mean_K /= distributed.get_world_size()
    return marginal_K + (mean_K - marginal_K).detach()
