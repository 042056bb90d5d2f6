"""Code of this package in Hub repositories, by model type."""

from .. import (
    configuration_surgenet,
    configuration_surgenet_phase,
    configuration_surgical,
    modeling_surgenet,
    modeling_surgenet_phase,
    modeling_surgical,
)

# modules in a repository, so that trust_remote_code works without this package
REMOTE_CODE = {
    "surgenet": (configuration_surgenet, modeling_surgenet),
    "surgenet_phase": (
        configuration_surgenet,
        modeling_surgenet,
        configuration_surgenet_phase,
        modeling_surgenet_phase,
        configuration_surgical,
        modeling_surgical,
    ),
    "surgical": (configuration_surgical, modeling_surgical),
}
# classes in this code that the Auto classes load
AUTO_MAP = {
    "surgenet": {
        "AutoConfig": "configuration_surgenet.SurgeNetConfig",
        "AutoModel": "modeling_surgenet.SurgeNetModel",
        "AutoBackbone": "modeling_surgenet.SurgeNetBackbone",
        "AutoModelForImageClassification": "modeling_surgenet.SurgeNetForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_surgenet.SurgeNetForSemanticSegmentation",
    },
    "surgenet_phase": {
        "AutoConfig": "configuration_surgenet_phase.SurgeNetPhaseConfig",
        "AutoModel": "modeling_surgenet_phase.SurgeNetForPhaseRecognition",
    },
    "surgical": {
        "AutoConfig": "configuration_surgical.SurgicalConfig",
        "AutoModelForImageClassification": "modeling_surgical.SurgicalForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_surgical.SurgicalForSemanticSegmentation",
    },
}
