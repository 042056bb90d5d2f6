import pytest
import torch

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForSemanticSegmentation, SurgeNetModel
from tests.inference.models import phase_model, save_models


@pytest.fixture(scope="session")
def models(tiny_config, tmp_path_factory):
    """Return a folder with a model of each task. The model `live_phases` needs 20 frames per second."""
    torch.manual_seed(0)
    labels = {
        "id2label": {0: "background", 1: "liver", 2: "tool"},
        "label2id": {"background": 0, "liver": 1, "tool": 2},
    }
    models = {
        "masks": SurgeNetForSemanticSegmentation(tiny_config(**labels)),
        "criteria": SurgeNetForImageClassification(tiny_config(problem_type="multi_label_classification")),
        "classes": SurgeNetForImageClassification(tiny_config(problem_type="single_label_classification")),
        "phases": phase_model(tiny_config, 2.0),
        "live_phases": phase_model(tiny_config, 20.0),
        "backbone": SurgeNetModel(tiny_config()),
    }
    return save_models(tmp_path_factory.mktemp("models"), models)
