"""The schema of a run's configuration, and the one place where its defaults live.

Every group in ``conf/`` merges into one of these dataclasses, so that a key or a type that is not here is refused
by Hydra before anything starts. The YAML files hold only what differs from the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


class Scenario(Enum):
    """What drives the system: one of LoadGen's four scenarios (interactive is Server, but tighter), or training."""

    offline = "Offline"
    server = "Server"
    interactive = "Interactive"
    single_stream = "SingleStream"
    multi_stream = "MultiStream"
    train = "Train"


class Mode(Enum):
    """Which LoadGen tests a run makes on its one engine start."""

    both = "both"
    performance = "performance"
    accuracy = "accuracy"


class Division(Enum):
    """MLPerf's divisions: closed keeps the model and the rules, open may change them."""

    closed = "closed"
    open = "open"


class Search(Enum):
    """``max_qps`` looks for the highest valid rate of a scenario with arrivals, and measures at it."""

    off = "off"
    max_qps = "max_qps"


class AccuracyFrom(Enum):
    """Where a run's accuracy comes from: its own test, or with ``reuse`` an earlier run's of the same engine."""

    measure = "measure"
    reuse = "reuse"


class Compliance(Enum):
    """When MLPerf's compliance tests run: with ``auto`` in the closed division."""

    auto = "auto"
    on = "on"
    off = "off"


class Weights(Enum):
    """Where a model's weights come from; ``dummy`` measures speed only and is never valid."""

    pretrained = "pretrained"
    dummy = "dummy"


class Optimizer(Enum):
    """What turns gradients into steps."""

    sgd = "sgd"
    lars = "lars"
    adamw = "adamw"


class Resume(Enum):
    """Whether training goes on from the newest whole checkpoint in the run's folder."""

    auto = "auto"
    never = "never"


class Precision(Enum):
    """What a network computes in; ``bf16`` keeps weights in 32 bits (automatic mixed precision)."""

    fp32 = "fp32"
    bf16 = "bf16"


class Loader(Enum):
    """What reads and decodes training images."""

    torchvision = "torchvision"  # Pillow and torchvision, in processes of their own
    nvjpeg = "nvjpeg"  # on the GPU, by torchvision's nvJPEG
    dali = "dali"  # NVIDIA DALI: on the GPU, or on a processor; an extra


class Device(Enum):
    """The kind of processor that a hardware profile describes."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass
class Architecture:
    """What the plan needs to size a decoder: counts, and bytes of context. Source: the model's config.json."""

    parameters: int = MISSING
    layers: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int = MISSING
    vocab_size: int = MISSING
    max_context: int = MISSING
    rope_theta: float = 500000.0
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    bos_token_id: int = 128000
    eos_token_ids: list[int] = field(default_factory=lambda: [128001, 128008, 128009])


@dataclass
class AccuracyTarget:
    """What MLPerf asks of a score over the whole data set, by the names of its metrics."""

    samples: int = MISSING
    minimum: dict[str, float] = field(default_factory=dict)
    maximum: dict[str, float] = field(default_factory=dict)


@dataclass
class Model:
    """What all models share: weights, MLPerf's name and what must be reached. Each kind adds what only it has."""

    name: str = MISSING
    path: str = MISSING  # a local file or folder, or a Hugging Face name
    weights: Weights = Weights.pretrained
    dtype: str = "bfloat16"
    benchmark: str | None = None  # LoadGen's model name; None: no MLPerf benchmark
    performance_samples: int | None = None  # MLPerf's sample count; None: the whole data set
    gflops_per_sample: float | None = None  # multiplications and additions of one forward pass, at the usual input
    mvalues_per_sample: float | None = None  # millions of values that its layers read and write, one after the other
    target: AccuracyTarget | None = None


@dataclass
class Decoder(Model):
    """A language model that answers a prompt token by token."""

    max_new_tokens: int = 128
    min_new_tokens: int = 1
    max_prompt_tokens: int = 2540
    architecture: Architecture = field(default_factory=Architecture)


@dataclass
class LanguageModel(Model):
    """A decoder that learns to predict the next token, from random weights."""

    path: str = "random"
    sequence_length: int = 8192  # tokens that a sample trains on
    architecture: Architecture = field(default_factory=Architecture)


@dataclass
class ImageClassifier(Model):
    """A network that names the class of an image."""

    dtype: str = "auto"  # float16 on a GPU; on a processor bfloat16 where it computes with it, else float32
    network: str = MISSING  # a name of mlperf_exp/networks.py
    classes: int = 1000
    resize: int = 256  # pixels of the shorter side, before the centre is cut out
    image_size: int = 224  # pixels of the side that the network sees
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of the channels' range 0 to 1
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ExtractiveQa(Model):
    """An encoder that marks the answer to a question in a text (BERT with SQuAD's two outputs a token)."""

    dtype: str = "auto"
    layers: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    heads: int = MISSING
    vocab_size: int = 30522
    max_positions: int = 512
    max_tokens: int = 384  # of question and text together; a longer text is cut into pieces
    stride: int = 128  # tokens between the starts of two pieces
    max_question_tokens: int = 64
    max_answer_tokens: int = 30


