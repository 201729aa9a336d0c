"""Networks of the timm library as models of this house: `timm/resnet18`, `timm/vit_small_patch14_dinov2`, ….

Wightman, "PyTorch Image Models", 2019. A network is divided where timm divides it: `forward_features` becomes the
trunk, what `forward_head` does in front of the classifier becomes the beginning of the head. Parameters keep timm's
names behind a prefix, so that published weights load without a table of translations.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netloom.errors import ModelError, did_you_mean
from netloom.models.blocks import dense_layers, named_sequence
from netloom.models.contract import ImageModel
from netloom.models.layers import Activation, DenseUnits, Normalization, Rate, dropout_layer, initialize_layers
from netloom.models.registry import register_family, register_model
from netloom.torchvision_shim import torchvision

PREFIX = "timm/"
"""What names of models begin with that are timm's."""
TRUNK_PREFIX, HEAD_PREFIX = "trunk.net.", "head.pool.net."
"""What timm's names of tensors have in front of them in a model's state."""


@functools.cache
def timm() -> Any:
    """The timm package, imported at its first use: with torchvision, which it needs, that takes as long as torch's."""
    torchvision()
    import timm

    return timm


def is_backbone(name: str) -> bool:
    """Whether `name` says that the model is one of timm's; whether timm has it is another question."""
    return name.startswith(PREFIX)


def backbone_name(name: str) -> str:
    """The name without its prefix, as timm knows it, with or without the tag of its weights (`resnet18.a1_in1k`).

    Raises:
        ModelError: timm has no such network, or no such weights of it.
    """
    plain = name.removeprefix(PREFIX)
    architecture, _, tag = plain.partition(".")
    if not timm().is_model(architecture):
        hint = did_you_mean(architecture, timm().list_models())
        raise ModelError(
            f"Unknown backbone {architecture!r}.{hint} `netloom backbones` lists those that are worth trying; nearly "
            "all of timm's classification networks can be named."
        )
    _refuse_former_name(architecture)
    known = [n.partition(".")[2] for n in timm().list_pretrained(f"{architecture}.*")] if tag else []
    if tag and tag not in known:
        raise ModelError(
            f"timm has no weights {tag!r} of {architecture}.{did_you_mean(tag, known)} "
            f"Known are: {', '.join(sorted(known)) or 'none'}."
        )
    return plain


def _refuse_former_name(architecture: str) -> None:
    """See that a name is the one that timm has for it by now, under which its weights and settings are known.

    Raises:
        ModelError: It is one of before.
    """
    try:
        timm().get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:
        from timm.models import _registry

        now = getattr(_registry, "_deprecated_models", {}).get(architecture)
        hint = f"It is called {now} by now." if now else "`netloom backbones` lists those that are worth trying."
        raise ModelError(f"timm tells nothing of {architecture} any more. {hint}") from error


def pretrained_config(name: str) -> dict[str, Any]:
    """What timm says of a network's published weights: `input_size`, `mean`, `std`, `license`, `hf_hub_id`, ….

    Raises:
        ModelError: timm has no such network.
    """
    found: dict[str, Any] = timm().get_pretrained_cfg(backbone_name(name), allow_unregistered=False).to_dict()
    return found


class BackboneTrunk(nn.Module):
    """A timm network as far as its last feature map.

    Args:
        net: Without the modules that come behind it.
        stage_ends: Names of the modules at which stages end, from input to output.
        layout: How features lie: `NCHW`, `NHWC`, or `NLC` for tokens.
        grid: Height and width of the feature map; of tokens, of those at the end, which stand for places.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        stage_ends: tuple[str, ...],
        layout: Literal["NCHW", "NHWC", "NLC"],
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.layout = layout
        self.grid = grid
        self._stage_ends = stage_ends

    def forward(self, x: Tensor) -> Tensor:
        """The last feature map of pictures `[B, C, H, W]`, in the network's own layout."""
        features: Tensor = self.net.forward_features(x)
        return features

    def spatial(self, features: Tensor) -> Tensor:
        """Features as a map `[B, num_features, h, w]`: what an explanation by place looks at."""
        if self.layout == "NCHW":
            return features
        if self.layout == "NHWC":
            return features.permute(0, 3, 1, 2)
        tokens = features[:, -self.grid[0] * self.grid[1] :]
        return tokens.transpose(1, 2).reshape(features.shape[0], -1, *self.grid)

    def spatial_layer(self) -> nn.Module:
        """The module whose output, seen through `spatial`, an explanation by place looks at.

        That is the trunk itself, except where the head sees the class token only: the other tokens of the last block
        then have no way to the outputs, and their gradient is zero. Those in front of its attention have one.
        """
        blocks = getattr(self.net, "blocks", None)
        if self.layout == "NLC" and getattr(self.net, "global_pool", "") == "token" and hasattr(blocks, "__getitem__"):
            last = blocks[-1]  # type: ignore[index]
            return last.norm1 if isinstance(getattr(last, "norm1", None), nn.Module) else self
        return self

    def stages(self) -> list[tuple[str, nn.Module]]:
        """The parts with parameters, from input to output: `stem`, `block1`, `block2`, …, `top`."""
        return [(name, _Part(parts)) for name, parts in _stages(self.net, self._stage_ends)]


