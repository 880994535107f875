r"""Token ids in Megatron-LM's indexed format: ``NAME.bin`` holds them end to end, ``NAME.idx`` says where each text is.

``.idx``, little-endian: 9 bytes ``MMIDIDX\0\0``, the version (uint64, 1), the type's code (uint8), the numbers of
sequences and of document bounds (uint64), then lengths (int32), places in bytes (int64) and document bounds (int64).
Source: NVIDIA/Megatron-LM, ``megatron/core/datasets/indexed_dataset.py``. Imports no torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_TYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name) for code, name in ((1, "<u1"), (2, "<i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2"))
}
_KEY = "dataset.path"
_REMEDY = "Fetch or make the files again (Megatron-LM's tools/preprocess_data.py writes them)"


@dataclass(frozen=True, slots=True)
class Indexed:
    """A pair of files, memory-mapped: text ``i`` is ``lengths[i]`` tokens from byte ``places[i]`` on."""

    path: Path  # without an ending
    tokens: NDArray[np.integer[Any]]
    places: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def piece(self, text: int, first: int, count: int) -> NDArray[np.int64]:
        """At most ``count`` tokens of a text, from its token ``first`` on."""
        start = int(self.places[text]) // self.tokens.itemsize
        return self.tokens[start + first : start + min(first + count, int(self.lengths[text]))].astype(np.int64)


def read(path: Path) -> Indexed:
    """Open ``path.bin`` and ``path.idx``; no token is read.

    Raises:
        UserError: a file is missing, cut short, of another version, or the two do not belong together.
    """
    index, data = (path.with_name(path.name + ending) for ending in (".idx", ".bin"))
    for file in (index, data):
        if not file.is_file():
            raise UserError(_KEY, f"there is no {file}", "Give the folder that has it, or its name in dataset.train")
    head = index.open("rb").read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise UserError(_KEY, f"{index} is no index of Megatron's", _REMEDY)
    _, version, code, sequences, bounds = _HEAD.unpack(head)
    if version != 1:
        raise UserError(_KEY, f"{index} is of version {version}, and 1 is known", _REMEDY)
    if code not in _TYPES:
        raise UserError(_KEY, f"{index} holds values of type {code}, which are no token ids", _REMEDY)
    wanted = _HEAD.size + sequences * (4 + 8) + bounds * 8
    if index.stat().st_size < wanted:
        raise UserError(_KEY, f"{index} is cut short: {index.stat().st_size:,} of {wanted:,} bytes", _REMEDY)
    if sequences == 0:
        raise UserError(_KEY, f"{index} lists no text", _REMEDY)
    lengths = np.memmap(index, "<i4", "r", _HEAD.size, (sequences,))
    places = np.memmap(index, "<i8", "r", _HEAD.size + 4 * sequences, (sequences,))
    dtype = _TYPES[code]
    end = int(places[-1]) + int(lengths[-1]) * dtype.itemsize
    if data.stat().st_size != end or end == 0:
        have = f"{data.stat().st_size:,} bytes, and its index tells of {end:,}"
        raise UserError(_KEY, f"{data} has {have}: it is cut short, or of another index", _REMEDY)
    return Indexed(path, np.memmap(data, dtype, "r"), places, lengths)


def write(path: Path, texts: Iterable[list[int]]) -> None:
    """Write texts of token ids below 65,536 to ``path.bin`` and ``path.idx``, a document each."""
    lengths: list[int] = []
    with path.with_name(path.name + ".bin").open("wb") as file:
        for text in texts:
            file.write(np.array(text, "<u2").tobytes())
            lengths.append(len(text))
    sizes = np.array(lengths, "<i4")
    ends = np.cumsum(sizes, dtype="<i8") * 2
    with path.with_name(path.name + ".idx").open("wb") as file:
        file.write(_HEAD.pack(_MAGIC, 1, 8, len(sizes), len(sizes) + 1))
        file.write(sizes.tobytes() + (ends - 2 * sizes).astype("<i8").tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
