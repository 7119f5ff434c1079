"""The decoder alone, as ``encoder`` measures the encoder; eager, as nothing in a run decodes.

    python -m jobs.benchmark decoder --precision bf16 --json decoder.json

``index_agreement`` here: how near the video is to that of float32, as the share of 8-bit values
that are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.benchmark.encoder import Setting, parse, peak_memory, speed, summary
from jobs.benchmark.measure import machine, write_json


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    setting = parse(arguments, prog="decoder")
    print(f"{machine()}; {setting.tokenizer} {setting.precision} on {setting.device}, ", end="")
    print(f"batch {setting.batch} of {setting.frames}x{setting.height}x{setting.width}", flush=True)
    figures, layers = measure(setting)
    print(layers, summary(figures), sep="\n\n")
    write_json(setting.json, figures)
    return 0


def measure(setting: Setting) -> tuple[dict[str, Any], str]:
    """The figures, and the table of layers."""
    import torch

    from jobs.benchmark.layers import LayerTimes
    from jobs.benchmark.rates import Rates, stopwatch
    from tokenizer import load_tokenizer
    from tokenizer.arithmetic import arithmetic, compute_dtype
    from tokenizer.cost import decoder_products

    torch.set_num_threads(setting.threads)
    model = load_tokenizer(setting.tokenizer, "random", setting.device)
    assert model.decoder is not None
    shape = model.config.latent_shape(setting.frames, setting.height, setting.width)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(setting.batch, model.config.latent_channels, *shape, generator=generator)
    latents = (2 * noise - 1).to(setting.device)
    times = LayerTimes(model.decoder, setting.device)
    model.set_precision(setting.precision)
    rates = Rates(
        list(decoder_products(model.config, *shape)),
        batch=setting.batch,
        dtype=compute_dtype(model.precision),
        device=setting.device,
    )
    seen = []
    with torch.inference_mode():
        model.set_precision("fp32")
        expected = as_uint8(model.decode(latents[:1]))
        model.set_precision(setting.precision)
        found = as_uint8(model.decode(latents[:1]))
        with times.counting():
            model.decode(latents[:1])
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with arithmetic(model.precision, setting.device):
            for _ in range(setting.rounds):
                rates.measure()
                seen.append(stopwatch(lambda: model.decode(latents), setting.device))
                rates.measure()
                with times.timing():
                    model.decode(latents[:1])
    figures = speed(setting, seen, times.total_flops, rates)
    figures |= {
        "peak_bytes": peak_memory(setting.device),
        "index_agreement": float((found == expected).float().mean()),
        "layers": times.figures(rates),
    }
    return figures, times.table(rates)


def as_uint8(video: Any) -> Any:
    """[-1, 1] to 0..255."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round()
