"""Images and questions: what is read, how it is cut and scored, and one clear line for what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlperf_exp.config import ExtractiveQa
from mlperf_exp.data import images, squad
from mlperf_exp.data.bars import nothing
from mlperf_exp.data.squad_tiny import write_questions
from mlperf_exp.errors import UserError
from mlperf_exp.kinds.images import TopOne

SHAPE = ExtractiveQa(
    name="t", path="t", layers=1, hidden_size=8, intermediate_size=8, heads=1, vocab_size=160, max_positions=64,
    max_tokens=64, stride=24, max_question_tokens=16, max_answer_tokens=4,
)  # fmt: skip


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    (tmp_path / "val_map.txt").write_text("b.jpg 1\na.jpg 0\n")
    return tmp_path


def test_both_layouts_are_found(flat: Path, tmp_path: Path) -> None:
    assert [(image.path.name, image.label) for image in images.find(flat, 2)] == [("b.jpg", 1), ("a.jpg", 0)]
    folders = tmp_path / "folders"
    for name in ("n2", "n1"):
        picture(folders / "val" / name / "x.png")
    assert [(image.path.parent.name, image.label) for image in images.find(folders, 2)] == [("n1", 0), ("n2", 1)]


@pytest.mark.parametrize(
    ("line", "says"),
    [("a.jpg 7", "line 1"), ("a.jpg", "line 1"), ("gone.jpg 1", "gone.jpg"), ("a.jpg 1", "missing from val_map.txt")],
)
def test_a_map_that_does_not_fit_is_refused(flat: Path, line: str, says: str) -> None:
    (flat / "val_map.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=says) as caught:
        images.find(flat, 2)
    assert caught.value.key == "dataset.path"


def test_folders_that_are_no_classes_of_the_model_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "n1" / "x.png")
    with pytest.raises(UserError, match="1 class folders"):
        images.find(tmp_path, 2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_cutting_is_the_references(tmp_path: Path, mode: str) -> None:
    from torchvision.transforms import functional

    path = picture(tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}", mode, (50, 70))
    cut = images.pixels(path, 32, 24)
    reference = functional.resize(Image.open(path).convert("RGB"), 32, functional.InterpolationMode.BILINEAR)
    assert np.array_equal(cut, np.asarray(functional.center_crop(reference, 24)))


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "x.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"no image"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.jpg is no image that can be read"):
            images.pixels(tmp_path / "x.jpg", 32, 24)


def test_the_cache_is_made_once_and_again_where_it_is_damaged(flat: Path, tmp_path: Path) -> None:
    found, cache, told = images.find(flat, 2), tmp_path / "cache", []
    first = images.cached(found, 32, 24, cache, lambda done, total: told.append((done, total)))
    assert first.shape == (2, 24, 24, 3) and told == [(1, 2), (2, 2)]
    images.cached(found, 32, 24, cache, lambda done, total: told.append((done, total)))
    assert len(told) == 2
    (file,) = cache.glob("images-*/pixels.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 255
    file.write_bytes(data)
    again = images.cached(found, 32, 24, cache, nothing)
    assert np.array_equal(again[1], images.pixels(found[1].path, 32, 24))


def test_top_one_and_its_line() -> None:
    scorer = TopOne(np.array([3, 1, 2], dtype=np.int32))
    score = scorer.score_answers({n: np.int32(3 - n).tobytes() for n in range(3)})  # 3, 2, 1
    assert (score.metrics["top1"], score.samples) == (pytest.approx(33.3333), 3)
    assert scorer.text(score) == "accuracy=33.333%, good=1, total=3"


def test_f1_and_exact_match_are_the_official_scripts() -> None:
    assert squad.normalize("The  Cat, (sat)!") == "cat sat"
    assert squad.f1("the cat sat", "a cat ran") == pytest.approx(0.5)
    assert squad.f1("dog", "cat") == 0.0
    asked = [squad.Question("1", "", "", ("no", "The cat")), squad.Question("2", "", "", ("cat ran",))]
    assert squad.scores({0: "cat", 1: "cat sat"}, asked) == {"exact_match": 50.0, "f1": 75.0}


def test_known_logits_give_every_answer(tmp_path: Path) -> None:
    """Logits that point at the answer in each piece that holds it, also in texts of several pieces."""
    folder = write_questions(tmp_path / "q")
    questions = squad.read(folder / "dev.json")
    made = squad.pieces(questions, SHAPE, squad.tokenizer(folder))
    assert len(made.tokens) > len(questions) and made.tokens.lengths.max() <= 64
    logits = {}
    for sample, owner in enumerate(made.owners.tolist()):
        begin, end = made.tokens.begins[sample], made.tokens.begins[sample + 1]
        at = f" {questions[owner].text} ".index(f" {questions[owner].answers[0]} ")
        logits[sample] = np.zeros((end - begin, 2), dtype=np.float32)
        logits[sample][made.spans[begin:end, 0] == at] = 9.0
    answers = squad.best_answers(logits, made, questions, 4)
    assert squad.scores(answers, questions) == {"exact_match": 100.0, "f1": 100.0}
    assert made.best.sum() < (made.spans[:, 0] >= 0).sum(), "a token in two pieces counts in one"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "is broken"),
        ('{"data": []}', "holds no question"),
        ('{"data": [{}]}', "paragraphs"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": []}]}]}', "empty context"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1, "question": "?", "answers": []}]}]}]}',
            "no answer",
        ),
    ],
)
def test_a_broken_questions_file_is_the_users_matter(tmp_path: Path, data: str, says: str) -> None:
    (tmp_path / "q.json").write_text(data)
    with pytest.raises(UserError, match=says) as caught:
        squad.read(tmp_path / "q.json")
    assert caught.value.key == "dataset.path"


def test_pieces_are_cached_by_content(tmp_path: Path) -> None:
    folder = write_questions(tmp_path / "q")
    questions = squad.read(folder / "dev.json")
    told: list[int] = []
    for _ in range(2):
        made = squad.cached(folder / "dev.json", questions, SHAPE, folder, tmp_path, lambda n, _: told.append(n))
    assert len(told) == len(questions)
    assert json.loads(next(tmp_path.glob("questions-*/cache.json")).read_text())["questions"] == len(questions)
    assert made.tokens.begins[-1] == len(made.tokens.values)


def test_an_image_named_twice_is_refused(flat: Path) -> None:
    (flat / "val_map.txt").write_text("a.jpg 0\nb.jpg 1\na.jpg 1\n")
    with pytest.raises(UserError, match=r"names a\.jpg more than once"):
        images.find(flat, 2)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1", "CMYK"])
def test_images_of_every_mode_become_three_channels(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}", mode)
    assert images.pixels(path, 32, 24).shape == (24, 24, 3)


def test_one_broken_image_of_many_is_named_and_leaves_no_cache(flat: Path, tmp_path: Path) -> None:
    (flat / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jpg is no image that can be read") as caught:
        images.cached(images.find(flat, 2), 32, 24, tmp_path / "cache", nothing)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
