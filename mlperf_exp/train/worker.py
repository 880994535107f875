"""One rank of a training run: ``python -m mlperf_exp.train.worker JOB.json``, with torchrun's environment variables.

Leaves ``train/outcome.json`` (rank 0) or, where it fails, ``train/rank-N.error`` with one sentence.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from mlperf_exp.errors import ExperimentError
from mlperf_exp.files import write_atomic, write_json
from mlperf_exp.train import checkpoint, feed, folders, images
from mlperf_exp.train.job import Job
from mlperf_exp.train.mlperf_log import MlperfLog
from mlperf_exp.train.module import Classifier, Data, average_statistics
from mlperf_exp.train.pace import Diverged, Pace, Stopped
from mlperf_exp.train.progress_log import Evaluated, Started

_TIMEOUT = timedelta(seconds=180)  # of a collective: a rank that is lost without a word is noticed after so long
_stop = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What rank 0 leaves: how the run ended, and its figures.

    ``status`` is reached, missed (all epochs made), stopped (asked to end) or speed (no evaluation wanted).
    ``window_ns`` is MLPerf's time, from run_start to run_stop, by ``perf_counter_ns``; rates are in ``progress.jsonl``.
    """

    status: str
    step: int
    first_step: int
    window_ns: tuple[int, int]
    eval_s: float
    peak_memory_mib: float
    notes: tuple[str, ...] = ()


def main() -> None:
    """Run the rank; the exit status is 0 where it came to its end."""
    job = Job.read(Path(sys.argv[1]))
    rank = int(os.environ.get("RANK", "0"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; whoever started the ranks tells them
    signal.signal(signal.SIGTERM, _ask_to_stop)
    try:
        train(job, rank)
    except BaseException as error:
        write_atomic(job.folder / f"rank-{rank}.error", _reason(error) + "\n")
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _ask_to_stop(_: int, __: object) -> None:
    global _stop
    _stop = True


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:600]
    known = isinstance(error, ExperimentError | Diverged | images.UnreadableImage)
    for name in ("UnreadableImage: ",):  # a loader's worker wraps it into its own words and a traceback
        if name in str(error):
            return " ".join(str(error).split(name)[-1].splitlines()[0].split())
    return text if known else f"{type(error).__name__}: {text}"


def train(job: Job, rank: int) -> None:
    """Initialize, train to the target or to the end, leave the outcome."""
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.set_float32_matmul_precision("high")
    log = MlperfLog(job, job.folder / "result_0.txt" if rank == 0 else None)
    log.init()
    L.seed_everything(job.seed, verbose=False)
    saved, torn = checkpoint.newest(job) if job.resume and rank == 0 else (None, [])
    module = Classifier(job, _network(job))
    if saved:
        module.network.load_state_dict(saved.network)  # DDP gives it to the other ranks
    source, validation = _data(job, rank)
    stages = feed.Stages(job, source)

    def save() -> None:
        average_statistics(module.network)
        _save(job, rank, module, trainer)

    pace = Pace(job, rank, stages, save, lambda: _stop)
    run = _Run(job, rank, log, pace, stages, saved)
    trainer = _trainer(job, [run, pace])
    status = "speed"
    try:
        trainer.fit(module, datamodule=Data(stages, validation))
        if job.evaluation_steps():
            status = "reached" if run.reached else "missed"
            _save(job, rank, module, trainer)  # the trained weights
    except Stopped:
        status = "stopped"
    except Diverged:
        log.run_stop(reached=False)
        raise
    except BaseException:
        if rank == 0 and pace.made > run.first_step and pace.made == module.step_done:
            _save(job, rank, module, trainer)
        raise
    log.run_stop(reached=status == "reached")
    if rank == 0:
        write_json(job.folder / "outcome.json", asdict(run.outcome(status, tuple(torn))))


def _network(job: Job) -> torch.nn.Module:
    from mlperf_exp.networks import build

    return build(job.network, job.num_classes)


def _data(job: Job, rank: int) -> tuple[feed.Source, Any]:
    if job.data is None:
        return feed.Synthetic(job, rank), None
    train, val = folders.find(Path(job.data))
    shares = torch.utils.data.Subset(images.ValidationImages(val, job.image_size), range(rank, len(val), job.world))
    validation = torch.utils.data.DataLoader(
        shares,
        batch_size=job.micro_batch,
        num_workers=job.workers,
        pin_memory=job.device == "cuda",
        persistent_workers=job.workers > 0,
    )
    augmented = images.TrainingImages(train, job.image_size, job.seed, job.crop_min_area, job.flip)
    return feed.Files(job, rank, augmented), validation


def _save(job: Job, rank: int, module: Classifier, trainer: L.Trainer) -> None:
    if rank == 0:
        optimizer = trainer.optimizers[0].state_dict()
        checkpoint.save(job, module.step_done, module.network.state_dict(), optimizer, {})


def _trainer(job: Job, callbacks: list[Callback]) -> L.Trainer:
    environment = _Torchrun()
    strategy: Any = "auto"
    if job.world > 1:
        strategy = DDPStrategy(
            cluster_environment=environment,
            process_group_backend="nccl" if job.device == "cuda" else "gloo",
            timeout=_TIMEOUT,
            broadcast_buffers=False,  # batch norm's are averaged when they are needed: before evaluation
            gradient_as_bucket_view=True,
            static_graph=job.accumulation == 1,
        )
    trainer = L.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=environment.local_world,
        num_nodes=job.world // environment.local_world,
        strategy=strategy,
        precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        accumulate_grad_batches=job.accumulation,
        max_epochs=-1,
        barebones=True,
        use_distributed_sampler=False,
        benchmark=True,
        limit_val_batches=None if job.evaluation_steps() else 0,
        callbacks=callbacks,
    )
    # Lightning broadcasts a flag before each step and waits for it, and takes SIGTERM for itself; Pace does both.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


