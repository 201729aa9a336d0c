"""Things that watch a training and may read, log or stop it; one file each."""

from netloom.training.callbacks.base import Callback, CallbackList
from netloom.training.callbacks.best_weights import BestWeights
from netloom.training.callbacks.csv_log import CSVLog
from netloom.training.callbacks.early_stopping import EarlyStopping
from netloom.training.callbacks.progress import EpochProgress
from netloom.training.callbacks.reduce_on_plateau import ReduceOnPlateau

__all__ = [
    "BestWeights",
    "CSVLog",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "EpochProgress",
    "ReduceOnPlateau",
]
