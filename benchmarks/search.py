"""The Bayesian search of a well-known Keras notebook, whole process against whole process.

    NETLOOM_DATA=… python benchmarks/search.py --peers PYTHON [--rounds 1] [--trials 7] [--epochs 5]

Theirs: bayesian-optimization and Keras on TensorFlow, one training after the other, 2 random and 5 proposed pairs of
dropout (0.1 to 0.5) and learning rate (1e-4 to 1e-2), 40,000 training and 10,000 validation pictures of CIFAR-10, batch
32; the rate is passed to the optimizer, which the notebook forgets. Ours: `netloom tune` on the same space with as many
trials. Both print their best validation accuracy and are timed from start to end of their process; each keeps its
pictures where it likes (ours decodes them before the clock starts if they are cached, theirs reads one .npz file).
`--peers` is a Python with tensorflow and bayesian-optimization, such as that of ./scripts/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

THEIRS = """
import json, sys
import numpy as np
from bayes_opt import BayesianOptimization
import keras
from keras import layers
path, n_init, n_iter, epochs = sys.argv[1], *map(int, sys.argv[2:])
data = np.load(path)
x_train, y_train, x_val, y_val = (data[k] for k in ("x_train", "y_train", "x_val", "y_val"))
x_train, x_val = x_train / np.float32(255), x_val / np.float32(255)
y_train, y_val = keras.utils.to_categorical(y_train), keras.utils.to_categorical(y_val)
def score(dropout, learning_rate):
    model = keras.Sequential([
        keras.Input((32, 32, 3)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dropout(dropout), layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=epochs, batch_size=32, validation_data=(x_val, y_val), verbose=0)
    return model.evaluate(x_val, y_val, verbose=0)[1]
search = BayesianOptimization(score, {"dropout": (0.1, 0.5), "learning_rate": (1e-4, 1e-2)}, random_state=1234,
                              verbose=0)
search.maximize(init_points=n_init, n_iter=n_iter)
print(json.dumps({"best": search.max["target"]}))
"""


def theirs(python: str, data: Path, trials: int, epochs: int) -> dict[str, Any]:
    started = time.perf_counter()
    done = subprocess.run(
        [python, "-c", THEIRS, str(data), "2", str(trials - 2), str(epochs)],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"seconds": time.perf_counter() - started, **json.loads(done.stdout.splitlines()[-1])}


def ours(out: Path, trials: int, epochs: int, sampler: str, pruner: str) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "netloom", "tune", "cifar10", "--recipe", "cifar10-bayes-cnn"),
        *("--space", "dropout=0.1..0.5", "--space", "learning_rate=1e-4..1e-2", "--sampler", sampler),
        *("--init-points", "2", "--pruner", pruner, "--trials", str(trials), "--final-seeds", "0"),
        *("--set", f"epochs={epochs}", "--out", str(out), "--json", "--quiet"),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {
        "seconds": time.perf_counter() - started,
        "best": found["best"]["value"],
        "search_seconds": found["seconds"],
        "jobs": found["jobs"],
    }


def save_pictures(path: Path) -> None:
    """The pictures of netloom's own training part, 40,000 and 10,000 of them, as one file for the other."""
    from netloom.progress import Reporter
    from netloom.recipe import load_recipe
    from netloom.workflows.prepare import prepare_data

    data = prepare_data("cifar10", load_recipe("cifar10-bayes-cnn"), Reporter(quiet=True))
    images = data.image_set.images.permute(0, 2, 3, 1).numpy()
    targets = data.image_set.targets.numpy()
    split = data.split
    np.savez(
        path,
        x_train=images[split.train],
        y_train=targets[split.train],
        x_val=images[split.validation],
        y_val=targets[split.validation],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="Python with tensorflow, keras and bayesian-optimization")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sampler", default="gp")
    parser.add_argument("--pruner", default="none")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        save_pictures(Path(scratch) / "cifar10.npz")
        for number in range(arguments.rounds):
            found = ours(Path(scratch), arguments.trials, arguments.epochs, arguments.sampler, arguments.pruner)
            rows["ours"].append(found)
            print(number, "ours", found, flush=True)
            found = theirs(arguments.peers, Path(scratch) / "cifar10.npz", arguments.trials, arguments.epochs)
            rows["theirs"].append(found)
            print(number, "theirs", found, flush=True)
    seconds = {who: statistics.median(row["seconds"] for row in rows[who]) for who in rows}
    print(json.dumps({"ratio": seconds["theirs"] / seconds["ours"], "seconds": seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
