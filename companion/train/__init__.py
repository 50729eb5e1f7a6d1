"""Fit one model, an ensemble of them as one program, or a sweep of runs. Knows no particular model."""

from companion.train.ensemble import Ensemble
from companion.train.feed import WarmUp
from companion.train.guard import TrainingDiverged
from companion.train.loop import cosine, fit
from companion.train.records import History
from companion.train.sweep import sweep

__all__ = ["Ensemble", "History", "TrainingDiverged", "WarmUp", "cosine", "fit", "sweep"]
