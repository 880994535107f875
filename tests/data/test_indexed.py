"""Megatron's indexed format: bytes laid down by hand, what is written read back, and files that are not whole."""

import os
import struct

import numpy as np
import pytest

from mlperf_exp.data import indexed
from mlperf_exp.errors import UserError


def by_hand(path, texts, code=4, kind="<i4", version=1):
    """The format as Megatron-LM's ``indexed_dataset.py`` describes it, without our writer."""
    sizes = [len(text) for text in texts]
    places = [sum(sizes[:i]) * np.dtype(kind).itemsize for i in range(len(sizes))]
    path.with_suffix(".bin").write_bytes(b"".join(np.array(text, kind).tobytes() for text in texts))
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", version)
        + struct.pack("<B", code)
        + struct.pack("<QQ", len(sizes), len(sizes) + 1)
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + struct.pack(f"<{len(sizes)}q", *places)
        + struct.pack(f"<{len(sizes) + 1}q", *range(len(sizes) + 1))
    )
    return path


TEXTS = [[5, 6, 7], [8], [128_000, 9, 10, 11]]


def texts_of(file):
    return [file.piece(i, 0, 99).tolist() for i in range(len(file.lengths))]


def test_texts_of_megatron_s_own_layout(tmp_path):
    file = indexed.read(by_hand(tmp_path / "c4", TEXTS))
    assert texts_of(file) == TEXTS
    assert file.piece(2, 1, 2).tolist() == [9, 10]
    assert file.piece(0, 2, 5).tolist() == [7]


def test_what_is_written_is_read(tmp_path):
    indexed.write(tmp_path / "a.b", [[1, 2], [65_535, 0, 3]])
    file = indexed.read(tmp_path / "a.b")
    assert (texts_of(file), file.tokens.dtype) == ([[1, 2], [65_535, 0, 3]], np.uint16)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: p.with_suffix(".idx").unlink(), "there is no .*c4.idx"),
        (lambda p: p.with_suffix(".bin").unlink(), "there is no .*c4.bin"),
        (lambda p: os.truncate(p.with_suffix(".bin"), 20), "c4.bin has 20 bytes, and its index tells of 32"),
        (lambda p: os.truncate(p.with_suffix(".idx"), 50), "c4.idx is cut short: 50 of 102 bytes"),
        (lambda p: os.truncate(p.with_suffix(".idx"), 12), "c4.idx is no index of Megatron's"),
        (lambda p: p.with_suffix(".idx").write_bytes(b"TNTIDX" * 9), "c4.idx is no index of Megatron's"),
        (lambda p: by_hand(p, TEXTS, version=2), "of version 2, and 1 is known"),
        (lambda p: by_hand(p, TEXTS, code=7), "values of type 7, which are no token ids"),
        (lambda p: by_hand(p, []), "lists no text"),
    ],
)
def test_what_is_not_whole_gets_one_line(tmp_path, spoil, says):
    path = by_hand(tmp_path / "c4", TEXTS)
    spoil(path)
    with pytest.raises(UserError, match=says) as caught:
        indexed.read(path)
    assert caught.value.key == "dataset.path"
