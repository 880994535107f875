"""The loaders that decode whole batches, nvJPEG's with Pillow in the place of the GPU: order, pixels, faults."""

import contextlib
import io
import itertools
import json
import threading

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tf

from mlperf_exp.errors import RunFailed
from mlperf_exp.train import folders, images, loaders, worker
from mlperf_exp.train.loaders import ahead, coded, nvjpeg
from tests.train import few
from tests.train.test_order import make_job

SIZE = 32


def picture(path, mode="RGB", size=(60, 44), kind="JPEG"):
    """Coloured and smooth, so that two decoders agree on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = int(path.stem) * 20
    bands = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), shade)]
    Image.merge("RGB", bands).resize(size).convert(mode).save(path, kind, **({"quality": 95} if kind == "JPEG" else {}))


@pytest.fixture
def data(tmp_path):
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.jpg", size=(60 + i, 44 - i) if i % 2 else (44, 60))
    return tmp_path


def by_pillow(files):
    """What stands for nvJPEG: refuses what is no JPEG, and CMYK, and answers nothing where it refuses one."""
    found = []
    for file in files:
        with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                raise RuntimeError("refused")
            found.append(tf.pil_to_tensor(image.convert("RGB")))
    return found


def opened(name, data, decode=by_pillow, **changes):
    """The two parts that a loader makes of ``data``."""
    train, val = folders.find(data)
    job = make_job(train_samples=len(train), eval_samples=len(val), micro_batch=4, data=str(data), **changes)
    parts = images.TrainingImages(train, SIZE, job.seed, 0.3), images.ValidationImages(val, SIZE)
    if name == "nvjpeg":
        return ahead.data(job, 0, *parts, lambda: nvjpeg.Decoder(decode, SIZE, "cpu"))
    return loaders.of(name).data(job, 0, *parts)


@pytest.fixture(params=["nvjpeg", "dali"])
def name(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali-cuda130")
    return request.param


def difference(a, b):
    assert a.dtype == b.dtype == torch.uint8
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("first_step", [0, 2, 4])
def test_images_order_and_labels_are_torchvisions_from_any_step_on(data, name, first_step):
    ours = list(opened(name, data)[0].open(first_step))
    theirs = list(opened("torchvision", data)[0].open(first_step))
    assert len(ours) == len(theirs) == 9 - first_step  # three epochs of three steps
    for (pixels, labels), (expected, classes) in zip(ours, theirs, strict=True):
        assert pixels.shape == (4, 3, SIZE, SIZE)
        assert pixels.is_contiguous()
        assert labels.tolist() == classes.tolist()
        assert difference(pixels, expected) < 0.5


def test_two_evaluations_see_the_same_centres_and_an_incomplete_batch(data, name):
    ours, theirs = opened(name, data)[1], opened("torchvision", data)[1]
    assert len(ours) == len(theirs) == 2
    for _ in range(2):
        batches = list(ours)
        assert [len(labels) for _, labels in batches] == [4, 2]
        for (pixels, labels), (expected, classes) in zip(batches, theirs, strict=True):
            assert labels.tolist() == classes.tolist()
            assert difference(pixels, expected) < 0.5


def test_readers_in_processes_bring_the_same(data, name):
    alone, shared = (list(opened(name, data, workers=workers)[0].open(4)) for workers in (0, 2))
    for (a, first), (b, second) in zip(alone, shared, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(first, second)


def test_what_is_no_plain_jpeg_is_read_all_the_same(data, name):
    picture(data / "train" / "cat" / "0.jpg", "CMYK")
    picture(data / "train" / "cat" / "1.jpg", "L")
    picture(data / "train" / "dog" / "2.jpg", kind="PNG")
    whole = (data / "train" / "dog" / "3.jpg").read_bytes()
    (data / "train" / "dog" / "3.jpg").write_bytes(whole + b"a camera's own remarks")
    ours, theirs = (opened(loader, data)[0].open(0) for loader in (name, "torchvision"))
    for (pixels, _), (expected, _) in itertools.islice(zip(ours, theirs, strict=True), 3):
        assert difference(pixels, expected) < 0.5


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_ends_the_training_and_is_named(data, name, content):
    path = data / "train" / "cat" / "3.jpg"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(images.UnreadableImage, match=r"cat/3\.jpg cannot be read as an image"):
        list(opened(name, data)[0].open(0))
    with pytest.raises(images.UnreadableImage, match=r"cat/3\.jpg cannot be read as an image"):
        list(opened(name, data, workers=1)[0].open(0))


def test_damage_in_the_middle_of_a_file_is_named(data, name):
    path = data / "train" / "cat" / "3.jpg"
    content = path.read_bytes()
    start = content.index(b"\xff\xc0")  # the frame's header, which the size is read from
    path.write_bytes(content[: start + 9] + b"\x07" + content[start + 10 :])
    with pytest.raises(images.UnreadableImage, match=r"cat/3\.jpg cannot be read as an image"):
        list(opened(name, data)[0].open(0))


def test_a_refused_jpeg_is_left_to_pillow_and_asked_for_once(data, capfd):
    asked = []

    def choosy(files):
        asked.append(len(files))
        if any(len(file) == odd for file in files):
            raise RuntimeError("NVJPEG_STATUS_JPEG_NOT_SUPPORTED")
        return by_pillow(files)

    picture(data / "train" / "dog" / "1.jpg", size=(90, 90))
    odd = (data / "train" / "dog" / "1.jpg").stat().st_size
    ours, theirs = opened("nvjpeg", data, choosy)[0].open(0), opened("torchvision", data)[0].open(0)
    for (pixels, _), (expected, _) in zip(ours, theirs, strict=True):
        assert difference(pixels, expected) < 0.5
    said = [line for line in capfd.readouterr().out.splitlines() if "left to Pillow" in line]
    assert len(said) == 1
    assert "dog/1.jpg is left to Pillow: NVJPEG_STATUS_JPEG_NOT_SUPPORTED" in said[0]
    assert sum(asked) == 1 + 9 * 4 + 4 - 2  # a trial, nine batches, four one by one, two without the odd one


def test_a_torchvision_that_decodes_nothing_is_told_instead_of_leaving_all_to_pillow(data):
    def refuses(files):
        raise RuntimeError("torchvision not compiled with nvJPEG support")

    with pytest.raises(RunFailed, match=r"not compiled with nvJPEG support\. Install torchvision's CUDA build"):
        next(opened("nvjpeg", data, refuses)[0].open(0))


def test_memory_that_ran_out_is_no_refusal(data):
    def full(files):
        if len(files) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return by_pillow(files)

    with pytest.raises(torch.OutOfMemoryError):
        list(opened("nvjpeg", data, full)[0].open(0))


def decoders():
    return {thread for thread in threading.enumerate() if thread.name == "decode"}


def trained(job):
    """The weights of a rank in this process, and how it ended."""
    worker.train(job, 0)
    return few.weights(job.folder.parent), json.loads((job.folder / "outcome.json").read_text())


@pytest.fixture
def job_of(data, tmp_path, monkeypatch):
    """A job on the loader by its name."""
    monkeypatch.setattr(nvjpeg, "on_gpu", by_pillow)

    def made(loader, run):
        (tmp_path / run / "train").mkdir(parents=True)
        return make_job(
            run_dir=str(tmp_path / run), data=str(data), train_samples=12, eval_samples=6, micro_batch=4, loader=loader,
            num_classes=2,
        )  # fmt: skip

    return made


def test_a_run_that_stopped_in_an_epoch_goes_on_to_the_same_weights(job_of, name, monkeypatch):
    before = decoders()
    undisturbed, outcome = trained(job_of(name, "undisturbed"))
    assert outcome["step"] == 9
    job = job_of(name, "stopped")
    monkeypatch.setattr(worker, "_stop", True)
    assert trained(job)[1]["status"] == "stopped"
    monkeypatch.setattr(worker, "_stop", False)
    weights, outcome = trained(job)
    assert (outcome["first_step"], outcome["step"]) == (1, 9)
    assert all(torch.equal(weights[key], value) for key, value in undisturbed.items())
    assert decoders() == before


def test_a_broken_image_reaches_the_training(job_of, name, data):
    path = data / "train" / "cat" / "3.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(images.UnreadableImage) as caught:
        worker.train(job_of(name, "run"), 0)
    assert worker._reason(caught.value).startswith(f"{path} cannot be read as an image")


def test_the_thread_goes_a_few_batches_ahead_and_ends_with_its_reader():
    before, made = decoders(), []

    def endless():
        for number in itertools.count():
            made.append(number)
            yield (torch.tensor(number),)

    batches = ahead.ahead(endless, "cpu")
    assert next(batches)[0] == 0
    for _ in range(100):
        if len(made) == 4:  # one is taken, two wait, one is in hand
            break
        threading.Event().wait(0.05)
    assert made == [0, 1, 2, 3]
    batches.close()
    assert decoders() == before


def test_the_end_and_an_error_come_in_their_place():
    before = decoders()

    def three():
        yield from ((torch.tensor(i),) for i in range(3))

    def broken():
        yield from three()
        raise images.UnreadableImage("x.jpg cannot be read as an image")

    assert [int(batch[0]) for batch in ahead.ahead(three, "cpu")] == [0, 1, 2]
    batches = ahead.ahead(broken, "cpu")
    assert [int(next(batches)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(images.UnreadableImage, match=r"x\.jpg"):
        next(batches)
    assert decoders() == before


def test_a_stream_is_waited_for_in_the_thread_alone(monkeypatch):
    """On a GPU: the batch is whole before it is handed over, and its memory belongs to the step's stream, too."""
    waited, recorded = [], []

    class Stream:
        def synchronize(self):
            waited.append(threading.current_thread().name)

    class Batch:
        def record_stream(self, stream):
            recorded.append((threading.current_thread().name, stream))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the step's")
    assert len(list(ahead.ahead(lambda: iter([(Batch(), Batch()), (Batch(), Batch())]), "cuda"))) == 2
    assert waited == ["decode"] * 2
    assert recorded == [(threading.current_thread().name, "the step's")] * 4


def test_files_of_a_batch_are_kept_apart(data):
    train, _ = folders.find(data)
    files = coded.CodedImages(images.TrainingImages(train, SIZE, seed=1))
    batch = coded.together([files[(0, i)] for i in (3, 0, 7)])
    assert [file.numpy().tobytes() for file in batch.files()] == [
        (train.root / train.paths[i]).read_bytes() for i in (3, 0, 7)
    ]
    assert batch.labels.tolist() == [0, 0, 1]
