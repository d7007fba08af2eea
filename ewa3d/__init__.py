"""Train point-cloud transformers as mixtures of experts; ship them as the plain transformers they were.

>>> import ewa3d
>>> model = ewa3d.create_model("point_mae_small", num_classes=40)
>>> model = ewa3d.upcycle(model, num_experts=4, every=2)
>>> averager = ewa3d.ExpertAverager(model, share_rate=0.3, total_steps=1000)
>>> averager.step()  # after every optimizer.step()
>>> dense = ewa3d.merge(model)
>>> ewa3d.predict(dense, points).top(3)  # (N, 3), any N
"""

from .engine.predict import predict
from .errors import Ewa3dError
from .ewa import ExpertAverager, Experts, aux_loss, merge, upcycle
from .models import create_model, from_pretrained, list_models, load_pretrained, push_to_hub, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "Ewa3dError",
    "ExpertAverager",
    "Experts",
    "aux_loss",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "merge",
    "predict",
    "push_to_hub",
    "save_pretrained",
    "upcycle",
]