@dataclass
class Dataset:
    """What all data sets share. ``synthetic``: random samples, for speed only, never scored."""

    name: str = MISSING
    path: str | None = None
    samples: int | None = None  # None: all
    synthetic: bool = False


@dataclass
class Prompts(Dataset):
    """Texts for a decoder. ``tokenize`` makes token ids from the text; otherwise the file's own ids are used."""

    tokenize: bool = False
    mean_prompt_tokens: float = 785.0  # synthetic prompts: log-normal
    sigma_prompt_tokens: float = 0.53


@dataclass
class Images(Dataset):
    """Images with their classes: a folder with one folder a class, or a flat one with MLPerf's ``val_map.txt``."""

    cache: str = "outputs/cache"  # where the images are kept as one array, cut to size


@dataclass
class Questions(Dataset):
    """Questions on texts, in SQuAD v1.1's JSON format."""

    cache: str = "outputs/cache"
    mean_tokens: float = 178.0  # synthetic questions: log-normal, cut at the model's longest
    sigma_tokens: float = 0.42


@dataclass
class Tokens(Dataset):
    """Token ids in Megatron's indexed format: files of the folder ``path``, without their endings .bin and .idx."""

    train: list[str] = field(default_factory=list)
    validation: str | None = None
    cache: str = "outputs/cache"  # where the built-in ones are written


@dataclass
class Hardware:
    """One node's accelerators and how many nodes there are. Peak figures are the vendor's, dense."""

    name: str = MISSING
    device: Device = Device.cuda
    gpu: str | None = None
    nodes: int = 1
    gpus_per_node: int = 1
    memory_gib: float = MISSING  # of one accelerator, as the driver reports it
    bandwidth_gb_s: float | None = None
    peak_tflops: dict[str, float] = field(default_factory=dict)  # by type: bf16, fp16, fp8, int8, ...
    power_w: float | None = None
    cpus_per_node: int | None = None
    host_memory_gib: float | None = None
    network: str | None = None  # between the GPUs or nodes, as mlperf_exp/network.py names them
    network_gbit_s: float | None = None  # of one node towards the others, all its interfaces together
    source: str = MISSING


@dataclass
class ScenarioRules:
    """A scenario's load and MLPerf's bounds. None: as MLPerf's configuration for this round has it."""

    name: Scenario = MISSING
    mode: Mode = Mode.both
    target_qps: float | None = None
    expected_latency_ms: float | None = None  # single and multi stream: LoadGen sizes the test by it; None: measured
    min_duration_s: float = 600.0
    min_query_count: int | None = None
    samples: int | None = None  # samples that the performance test draws from
    ttft_ms: float | None = None  # 99th percentile bounds; None: MLPerf's for the benchmark, where it has one
    tpot_ms: float | None = None
    latency_ms: float | None = None
    latency_percentile: float = 99.0
    stall_timeout_s: float = 300.0  # no completion for so long, while queries wait: the run has failed


@dataclass
class Training:
    """How a model is trained. None: by the reference point of MLPerf for the global batch size, or between two.

    What is marked as of one kind of model is refused for another.
    """

    name: Scenario = MISSING
    global_batch_size: int | None = None  # samples of one step of the optimizer, over all processes
    optimizer: Optimizer | None = None
    base_lr: float | None = None  # the highest learning rate, after the warm-up
    end_lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None  # images
    decay_epochs: float | None = None  # images: from the end of the warm-up
    decay_power: float | None = None  # images: of the polynomial
    momentum: float | None = None  # images
    label_smoothing: float | None = None  # images
    crop_min_area: float | None = None  # images: the least part of one that a random crop takes, 0 to 1
    flip: bool | None = None  # images: half of them, left to right
    warmup_steps: int | None = None  # text
    max_steps: int | None = None  # text: where the learning rate, and at the latest the training, ends
    clip_norm: float | None = None  # text: of the whole gradient
    eval_every_samples: int | None = None  # text: between two evaluations; a step is made whole
    eval_samples: int | None = None  # text: the first of the validation set; None: MLPerf's, else all
    max_epochs: int | None = None  # images
    eval_offset: int | None = None  # images: epochs before the first evaluation
    eval_period: int | None = None  # images: epochs between two
    target: float | None = None  # of the metric, top-1 in percent; ends the training; None: MLPerf's, where it has one
    steps: int | None = None  # ends after so many steps of the optimizer, without evaluation: for speed only
    stall_timeout_s: float = 900.0  # no step for so long, start and compilation included: the run has failed
    submitter: str = "unnamed"  # as MLPerf's log names it


