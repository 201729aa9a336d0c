"""Choose the execution plan of a training by measuring on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.kernels.calls import usable
from netloom.models.contract import ImageModel
from netloom.runtime import ExecutionPlan, Precision, executing, on_device, training_threads
from netloom.training.cuda_graphs import RecordingError
from netloom.training.step_rewrites import CaptureError
from netloom.training.timed_steps import Comparison, Run, TimedSteps, more_repetitions
from netloom.training.timing import fastest_seconds, steady_seconds

# A precision or a division must be clearly faster to be taken: below that, measurements of small steps are noise, and
# float32 is the one that repeats everywhere.
_WORTHWHILE = 1.1
# Fewer threads are taken if they are nearly as fast: they leave the machine to others, and on a busy one a step that
# waits for all cores takes a hundred times as long (measured with two busy cores of four: 2.8 s against 50 ms).
_NEARLY_AS_FAST = 1.05
# Where half of the threads are so many times slower than all of them, one thread is not timed.
_CLEARLY_SLOWER = 1.25
# Capturing a step takes up to a second; a training shorter than this would lose more than it gains. Recording one on a
# GPU takes less.
_SHORT_SECONDS = 15.0
_SHORT_SECONDS_ON_GPU = 3.0

_STEP = "this network's step"


def choose_plan(
    steps: TimedSteps,
    *,
    device: str,
    precision: str = "auto",
    shards: int | str = "auto",
    n_steps: int = 0,
    threads: int | None = None,
) -> ExecutionPlan:
    """The plan for a training of such steps.

    On a CPU the step is timed with all threads, half of them and, where that is not clearly slower, one; and then with
    its batch divided among all threads (see `shards.py`), if the training is long enough to make up for the time that
    preparing this takes; among half of them, too, where fewer threads were faster, as on a machine that others use. It
    is also timed captured, but not divided. What may be the fastest is timed again in turn. What a step does
    beside its gradients counts: where it is divided, one thread does all of that.

    bfloat16 autocast is several times faster than float32 on processors with AMX, and several times slower on a
    processor with AVX2 only; so a single convolution is timed there first, and only if bfloat16 wins is the network
    itself timed both ways. On a GPU it always is: so small a convolution only tells how long it takes to be started.
    There steps are also timed replayed from a CUDA graph (see `cuda_graphs.py`), which are compared with others first.
    Weights, statistics and generators are left untouched.

    Args:
        steps: Of which most are like them.
        device: A torch device name.
        precision: `float32`, `bfloat16`, or `auto` to measure.
        shards: Among how many threads to divide a step's batch, 0 for not at all, 1 to capture the whole, or `auto` to
            measure.
        n_steps: Optimizer steps of the training.
        threads: How many of the CPU's are the training's, where that is decided already; None to measure.

    Raises:
        TrainingError: Shards are asked for, but the model cannot be divided, or its step fails in them.
    """
    if device != "cpu":
        return _plan_on_accelerator(steps, device, precision, n_steps, threads or training_threads())
    if threads is not None and shards != "auto":
        plan = ExecutionPlan("cpu", threads, "float32")
        plan = _in_faster_precision(plan, steps.under, _STEP, precision=precision, n_steps=n_steps)
    else:
        plan = _fastest_on_cpu(steps, precision, shards, n_steps, threads)
    if threads is None:
        plan = replace(plan, prediction_threads=training_threads())
    if shards in ("auto", 0):
        return plan
    divided = replace(plan, shards=int(shards))
    with _told_as_capture_error(), executing(divided), steps.divided(divided) as step:
        step.check()
        return replace(divided, convolutions=step.faster_convolutions())


def _fastest_on_cpu(
    steps: TimedSteps, precision: str, shards: int | str, n_steps: int, threads: int | None
) -> ExecutionPlan:
    """The plan for whole batches or, where `shards` is `auto`, for captured steps that are clearly faster."""
    with Comparison(steps, n_steps=n_steps) as compared:
        whole, reason = _plans_of_whole_batches(compared, steps, precision, threads=threads, n_steps=n_steps)
        plan = _fewest_threads(compared, whole)
        reasons, captured = [reason], []
        if shards == "auto" and n_steps * compared[plan] >= _SHORT_SECONDS:
            most = min(threads or training_threads(), len(steps.batch))
            may_compile = "float32" in (plan.precision, "float32" if precision == "auto" else "")
            captured = _captured_plans(compared, steps, plan, most, reasons, may_compile=may_compile)
        with _refusal_as_reason(reasons):
            compared.repeat()
            plan = _fewest_threads(compared, whole)
            fastest = min(captured, key=compared.__getitem__, default=plan)
            if captured and (speedup := compared[plan] / compared[fastest]) >= _WORTHWHILE:
                plan = fastest
                how = f"in {plan.shards} shards" if plan.shards > 1 else "compiled" if plan.compiled else "captured"
                reasons.append(f"a step is {speedup:.1f} times faster {how}")
        return replace(plan, reason="; ".join(dict.fromkeys(reasons)))


def _plans_of_whole_batches(
    compared: Comparison, steps: TimedSteps, precision: str, *, threads: int | None, n_steps: int
) -> tuple[list[ExecutionPlan], str]:
    """Plans by which operations are divided among threads, roughly timed, and why they are in their precision."""
    most = threads or training_threads()
    plans = [ExecutionPlan("cpu", most, _asked(precision))]
    compared.enter(plans[0])
    # Where half of the threads are slower than all of them, one is slower still.
    for fewer in sorted({max(1, most // 2), 1} - {most}, reverse=True) if threads is None else ():
        if compared[plans[-1]] > compared[plans[0]] * _CLEARLY_SLOWER:
            break
        plans.append(replace(plans[0], threads=fewer))
        compared.enter(plans[-1])
    plan = _fewest_threads(compared, plans)
    chosen = _in_faster_precision(plan, steps.under, _STEP, precision=precision, n_steps=n_steps)
    if chosen.precision != plan.precision:
        compared.clear()
        plans = [replace(plan, precision=chosen.precision) for plan in plans]
        for plan in plans:
            compared.enter(plan)
    return plans, chosen.reason


def _fewest_threads(compared: Comparison, plans: Sequence[ExecutionPlan]) -> ExecutionPlan:
    """Of plans that are nearly as fast as the fastest the one with the fewest threads."""
    nearly = min(map(compared.__getitem__, plans)) * _NEARLY_AS_FAST
    return min((plan for plan in plans if compared[plan] <= nearly), key=lambda plan: plan.threads)


def _captured_plans(
    compared: Comparison, steps: TimedSteps, plan: ExecutionPlan, most: int, reasons: list[str], *, may_compile: bool
) -> list[ExecutionPlan]:
    """Plans by which steps are captured, divided or not, roughly timed beside that for whole batches.

    With `may_compile` captured steps in float32 run machine code, too. What the model does not allow is told in
    `reasons`.
    """
    # Where all threads were best for whole batches no other work has their cores, and fewer shards would do less.
    numbers = [most, max(1, most // 2)] if plan.threads < most else [most]
    fitting = steps.most_shards(max(numbers))
    if fitting < 1:
        reasons.append("the gradients of shards would not fit the free memory")
        numbers = []
    candidates = [replace(plan, shards=min(number, fitting)) for number in numbers]
    if most > 1:
        candidates += [replace(plan, shards=1, threads=threads) for threads in (plan.threads, most)]
    if may_compile and usable():
        candidates.append(replace(plan, precision="float32", shards=1, threads=most, compiled=True))
    plans = []
    for candidate in dict.fromkeys(candidates):
        with _refusal_as_reason(reasons):
            prepared = _prepared(candidate, steps)
            compared.enter(prepared)
            plans.append(prepared)
    return plans


@contextlib.contextmanager
def _refusal_as_reason(reasons: list[str]) -> Iterator[None]:
    """Append why a model cannot be divided or captured, in place of raising it."""
    try:
        with _told_as_capture_error():
            yield
    except TrainingError as error:
        reasons.append(str(error))


@contextlib.contextmanager
def _told_as_capture_error() -> Iterator[None]:
    """Whatever goes wrong with a captured step, in shards or not: a training can do without it."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # of any kind, as models are
        raise CaptureError.by(error, "a step in shards failed") from error


