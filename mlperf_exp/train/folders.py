"""A folder of images by class, ``train/<class>/*`` and ``val/<class>/*``: found and checked; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlperf_exp.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one part: paths relative to ``root``, and each one's class as its place in ``classes``."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


def find(data: Path) -> tuple[Split, Split]:
    """The training and the validation images under ``data``.

    Raises:
        UserError: no such layout, no images, one class only, or other classes in the two parts.
    """
    key, layout = "dataset.path", "Give a folder with train/<class>/*.jpg and val/<class>/*.jpg"
    if not data.is_dir():
        raise UserError(key, f"there is no folder {data}", layout)
    for part in ("train", "val"):
        if not (data / part).is_dir():
            raise UserError(key, f"{data} has no folder {part}/", layout)
    train, val = _split(data / "train"), _split(data / "val")
    for part, split in (("train", train), ("val", val)):
        if not split.paths:
            raise UserError(key, f"{data / part} holds no images in class folders ({', '.join(SUFFIXES)})", layout)
    if len(train.classes) < 2:
        raise UserError(key, f"{train.root} has one class only, {train.classes[0]}", "Give at least two classes")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))[:3]
        raise UserError(key, f"train/ and val/ differ in their classes: {', '.join(odd)}", "Give both the same folders")
    return train, val


def _split(root: Path) -> Split:
    """The images in the class folders under ``root``, in sorted order, which is torchvision's ``ImageFolder``'s."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            str(path.relative_to(root)) for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES
        )
        paths += found
        labels += [label] * len(found)
    return Split(root, tuple(classes), tuple(paths), tuple(labels))
