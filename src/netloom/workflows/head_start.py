"""Decoding the pictures of a source while this process still imports torch.

A process of its own fills the cache; whoever needs the pictures then finds them there. Should it fail, they are decoded
as if it had never been. No torch here, for that would be waited for.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from netloom.workflows.head_start import main; main()"
)
_TIMM = "timm/"  # `models.backbones.PREFIX`, which would import torch
_TIMMS_OWN = ("published", "random")  # `models.pretrained.PUBLISHED` and `RANDOM`, likewise
_SECONDS_TO_END = 5.0
_running: list[_HeadStart] = []


def begin(source: str, recipe: str | None, settings: Sequence[str]) -> None:
    """Have the pictures of a source decoded into the cache, as a recipe wants them, from now on.

    Whoever uses them calls `wait_for` first. What nobody waits for ends with this process. Nothing is begun where there
    is one CPU alone, which it would take from the imports.

    Args:
        source: What `open_source` takes.
        recipe: A shipped recipe's name or a file; None for the default.
        settings: Recipe keys to change, as `parse_overrides` takes them.
    """
    _end_all()
    if (os.cpu_count() or 1) > 1:
        with contextlib.suppress(OSError):  # no process can be started: everything is done later
            _running.append(_HeadStart(source, recipe, settings))


def wait_for(source: str | Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Wait until pictures of `source` that are being decoded ahead are there, or cannot be."""
    for head_start in [started for started in _running if started.source == str(source)]:
        _running.remove(head_start)
        head_start.wait(on_progress)


@atexit.register
def _end_all() -> None:
    while _running:
        _running.pop().end()


class _HeadStart:
    def __init__(self, source: str, recipe: str | None, settings: Sequence[str]) -> None:
        self.source = source
        # Its own session: Ctrl-C reaches this process only, and that one ends when its stdin does.
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-c",
                _BOOTSTRAP,
                json.dumps(sys.path),
                json.dumps([source, recipe, list(settings)]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )

    def wait(self, on_progress: Callable[[int, int], None] | None) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if on_progress is not None:
                    on_progress(*json.loads(line))
        finally:
            self.end()

    def end(self) -> None:
        """End the process, if need be before it is done, and its workers with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Decode what the arguments name and tell the progress on stdout, as lines `[done, all]`."""
    # Also where interrupts are ignored, as they are behind nohup: this is how the thread ends the decoding.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_with_stdin, daemon=True).start()
    from netloom.data.cache import outlives_process
    from netloom.data.decoding import decode_all, suggest_image_size
    from netloom.data.named import NAMED_SETS
    from netloom.data.sources import open_source
    from netloom.recipe import DEFAULT_RECIPE, load_recipe, parse_overrides, wanted_channels

    source, recipe, settings = json.loads(sys.argv[2])
    if source.casefold() in NAMED_SETS or not outlives_process():
        return
    overrides = parse_overrides(settings)
    model = overrides.pop("model", None)  # looking its options up would import torch
    chosen = load_recipe(recipe or DEFAULT_RECIPE, overrides)
    name = str(model or chosen.model)
    size = (chosen.image_size,) * 2 if isinstance(chosen.image_size, int) else chosen.image_size
    channels = wanted_channels(chosen)
    if (chosen.transfer is not None or name.startswith(_TIMM)) and (size is None or channels is None):
        # What the recipe leaves open is then the network's.
        own_size = _own_size(name, "random" if chosen.transfer is None else chosen.transfer.weights)
        if own_size is None:
            return
        size, channels = size or own_size, channels or 3
    opened = open_source(source)
    fingerprint, locations = opened.fingerprint(), opened.locations
    decode_all(
        locations,
        image_size=size or suggest_image_size(locations, fingerprint=fingerprint),
        resize=chosen.resize,
        channels=channels,
        fingerprint=fingerprint,
        on_progress=_tell,
    )


def _own_size(name: str, weights: str) -> tuple[int, int] | None:
    """The size of the colour pictures of a pretrained network, as far as it is known without importing it, or None."""
    from netloom.files import with_home
    from netloom.plain_yaml import parse_yaml

    if weights.endswith(".safetensors"):
        from safetensors import safe_open

        path = with_home(weights)
        with safe_open(path, "np") as file:
            said = (file.metadata() or {}).get("image_size")
        if said is not None:
            height, width = json.loads(said)
            return int(height), int(width)
        if (path.parent / "recipe.yaml").exists():
            return None  # a run's, which is asked by those who have imported torch
    elif weights not in _TIMMS_OWN:
        return None  # a run's folder likewise
    listed = parse_yaml(resources.files("netloom").joinpath("models", "backbones.yaml").read_text(encoding="utf-8"))
    side = {_TIMM + one["name"]: one["own_size"] for one in listed["backbones"]}.get(name)
    return None if side is None else (side, side)


def _tell(done: int, total: int) -> None:
    sys.stdout.write(f"[{done}, {total}]\n")
    sys.stdout.flush()


def _stop_with_stdin() -> None:
    """Interrupt the decoding, which then cleans up, once the process that wanted it is gone or wants it no more."""
    os.read(sys.stdin.fileno(), 1)  # not through the file object, which could not be closed meanwhile
    _thread.interrupt_main()
