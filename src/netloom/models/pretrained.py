"""Weights of a network that was trained before: found, read and put into another network, or refused and why."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from netloom.errors import ModelError, did_you_mean
from netloom.files import with_home
from netloom.models.backbones import HEAD_PREFIX, PREFIX, TRUNK_PREFIX, backbone_name, pretrained_config
from netloom.models.contract import ImageModel
from netloom.models.registry import MAX_PARAMETERS, is_model, validate_options
from netloom.models.stored_numbers import not_finite, of_other_types
from netloom.progress import printable

Found = TypeVar("Found")

PUBLISHED, RANDOM = "published", "random"
SUFFIX = ".safetensors"
_NAMES_SHOWN = 4
_MOST_SHOWN = 200  # characters of a name or a reason
# Files that say nothing of it themselves: MobileNet v1 of Keras, trained with TensorFlow's padding.
_PADDING_BY_DIGEST = {"4589b83d37aad18e5ccc505e610a37b1684d2058e105f7a912974fdc2c836d49": "same"}


@dataclass(frozen=True)
class NetworkInput:
    """What a network was trained on.

    Attributes:
        image_size: Height and width of its pictures in pixels.
        mean: What was subtracted from each channel, of pictures of 0..1.
        std: What it was then divided by.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published_input(name: str) -> NetworkInput:
    """What the published weights of a `timm/…` network were trained on.

    Raises:
        ModelError: timm has no such network.
    """
    config = pretrained_config(name)
    _, height, width = config["input_size"]
    return NetworkInput((height, width), tuple(config["mean"]), tuple(config["std"]))


def find_weights(weights: str, model: str) -> Path:
    """The file of the weights that a recipe names, brought from the hub if need be.

    Args:
        weights: `published`, or a `.safetensors` file.
        model: The network's name, such as `timm/resnet18`.

    Raises:
        ModelError: There is no such file, or no way to the published weights; the message names all ways.
    """
    if weights != PUBLISHED:
        return _own_file(weights)
    if not model.startswith(PREFIX):
        raise ModelError(
            f"There are no published weights of {model}. Name a backbone of timm's (`netloom backbones` lists them), "
            "or give weights of your own: --weights FILE.safetensors or a run's folder."
        )
    return _in_data_folder(model) or _from_hub(model)


def _own_file(weights: str) -> Path:
    path = with_home(weights)
    if path.suffix != SUFFIX:
        raise ModelError(
            f"Weights must be a {SUFFIX} file, `{PUBLISHED}` or `{RANDOM}`, found {weights!r}. Files of other kinds "
            "can hold programs and are not opened; convert them with the safetensors library."
        )
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob(f"*{SUFFIX}")] if path.parent.is_dir() else []
        raise ModelError(f"There are no weights at {path}.{did_you_mean(path.name, siblings)}")
    return path


def _names_of_files(model: str) -> list[str]:
    """What weights of a network are called, the name that was asked for first."""
    name = backbone_name(model)
    architecture, _, tag = name.partition(".")
    full = f"{architecture}.{tag or pretrained_config(model).get('tag') or ''}".rstrip(".")
    return list(dict.fromkeys([name, full]))


def _in_data_folder(model: str) -> Path | None:
    folder = os.environ.get("NETLOOM_DATA")
    if not folder:
        return None
    candidates = (with_home(folder) / "weights" / f"{name}{SUFFIX}" for name in _names_of_files(model))
    return next((path for path in candidates if path.is_file()), None)


def _from_hub(model: str) -> Path:
    """The published weights in the hub's own cache, which timm uses, too; downloaded if they are not there."""
    config = pretrained_config(model)
    repository = config.get("hf_hub_id")
    if not repository:
        raise ModelError(f"timm publishes no weights of {backbone_name(model)}. {_other_ways(model)}")
    # Only safetensors are ever asked for; of these the hub has every network of timm's.
    filename = str(config.get("hf_hub_filename") or f"model{SUFFIX}")
    filename = str(Path(filename.replace("pytorch_model", "model")).with_suffix(SUFFIX))
    identifier, _, revision = str(repository).partition("@")
    try:
        return _downloaded(identifier, filename, revision or None)
    except Exception as error:  # its own, the operating system's, or of whichever HTTP library a release uses
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The weights of {backbone_name(model)} are not on this machine, and could not be downloaded ({reason}). "
            f"{_other_ways(model)}"
        ) from error


