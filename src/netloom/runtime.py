"""The machine: device, threads, precision, allocator, and the record of what a training ran on."""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import math
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import torch
from torch import nn

from netloom.errors import NetloomError

Precision = Literal["float32", "bfloat16"]
DEVICES = ("auto", "cpu", "cuda", "mps")

# glibc gives blocks above 128 KB back to the kernel at every free, so that each step of a small network pays for
# page faults again: keeping them raised training from 5.8 to 8.1 thousand pictures a second on four cores.
_MALLOC_MMAP_THRESHOLD, _MALLOC_TRIM_THRESHOLD, _MALLOC_TOP_PAD = -3, -1, -2
# What to ask for, the most first: older releases of glibc refuse a threshold above 32 MiB (mallopt(3), 64 bits).
_KEEP_BYTES = (1 << 30, 32 << 20)
_MOST_THREADS = 1024  # of a large server; OpenMP ends the process when it cannot start what it is asked for


class ConvolutionMethods(NamedTuple):
    """By which kernels a convolution of a captured step computes.

    Attributes:
        output: `torch`'s own, `winograd` (see `kernels/winograd.py`) or `direct` (see `kernels/direct.py`).
        input_gradient: Likewise.
        weight_gradient: Likewise, or `unfolded`: from unfolded pictures (see `training/convolution.py`).
    """

    output: Literal["torch", "winograd", "direct"] = "torch"
    input_gradient: Literal["torch", "winograd", "direct"] = "torch"
    weight_gradient: Literal["torch", "winograd", "direct", "unfolded"] = "torch"


