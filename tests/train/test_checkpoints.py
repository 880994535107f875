"""Checkpoints: whole or not used."""

import pytest
import torch

from mlperf_exp.errors import UserError
from mlperf_exp.train import checkpoint
from tests.train.test_order import make_job


@pytest.fixture
def job(tmp_path):
    return make_job(run_dir=str(tmp_path))


def save(job, step):
    return checkpoint.save(job, step, {"w": torch.full((100,), float(step))}, {"state": {}}, {})


def test_the_newest_whole_one_is_used_and_old_ones_go(job):
    for step in (1, 2, 3):
        save(job, step)
    saved, torn = checkpoint.newest(job)
    assert (saved.step, torn) == (3, [])
    assert torch.equal(saved.network["w"], torch.full((100,), 3.0))
    assert len(list(checkpoint.folder(job).iterdir())) == 2 * job.checkpoints_kept


@pytest.mark.parametrize("fault", ["cut", "changed", "no checksum"])
def test_a_torn_one_is_told_and_the_one_before_it_used(job, fault):
    save(job, 1)
    path = save(job, 2)
    data = bytearray(path.read_bytes())
    if fault == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif fault == "changed":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.with_suffix(".json").unlink()
    saved, torn = checkpoint.newest(job)
    assert saved.step == 1
    assert len(torn) == 1
    assert "step-00000002.pt is torn" in torn[0]


def test_none_is_none(job):
    assert checkpoint.newest(job) == (None, [])


def test_another_model_s_is_refused_by_name(job, tmp_path):
    save(job, 1)
    with pytest.raises(UserError, match="network=resnet_tiny, this run has network=resnet50"):
        checkpoint.newest(make_job(run_dir=str(tmp_path), network="resnet50"))


def test_nothing_is_unpickled_but_weights(job):
    path = save(job, 1)
    facts = path.with_suffix(".json").read_text()

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"step": 1, "x": Evil()}, path)
    import hashlib
    import json

    changed = json.loads(facts) | {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(changed))
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.newest(job)
