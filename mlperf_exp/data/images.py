"""Images with their classes, cut to size once and kept as one array that is mapped into memory.

Two layouts are read: one folder a class (``val/n01440764/x.JPEG``; classes are numbered in the order of their names),
and MLPerf's flat folder with ``val_map.txt``, a line ``ILSVRC2012_val_00000001.JPEG 65`` an image. Preprocessing is the
reference's (``pre_process_imagenet_pytorch``): the shorter side to ``resize`` by Pillow's bilinear filter, the centre
cut out; grey and CMYK images become RGB. Normalization is left to the network's side, so that the array holds bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json

_KEY = "dataset.path"
_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
_MAP = "val_map.txt"
_BLOCKS, _BLOCK = 64, 1 << 16


class Labelled(NamedTuple):
    """An image's file and its class."""

    path: Path
    label: int


def find(folder: Path, classes: int) -> list[Labelled]:
    """The images of a folder in either layout, in the order of the map or of their names.

    Raises:
        UserError: nothing is there, the map does not fit the images, or a class is not one of ``classes``.
    """
    if not folder.is_dir():
        raise UserError(_KEY, f"there is no folder {folder}", "Give one with a folder a class, or with val_map.txt")
    folder = folder / "val" if (folder / "val").is_dir() else folder
    for place in (folder / _MAP, folder.parent / _MAP):
        if place.is_file():
            return _mapped(folder, place, classes)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [
        Labelled(path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise UserError(_KEY, f"{folder} has no images", f"Give a folder with one folder a class, or with {_MAP}")
    if len(names) != classes:
        raise UserError(
            _KEY,
            f"{folder} has {len(names)} class folders, and the model {classes} classes",
            f"Give one folder for each class, or a flat folder with {_MAP}",
        )
    return found


def _mapped(folder: Path, place: Path, classes: int) -> list[Labelled]:
    found: list[Labelled] = []
    for number, line in enumerate(place.read_text(errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) >= classes:
            problem = f"{place}, line {number}: '{line[:60]}' is no file and class from 0 to {classes - 1}"
            raise UserError(_KEY, problem, "Take MLPerf's map (1,000 classes from 0), or one that fits the model")
        found.append(Labelled(folder / words[0], int(words[1])))
    if not found:
        raise UserError(_KEY, f"{place} is empty", "Take MLPerf's map")
    names = [image.path.name for image in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(_KEY, f"{place} names {twice} more than once", "Give one line for each image")
    absent = [image.path.name for image in found if not image.path.is_file()]
    if absent:
        problem = f"{place} names {len(absent):,} images that are not in {folder}; the first is {absent[0]}"
        raise UserError(_KEY, problem, "Unpack the whole set")
    known = {image.path.name for image in found}
    strange = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.name not in known)
    if strange:
        problem = f"{len(strange):,} images of {folder} are missing from {place.name}; the first is {strange[0]}"
        raise UserError(_KEY, problem, "Complete the map, or take the images out")
    return found


def pixels(path: Path, resize: int, size: int) -> NDArray[np.uint8]:
    """One image as ``uint8 [size, size, 3]``.

    Raises:
        UserError: it cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(_KEY, f"{path} is no image that can be read: {why}", "Get the file again") from None
    width, height = image.size
    short = min(width, height)
    wide, high = int(resize * width / short), int(resize * height / short)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)


def cached(
    images: Sequence[Labelled], resize: int, size: int, cache: Path, on_progress: Callable[[int, int], None]
) -> Any:
    """All images as ``uint8 [images, size, size, 3]``, mapped from a file that is made at the first use.

    The file is told by the images' names, sizes and times and by the cut; its checksum is that of 64 blocks spread over
    it. A file that does not have its checksum is made again.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    digest = hashlib.sha256(f"{resize} {size} 1\n".encode())
    for image in images:
        facts = image.path.stat()
        digest.update(f"{image.path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    folder = cache / f"images-{digest.hexdigest()[:16]}"
    file, record = folder / "pixels.npy", folder / "cache.json"
    if record.is_file() and file.is_file() and json.loads(record.read_text()).get("checksum") == checksum(file):
        return np.load(file, mmap_mode="r")
    try:
        _write(images, resize, size, folder, on_progress)
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror}"
        raise UserError("dataset.cache", problem, "Give a folder with room: dataset.cache=FOLDER") from None
    return np.load(file, mmap_mode="r")


def _write(
    images: Sequence[Labelled], resize: int, size: int, folder: Path, on_progress: Callable[[int, int], None]
) -> None:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    try:
        shape = (len(images), size, size, 3)
        array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            aside / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape
        )
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow works without Python's lock
            read = pool.map(lambda image: pixels(image.path, resize, size), images)
            for place, one in enumerate(read):
                array[place] = one
                on_progress(place + 1, len(images))
        array.flush()
        del array
        facts = {"checksum": checksum(aside / "pixels.npy"), "images": len(images), "resize": resize, "size": size}
        write_json(aside / "cache.json", facts)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def checksum(file: Path) -> str:
    """SHA-256 of the size and of 64 blocks of 64 KiB, evenly spread: of seven gigabytes in milliseconds."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for block in range(_BLOCKS):
            opened.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(opened.read(_BLOCK))
    return digest.hexdigest()
