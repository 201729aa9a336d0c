"""Searches beside each other, whole process against whole process: how long they take, and how long to a good network.

    NETLOOM_DATA=… python -m benchmarks.search --peers PYTHON [--rounds 1] [--trials 7] [--epochs 5] [--only NAME ...]
        [--add]

The task is that of a well-known Keras notebook: a network of two convolutions on CIFAR-10, 40,000 training and 10,000
validation pictures, batch 32, dropout from 0.1 to 0.5 and learning rate from 1e-4 to 1e-2, both linear. Contenders,
each with as many trials in a process of its own, the same pictures and the same split:

- `bayes_opt`: bayesian-optimization (2 random points, then proposals) and Keras on TensorFlow, one training after the
  other: the notebook, but for its forgetting to give the learning rate to the optimizer;
- `keras_tuner`: KerasTuner's Bayesian search, and `keras_tuner_hyperband`, whose brackets decide how many trials it
  makes;
- `optuna`: Optuna's TPE with the median pruner around a plain PyTorch loop;
- `netloom`: `netloom tune` with Gaussian processes, all trials in full, and `netloom_pruned` with the median pruner;
  their first trial is the recipe itself, dropout 0.3 and rate 0.001;
- `netloom_same_trials`: `netloom tune` with the very dropouts and rates that `bayes_opt` tried in the same round.

Every process prints what it has reached as it goes; the epochs of netloom are read from its study's database. Reported
are the seconds of the whole process, the best validation accuracy, and when it first had that. The best of netloom's is
of whole trials. What was measured is recorded in docs/results/programs/search.json, with `--add` beside what is there.
`--peers` is a Python with tensorflow, keras, keras-tuner, bayesian-optimization, optuna and torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import load, save

_KERAS = """
import sys
import numpy as np, keras
from keras import layers
path, trials, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = np.load(path)
x, y, x_val, y_val = (data[k] for k in ("x_train", "y_train", "x_val", "y_val"))
x, x_val = x / np.float32(255), x_val / np.float32(255)
y, y_val = keras.utils.to_categorical(y), keras.utils.to_categorical(y_val)
def network(dropout, learning_rate):
    model = keras.Sequential([
        keras.Input((32, 32, 3)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dropout(dropout), layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])
    return model
def tell(value):
    print("REACHED", float(value), flush=True)
"""

_TUNER = """
import keras_tuner, tempfile
def build(hp):
    return network(hp.Float("dropout", 0.1, 0.5), hp.Float("learning_rate", 1e-4, 1e-2))
class Tell(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        tell(logs["val_accuracy"])
"""

PROGRAMS = {
    "bayes_opt": _KERAS
    + """
from bayes_opt import BayesianOptimization
def score(dropout, learning_rate):
    model = network(dropout, learning_rate)
    model.fit(x, y, epochs=epochs, batch_size=32, validation_data=(x_val, y_val), verbose=0)
    value = model.evaluate(x_val, y_val, verbose=0)[1]
    print("POINT", dropout, learning_rate, flush=True)
    tell(value)
    return value
bounds = {"dropout": (0.1, 0.5), "learning_rate": (1e-4, 1e-2)}
BayesianOptimization(score, bounds, random_state=1234, verbose=0).maximize(init_points=2, n_iter=trials - 2)
""",
    "keras_tuner": _KERAS
    + _TUNER
    + """
tuner = keras_tuner.BayesianOptimization(
    build, "val_accuracy", max_trials=trials, num_initial_points=2, seed=1234, directory=tempfile.mkdtemp())
tuner.search(x, y, epochs=epochs, batch_size=32, validation_data=(x_val, y_val), verbose=0, callbacks=[Tell()])
""",
    "keras_tuner_hyperband": _KERAS
    + _TUNER
    + """
tuner = keras_tuner.Hyperband(
    build, "val_accuracy", max_epochs=epochs, factor=3, seed=1234, directory=tempfile.mkdtemp())
tuner.search(x, y, batch_size=32, validation_data=(x_val, y_val), verbose=0, callbacks=[Tell()])
print("TRIALS", len(tuner.oracle.trials), flush=True)
""",
    "optuna": """
import sys
import numpy as np, optuna, torch
from torch import nn
path, trials, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
optuna.logging.set_verbosity(optuna.logging.WARNING)
data = np.load(path)
def tensors(part):
    return torch.utils.data.TensorDataset(
        torch.from_numpy(data[f"x_{part}"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(data[f"y_{part}"]))
train = torch.utils.data.DataLoader(tensors("train"), batch_size=32, shuffle=True)
validation = torch.utils.data.DataLoader(tensors("val"), batch_size=256)
def objective(trial):
    torch.manual_seed(trial.number)
    dropout = trial.suggest_float("dropout", 0.1, 0.5)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(2304, 10))
    optimizer = torch.optim.Adam(model.parameters(), trial.suggest_float("learning_rate", 1e-4, 1e-2))
    for epoch in range(epochs):
        model.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            value = sum((model(i).argmax(1) == t).sum().item() for i, t in validation) / len(validation.dataset)
        print("REACHED", value, flush=True)
        trial.report(value, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1234, n_startup_trials=2))
study.optimize(objective, n_trials=trials)
""",
}
OURS = {"netloom": "none", "netloom_pruned": "median", "netloom_same_trials": "none"}
_TOLD = re.compile(r"(POINT|TRIALS|REACHED) (.*)")
_ROW = re.compile(r"\|\s*\d+ \|\s*(0\.\d+) \|")


def command(
    name: str, peers: str, data: Path, out: Path, trials: int, epochs: int, points: Sequence[Sequence[float]] = ()
) -> list[str]:
    """How a contender is called; `points` are the dropouts and rates that it shall try, its own without any."""
    if name in PROGRAMS:
        return [peers, "-c", PROGRAMS[name], str(data), str(trials), str(epochs)]
    named = [[f"dropout={dropout!r}", f"learning_rate={rate!r}"] for dropout, rate in points]
    first, *others = named or [[]]
    return [
        *(sys.executable, "-m", "netloom", "tune", "cifar10", "--recipe", "cifar10-bayes-cnn"),
        *("--space", "dropout=0.1..0.5", "--space", "learning_rate=1e-4..1e-2", "--sampler", "gp"),
        *("--init-points", "2", "--pruner", OURS[name], "--trials", str(trials), "--final-seeds", "0"),
        *("--set", f"epochs={epochs}", "--out", str(out)),
        *(part for setting in first for part in ("--set", setting)),
        *(part for values in others for part in ("--try", " ".join(values))),
    ]


def measure(name: str, line: list[str], out: Path) -> dict[str, Any]:
    """Run a contender; what it reached, and when, in seconds since its start, and what it tried if it says so."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = time.perf_counter()
    of_epochs: list[tuple[float, float]] = []
    of_trials: list[tuple[float, float]] = []
    points: list[list[float]] = []
    said: list[str] = []
    n_trials = None
    over = threading.Event()
    watcher = threading.Thread(target=watch_epochs, args=(out, started, of_epochs, over))
    watcher.start()
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            said.append(text)
            now = time.perf_counter() - started
            if name in OURS and (row := _ROW.match(text)):
                of_trials.append((now, float(row[1])))
            elif told := _TOLD.match(text):
                numbers = [float(number) for number in told[2].split()]
                if told[1] == "REACHED":
                    of_trials.append((now, numbers[0]))
                elif told[1] == "POINT":
                    points.append(numbers)
                else:
                    n_trials = int(numbers[0])
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{''.join(said[-20:])}")
    best = max(value for _, value in of_trials)
    # An epoch in the middle of a trial is worth no more than what a whole trial has kept.
    reached = sorted([*of_trials, *((seconds, value) for seconds, value in of_epochs if value <= best + 5e-5)])
    found = {"seconds": time.perf_counter() - started, "best": best, "reached": reached}
    return {**found, **({"points": points} if points else {}), **({"trials": n_trials} if n_trials else {})}


def watch_epochs(out: Path, started: float, reached: list[tuple[float, float]], over: threading.Event) -> None:
    """Note when a study in `out`, if there is one, has a better epoch than before."""
    best = 0.0
    while not over.wait(0.5):
        for database in out.glob("*/study.db"):
            with contextlib.suppress(sqlite3.Error), contextlib.closing(_read_only(database)) as study:
                (value,) = study.execute("SELECT max(intermediate_value) FROM trial_intermediate_values").fetchone()
                if value is not None and value > best:
                    best = value
                    reached.append((time.perf_counter() - started, value))


def _read_only(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)


def save_pictures(path: Path) -> None:
    """The pictures of netloom's own split as one file for the others."""
    from netloom.progress import Reporter
    from netloom.recipe import load_recipe
    from netloom.workflows.prepare import prepare_data

    data = prepare_data("cifar10", load_recipe("cifar10-bayes-cnn"), Reporter(quiet=True))
    images, targets = data.image_set.images.permute(0, 2, 3, 1).numpy(), data.image_set.targets.numpy()
    train, validation = data.split.train, data.split.validation
    np.savez(path, x_train=images[train], y_train=targets[train], x_val=images[validation], y_val=targets[validation])


def main() -> None:
    names = [*PROGRAMS, *OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="interpreter with the other libraries")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--add", action="store_true", help="keep the rounds that are recorded already")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.only}
    others = OtherWork()
    about = {"trials": arguments.trials, "epochs": arguments.epochs}
    if "netloom_same_trials" in arguments.only and "bayes_opt" not in arguments.only:
        parser.error("netloom_same_trials needs bayes_opt in the same round, whose trials it repeats")
    recorded = load("search") if arguments.add else None
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "cifar10.npz"
        save_pictures(data)
        for number in range(arguments.rounds):
            for name in arguments.only:
                out = Path(scratch) / f"{name}-{number}"
                points = found["bayes_opt"][-1]["points"] if name == "netloom_same_trials" else ()
                line = command(name, arguments.peers, data, out, arguments.trials, arguments.epochs, points)
                found[name].append(measure(name, line, out))
                last = found[name][-1]
                print(number, name, f"{last['seconds']:.1f} s, best {last['best']:.4f}", flush=True)
                save("search", {name: found[name]}, about, others, beside=recorded)


if __name__ == "__main__":
    main()