class NetworkHead(nn.Module):
    """What a timm network does between its last feature map and its classifier: pooling, norms, a convolution."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, features: Tensor) -> Tensor:
        """`[B, D]` of the last feature map."""
        pooled: Tensor = self.net.forward_head(features, pre_logits=True)
        return pooled


class _Part(nn.Module):
    """A view of some modules and parameters of a network, to be trained, frozen or counted together."""

    def __init__(self, parts: Mapping[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        for name, part in parts.items():
            key = name.replace(".", "_")
            if isinstance(part, nn.Parameter):
                self.register_parameter(key, part)
            else:
                self.add_module(key, part)


def timm_backbone(
    *,
    backbone: str,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    head_pooling: Literal["average", "flatten"] = "average",
    padding: Literal["same"] | None = None,
    dropout: Rate = 0.0,
    dense_units: DenseUnits = (),
    dense_dropout: Rate = 0.0,
    activation: Activation = "relu",
    dense_normalization: Normalization = "none",
) -> ImageModel:
    """A network of timm's in front of a head of its own, with random weights.

    Args:
        backbone: timm's name, with or without the tag of its weights.
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        head_pooling: `average` is what the network itself does between features and classifier; `flatten` lays the
            feature map out.
        padding: `same` is TensorFlow's, for weights that come from there; without it the network's own.
        dropout: Rate in front of the dense layers.
        dense_units: Width of each hidden dense layer.
        dense_dropout: Rate behind each hidden dense layer.
        activation: Behind each hidden dense layer.
        dense_normalization: Batch normalization before or after each hidden dense activation.

    Raises:
        ModelError: timm has no such network, or it does not fit the pictures or options.
    """
    net = _network(backbone, in_channels=in_channels, image_size=image_size, padding=padding)
    facts = _probe(backbone, net, in_channels, image_size, padding)
    flat = facts.pooled if head_pooling == "average" else facts.flat
    trunk, own_head = _divide(net, facts)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()} if head_pooling == "flatten" else {"pool": own_head}
    layers |= dropout_layer(dropout)
    stack = dense_layers(
        flat, dense_units, activation=activation, normalization=dense_normalization, dense_dropout=dense_dropout
    )
    for named in stack:
        for layer in named.values():
            initialize_layers(layer, activation)
        layers |= named
    return ImageModel(
        trunk=trunk,
        head=named_sequence(layers),
        num_features=facts.channels,
        classifier_features=dense_units[-1] if dense_units else flat,
        num_outputs=num_outputs,
    )


@dataclass(frozen=True)
class _Facts:
    """What one pass through a network shows."""

    head_modules: tuple[str, ...]
    stage_ends: tuple[str, ...]
    layout: Literal["NCHW", "NHWC", "NLC"]
    grid: tuple[int, int]
    channels: int
    flat: int
    pooled: int


_FACTS: dict[tuple[Any, ...], _Facts] = {}


def _network(backbone: str, *, in_channels: int, image_size: tuple[int, int], padding: str | None) -> nn.Module:
    """Timm's network without its classifier, its weights random; on the device of the context."""
    name = backbone_name(backbone)
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": in_channels}
    if timm().get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size:
        arguments["img_size"] = image_size
    if padding is not None:
        arguments["pad_type"] = padding
    try:
        if name.startswith("vgg"):
            return _vgg_without_dense_layers(name, arguments)
        net: nn.Module = timm().create_model(name, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(_unfit(backbone, image_size, error, padding)) from error
    return net


def _vgg_without_dense_layers(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The convolutions alone: drawing the 119 million weights behind them would take a second, to be thrown away."""
    target = torch.empty(0).device
    with torch.device("meta"):
        net: Any = timm().create_model(name, **arguments)
    net.pre_logits = nn.Identity()
    net.head_hidden_size = net.head.num_features = net.num_features
    if target.type != "meta":
        net.to_empty(device=target)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        net._initialize_weights()
    return net  # type: ignore[no-any-return]


def _probe(backbone: str, net: Any, in_channels: int, image_size: tuple[int, int], padding: str | None) -> _Facts:
    """Run one picture through features and head and note which modules take part in which."""
    key = (backbone, in_channels, image_size, padding)
    if key in _FACTS:
        return _FACTS[key]
    in_head: list[nn.Module] = []
    handles = []
    device = next(net.parameters()).device
    net.eval()
    try:
        with torch.no_grad():
            features = net.forward_features(torch.zeros(2, in_channels, *image_size, device=device))
            handles = [m.register_forward_hook(lambda m, _i, _o: in_head.append(m)) for m in net.modules()]
            pooled = net.forward_head(features, pre_logits=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(_unfit(backbone, image_size, error, padding)) from error
    finally:
        for handle in handles:
            handle.remove()
        net.train()
    if not isinstance(features, Tensor) or features.ndim not in (3, 4) or pooled.ndim != 2:
        raise ModelError(f"{PREFIX}{backbone} gives no single feature map, so that it cannot be a backbone.")
    called = set(in_head)
    ends = tuple(str(info["module"]) for info in getattr(net, "feature_info", None) or ())
    layout: Literal["NCHW", "NHWC", "NLC"] = "NLC" if features.ndim == 3 else "NCHW"
    if features.ndim == 4 and getattr(net, "output_fmt", "NCHW") == "NHWC":
        layout = "NHWC"
    if layout == "NLC":
        prefix = int(getattr(net, "num_prefix_tokens", 0))
        side = math.isqrt(features.shape[1] - prefix)
        grid = tuple(getattr(getattr(net, "patch_embed", None), "grid_size", None) or (side, side))
    else:
        grid = tuple(features.shape[2:] if layout == "NCHW" else features.shape[1:3])
    _FACTS[key] = _Facts(
        head_modules=tuple(name for name, child in net.named_children() if called & set(child.modules())),
        stage_ends=ends,
        layout=layout,
        grid=(int(grid[0]), int(grid[1])),
        channels=int(features.shape[1 if layout == "NCHW" else -1]),
        flat=int(features[0].numel()),
        pooled=int(pooled.shape[1]),
    )
    return _FACTS[key]


def _unfit(backbone: str, image_size: tuple[int, int], error: Exception, padding: str | None) -> str:
    what = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    also = f" with padding: {padding}" if padding else ""
    return (
        f"{PREFIX}{backbone} does not take pictures of {image_size[0]}x{image_size[1]} pixels{also} ({what}). "
        "Use its own size (image_size: null with published weights) or another backbone."
    )


def _divide(net: nn.Module, facts: _Facts) -> tuple[BackboneTrunk, NetworkHead]:
    """The network as trunk and head, which share nothing but plain attributes."""
    head = copy.copy(net)
    children = dict(net.named_children())
    head._modules = {name: children[name] for name in facts.head_modules}
    head._parameters, head._buffers = {}, {}
    for name in facts.head_modules:
        delattr(net, name)
    return BackboneTrunk(net, stage_ends=facts.stage_ends, layout=facts.layout, grid=facts.grid), NetworkHead(head)


def _stages(net: nn.Module, ends: tuple[str, ...]) -> Iterator[tuple[str, dict[str, nn.Module | nn.Parameter]]]:
    """Names and parts of the stages. Parts come in the order of their definition, which is that of the picture's way.

    A stage ends where timm says that a feature map of its own size, or a block of a transformer, does. A norm
    alone is no stage: it belongs to what is in front of it.
    """
    remaining = dict(_parts(net, ends))
    number = 0
    last: tuple[str, dict[str, nn.Module | nn.Parameter]] = ("", {})
    for end in ends:
        names = list(remaining)
        inside = [name for name in names if name == end or name.startswith(f"{end}.") or end.startswith(f"{name}.")]
        if not inside:
            continue
        upto = names[: names.index(inside[-1]) + 1]
        taken = {name: remaining.pop(name) for name in upto}
        own = any(_has_parameters(taken[name]) for name in inside)
        if number == 0 and own and not any(_has_weights(taken[name]) for name in inside):
            yield "stem", taken
            continue
        before = {name: part for name, part in taken.items() if name not in inside}
        if number == 0 and own and any(_has_parameters(part) for part in before.values()):
            yield "stem", before
            taken = {name: taken[name] for name in inside}
        if number == 0 and not own and "." not in end:
            yield "stem", taken
            continue
        if any(_has_parameters(part) for part in taken.values()):
            if number:
                yield last
            number += 1
            last = (f"block{number}", taken)
    if not number:
        if any(_has_parameters(part) for part in remaining.values()):
            yield "block1", remaining
    elif any(_has_weights(part) for part in remaining.values()):
        yield last
        yield "top", remaining
    else:
        yield last[0], {**last[1], **remaining}


def _parts(
    module: nn.Module, ends: tuple[str, ...], prefix: str = ""
) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """The parameters and modules of a network, opened as far as stages end inside of them."""
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        full = prefix + name
        if any(end.startswith(f"{full}.") for end in ends):
            yield from _parts(child, ends, f"{full}.")
        else:
            yield full, child


def _has_parameters(part: nn.Module | nn.Parameter) -> bool:
    return isinstance(part, nn.Parameter) or any(True for _ in part.parameters())


def _has_weights(part: nn.Module | nn.Parameter) -> bool:
    """Whether there is more to train than the scales and shifts of norms."""
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    return any(parameter.dim() > 1 for parameter in parameters)


def _register(name: str) -> None:
    """Make a network of timm's known to the registry, at the first time that it is named.

    Raises:
        ModelError: timm has no such network.
    """
    plain = backbone_name(name)
    register_model(
        name,
        description="a network of the timm library",
        paper="Wightman, PyTorch Image Models, 2019",
        fixed={"backbone": plain},
    )(timm_backbone)


register_family(PREFIX, _register)
