"""One training: a model, its objective, two optimisers; ``step`` takes a batch.

Pure torch: no files, no data. With torch.distributed initialised, every rank takes its share of
each batch, and gradients are averaged once a step. Parts of a batch, and shares of ranks, give what
the whole batch gives, except where a term is no mean over videos: the entropy of the codebook of a
part (that of ranks is exact), the statistics of batch norm and LeCAM's hinges, and the adaptive
weight, which each part and rank takes from its own gradients, as published.
"""

# B batch · C colour · T H W frames, rows, columns · c t h w latents

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.arithmetic import arithmetic, compute_dtype
from tokenizer.checks import check_frames
from tokenizer.config import Precision
from tokenizer.errors import DivergedTraining
from tokenizer.layers.blocks import ResBlock
from tokenizer.model import VideoTokenizer
from tokenizer.quantizers.fsq import FSQ
from tokenizer.training.codebook import CodebookUse
from tokenizer.training.ema import Ema
from tokenizer.training.losses import kl_loss
from tokenizer.training.objective import Logs, Objective
from tokenizer.training.replicas import average, copy_from_first
from tokenizer.training.stages import StageConfig, learning_rate


class Training:
    """Everything that a step changes.

    Args:
        model: on its device; all of it asks for gradients, or the decoder alone.
        config: of the stage.
        lpips: distances ``[N]`` of frames in [-1, 1]; needed unless its weight is 0.
    """

    def __init__(
        self,
        model: VideoTokenizer,
        config: StageConfig,
        lpips: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self.model, self.config = model, config
        model.set_precision(config.precision)
        model.train().requires_grad_(True)
        if config.encoder_fixed:
            model.encoder.requires_grad_(False).eval()
        for module in model.modules():
            if isinstance(module, ResBlock):
                module.computes_again = config.activation_checkpointing
        self.objective = Objective(config.objective, lpips).to(model.device)
        copy_from_first([*model.state_dict().values(), *self.objective.state_dict().values()])
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._generator_side = [*learned, self.objective.logvar]
        self._judge_side = list(self.objective.discriminator.parameters())
        self._autoencoder = _adam(self._generator_side, config)
        self._discriminator = _adam(self._judge_side, config)
        self._ema = None if config.ema_decay is None else Ema(model, config.ema_decay)
        size = model.config.codebook_size
        self.codebook = None if size is None else CodebookUse(size)
        self.num_steps = 0

    @property
    def has_ema(self) -> bool:
        """Whether a running mean is kept."""
        return self._ema is not None

    def step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        """Train on one batch.

        Args:
            parts: of the batch, uint8 ``[B, T, H, W, 3]`` each, computed one after the other.

        Returns:
            Scalars of the step, the mean of all parts and ranks; for discrete models also the
            use of the codebook over the latest batches.

        Raises:
            InputError: parts that are no videos for this model.
            DivergedTraining: loss or gradient is not finite; the weights of that optimiser are
                still those of the step before.
        """
        with arithmetic(self.config.precision, self.model.device.type):
            return self._step(parts)

    def _step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        sums: Logs = {}
        is_adversarial = self.objective.is_adversarial(self.num_steps)
        pairs = [self._autoencoder_pass(part, len(parts), sums) for part in parts]
        norm = self._move(self._autoencoder, self._generator_side, sums["loss"])
        if is_adversarial or self.config.judge_from_start:
            for x_hat_BCTHW, x_BCTHW in pairs:
                self._discriminator_pass(x_hat_BCTHW, x_BCTHW, len(parts), sums)
            average(self.objective.remembered())
        if is_adversarial:
            self._move(self._discriminator, self._judge_side, sums["disc_loss"])
        if self._ema is not None:
            self._ema.update(self.model)
        self.num_steps += 1
        return self._numbers(sums | {"gradient_norm": norm})

    def _autoencoder_pass(
        self, frames_BTHWC: Tensor, num_parts: int, sums: Logs
    ) -> tuple[Tensor, Tensor]:
        check_frames(self.model.config, frames_BTHWC)
        x_BCTHW = self.model.scaled(frames_BTHWC)
        latents_Bcthw, penalty = self._encode(x_BCTHW)
        x_hat_BCTHW = self.model.decode(latents_Bcthw)[:, :, -x_BCTHW.shape[2] :]
        last = _last_weight(self.model)
        with self._autocast():
            loss, logs = self.objective.autoencoder_loss(
                x_hat_BCTHW, x_BCTHW, penalty, self.num_steps, last
            )
        torch.autograd.backward(loss / num_parts)
        x_hat_BCTHW = x_hat_BCTHW.detach()
        mse = (x_hat_BCTHW.clamp(-1, 1) - x_BCTHW).square().mean() / 4
        logs |= {"penalty": penalty.detach(), "psnr": -10 * (mse + 1e-8).log10()}
        _add(sums, logs, num_parts)
        return x_hat_BCTHW, x_BCTHW

    def _encode(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, and what the quantiser adds to the loss."""
        model, config = self.model, self.config
        with torch.set_grad_enabled(not config.encoder_fixed):
            h_Bcthw = model.encoder(x_BCTHW, None, compute_dtype(config.precision))
            if not isinstance(model.quantizer, FSQ):
                mean, log_variance = model.quantizer(h_Bcthw)
                latents_Bcthw = model.quantizer.sample(mean, log_variance, None)
                return latents_Bcthw, config.kl_weight * kl_loss(mean, log_variance)
            codes_Bcthw, indices_Bthw = model.quantizer(h_Bcthw)
            assert self.codebook is not None
            self.codebook.update(indices_Bthw)
            levels = model.config.quantizer.levels
            return codes_Bcthw, config.penalty(h_Bcthw, codes_Bcthw, levels, self.num_steps)

    def _autocast(self) -> torch.autocast:
        """LPIPS and discriminator in the precision of the stage; their losses stay float32."""
        is_bf16 = self.config.precision is Precision.bf16
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=is_bf16)

    def _discriminator_pass(
        self, x_hat_BCTHW: Tensor, x_BCTHW: Tensor, num_parts: int, sums: Logs
    ) -> None:
        with self._autocast():
            loss, logs = self.objective.discriminator_loss(x_hat_BCTHW, x_BCTHW, self.num_steps)
        if loss.requires_grad:
            torch.autograd.backward(loss / num_parts)
        _add(sums, logs, num_parts)

    def _move(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor
    ) -> Tensor:
        """One step along the mean gradient of all ranks; its norm before it was cut.

        Raises:
            DivergedTraining: loss or gradient of some rank is not finite; nothing has moved.
        """
        loss = loss.clone()
        average([loss, *(value.grad for value in parameters if value.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm).detach()
        if not bool(torch.isfinite(loss + norm)):
            raise DivergedTraining(self.num_steps + 1, float(loss), float(norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.num_steps)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _numbers(self, sums: Logs) -> dict[str, float]:
        names = list(sums)
        values = torch.stack([sums[name].detach().float() for name in names])
        average([values])
        numbers = dict(zip(names, values.tolist(), strict=True))
        if self.codebook is not None:
            numbers["codebook_used"] = self.codebook.used_fraction
            numbers["perplexity"] = self.codebook.perplexity
        return numbers

    @torch.no_grad()
    def reconstruct(self, frames_BTHWC: Tensor) -> Tensor:
        """There and back, uint8 ``[B, T, H, W, 3]``; with the running mean where one is kept."""
        if self._ema is not None:
            with self._ema.applied(self.model):
                return self._reconstruct(frames_BTHWC)
        return self._reconstruct(frames_BTHWC)

    def _reconstruct(self, frames_BTHWC: Tensor) -> Tensor:
        x_hat_BCTHW = self.model.decode(self.model.encode_uint8(frames_BTHWC).latents)
        x_hat_BCTHW = x_hat_BCTHW[:, :, -frames_BTHWC.shape[1] :].clamp(-1, 1)
        return ((x_hat_BCTHW + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)

    def published_state_dict(self, *, ema: bool = False) -> dict[str, Tensor]:
        """Tensors by the names of published checkpoints; ``ema``: the running mean's weights."""
        if ema:
            assert self._ema is not None
            with self._ema.applied(self.model):
                return {name: value.clone() for name, value in self.model.state_dict().items()}
        loss = {f"loss.{name}": value for name, value in self.objective.state_dict().items()}
        return dict(self.model.state_dict()) | loss

    def state_dict(self) -> dict[str, Any]:
        """All that is the same on every rank."""
        return {
            "num_steps": self.num_steps,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "autoencoder": self._autoencoder.state_dict(),
            "discriminator": self._discriminator.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "codebook": None if self.codebook is None else self.codebook.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self.num_steps = state["num_steps"]
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self._autoencoder.load_state_dict(state["autoencoder"])
        self._discriminator.load_state_dict(state["discriminator"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        if self.codebook is not None:
            self.codebook.load_state_dict(state["codebook"])

    def random_state(self) -> dict[str, Any]:
        """Torch's generators on this rank."""
        is_cuda = self.model.device.type == "cuda"
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.model.device) if is_cuda else None,
        }

    def load_random_state(self, state: dict[str, Any]) -> None:
        """Continue with them."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.model.device)


def _adam(parameters: Sequence[nn.Parameter], config: StageConfig) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, config.learning_rate, (0.9, config.adam_beta2))


def _add(sums: Logs, logs: Logs, num_parts: int) -> None:
    for name, value in logs.items():
        part = value.detach().float() / num_parts
        sums[name] = sums[name] + part if name in sums else part


def _last_weight(model: VideoTokenizer) -> Tensor:
    """Of the decoder's last convolution, which the adversarial term is weighed at."""
    named = dict(model.named_parameters())
    return next(
        named[name]
        for name in ("decoder.conv_out.conv.weight", "decoder.conv_out.weight")
        if name in named
    )
