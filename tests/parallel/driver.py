"""A driver to be killed: starts two endless tasks, prints their processes, and waits for its end.

Run as `driver.py TASK`, or `driver.py TASK ray` for processes of a Ray cluster of this machine.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from netloom.parallel.local import LocalExecutor
from netloom.parallel.ray_cluster import RayExecutor
from netloom.parallel.tasks import Event, Reported, Task
from parallel import work


def tell(event: Event) -> None:
    if isinstance(event, Reported) and event.values:
        sys.stdout.write(f"{event.values['process']}\n")
        sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background deaf to it
    folder = tempfile.mkdtemp()
    sys.stdout.write(f"{folder}\n")
    sys.stdout.flush()
    with RayExecutor("local", 2) if sys.argv[2:] == ["ray"] else LocalExecutor(2, remove=[folder]) as executor:
        executor.run([Task(name, getattr(work, sys.argv[1])) for name in "ab"], tell)


if __name__ == "__main__":
    main()