@dataclass
class Backend:
    """What all backends share."""

    name: str = MISSING


@dataclass
class Replicated(Backend):
    """An engine of this program's own, of which several may run at a time, each a Ray actor (see :class:`Ray`)."""

    replicas: int | None = None  # None: as many as the hardware profile has room for; 1: in this process, without Ray
    routing: str = "least_outstanding"  # or round_robin, or a class: package.module:Class
    replica_queries: int | None = None  # that one replica may hold at a time; None: what keeps it busy


@dataclass
class VllmBackend(Replicated):
    """vLLM in process. ``engine`` goes through to vLLM under vLLM's own names."""

    name: str = "vllm"
    engine: dict[str, Any] = field(default_factory=dict)
    gpu_memory_utilization: float = 0.92
    warmup_queries: int = 8
    start_timeout_s: float = 1800.0


@dataclass
class OpenaiBackend(Backend):
    """Servers that others run, spoken to by OpenAI's completions API."""

    name: str = "openai"
    urls: list[str] = MISSING
    served_model: str | None = None  # None: the only one that the server has
    api_key_env: str = "OPENAI_API_KEY"
    routing: str = "least_outstanding"  # as for replicas
    connections: int = 1024  # to one server
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 600.0
    idle_timeout_s: float = 60.0
    send_min_tokens: bool = True


class Compile(Enum):
    """How the torch backend makes a network's kernels."""

    none = "none"  # PyTorch's own, one after the other
    fused = "fused"  # batch norm folded; convolution, addition and ReLU in one kernel; so are sums and norms (GPU)
    inductor = "inductor"  # torch.compile
    max_autotune = "max_autotune"  # torch.compile that tries many kernels; minutes the first time


@dataclass
class TorchBackend(Replicated):
    """PyTorch in this process: networks that answer with one forward pass."""

    name: str = "torch"
    max_batch: int | None = None  # images, or tokens of packed text, in one batch; None: by device and scenario
    max_wait_ms: float = 0.0  # how long a batch that could start waits for more samples
    in_flight: int | None = None  # batches that are copied, computed or answered at the same time; None: by scenario
    compile: Compile | None = None  # None: by device and network
    cuda_graphs: bool = True
    threads: int | None = None  # processor threads of one operation; None: PyTorch's own choice
    warmup_batches: int = 3  # of each size


@dataclass
class LightningBackend(Backend):
    """PyTorch Lightning, which trains: one process a GPU, watched by one a node."""

    name: str = "lightning"
    processes: int | None = None  # on each node; None: one a GPU, or one
    micro_batch: int | None = None  # samples that a process takes at once; None: as many as fit
    precision: Precision | None = None  # None: bf16 on a GPU, else fp32
    channels_last: bool | None = None  # images: in memory; None: yes
    compile: bool | None = None  # torch.compile; None: on a GPU
    recompute: bool | None = None  # text: activations, in the backward pass; None: where memory asks it
    loader: Loader | None = None  # images; None: torchvision
    workers: int | None = None  # processes that read data, for each training process; None: by the machine
    threads: int | None = None  # processor threads of one training process; None: its share
    warmup_steps: int | None = None  # on random data, before the run starts; None: 10 on a GPU, else none
    log_every_steps: int = 20
    checkpoint_every_s: float | None = 600.0
    checkpoints_kept: int = 2


@dataclass
class SimulatedBackend(Replicated):
    """Answers by a seeded latency model: measures and tests the harness itself, never a system."""

    name: str = "simulated"
    ttft_ms: float = 20.0  # medians of log-normal distributions
    tpot_ms: float = 1.0
    sigma: float = 0.2
    output_tokens: int = 128
    concurrency: int | None = None  # queries at a time, the others wait; None: all at once
    error_rate: float = 0.0
    fail_after: int | None = None  # the whole system is lost after so many queries
    hang_after: int | None = None  # queries after so many are never answered


@dataclass
class Tracking:
    """Where MLflow keeps the runs. Credentials come from MLflow's own environment variables only."""

    enabled: bool = True
    uri: str = "sqlite:///outputs/mlflow.db"
    experiment: str = "mlperf_exp"
    interval_s: float = 5.0  # between two sets of live metrics
    timeout_s: float = 120.0  # how long the end of a run waits for MLflow