@dataclass(frozen=True)
class ExecutionPlan:
    """How a training is executed. Same recipe, data, torch build and plan give the same bits.

    Attributes:
        device: A torch device name such as `cpu` or `cuda:0`.
        threads: Threads of one operation on the CPU.
        precision: `bfloat16` runs under autocast with float32 weights.
        reason: Why this precision, with the measurement.
        shards: Threads among which a training step divides its batch; 0 where its operations are divided instead, and 1
            where these are but the step is captured, as shards are, so that Python has nothing to do within it.
        convolutions: How each convolution of a captured step computes, in their order; empty for torch's own kernels.
        prediction_threads: Threads that take pictures through the network in a pass without training, on the CPU; 0
            for as many CPUs as training keeps busy. Outputs do not depend on it.
        graphed: Whether the loss and gradients of a training step are replayed from a CUDA graph.
        compiled: Whether a captured step of one shard runs machine code of ours where there is some (see
            `training/compiled_graph.py`), in place of torch's operations.
    """

    device: str
    threads: int
    precision: Precision
    reason: str = ""
    shards: int = 0
    convolutions: tuple[ConvolutionMethods, ...] = ()
    prediction_threads: int = 0
    graphed: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise NetloomError(f"Precision {self.precision!r} is unknown: float32 or bfloat16.")
        if not 1 <= self.threads <= _MOST_THREADS:
            raise NetloomError(f"An execution plan has 1 to {_MOST_THREADS:,} threads, not {self.threads:,}.")
        if not 0 <= self.shards <= _MOST_THREADS:
            raise NetloomError(f"An execution plan has 0 to {_MOST_THREADS:,} shards, not {self.shards:,}.")
        if not 0 <= self.prediction_threads <= _MOST_THREADS:
            raise NetloomError(
                f"An execution plan has 0 to {_MOST_THREADS:,} prediction threads, not {self.prediction_threads:,}."
            )
        for methods in self.convolutions:
            for name, method in methods._asdict().items():
                known = get_args(get_type_hints(ConvolutionMethods)[name])
                if method not in known:
                    raise NetloomError(f"A convolution's {name} is computed by {' or '.join(known)}, not {method!r}.")

    def predicting_with_all_threads(self) -> ExecutionPlan:
        """The same where passes without training have all threads of this process, not a share of them."""
        return replace(self, prediction_threads=training_threads())

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's object."""
        return torch.device(self.device)

    @property
    def cpus(self) -> int:
        """CPUs that a training keeps busy at once; 1 where an accelerator does the work."""
        return max(self.threads, self.shards) if self.device == "cpu" else 1

    def describe_threads(self) -> str:
        """For people: `4 threads`, `4 threads, compiled steps`, or `4 threads with a shard of each batch`, say."""
        if self.shards > 1:
            return f"{self.shards} threads with a shard of each batch"
        steps = ", compiled steps" if self.compiled else ", captured steps"
        return f"{self.threads} {'thread' if self.threads == 1 else 'threads'}{steps * self.shards}"

    @property
    def threads_between_steps(self) -> int:
        """Threads of an operation while shards are trained: one, since more would wait, spinning, on their cores."""
        return 1 if self.shards > 1 else self.threads

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `execution.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ExecutionPlan:
        """The plan that `to_json` wrote; unknown keys are ignored.

        Raises:
            ValueError: It is not what `to_json` gives.
        """
        device, threads = value.get("device"), value.get("threads")
        if not (isinstance(device, str) and isinstance(threads, int)):
            raise ValueError("it needs a device, a text, and threads, a whole number")
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        try:
            methods = tuple(ConvolutionMethods(*one) for one in known.get("convolutions", ()))
        except TypeError as error:
            raise ValueError("its convolutions have three methods each") from error
        return cls(**{**known, "convolutions": methods})


@contextlib.contextmanager
def executing(plan: ExecutionPlan) -> Iterator[None]:
    """Set threads and deterministic kernels for the body, and put everything back afterwards."""
    threads = torch.get_num_threads()
    random_state = torch.random.get_rng_state()
    device_random_state = _device_random_state(plan.torch_device)
    torch.set_num_threads(plan.threads)
    try:
        with deterministic_kernels() if plan.torch_device.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(random_state)
        if plan.torch_device.type == "cuda":
            torch.cuda.set_rng_state(device_random_state, plan.torch_device)
        elif plan.torch_device.type == "mps":
            torch.mps.set_rng_state(device_random_state)


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Have CUDA use kernels that repeat their bits, where torch has such, and put everything back afterwards.

    The operations without any, the backward pass of adaptive pooling say, run as ever, and nobody is warned of them.
    cuBLAS repeats its bits with a workspace of a fixed size, which is asked for unless the user has asked for one; it
    looks at that once, before its first product of matrices.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn.deterministic
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # It would fill what `torch.empty` gives, which costs a pass over memory and guards against mistakes only.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(does not have a deterministic|[Dd]eterministic behavior was enabled)"
        )
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=not enabled or warns)
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = cudnn
            torch.use_deterministic_algorithms(enabled, warn_only=warns)
            memory.fill_uninitialized_memory = fills


@contextlib.contextmanager
def without_graph_sources() -> Iterator[None]:
    """Let torch forget the Python source of the graphs that the body compiles.

    It keeps them for tracebacks as long as the process lives, some 40 kB for a network that is folded for one pass.
    """
    from torch.fx import graph_module

    sources: dict[str, str] = graph_module._loader.eval_cache
    before = set(sources)
    try:
        yield
    finally:
        for name in set(sources) - before:
            sources.pop(name, None)
            linecache.cache.pop(name, None)


def _device_random_state(device: torch.device) -> torch.Tensor:
    """State of the generator of an accelerator; empty for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.empty(0)


def resolve_device(name: str = "auto") -> str:
    """The torch device for a user's wish: `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        NetloomError: The name is unknown, or this machine or this build of torch has no such device.
    """
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise NetloomError(f"Device {name!r} is unknown: choose one of {', '.join(DEVICES)}.")
    if kind == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "no NVIDIA device is visible"
        raise NetloomError(f"Device {name!r} is not available: {why}. Use --device cpu or auto.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise NetloomError("Device 'mps' is not available on this machine. Use --device cpu or auto.")
    return "cuda:0" if name == "cuda" else name


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model on `device`, its convolution kernels in channels-last memory, where they are fastest."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, cut to the container's quota where there is one."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def keep_to_one_thread() -> None:
    """Give torch's operations in the calling thread, a new one, a single thread for good.

    Telling torch so is not enough: a thread's first operation takes the number of whoever told one last.
    """
    torch.get_num_threads()  # this counts as its first
    torch.set_num_threads(1)


def training_threads() -> int:
    """Threads for one training: what torch was told (OMP_NUM_THREADS, say), within the usable CPUs."""
    return max(1, min(torch.get_num_threads(), usable_cpus()))


def keep_freed_memory() -> int:
    """Tell glibc to keep freed blocks for reuse; where there is no glibc nothing is done.

    Returns:
        Up to which size blocks are kept, in bytes; 0 where the system's default is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return 0
    # The threshold comes first: the two others, set without it, would end its growth with the blocks that are freed,
    # and leave it at 128 KB for good.
    kept = next((size for size in _KEEP_BYTES if mallopt(_MALLOC_MMAP_THRESHOLD, size) == 1), 0)
    if kept:
        mallopt(_MALLOC_TRIM_THRESHOLD, _KEEP_BYTES[0])
        mallopt(_MALLOC_TOP_PAD, 64 << 20)
    return kept


def package_versions() -> dict[str, str]:
    """Versions of Python and of the libraries a result depends on."""
    names = ["netloom", "torch", "torchvision", "timm", "safetensors", "numpy", "pillow", "scikit-learn"]
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment_record() -> dict[str, Any]:
    """What `environment.json` holds: versions, system, processor, instruction set, devices."""
    return {
        "versions": package_versions(),
        "torch_build": torch.__version__,
        "system": platform.platform(),
        "processor": _processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "usable_cpus": usable_cpus(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: str) -> int | None:
    """Peak memory so far: of the device on CUDA, of the process elsewhere; None where it is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
