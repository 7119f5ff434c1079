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
    encoded_clips: int = 0
    """Clips, or pieces of whole videos, that went through the encoder."""
    starved_seconds: float = 0.0
    """Time that the encoder waited for clips while shards were open."""
    decoders: int = 0
    """Decoder children now."""
    decoder_restarts: int = 0
    decoder_seconds: float = 0.0
    """Time of all decoder children."""
    decoder_busy_seconds: float = 0.0
    """Of that, time with a video."""
    decoder_full_seconds: float = 0.0
    """Of that, time with a full ring: the encoder is slower than they."""
    ring_bytes: int = 0
    """Shared memory of the decoders' rings now."""
    peak_worker_rss_bytes: int = 0
    """The most memory that a worker's own process ever had."""
    peak_decoder_rss_bytes: int = 0
    """The most memory that one decoder child ever had, its ring included."""
    canaries: int = 0
    """Times that the encoder's arithmetic was found right."""
    events: int = 0
    """Messages from decoders: with the other counters it shows that something moves."""
    first_encoded_at_seconds: float = 0.0
    """When the first batch was encoded, as seconds since 1970; 0: not yet."""
    last_started_at_seconds: float = 0.0
    """The same: of several workers the latest counts."""