def _prepared(divided: ExecutionPlan, steps: TimedSteps) -> ExecutionPlan:
    """The plan with the ways of its convolutions that are fastest here.

    Raises:
        TrainingError: The model cannot be divided.
    """
    with executing(divided), steps.divided(divided) as step:
        if not (isinstance(steps.model, ImageModel) and steps.model.is_registered):  # those are checked by tests
            step.check()
        return replace(divided, convolutions=step.faster_convolutions())


def _plan_on_accelerator(steps: TimedSteps, device: str, precision: str, n_steps: int, threads: int) -> ExecutionPlan:
    plan, graphs = ExecutionPlan(device, threads, "float32"), ""
    if device.startswith("cuda"):
        plan, graphs = _graphed_if_faster(replace(plan, precision=_asked(precision)), steps, n_steps)
        plan = replace(plan, precision="float32")
    try:
        plan = _in_faster_precision(plan, steps.under, _STEP, precision=precision, n_steps=n_steps)
    except RecordingError as error:  # in the other precision
        plan, graphs = replace(plan, graphed=False), str(error)
        plan = _in_faster_precision(plan, steps.under, _STEP, precision=precision, n_steps=n_steps)
    return replace(plan, reason=f"{plan.reason}; {graphs}") if graphs else plan


def _graphed_if_faster(plan: ExecutionPlan, steps: TimedSteps, n_steps: int) -> tuple[ExecutionPlan, str]:
    """The plan, with replayed steps where these are clearly faster, and what is to be said of it."""
    if not n_steps:
        return plan, ""
    graphed = replace(plan, graphed=True)
    try:
        (eager,) = steps.seconds([plan])
        if n_steps * eager < _SHORT_SECONDS_ON_GPU:
            return plan, ""
        with executing(graphed):
            steps.check_replayed(graphed)
        (replayed,) = steps.seconds([graphed])
    except (TrainingError, torch.OutOfMemoryError) as error:
        return plan, str(error).splitlines()[0]
    speedup = eager / replayed
    if speedup < _WORTHWHILE:
        return plan, ""
    return graphed, f"a step is {speedup:.1f} times faster replayed from a CUDA graph"


