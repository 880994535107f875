"""Folders of images: what is wrong with one is told in one line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tf

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


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (20, 1000), (1000, 20), (1, 1), (224, 224)])
def test_the_same_is_drawn_as_torchvision_draws(width, height):
    split = folders.Split(Path(), ("a", "b"), ("x",), (0,))
    for seed in range(40):
        ours = images.TrainingImages(split, 16, seed).view((2, 0), width, height)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(images._mix(seed, 2, 0))
            theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
            assert ours.flip == bool(torch.rand(()) < 0.5)
        assert ours[:4] == theirs


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 501), (33, 32), (1000, 37)])
def test_the_centre_is_torchvision_s(tmp_path, width, height):
    picture(tmp_path / "x.jpg", size=(width, height))
    split = folders.Split(tmp_path, ("a", "b"), ("x.jpg",), (0,))
    theirs = tf.center_crop(tf.resize(images.read(tmp_path / "x.jpg"), [round(32 * 256 / 224)]), [32, 32])
    assert torch.equal(images.ValidationImages(split, 32)[(0, 0)][0], tf.pil_to_tensor(theirs))


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
