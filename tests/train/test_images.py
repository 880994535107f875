"""Folders of images: what is wrong with one is told in one line."""

import pytest
import torch
from PIL import Image

from mlperf_exp.errors import UserError
from mlperf_exp.train import folders, images, sources


def picture(path, mode="RGB", size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert(mode).save(path)


@pytest.fixture
def data(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                picture(tmp_path / part / name / f"{i}.jpg")
    return tmp_path


def test_images_and_classes_in_sorted_order(data):
    train, val = folders.find(data)
    assert train.classes == ("cat", "dog")
    assert train.labels == (0, 0, 0, 1, 1, 1)
    assert train.paths[0] == "cat/0.jpg"
    assert len(val) == 6


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(data):
    train, _ = folders.find(data)
    a = images.TrainingImages(train, 16, seed=1)
    b = images.TrainingImages(train, 16, seed=1)
    b[(0, 5)]
    torch.manual_seed(99)
    assert torch.equal(a[(0, 2)][0], b[(0, 2)][0])
    assert not torch.equal(a[(0, 2)][0], a[(1, 2)][0])
    assert not torch.equal(a[(0, 2)][0], images.TrainingImages(train, 16, seed=2)[(0, 2)][0])


def test_drawing_leaves_the_global_generator_alone(data):
    train, _ = folders.find(data)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    images.TrainingImages(train, 16, seed=1)[(0, 0)]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_become_rgb(tmp_path, mode):
    picture(tmp_path / "x.jpg", mode)
    assert images.read(tmp_path / "x.jpg").mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named(data, content):
    path = data / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    train, _ = folders.find(data)
    with pytest.raises(images.UnreadableImage, match=r"cat/0\.jpg cannot be read as an image"):
        images.TrainingImages(train, 16, seed=1)[(0, 0)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "val").rename(d / "test"), "has no folder val/"),
        (lambda d: [p.unlink() for p in d.glob("val/*/*")], "holds no images"),
        (lambda d: (d / "val" / "dog").rename(d / "val" / "fox"), "differ in their classes: dog, fox"),
    ],
)
def test_another_layout_is_refused(data, change, words):
    change(data)
    with pytest.raises(UserError, match=words):
        folders.find(data)


def test_one_class_is_refused(tmp_path):
    for part in ("train", "val"):
        picture(tmp_path / part / "cat" / "0.jpg")
    with pytest.raises(UserError, match="one class only, cat"):
        folders.find(tmp_path)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="3 images are fewer than the 4 ranks"):
        sources.check_counts(3, 4, 4, "images")
    with pytest.raises(UserError, match="one step takes 64 images, the data set has 10"):
        sources.check_counts(10, 1, 64, "images")