def _downloaded(repository: str, filename: str, revision: str | None) -> Path:
    """A file of the hub. One that was downloaded before is not asked for again: its digest tells which it is."""
    import huggingface_hub

    known = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision)
    if isinstance(known, str):
        return Path(known)
    # The download itself tries for a minute where there is no network, and tells of each attempt.
    huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, filename, revision=revision))
    return Path(huggingface_hub.hf_hub_download(repository, filename, revision=revision))


def _other_ways(model: str) -> str:
    names = " or ".join(f"{name}{SUFFIX}" for name in _names_of_files(model))
    return (
        f"There are three ways: a network connection; --weights FILE{SUFFIX} (transfer.weights in a recipe); or "
        f"$NETLOOM_DATA/weights/{names.replace(' or ', ' or $NETLOOM_DATA/weights/')}."
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        ModelError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"The weights {path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def texts_of(path: Path) -> dict[str, str]:
    """What a weights file says of itself: its safetensors metadata.

    Raises:
        ModelError: It is damaged or no safetensors file.
    """

    def read(file: Any) -> dict[str, str]:
        return dict(file.metadata() or {})

    return _reading(path, read)


def padding_of(path: Path, digest: str) -> str | None:
    """The padding that weights were trained with where it is not the network's own: `same`, or None.

    A file says so in its metadata (`padding`); of some that say nothing it is known.
    """
    said = texts_of(path).get("padding")
    return said if said == "same" else _PADDING_BY_DIGEST.get(digest)


def input_of(path: Path) -> NetworkInput | None:
    """What weights were trained on, where their file says so: `image_size`, `mean` and `std` as JSON, or None.

    Raises:
        ModelError: It says something impossible.
    """
    texts = texts_of(path)
    if not {"image_size", "mean", "std"} <= set(texts):
        return None
    try:
        height, width = (int(side) for side in json.loads(texts["image_size"]))
        mean, std = (tuple(float(value) for value in json.loads(texts[key])) for key in ("mean", "std"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"The weights {path} tell an impossible image_size, mean or std ({_shown(error)}).") from error
    if min(height, width, *std) <= 0 or len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))):
        raise ModelError(f"The weights {path} tell an impossible image_size, mean or std.")
    return NetworkInput((height, width), mean, std)


def network_of(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Which network weights are of, and its options, where their file says so: `model` and `options` as JSON, or None.

    Others may mean something else by `model`: what names no network here counts as not said.

    Raises:
        ModelError: It says options that the network cannot have.
    """
    texts = texts_of(path)
    try:
        model = json.loads(texts.get("model", "null"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(model, str) or len(model) > _MOST_SHOWN or not is_model(model):
        return None
    try:
        options = json.loads(texts.get("options", "{}"))
        if not isinstance(options, dict):
            raise ValueError(f"a mapping is expected, found {type(options).__name__}")
        validate_options(model, options)
    except (ValueError, RecursionError, ModelError) as error:
        raise ModelError(f"The weights {path} tell impossible options of {model} ({_shown(error)}).") from error
    return model, options


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: It is truncated, damaged or no safetensors file, holds more numbers than a network may have, or some
            that are not finite.
    """

    def read(file: Any) -> dict[str, Tensor]:
        names = list(file.keys())
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        if count > MAX_PARAMETERS:
            raise ModelError(f"The weights {path} hold {count:,} numbers; at most {MAX_PARAMETERS:,} are read.")
        return {name: file.get_tensor(name) for name in names}

    tensors = _reading(path, read)
    if broken := not_finite(tensors):
        raise ModelError(
            f"The weights {path} hold numbers that are not finite, in {_shown(broken[0])}; they are damaged."
        )
    return tensors


def _reading(path: Path, read: Callable[[Any], Found]) -> Found:
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The weights {path} cannot be read ({_shown(error)}): the file is truncated, damaged or no {SUFFIX} "
            "file. Get it again."
        ) from error


