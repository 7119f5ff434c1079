"""What a plan of clips is in the fingerprint, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.records import ClipPlan, Variant

_LATER = {"cut_threshold": None, "variant": Variant.none}
"""Fields that OUTs from before know nothing of, and the value that makes the clips of before."""
_PLACES = {"start": "the left or top end", "end": "the right or bottom end"}


def sampling_identity(plan: ClipPlan) -> dict[str, Any]:
    """The sections ``sampling`` and ``transform`` of the fingerprint's material."""
    sampling = {
        name: value
        for name, value in asdict(plan).items()
        if name not in _LATER or value != _LATER[name]
    }
    resize = "short side, bilinear, antialiased"
    return {"sampling": sampling, "transform": {"resize": resize, "crop": plan.variant.crop}}


def recorded_variant(fingerprint_of: Mapping[str, Any]) -> Variant:
    """Of an OUT, by what ``run.json`` says its fingerprint is made of."""
    return Variant[fingerprint_of.get("sampling", {}).get("variant", Variant.none.name)]


def describe_variant(variant: Variant) -> str:
    """What is done to every picture, in words.

    >>> describe_variant(Variant.flip_crop_end)
    'flip_crop_end: the right or bottom end, left and right exchanged'
    >>> describe_variant(Variant.none)
    'none: the centre'
    """
    place = _PLACES.get(variant.crop, "the centre")
    return f"{variant.name}: {place}{', left and right exchanged' if variant.is_flipped else ''}"
