"""Named data sets as tensors with a card, embedded or downloaded and checked, and device-resident batches."""

from companion.data.batches import Batches
from companion.data.cache import DataCorrupt, DataMissing, cache_dir
from companion.data.cards import Card, Dataset
from companion.data.catalogue import card, fetch, load, names, status
from companion.data.sprites import Sprites

__all__ = [
    "Batches",
    "Card",
    "DataCorrupt",
    "DataMissing",
    "Dataset",
    "Sprites",
    "cache_dir",
    "card",
    "fetch",
    "load",
    "names",
    "status",
]
