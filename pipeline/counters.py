"""What a worker counts while it runs; ``attempts.combined`` puts those of several together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What a worker has done so far; read by the driver now and then."""

    videos: int = 0
    clips: int = 0
    quarantined: int = 0
    filtered: int = 0
    segments: int = 0
    token_bytes: int = 0
    covered: int = 0
    """Bytes of tars, or members of buckets, that are done with."""
    source_seconds: float = 0.0
    decode_cpu_seconds: float = 0.0
    encode_seconds: float = 0.0
    starved_seconds: float = 0.0
    """Time that the encoder waited for clips while shards were open."""
    decoder_restarts: int = 0
    canaries: int = 0
    """Times that the encoder's arithmetic was found right."""
    events: int = 0
    """Messages from decoders: with the other counters it shows that something moves."""
    first_encoded_at_seconds: float = 0.0
    """When the first batch was encoded, as seconds since 1970; 0: not yet."""
    last_started_at_seconds: float = 0.0
    """The same: of several workers the latest counts."""
