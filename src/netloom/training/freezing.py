"""Which stages of a network train in which epoch: the head first, then the trunk's from the top, or none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netloom.errors import ModelError, did_you_mean
from netloom.models.backbones import NetworkHead

BatchNormPolicy = Literal["frozen", "trained"]


class StagedModel(Protocol):
    """What freezing asks of a model, see `models.contract`."""

    trunk: nn.Module

    def stages(self) -> list[tuple[str, nn.Module]]:
        """The parts with parameters, by name, from input to output."""


class Stage(NamedTuple):
    """A stage by name.

    Attributes:
        name: As `stages()` calls it.
        parameters: Names of its parameters that may train.
        modules: Names of the modules in it, which run as they do in training or in evaluation.
        joins: The epoch (0 is the first) from which on it trains; None for never.
        depth: Stages of the trunk from the head down: 0 is the head, 1 the stage in front of it. What is drawn anew
            counts as head.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    joins: int | None
    depth: int


@dataclass(frozen=True)
class Freezing:
    """When the stages of a network train. It holds names only, so that it serves copies of the network, too.

    A stage that is frozen runs as in evaluation: its batch normalization uses the running statistics and leaves them
    as they are, its dropout is off, and autograd records nothing of it, since no frozen stage has a trained one in
    front of it. What is outside of the trunk, or drawn anew in it, always trains.

    Attributes:
        stages: From input to output.
        batch_norm: Of stages that train. `frozen`: by running statistics, which stay, while scale and shift train:
            batches of some dozen pictures tell less of a channel's spread than what the network was pretrained on
            (the guide "Transfer learning & fine-tuning" of Keras does the same). `trained`: by those of the batch.
            The head's own batch normalization, which starts from nothing, always takes the batch's.
    """

    stages: tuple[Stage, ...]
    batch_norm: BatchNormPolicy = "frozen"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        unfreeze: Literal["all"] | int | str = 0,
        head_epochs: int = 0,
        gradual: bool = False,
        batch_norm: BatchNormPolicy = "frozen",
        cut: str | None = None,
    ) -> Freezing:
        """The plan for a model as it was made; parameters that are frozen already stay so.

        Howard and Ruder, "Universal language model fine-tuning for text classification", 2018, unfreeze a stage an
        epoch from the top (section 3.3); Kumar et al., "Fine-tuning can distort pretrained features and underperform
        out-of-distribution", 2022, say why the head comes first.

        Args:
            model: With `stages()` and `trunk`.
            unfreeze: `all` stages of the trunk, this many from the top, or the one of this name and all above it;
                0 trains the head alone.
            head_epochs: Epochs at the beginning in which the head trains alone.
            gradual: One stage more each epoch, instead of all at once.
            batch_norm: See the class.
            cut: The last stage of the trunk whose weights are pretrained; None for all of them.

        Raises:
            ModelError: The model has no stages, or not those that are asked for.
        """
        if not (callable(getattr(model, "stages", None)) and isinstance(getattr(model, "trunk", None), nn.Module)):
            raise ModelError(
                f"{type(model).__name__} does not say which stages it has, so that none can be frozen: it needs a "
                "`trunk` and a method `stages()`, as the models of `netloom models` have them."
            )
        staged = cast(StagedModel, model)
        in_trunk = {id(p) for p in staged.trunk.parameters()}
        found = staged.stages()
        trunk = [name for name, part in found if any(id(p) in in_trunk for p in part.parameters())]
        places = _places(model, found, trunk[-1])
        kept = trunk if cut is None else trunk[: _place_of(cut, "cut", trunk) + 1]
        count = _count_of(unfreeze, kept)
        depths = {name: len(kept) - i for i, name in enumerate(kept)}
        stages = []
        for name, _ in found:
            depth = depths.get(name, 0)
            joins = 0 if depth == 0 else head_epochs + (depth - 1) * gradual if depth <= count else None
            parameters, modules = places[name]
            stages.append(Stage(name, tuple(parameters), tuple(modules), joins, depth))
        return cls(tuple(stages), batch_norm)

    def prepare(self, model: nn.Module) -> None:
        """Have all parameters that ever train require gradients, and no other: as optimizers and summaries want it."""
        trained = {name for stage in self.stages if stage.joins is not None for name in stage.parameters}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    def enter(self, model: nn.Module, epoch: int) -> bool:
        """Put a model into training mode for an epoch, what is frozen in it into that of evaluation.

        Args:
            model: The one that the plan was made for, or a copy.
            epoch: Counted from 0.

        Returns:
            Whether other parameters train now than did before.
        """
        model.train()
        parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
        changed = False
        for stage in self.stages:
            trains = self._trains(stage, epoch)
            for name in stage.parameters:
                changed |= parameters[name].requires_grad != trains
                parameters[name].requires_grad_(trains)
            for name in stage.modules:
                norm = stage.depth > 0 and self.batch_norm == "frozen" and isinstance(modules[name], _BatchNorm)
                # Not `train()`, which goes down into modules of other stages.
                modules[name].training = trains and not norm
        return changed

    def _trains(self, stage: Stage, epoch: int) -> bool:
        return stage.joins is not None and epoch >= stage.joins

    def joins_of(self) -> Callable[[str], int]:
        """The epoch from which on a parameter trains, by its name; of those that ever do."""
        return {n: s.joins for s in self.stages if s.joins is not None for n in s.parameters}.__getitem__

    def depth_of(self) -> Callable[[str], int]:
        """The depth of a parameter's stage, by its name; see `Stage`."""
        return {name: stage.depth for stage in self.stages for name in stage.parameters}.__getitem__

    def unfreezing(self, epochs: int) -> list[tuple[int, list[str]]]:
        """When stages of the trunk are unfrozen: pairs of completed epochs and names, the topmost first."""
        when: dict[int, list[str]] = {}
        for stage in sorted(self.stages, key=lambda stage: stage.depth):
            if stage.depth and stage.joins is not None and stage.joins < epochs:
                when.setdefault(stage.joins, []).append(stage.name)
        return sorted(when.items())

    def trained_parameters(self, epochs: int) -> list[str]:
        """Names of the parameters that train in this many epochs, from input to output."""
        return [name for stage in self.stages if self._trains(stage, epochs - 1) for name in stage.parameters]

    def frozen(self, epochs: int) -> list[str]:
        """The stages that never train in this many epochs, from input to output."""
        return [stage.name for stage in self.stages if not self._trains(stage, epochs - 1)]


