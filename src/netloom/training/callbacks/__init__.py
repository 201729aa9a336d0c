"""Things that watch a training and may read, log or stop it; one file each."""

from netloom.training.callbacks.base import Callback, CallbackList
from netloom.training.callbacks.best_weights import BestWeights
from netloom.training.callbacks.csv_log import CSVLog
from netloom.training.callbacks.early_stopping import EarlyStopping
from netloom.training.callbacks.epoch_weights import EpochWeights
from netloom.training.callbacks.lookahead import Lookahead
from netloom.training.callbacks.profile import Profile
from netloom.training.callbacks.progress import EpochProgress
from netloom.training.callbacks.reduce_on_plateau import ReduceOnPlateau
from netloom.training.callbacks.tensorboard import TensorBoard, require_tensorboard
from netloom.training.callbacks.time_limit import TimeLimit
from netloom.training.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "BestWeights",
    "CSVLog",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "EpochProgress",
    "EpochWeights",
    "Lookahead",
    "Profile",
    "ReduceOnPlateau",
    "TensorBoard",
    "TimeLimit",
    "WeightAveraging",
    "require_tensorboard",
]