def load_pretrained(
    model: ImageModel, tensors: Mapping[str, Tensor], *, name: str, where: str, cut: str | None = None
) -> list[str]:
    """Put weights into a network, in place, up to the stage `cut`; what follows keeps the weights that it has.

    The tensors are those of a timm network, or of a network of this house with the same trunk. The classifier and the
    dense layers are never taken over.

    Args:
        model: Whose weights are replaced.
        tensors: By name.
        name: Of the model, for messages.
        where: The weights' file, for messages.
        cut: The last stage to be loaded; None for all in front of the head.

    Returns:
        The names of the stages that were loaded, from input to output; `head` where the network's own pooling has
        weights.

    Raises:
        ModelError: The weights belong to another network, or are quantized; the message names what differs. Nothing
            was changed.
    """
    stages = _stages_to_load(model, name, cut)
    identities = {id(value) for _, part in stages for value in (*part.parameters(), *part.buffers())}
    state = model.state_dict(keep_vars=True)
    wanted = {k: v for k, v in state.items() if id(v) in identities and k.startswith(("trunk.", HEAD_PREFIX))}
    found = _named_as_here(tensors, wanted)
    if _differences(model, wanted, found):
        found = _translated(model, tensors, wanted) or found
    if others := of_other_types(found, wanted):
        raise ModelError(
            f"The weights {where} cannot be those of {name}: {len(others)} of its tensors must be floating-point "
            f"numbers of 16, 32 or 64 bits, and are not ({_listed(map(_plain, others))}). Give weights that are not "
            "quantized."
        )
    if problems := _differences(model, wanted, found):
        raise ModelError(
            f"The weights {where} belong to another network than {name}: {'; '.join(problems)}. Give the weights of "
            f"{name}, or name the network that they are of."
        )
    with torch.no_grad():
        for key, value in wanted.items():
            if key in found:
                value.copy_(found[key])
    return [stage for stage, _ in stages]


def _stages_to_load(model: ImageModel, name: str, cut: str | None) -> list[tuple[str, nn.Module]]:
    stages = [(stage, part) for stage, part in model.stages() if stage != "classifier"]
    if cut is None:
        return stages
    names = [stage for stage, _ in stages if stage != "head"]
    if cut not in names:
        raise ModelError(
            f"transfer.cut: {name} has no stage {cut!r}.{did_you_mean(cut, names)} It has {', '.join(names)}."
        )
    return stages[: names.index(cut) + 1]


def _named_as_here(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have in this network, as far as they can be told."""
    if any(name.startswith("trunk.") for name in tensors):  # of a run
        return {name: value for name, value in tensors.items() if name.startswith(("trunk.", HEAD_PREFIX))}
    return {
        HEAD_PREFIX + name if HEAD_PREFIX + name in wanted else TRUNK_PREFIX + name: value
        for name, value in tensors.items()
    }


def _translated(
    model: ImageModel, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The tensors as timm itself would take them: renamed, or positions resampled to another size of pictures."""
    net = getattr(model.trunk, "net", None)
    module = sys.modules.get(type(net).__module__)
    translate = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if net is None or translate is None:
        return None
    own = {key.removeprefix(TRUNK_PREFIX).removeprefix(HEAD_PREFIX): value for key, value in tensors.items()}
    # It was written for weights of this network, and these may be any; where it resamples Swin's tables of positions,
    # torch warns of what it will change.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _named_as_here(dict(translate(own, net)), wanted)
    return None


def _differences(model: ImageModel, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being these, in words. What lies behind the trunk in the file is nobody's concern."""
    known = model.state_dict()
    unknown = [key for key in found if key not in known and not _is_counter(key)]
    missing = [key for key in wanted if key not in found and not _is_counter(key)]
    shapes = [
        f"{_plain(key)} {_shape(found[key])} instead of {_shape(value)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of its {len(wanted)} tensors are missing ({_listed(map(_plain, missing))})")
    elif unknown:
        # Of a network's parts that have weights here, too; a classifier, say, is left out here.
        parts = tuple({".".join(key.split(".")[: _depth_of_parts(model)]) + "." for key in known})
        unknown = [key for key in unknown if f"{key}.".startswith(parts)]
    if unknown:
        problems.append(f"{len(unknown)} are unknown to it ({_listed(map(_plain, unknown))})")
    if shapes:
        problems.append(f"{len(shapes)} have another shape ({_listed(shapes)})")
    return problems


def _depth_of_parts(model: ImageModel) -> int:
    """How many parts of a tensor's name name a part of the network: `trunk.net.layer1`, `trunk.block1`."""
    return 3 if hasattr(model.trunk, "net") else 2


def _is_counter(key: str) -> bool:
    """Whether a tensor counts batches, which changes nothing that a network gives."""
    return key.endswith("num_batches_tracked")


def _plain(key: str) -> str:
    return key.removeprefix(TRUNK_PREFIX).removeprefix(HEAD_PREFIX)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _shown(text: object) -> str:
    """What a file says, which may be anything and of any length, as a message can hold it."""
    whole = printable(str(text))
    return whole if len(whole) <= _MOST_SHOWN else f"{whole[:_MOST_SHOWN]}…"


def _listed(names: Iterable[str]) -> str:
    shown = [_shown(name) for name in names]
    return ", ".join(shown[:_NAMES_SHOWN]) + (", …" if len(shown) > _NAMES_SHOWN else "")
