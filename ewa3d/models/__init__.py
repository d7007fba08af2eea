"""Point-cloud transformers by name, and their weights in and out."""

from .backbone import PointTransformer
from .classification import PointClassifier
from .hub import push_to_hub
from .pretrained import LoadReport, from_pretrained, load_pretrained, save_pretrained
from .pretraining import MaskedAutoencoder
from .registry import create_model, list_models
from .segmentation import PartSegmenter

__all__ = [
    "LoadReport",
    "MaskedAutoencoder",
    "PartSegmenter",
    "PointClassifier",
    "PointTransformer",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "push_to_hub",
    "save_pretrained",
]
