"""Every error that the tokenizer raises on purpose.

All classes are ``ValueError``s under one root, carry their facts as positional arguments and write
the message in ``__str__``, so that they survive pickling (process pools, Ray)::

    TokenizerError
      ConfigError            a field of the configuration is wrong
      UnknownName       no tokenizer, override, precision or part of that name
      InputError             the tensor given to encode or decode
        ShapeError · DtypeError · RangeError · NonFiniteError · IndexRangeError
      MissingPart       decode without a decoder, indices of a KL model, streams if not causal
      DivergedTraining       a step of a training gave NaN or infinity
      CheckpointError        the weights
        MissingCheckpoint · MissingNetwork · CheckpointUnavailable · WrongDigest
        UnreadableCheckpoint · CheckpointMismatch · BadWeights
"""

import difflib
from collections.abc import Sequence


class TokenizerError(ValueError):
    """Root of the tree; catch this one to catch them all."""


class ConfigError(TokenizerError):
    """A configuration field has a value that cannot work; names the field by its YAML path."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class UnknownName(TokenizerError):
    """A name that is none of the known ones; lists near matches, or all of them."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        super().__init__(kind, name, list(known))
        self.kind, self.name, self.known = kind, name, list(known)

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name, self.known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"unknown {self.kind} {self.name!r}: {hint}known: {', '.join(self.known)}"


class InputError(TokenizerError):
    """A tensor that cannot be encoded or decoded."""

    def __init__(self, what: str, expected: str, got: str) -> None:
        super().__init__(what, expected, got)
        self.what, self.expected, self.got = what, expected, got

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.got}"


class ShapeError(InputError):
    """Wrong rank, wrong number of channels, or too few frames, rows or columns."""


class DtypeError(InputError):
    """Integers where floats are needed, or the other way round."""


class RangeError(InputError):
    """Finite values outside the allowed range, such as 0..255 pixels."""


class NonFiniteError(InputError):
    """NaN or infinity in the input."""


class IndexRangeError(InputError):
    """An index that the codebook does not have."""


class DivergedTraining(TokenizerError):
    """Loss or gradient of a training step is NaN or infinite."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(step, loss, norm)
        self.step, self.loss, self.norm = step, loss, norm

    def __str__(self) -> str:
        return (
            f"training step {self.step}: the loss is {self.loss:g} and the norm of its gradient "
            f"{self.norm:g}, but both must be finite; go on from the last checkpoint in another "
            "train.run, with train.start=RUN and a lower learning_rate or clip_norm, or with "
            "precision=fp32"
        )


class MissingPart(TokenizerError):
    """The model cannot do this: decoder not loaded, no indices (KL), no streams (not causal)."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"tokenizer {self.name!r}: {self.problem}"


class CheckpointError(TokenizerError):
    """Weights are missing, unreadable, for another model, or broken."""


class MissingCheckpoint(CheckpointError):
    """No checkpoint was given and the tokenizer brings none; says how to get one."""

    def __init__(self, name: str, url: str | None) -> None:
        super().__init__(name, url)
        self.name, self.url = name, url

    def __str__(self) -> str:
        source = (
            f"give checkpoint=auto to fetch {self.url}, or the path of that file"
            if self.url
            else "give the path of a .ckpt or .safetensors file as checkpoint"
        )
        return (
            f"tokenizer {self.name!r} needs a checkpoint: {source}, "
            "or use checkpoint=random for a dry run"
        )


class MissingNetwork(CheckpointError):
    """A metric needs a trained network that is not shipped; says what to fetch."""

    def __init__(self, metric: str, needed: str, source: str) -> None:
        super().__init__(metric, needed, source)
        self.metric, self.needed, self.source = metric, needed, source

    def __str__(self) -> str:
        return f"{self.metric} needs {self.needed}: {self.source}; nothing else stands in for it"


class CheckpointUnavailable(CheckpointError):
    """A checkpoint could not be fetched; says what to get, and where to put it by hand."""

    def __init__(self, source: str, reason: str, address: str, path: str) -> None:
        super().__init__(source, reason, address, path)
        self.source, self.reason, self.address, self.path = source, reason, address, path

    def __str__(self) -> str:
        return (
            f"cannot fetch checkpoint {self.source}: {self.reason}; where there is a network, get "
            f"{self.address} and put it at {self.path} of this machine, or anywhere and "
            "give its path as checkpoint"
        )


class WrongDigest(CheckpointError):
    """A checkpoint file is not the one that was asked for."""

    def __init__(self, source: str, expected: str, found: str) -> None:
        super().__init__(source, expected, found)
        self.source, self.expected, self.found = source, expected, found

    def __str__(self) -> str:
        return (
            f"checkpoint {self.source} has sha256 {self.found}, expected {self.expected}: "
            "it was changed, or the digest is that of another file"
        )


class UnreadableCheckpoint(CheckpointError):
    """The file is missing, empty, cut, of another format, or would run code when unpickled."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"cannot read checkpoint {self.source}: {self.reason}"


class CheckpointMismatch(CheckpointError):
    """The weights belong to another model; lists what differs and which tokenizers would fit."""

    def __init__(
        self,
        source: str,
        name: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        wrong_shape: Sequence[str],
        fitting: Sequence[str],
    ) -> None:
        super().__init__(
            source, name, list(missing), list(unexpected), list(wrong_shape), list(fitting)
        )
        self.source, self.name = source, name
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.wrong_shape, self.fitting = list(wrong_shape), list(fitting)

    def __str__(self) -> str:
        lines = [f"checkpoint {self.source} does not fit tokenizer {self.name!r}"]
        for what, keys in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.wrong_shape),
        ):
            if keys:
                more = ", …" if len(keys) > 3 else ""
                lines.append(f"  {len(keys)} {what}: {', '.join(keys[:3])}{more}")
        fitting = ", ".join(self.fitting) if self.fitting else "none of the named tokenizers"
        lines.append(f"  these weights fit: {fitting}")
        return "\n".join(lines)


class BadWeights(CheckpointError):
    """A tensor of the checkpoint is not of a floating dtype, or holds NaN or infinity."""

    def __init__(self, source: str, key: str, problem: str) -> None:
        super().__init__(source, key, problem)
        self.source, self.key, self.problem = source, key, problem

    def __str__(self) -> str:
        return f"checkpoint {self.source}: {self.key} {self.problem}"
