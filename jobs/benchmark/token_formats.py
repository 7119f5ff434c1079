"""The formats of the loader benchmark: each writes the same clips, and reads shuffled batches.

One function writes and one reads; both import their library themselves, so that a process needs
only its own (mosaicml-streaming and datasets cannot share an environment). Readers are what their
documentation shows, in process, without worker processes: those cost every one of them more CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.token_parts import (
    SHAPE,
    TOKENS_PER_CLIP,
    indices_of,
    write_token_parts,
)

BATCH = 32
CLIPS_PER_PART = 2048
SHUFFLE_BUFFER = 1024
"""Clips, of those that shuffle in a buffer."""

Batches = Iterator[Tensor]
"""int32 ``[B, 5, 32, 32]``; the last one of a pass may be smaller."""


@dataclass(frozen=True, slots=True)
class Format:
    """One contestant."""

    package: str
    """What is imported before any clock starts."""
    write: Callable[[Path, int], None]
    """Writes so many clips into a folder."""
    open: Callable[[str, dict[str, Any]], Callable[[int], Batches]]
    """A folder or URL (with fsspec options) -> what gives the batches of an epoch."""


def write_parts(folder: Path, num_clips: int) -> None:
    """Ours."""
    write_token_parts(folder, num_clips=num_clips, clips_per_part=CLIPS_PER_PART)


def open_parts(root: str, storage_options: dict[str, Any]) -> Callable[[int], Batches]:
    """Ours: shuffled over all parts, digests verified, threads that read ahead."""
    from pipeline.dataset import TokenDataset

    dataset = TokenDataset(
        root,
        batch_size=BATCH,
        shuffle=True,
        columns=(),
        drop_last=False,
        storage_options=storage_options,
    )

    def batches(epoch: int) -> Batches:
        dataset.set_epoch(epoch)
        for batch in dataset:
            padding = batch["is_padding"]
            yield batch["tokens"][~padding] if padding.any() else batch["tokens"]

    return batches


def write_mds(folder: Path, num_clips: int) -> None:
    """Shards of MosaicML streaming."""
    from streaming import MDSWriter

    columns = {"tokens": "ndarray:int32:" + ",".join(map(str, SHAPE))}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for number in range(num_clips):
            writer.write({"tokens": indices_of(number)})


def open_mds(folder: str, _: dict[str, Any]) -> Callable[[int], Batches]:
    """Its data set in torch's DataLoader."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH)
    return lambda epoch: (batch["tokens"] for batch in loader)


def write_webdataset(folder: Path, num_clips: int) -> None:
    """Tars of npy members."""
    from webdataset import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "%06d.tar")
    with ShardWriter(pattern, maxcount=CLIPS_PER_PART, verbose=0) as writer:
        for number in range(num_clips):
            writer.write({"__key__": f"{number:08d}", "npy": indices_of(number)})


def open_webdataset(folder: str, _: dict[str, Any]) -> Callable[[int], Batches]:
    """Its pipeline, decoded and batched as it documents."""
    from webdataset import WebDataset

    tars = sorted(str(path) for path in Path(folder).glob("*.tar"))
    stream = WebDataset(tars, shardshuffle=len(tars)).shuffle(SHUFFLE_BUFFER).decode()
    batched = stream.to_tuple("npy").batched(BATCH)
    return lambda epoch: (torch.as_tensor(np.asarray(batch[0])) for batch in batched)


def write_hf(folder: Path, num_clips: int) -> None:
    """Parquet with a binary column: of what `datasets` reads the fastest that was found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, num_clips, CLIPS_PER_PART):
        numbers = range(start, min(num_clips, start + CLIPS_PER_PART))
        column = pa.array([indices_of(number).tobytes() for number in numbers], pa.binary())
        path = folder / f"{start:08d}.parquet"
        pq.write_table(pa.table({"tokens": column}), path, row_group_size=256, compression="none")


def open_hf(folder: str, _: dict[str, Any]) -> Callable[[int], Batches]:
    """Hugging Face datasets, streaming, shuffled in a buffer."""
    from datasets import load_dataset

    files = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    loaded: Any = load_dataset("parquet", data_files=files, split="train", streaming=True)
    stream = loaded.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)

    def batches(epoch: int) -> Batches:
        stream.set_epoch(epoch)
        for batch in stream.iter(batch_size=BATCH):
            joined = bytearray().join(batch["tokens"])
            yield torch.frombuffer(joined, dtype=torch.int32).view(-1, *SHAPE)

    return batches


def _tokens_of(number: int) -> Tensor:
    return torch.from_numpy(indices_of(number)).flatten()


def write_litdata(folder: Path, num_clips: int) -> None:
    """Chunks of litdata without headers, for its TokensLoader."""
    from litdata import TokensLoader, optimize

    optimize(
        fn=_tokens_of,
        inputs=list(range(num_clips)),
        output_dir=str(folder),
        chunk_size=CLIPS_PER_PART * TOKENS_PER_CLIP,
        item_loader=TokensLoader(),
        num_workers=1,
    )


def open_litdata(folder: str, _: dict[str, Any]) -> Callable[[int], Batches]:
    """A block of its TokensLoader is a clip."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(
        folder, item_loader=TokensLoader(block_size=TOKENS_PER_CLIP), shuffle=True
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    return lambda epoch: (batch.view(-1, *SHAPE) for batch in loader)


FORMATS: dict[str, Format] = {
    "ours": Format("pipeline.dataset", write_parts, open_parts),
    "mds": Format("streaming", write_mds, open_mds),
    "webdataset": Format("webdataset", write_webdataset, open_webdataset),
    "hf": Format("datasets", write_hf, open_hf),
    "litdata": Format("litdata", write_litdata, open_litdata),
}