def _asked(precision: str) -> Precision:
    return "bfloat16" if precision == "bfloat16" else "float32"


def choose_feature_plan(
    model: nn.Module, batch: Batch, *, device: str, precision: str = "auto", threads: int | None = None
) -> ExecutionPlan:
    """The plan for a training that runs `model` over every picture once, and a small head over what that gives.

    Args:
        model: Gives the features, on `device`.
        batch: A typical one, on `device`.
        device: A torch device name.
        precision: `float32`, `bfloat16`, or `auto` to measure, as `choose_plan` does.
        threads: How many of the CPU's are the training's, where that is decided already.
    """

    @contextlib.contextmanager
    def passes(plan: ExecutionPlan) -> Iterator[Run]:
        def run() -> None:
            with torch.inference_mode(), plan.autocast():
                model.eval()(*batch.inputs.values())

        yield run

    plan = ExecutionPlan(device, threads or training_threads(), "float32")
    return _in_faster_precision(plan, passes, "this network", precision=precision)


def _in_faster_precision(
    plan: ExecutionPlan,
    under: Callable[[ExecutionPlan], contextlib.AbstractContextManager[Run]],
    what: str,
    *,
    precision: str,
    n_steps: int = 0,
) -> ExecutionPlan:
    """The plan, which is in float32, or the same in bfloat16 where that is asked for or clearly faster."""
    other = replace(plan, precision="bfloat16")
    if precision != "auto":
        return replace(other if precision == "bfloat16" else plan, reason="as asked")
    if plan.device.startswith("mps"):
        return replace(plan, reason="float32 on MPS")
    if plan.device == "cpu" and (speedup := convolution_speedup(plan.device, plan.threads)) < _WORTHWHILE:
        return replace(plan, reason=_comparison("a convolution", speedup))
    seconds: list[float] = []
    # In turn, since others come and go; but a GPU may have no room for two copies with the states of their optimizers.
    for beside in [[plan, other]] if plan.device == "cpu" else [[plan], [other]]:
        with executing(plan), contextlib.ExitStack() as stack:
            runs = [stack.enter_context(under(one)) for one in beside]
            fastest = fastest_seconds(runs, plan.device)
            again = [
                [steady_seconds(run, plan.device) for run in runs] for _ in range(more_repetitions(fastest, n_steps))
            ]
            seconds += map(min, zip(*again, strict=True)) if again else fastest
    speedup = seconds[0] / seconds[1]
    return replace(other if speedup >= _WORTHWHILE else plan, reason=_comparison(what, speedup))


def _comparison(what: str, speedup: float) -> str:
    comparison = f"{speedup:.1f} times faster" if speedup >= 1 else f"{1 / speedup:.1f} times slower"
    return f"{what} is {comparison} in bfloat16 than in float32 here"


def times_networks(device: str, speedup: float) -> bool:
    """Whether `auto` times each network in both precisions, a convolution being so many times faster in bfloat16."""
    return device.startswith("cuda") or speedup >= _WORTHWHILE


def convolution_speedup(device: str, threads: int) -> float:
    """How many times faster a convolution, forward and backward, is in bfloat16 than in float32."""
    if device.startswith("mps"):
        return 1.0
    plans = [ExecutionPlan(device, threads, "float32"), ExecutionPlan(device, threads, "bfloat16")]
    with executing(plans[0]):
        seconds = fastest_seconds([_convolution(plan) for plan in plans], device)
    return seconds[0] / seconds[1]


def _convolution(plan: ExecutionPlan) -> Callable[[], None]:
    layer = on_device(nn.Conv2d(32, 32, 3, padding=1), plan.device)
    pixels = torch.ones(8, 32, 16, 16, device=plan.device).to(memory_format=torch.channels_last)

    def run() -> None:
        with plan.autocast():
            result = layer(pixels)
        torch.autograd.backward(result.float().sum())

    return run