class _Run(Callback):
    """The order of a run: warm-up, run_start, blocks and evaluations, the end."""

    def __init__(
        self,
        job: Job,
        rank: int,
        log: MlperfLog,
        pace: Pace,
        stages: feed.Stages,
        saved: checkpoint.Saved | None,
    ) -> None:
        self._job, self._rank, self._log, self._pace, self._stages = job, rank, log, pace, stages
        self._saved = saved
        self.first_step = 0
        self._run_started_ns = 0
        self._eval_started = 0.0
        self._eval_s = 0.0
        self._block_first: int | None = None
        self.reached = False
        self._top1: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything is in place and no data was touched: warm up, then the run starts."""
        assert isinstance(pl_module, Classifier)
        if self._job.warmup_iterations:
            _warm_up(self._job, trainer, pl_module)
        self.first_step, optimizer = self._where_it_stopped(pl_module.network)
        if optimizer is not None:
            trainer.optimizers[0].load_state_dict(optimizer)
        pl_module.step_done = self.first_step
        self._stages.start_at(self.first_step)
        self._run_started_ns = time.perf_counter_ns()
        self._log.run_start()
        self._pace.write(Started(time.time(), pl_module.step_done))

    def _where_it_stopped(self, network: torch.nn.Module) -> tuple[int, dict[str, Any] | None]:
        """The step and the optimizer's state of the checkpoint that rank 0 has read: other nodes need not see it."""
        saved = self._saved
        found: list[Any] = [(saved.step, saved.optimizer) if saved else (0, None)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found, device=torch.device(self._job.device))
            for buffer in network.buffers():  # batch norm's statistics, which DDP was told to leave alone
                torch.distributed.broadcast(buffer, 0)
        step, optimizer = found[0]
        return step, optimizer

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A block of epochs begins."""
        assert isinstance(pl_module, Classifier)
        job = self._job
        step = pl_module.step_done
        end = min([s for s in job.evaluation_steps() if s > step] or [job.total_steps])
        self._block_first = step // job.steps_per_epoch + 1
        last = max(self._block_first, -(-end // job.steps_per_epoch))
        self._log.block_start(self._block_first, last - self._block_first + 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An evaluation begins."""
        assert isinstance(pl_module, Classifier)
        self._eval_started = time.perf_counter()
        self._log.eval_start(pl_module.step_done // self._job.steps_per_epoch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Its result; at the target, the run is done."""
        assert isinstance(pl_module, Classifier)
        assert pl_module.top1 is not None
        now = time.perf_counter()
        seconds = now - self._eval_started
        self._eval_s += seconds
        epoch = pl_module.step_done // self._job.steps_per_epoch
        self._top1 = pl_module.top1
        self._log.eval_stop(epoch, self._top1)
        run_s = now - self._run_started_ns / 1e9
        self._pace.write(Evaluated(time.time(), pl_module.step_done, epoch, "top1", self._top1, seconds, run_s))
        self._pace.restart()
        self.reached = self._job.target is not None and self._top1 >= self._job.target

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The block ends, and with it the run where nothing is left to do."""
        assert isinstance(pl_module, Classifier)
        assert self._block_first is not None
        self._log.block_stop(self._block_first)
        if self.reached or pl_module.step_done >= self._job.total_steps:
            trainer.should_stop = True

    def outcome(self, status: str, notes: tuple[str, ...]) -> Outcome:
        """The run's figures."""
        return Outcome(
            status=status,
            step=self._pace.made,
            first_step=self.first_step,
            window_ns=(self._run_started_ns, time.perf_counter_ns()),
            eval_s=self._eval_s,
            peak_memory_mib=_peak_memory_mib(self._job),
            notes=notes,
        )


def _warm_up(job: Job, trainer: L.Trainer, module: Classifier) -> None:
    """Compile and choose kernels on random data, then put everything back: MLPerf counts this as initialization."""
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    source = feed.Synthetic(job, 0).open(0)
    optimizer = trainer.optimizers[0]
    images_, labels = next(source)
    batch = images_.to(module.device), labels.to(module.device)
    for _ in range(job.warmup_iterations):
        loss = trainer.strategy.training_step(batch, 0)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if job.evaluation_steps():
        module.eval()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            module._logits(batch[0])
        module.train()
    optimizer.state.clear()
    module.network.load_state_dict(before)
    if job.device == "cuda":
        torch.cuda.synchronize()


def _peak_memory_mib(job: Job) -> float:
    """Of this rank: the GPU's by PyTorch's allocator, or the process's resident set."""
    if job.device == "cuda":
        return float(torch.cuda.max_memory_reserved() / 2**20)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Torchrun(ClusterEnvironment):
    """Ranks, world and meeting point from torchrun's variables; a lone process has none of them."""

    @property
    def creates_processes_externally(self) -> bool:
        """They are there already."""
        return True

    @property
    def local_world(self) -> int:
        """The ranks on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def main_address(self) -> str:
        """Where the ranks meet."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Its port."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def set_world_size(self, size: int) -> None:
        """Given by the environment."""

    def global_rank(self) -> int:
        """The rank."""
        return int(os.environ.get("RANK", "0"))

    def set_global_rank(self, rank: int) -> None:
        """Given by the environment."""

    def local_rank(self) -> int:
        """The rank's place on its node."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        """The node's place."""
        return int(os.environ.get("GROUP_RANK", "0"))


if __name__ == "__main__":
    main()
