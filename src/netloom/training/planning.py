"""Choose the execution plan of a training by measuring on this machine."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.memory import free_memory_bytes
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, Precision, executing, on_device, training_threads
from netloom.training.capture import CaptureError
from netloom.training.cuda_graphs import RecordingError, check_replayed
from netloom.training.divided import DividedStep
from netloom.training.step import TrainingStep
from netloom.training.timing import block_seconds, fastest_seconds, seconds_of, steady_seconds

# A precision or a division must be clearly faster to be taken: below that, measurements of small steps are noise, and
# float32 is the one that repeats everywhere.
_WORTHWHILE = 1.1
# Fewer threads are taken if they are nearly as fast: they leave the machine to others, and on a busy one a step that
# waits for all cores takes a hundred times as long (measured with two busy cores of four: 2.8 s against 50 ms).
_NEARLY_AS_FAST = 1.05
# A long first step this many times slower than the best so far is not repeated: other work has the cores. A short one
# tells nothing: its threads may just have been made.
_HOPELESS = 5.0
_LONG_SECONDS = 0.03
# Capturing a step takes up to a second; a training shorter than this would lose more than it gains. Recording one on a
# GPU takes less.
_SHORT_SECONDS = 15.0
_SHORT_SECONDS_ON_GPU = 3.0
# Longer steps are operations, hardly what lies between them, which is all that a captured step saves.
_SMALL_STEP_SECONDS = 0.1

# Steps are timed again, many behind one another, as long as that takes no more than this share of the training: what a
# busy moment or a first step decides would be kept for hours.
_SHARE_FOR_REPETITIONS = 0.01
_MORE_REPETITIONS = 5

# What the gradients of all shards may take of the free memory: each has a full set. So may the copies of a model that
# are timed in turn, each with its gradients and up to two moments.
_SHARE_OF_FREE_MEMORY = 0.25
_TENSORS_OF_STEP = 4

Run = Callable[[], object]
MakeStep = Callable[[nn.Module, ExecutionPlan], TrainingStep]


@dataclass(frozen=True)
class TimedSteps:
    """Training steps to be timed, of copies of a model: its weights, statistics and gradients stay as they are.

    Attributes:
        model: On its device, in the mode in which most steps find it: what is frozen then costs no gradients.
        batch: A typical one, on the device.
        heads: What the outputs mean.
        label_smoothing: As in training.
        make_step: Makes a training step of the copy it is given, with its optimizer; None for gradients alone.
        draw: Gives another batch of that shape as training draws them, augmented; None for the same one again.
    """

    model: nn.Module
    batch: Batch
    heads: Sequence[Head]
    label_smoothing: float = 0.0
    make_step: MakeStep | None = None
    draw: Callable[[], Batch] | None = None

    @contextlib.contextmanager
    def under(self, plan: ExecutionPlan) -> Iterator[Run]:
        """What takes a whole step under the plan, which is to be in force."""
        make = self.make_step or self._of_gradients
        with contextlib.closing(make(copy.deepcopy(self.model), plan)) as step:
            for group in step.optimizer.param_groups:
                group["lr"] = 0.0  # so that every repetition computes with the same, finite weights
            yield lambda: step(self.batch if self.draw is None else self.draw(), 0)

    def seconds(self, plans: Sequence[ExecutionPlan], *, n_steps: int = 0) -> list[float]:
        """Seconds of a step under each of the plans, all of one device; see `fastest_seconds`.

        If `n_steps` of them take long, the plans are timed again and again in turn, as long as that does not.
        """
        found: list[float] = []
        if plans[0].device == "cpu" and len(plans) * _TENSORS_OF_STEP * _bytes_of_gradients(self.model) > _room():
            n_steps = 0  # there is no room for the copies of all plans beside one another
        with contextlib.ExitStack() as kept:
            runs: list[Run] = []
            for plan in plans:
                with executing(plan):
                    step = kept.enter_context(self.under(plan))
                    torch.set_num_threads(plan.threads_between_steps)
                    if plan.shards or plan.graphed:
                        step()  # captured first, which takes long
                    first = seconds_of(step, plan.device)
                    hopeless = bool(found) and first > max(_HOPELESS * min(found), _LONG_SECONDS)
                    found.append(first if hopeless else fastest_seconds([step], plan.device, warmed_up=True)[0])
                runs.append(step)
                if not n_steps:
                    kept.close()
            hopeful = [i for i, seconds in enumerate(found) if seconds <= _HOPELESS * min(found)]
            again: dict[int, list[float]] = {i: [] for i in hopeful}
            for _ in range(_more_repetitions([found[i] for i in hopeful], n_steps)):
                for i in hopeful:
                    with executing(plans[i]):
                        torch.set_num_threads(plans[i].threads_between_steps)
                        again[i].append(steady_seconds(runs[i], plans[i].device))
        return [min(again.get(i) or [seconds]) for i, seconds in enumerate(found)]

    def divided(self, plan: ExecutionPlan) -> DividedStep:
        """The step's gradients, divided as the plan says, with what tells whether they may be."""
        return DividedStep(self.model, self.batch, self.heads, plan, self.label_smoothing)

    def check_replayed(self, plan: ExecutionPlan) -> None:
        """Compare replayed steps with the same by autograd.

        Raises:
            TrainingError: They cannot be replayed, or are others.
        """
        batches = [self.batch, self.batch if self.draw is None else self.draw()]
        check_replayed(self.model, batches, self.heads, plan, self.label_smoothing)

    def _of_gradients(self, replica: nn.Module, plan: ExecutionPlan) -> TrainingStep:
        idle = torch.optim.SGD([nn.Parameter(torch.zeros((), device=plan.device))], lr=0.0)
        return TrainingStep(replica, self.heads, idle, plan=plan, seed=0, label_smoothing=self.label_smoothing)