def _place_of(name: str, key: str, stages: list[str]) -> int:
    if name not in stages:
        raise ModelError(
            f"transfer.{key}: the network has no stage {name!r} with pretrained weights.{did_you_mean(name, stages)} "
            f"It has, from input to output: {', '.join(stages)}."
        )
    return stages.index(name)


def _count_of(unfreeze: Literal["all"] | int | str, stages: list[str]) -> int:
    """How many of the pretrained stages, whose names are given from input to output, train at the end."""
    if unfreeze == "all":
        return len(stages)
    if isinstance(unfreeze, str):
        return len(stages) - _place_of(unfreeze, "unfreeze", stages)
    if not 0 <= unfreeze <= len(stages):
        raise ModelError(
            f"transfer.unfreeze: {unfreeze} stages are to be unfrozen, and {len(stages)} have pretrained weights, from "
            f"input to output: {', '.join(stages)}. Give fewer, a name, or all."
        )
    return unfreeze


def _places(model: nn.Module, found: list[tuple[str, nn.Module]], last: str) -> dict[str, tuple[list[str], list[str]]]:
    """For each stage the names of its parameters that may train, and of its modules.

    What belongs to none is the first stage's, as a class token and position embeddings are; a module in the trunk
    without parameters, dropout say, that of the module in front of it. What a network of timm's does between its
    last feature map and its classifier brings weights, too: it goes with the trunk's `last` stage.
    """
    trunk = cast(StagedModel, model).trunk
    first = found[0][0]
    published = [m for m in model.modules() if isinstance(m, NetworkHead)]
    stage_of = {id(x): name for name, part in found for x in (*part.parameters(), *part.modules())}
    stage_of |= {id(x): last for part in published for x in (*part.parameters(), *part.modules())}
    places: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name, _ in found}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            places[stage_of.get(id(parameter), first)][0].append(name)
    before = first
    inside = {id(module) for part in (trunk, *published) for module in part.modules()}
    for name, module in model.named_modules():
        if id(module) not in inside:
            continue
        own = stage_of.get(id(module))
        if own is None and next(module.children(), None) is not None:
            # A container of several stages, which may drop something itself, goes with the last of them.
            held = [stage_of[id(m)] for m in module.modules() if id(m) in stage_of]
            places[held[-1] if held else before][1].append(name)
            continue
        before = own or before
        places[before][1].append(name)
    return places
