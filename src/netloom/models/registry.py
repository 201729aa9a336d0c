"""Networks by name: a configuration names a model and its options, and nothing is imported."""

from __future__ import annotations

import functools
import inspect
import reprlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch.overrides import TorchFunctionMode

from netloom.errors import ModelError, did_you_mean
from netloom.models.contract import ImageModel
from netloom.randomness import derive_seed

Builder = TypeVar("Builder", bound=Callable[..., ImageModel])

MAX_PARAMETERS = 1_000_000_000
"""Largest network that is built: 4 GB of weights, 16 GB with gradients and Adam's moments."""

_GIVEN = frozenset({"in_channels", "num_outputs", "image_size"})


@dataclass(frozen=True)
class ModelDescription:
    """One line about a model, where it comes from, and its options with their defaults."""

    name: str
    description: str
    paper: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Entry:
    description: ModelDescription
    builder: Callable[..., ImageModel]
    fixed: Mapping[str, Any]


_ENTRIES: dict[str, _Entry] = {}
_FAMILIES: dict[str, Callable[[str], None]] = {}


def register_model(
    name: str,
    *,
    description: str,
    paper: str,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Builder], Builder]:
    """Make a builder known as `name`; the builder of a family is registered once for each member.

    The builder takes `in_channels`, `num_outputs`, `image_size` (height, width) and options, all
    keyword-only. Each option has a default and an annotated type, which values are checked
    against with pydantic.

    Args:
        name: What configurations call the model.
        description: What it is, in one line.
        paper: Authors, title, year.
        fixed: Arguments that make this member of the family; they are no options.
        defaults: Options whose default is another one for this member.

    Raises:
        ValueError: The name is taken, or an option lacks its default or annotation.
    """

    def register(builder: Builder) -> Builder:
        if name in _ENTRIES:
            raise ValueError(f"A model named {name!r} is already registered.")
        options = _defaults(builder, without=_GIVEN | set(fixed)) | dict(defaults)
        described = ModelDescription(name, description, paper, MappingProxyType(options))
        _ENTRIES[name] = _Entry(described, builder, MappingProxyType(dict(fixed)))
        return builder

    return register


def register_family(prefix: str, resolve: Callable[[str], None]) -> None:
    """Let `resolve` register models whose names begin with `prefix` when one is first asked for.

    It calls `register_model` for the name that it is given, or raises ModelError where there is no such model.
    """
    _FAMILIES[prefix] = resolve


def model_names() -> list[str]:
    """The names of this house's models, sorted; those of families (`timm/…`) are not listed."""
    return sorted(name for name in _ENTRIES if not is_family_member(name))


def is_model(name: str) -> bool:
    """Whether there is such a model, here or in a family."""
    try:
        _entry(name)
    except ModelError:
        return False
    return True


def describe_models() -> list[ModelDescription]:
    """All models, sorted by name. No network is built."""
    return [_ENTRIES[name].description for name in model_names()]


def model_options(name: str) -> dict[str, Any]:
    """The options of a model with their defaults.

    Raises:
        ModelError: There is no such model.
    """
    return dict(_entry(name).description.options)


def validate_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the builder takes them: checked one by one, lists made tuples.

    Raises:
        ModelError: The model is unknown, or an option is unknown or has an impossible value; the
            message lists all of them.
    """
    entry = _entry(name)
    known = entry.description.options
    types = typing.get_type_hints(entry.builder, include_extras=True)
    valid: dict[str, Any] = {}
    problems: list[str] = []
    for option, value in options.items():
        if option not in known:
            problems.append(f"{option}: {name} has no such option.{did_you_mean(option, known)}")
            continue
        try:
            valid[option] = TypeAdapter(types[option]).validate_python(value)
        except ValidationError as error:
            words = [word for word in typing.get_args(types[option]) if isinstance(word, str)]
            hint = did_you_mean(str(value), words)
            problems.append(f"{option}: {_explain(error)}, got {reprlib.repr(value)}.{hint}")
    if problems:
        listed = ", ".join(known) or "none"
        raise ModelError("\n".join([*problems, f"Options of {name}: {listed}."]))
    return valid


def create_model(
    name: str,
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> ImageModel:
    """A new network whose weights are a function of the seed alone; no global generator moves.

    Args:
        name: One of `model_names()`.
        in_channels: Channels of the pictures (1 grey, 3 colour).
        num_outputs: Numbers per picture that the network gives (see `Head.num_outputs`).
        image_size: Height and width of the pictures in pixels.
        seed: Any whole number.
        options: Options that differ from the defaults of `model_options(name)`.

    Raises:
        ModelError: The model or an option is unknown, a value is impossible, the pictures are
            smaller than the network needs, or it would have over `MAX_PARAMETERS`.
    """
    valid = validate_options(name, options or {})
    given = {"in_channels": in_channels, "num_outputs": num_outputs, "image_size": image_size}
    if min(in_channels, num_outputs, *image_size) < 1:
        raise ModelError(f"{name}: in_channels, num_outputs and image_size start at 1, got {given}.")
    entry = _ENTRIES[name]
    build = functools.partial(entry.builder, **given, **entry.fixed, **{**entry.description.options, **valid})
    _refuse_oversized(name, build)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the generators of every GPU.
        torch.default_generator.manual_seed(derive_seed(seed, "initialization"))
        network = build()
    network.is_registered = not is_family_member(name)
    return network


def _refuse_oversized(name: str, build: Callable[[], ImageModel]) -> None:
    """Count the parameters of a network on the `meta` device, where it takes no memory."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _DrawingNothing():
            count = sum(parameter.numel() for parameter in build().parameters())
    except RuntimeError:  # the size of one tensor does not fit 64 bits
        count = None
    if count is None or count > MAX_PARAMETERS:
        found = "more parameters than can be counted" if count is None else f"{count:,} parameters"
        raise ModelError(
            f"{name} would have {found} with these options and pictures; at most {MAX_PARAMETERS:,} are "
            "built. Use fewer filters or units, a smaller image_size, or pooling."
        )


class _DrawingNothing(TorchFunctionMode):
    """Leaves out random initialization, for which torch would import its compiler on `meta` (1.2 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def is_family_member(name: str) -> bool:
    """Whether `name` is written as those of a family of models are (`timm/…`)."""
    return any(name.startswith(prefix) for prefix in _FAMILIES)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        for prefix, resolve in _FAMILIES.items():
            if name.startswith(prefix):
                resolve(name)
    try:
        return _ENTRIES[name]
    except KeyError:
        raise ModelError(
            f"Unknown model {name!r}.{did_you_mean(name, _ENTRIES)} Known are: {', '.join(model_names())}."
        ) from None


def _defaults(builder: Callable[..., ImageModel], *, without: frozenset[str]) -> dict[str, Any]:
    parameters = inspect.signature(builder).parameters
    options = {name: p for name, p in parameters.items() if name not in without}
    for name, parameter in options.items():
        if inspect.Parameter.empty in (parameter.default, parameter.annotation):
            raise ValueError(f"Option {name!r} of {builder.__name__} needs a type and a default.")
    return {name: parameter.default for name, parameter in options.items()}


def _explain(error: ValidationError) -> str:
    """What was expected, in words: "should be 'same' or 'valid'"."""
    details = error.errors()
    # Of a list whose first item is wrong pydantic also says that it is too short.
    telling = [detail for detail in details if detail["type"] != "too_short"] or details
    reasons = [detail["msg"].removeprefix("Input ") for detail in telling]
    return " or ".join(dict.fromkeys(reasons)).replace("a valid tuple", "a list")