def _more_repetitions(seconds: Sequence[float], n_steps: int) -> int:
    """How many times blocks of steps that take so long may be timed before a training of `n_steps` of the fastest."""
    budget = _SHARE_FOR_REPETITIONS * n_steps * min(seconds)
    return min(_MORE_REPETITIONS, int(budget / sum(map(block_seconds, seconds))))


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

    On a CPU the step is timed with all threads, half of them and one, and then with its batch divided among all threads
    (see `shards.py`), if the training is long enough to make up for the time that preparing this takes; among half of
    them, too, where fewer threads were faster, as on a machine that others use. A short step is also timed captured,
    but not divided. What a step does beside its gradients counts: where it is divided, one thread does all of that.

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
    plan = _plan_of_whole_batches(steps, device=device, precision=precision, threads=threads, n_steps=n_steps)
    if device != "cpu":
        return plan
    most = threads or training_threads()
    if threads is None:
        plan = replace(plan, prediction_threads=most)
    if shards == 0:
        return plan
    if shards != "auto":
        divided = replace(plan, shards=int(shards))
        with _told_as_capture_error(), executing(divided), steps.divided(divided) as step:
            step.check()
            return replace(divided, unfolded=step.faster_unfolded())
    (seconds,) = steps.seconds([plan])
    if n_steps * seconds < _SHORT_SECONDS:
        return plan
    return _divided_or_captured_if_faster(plan, seconds, steps, min(most, len(steps.batch)), n_steps)


def _divided_or_captured_if_faster(
    plan: ExecutionPlan, seconds: float, steps: TimedSteps, most: int, n_steps: int
) -> ExecutionPlan:
    """The plan for whole batches, a step of which takes so long, or where one is clearly faster that for captured ones.

    What the model does not allow is told in its reason.
    """
    reasons, ways = [plan.reason], []
    # Where all threads were best for whole batches no other work has their cores, and fewer shards would do less.
    numbers = [most, max(1, most // 2)] if plan.threads < most else [most]
    fitting = _most_in_memory(steps.model, max(numbers))
    if fitting < 1:
        reasons.append("the gradients of shards would not fit the free memory")
        numbers = []
    candidates = [replace(plan, shards=min(number, fitting)) for number in numbers]
    if seconds < _SMALL_STEP_SECONDS and most > 1:
        candidates += [replace(plan, shards=1, threads=threads) for threads in (plan.threads, most)]
    for candidate in dict.fromkeys(candidates):
        with _refusal_as_reason(reasons):
            ways.append(_prepared(candidate, steps))
    with _refusal_as_reason(reasons):
        whole, *captured = steps.seconds([plan, *ways], n_steps=n_steps) if ways else [seconds]
        fastest = min(captured, default=whole)
        if whole >= fastest * _WORTHWHILE:
            plan = ways[captured.index(fastest)]
            how = f"in {plan.shards} shards" if plan.shards > 1 else "captured"
            reasons.append(f"a step is {whole / fastest:.1f} times faster {how}")
    return replace(plan, reason="; ".join(dict.fromkeys(reasons)))


@contextlib.contextmanager
def _refusal_as_reason(reasons: list[str]) -> Iterator[None]:
    """Append why a model cannot be divided or captured, in place of raising it."""
    try:
        with _told_as_capture_error():
            yield
    except TrainingError as error:
        reasons.append(str(error))


def _most_in_memory(model: nn.Module, most: int) -> int:
    """How many of so many shards have room for a full set of gradients each; 0 if that is no division any more."""
    fitting = int(_room() // max(1, _bytes_of_gradients(model)))
    if fitting >= most:
        return most
    return fitting if fitting > 1 else 0


def _room() -> float:
    """Bytes that may be taken for what is needed several times."""
    return _SHARE_OF_FREE_MEMORY * free_memory_bytes()


def _bytes_of_gradients(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


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
    """The plan with the convolutions that it had better unfold.

    Raises:
        TrainingError: The model cannot be divided.
    """
    with executing(divided), steps.divided(divided) as step:
        if not (isinstance(steps.model, ImageModel) and steps.model.is_registered):  # those are checked by tests
            step.check()
        return replace(divided, unfolded=step.faster_unfolded())


def _plan_of_whole_batches(
    steps: TimedSteps, *, device: str, precision: str, threads: int | None, n_steps: int
) -> ExecutionPlan:
    if threads is None:
        threads = _fastest_threads(steps, precision, n_steps) if device == "cpu" else training_threads()
    plan, graphs = ExecutionPlan(device, threads, "float32"), ""
    if device.startswith("cuda"):
        plan, graphs = _graphed_if_faster(replace(plan, precision=_asked(precision)), steps, n_steps)
        plan = replace(plan, precision="float32")
    try:
        plan = _in_faster_precision(plan, steps.under, "this network's step", precision=precision, n_steps=n_steps)
    except RecordingError as error:  # in the other precision
        plan, graphs = replace(plan, graphed=False), str(error)
        plan = _in_faster_precision(plan, steps.under, "this network's step", precision=precision, n_steps=n_steps)
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
                [steady_seconds(run, plan.device) for run in runs] for _ in range(_more_repetitions(fastest, n_steps))
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


def _fastest_threads(steps: TimedSteps, precision: str, n_steps: int) -> int:
    most = training_threads()
    candidates = sorted({1, max(1, most // 2), most})
    if len(candidates) == 1:
        return most
    plans = [ExecutionPlan("cpu", threads, _asked(precision)) for threads in candidates]
    seconds = steps.seconds(plans, n_steps=n_steps)
    nearly = min(seconds) * _NEARLY_AS_FAST
    return next(threads for threads, taken in zip(candidates, seconds, strict=True) if taken <= nearly)