@dataclass
class Expected:
    """What somebody published, or promised, for this run: shown beside what is measured, and never judged."""

    metric: str = MISSING  # a name of result.json's metrics
    low: float | None = None  # either may be open; equal where one figure was published
    high: float | None = None
    unit: str = ""
    means: str = ""  # what the figure is of, where that is not plain
    source: str = MISSING


@dataclass
class Telemetry:
    """Power, memory and utilization of the run's host, sampled by a process of its own."""

    enabled: bool = True
    interval_s: float = 0.5  # between two samples


@dataclass
class Ray:
    """Where replicas run, if there are several. A cluster's token comes from Ray's own environment variables."""

    address: str | None = None  # of a cluster, or auto; None: a Ray on this machine, for this run alone
    cpus_per_replica: float = 1.0  # that Ray sets aside
    timeout_s: float = 300.0  # how long Ray may take to start, and to find room for all replicas
    heartbeat_timeout_s: float = 4.0  # a replica from which nothing came for so long is lost


@dataclass
class Config:
    """A whole run."""

    model: Any = MISSING  # Decoder | LanguageModel | ImageClassifier | ExtractiveQa
    dataset: Any = MISSING  # Prompts | Tokens | Images | Questions
    hw: Hardware = MISSING
    scenario: Any = MISSING  # ScenarioRules | Training
    backend: Any = MISSING  # VllmBackend | OpenaiBackend | TorchBackend | LightningBackend | SimulatedBackend
    tracking: Tracking = field(default_factory=Tracking)
    telemetry: Telemetry = field(default_factory=Telemetry)
    ray: Ray = field(default_factory=Ray)
    expected: dict[str, Expected] = field(default_factory=dict)
    name: str | None = None  # shown in MLflow; None: made of model, hardware and scenario
    seed: int = 1
    division: Division = Division.closed
    compliance: Compliance = Compliance.auto
    repeats: int = 1  # performance tests on one engine start; with several, figures are medians with intervals
    search: Search = Search.off
    accuracy: AccuracyFrom = AccuracyFrom.measure  # a performance run takes an earlier result in any case
    resume: Resume = Resume.auto  # of training, in the same hydra.run.dir
    fail_on_invalid: bool = False
    require_network: bool = True  # a job over several nodes fails where NCCL did not use hw.network
    progress: bool = True  # live display on a terminal, plain lines elsewhere


@dataclass
class DoctorConfig:
    """What ``python -m mlperf_exp.doctor`` looks at."""

    hw: Hardware = MISSING
    folder: str = "."  # whose disk is measured: where runs, data or weights are
    disk_mib: int = 256  # written to it
    seconds: float = 2.0  # of each measurement of the network
    timeout_s: float = 120.0  # how long nodes wait for each other
    require_network: bool = True  # as for runs
    json: bool = False  # the report as JSON on standard output


BACKENDS: dict[str, type[Backend]] = {
    "vllm": VllmBackend,
    "openai": OpenaiBackend,
    "torch": TorchBackend,
    "lightning": LightningBackend,
    "simulated": SimulatedBackend,
}
MODELS: dict[str, type[Model]] = {
    "decoder": Decoder,
    "language_model": LanguageModel,
    "image_classifier": ImageClassifier,
    "extractive_qa": ExtractiveQa,
}
DATASETS: dict[str, type[Dataset]] = {"prompts": Prompts, "tokens": Tokens, "images": Images, "questions": Questions}
READS: dict[type[Model], type[Dataset]] = {
    Decoder: Prompts,
    LanguageModel: Tokens,
    ImageClassifier: Images,
    ExtractiveQa: Questions,
}
RUNS: dict[type[Backend], tuple[type[Model], ...]] = {
    VllmBackend: (Decoder,),
    OpenaiBackend: (Decoder,),
    TorchBackend: (ImageClassifier, ExtractiveQa),
    LightningBackend: (ImageClassifier, LanguageModel),
    SimulatedBackend: (Decoder,),
}


def register() -> None:
    """Make the schemas known to Hydra; the files in ``conf/`` extend them as ``/schema/...``."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    store.store(group="schema", name="doctor", node=DoctorConfig)
    store.store(group="schema", name="hw", node=Hardware)
    store.store(group="schema", name="scenario", node=ScenarioRules)
    store.store(group="schema", name="training", node=Training)
    for group, kinds in (("model", MODELS), ("dataset", DATASETS)):
        for name, kind in kinds.items():
            store.store(group=f"schema/{group}", name=name, node=kind)
    for name, node in BACKENDS.items():
        schema = OmegaConf.structured(node)
        if name == "vllm":  # so that backend.engine.max_num_seqs=256 needs no plus sign: the keys are vLLM's, not ours
            OmegaConf.set_struct(schema.engine, False)
        store.store(group="schema/backend", name=name, node=schema)
