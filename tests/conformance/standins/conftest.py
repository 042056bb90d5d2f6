"""Stand-in for the conftest of transformers: its markers; our classes in the tables that its tests consult by name."""

import gc

from transformers.models.auto import modeling_auto

import surgenet_hf  # noqa: F401

MARKERS = """
accelerate_tests all_attn_test all_flash_attn_test flash_attn_3_test flash_attn_4_test flash_attn_kernel_test
flash_attn_test fsdp_ci generate hub_retry is_pipeline_test is_staging_test not_device_test run_first slow
tensor_parallel_ci test_memory_cleanup torch_compile_test torch_export_test training_ci
"""


def pytest_configure(config):
    for marker in MARKERS.split():
        config.addinivalue_line("markers", f"{marker}: of transformers")
    modeling_auto.MODEL_MAPPING_NAMES["surgenet"] = "SurgeNetModel"
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["surgenet"] = "SurgeNetForImageClassification"
    modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["surgenet"] = "SurgeNetForSemanticSegmentation"
    modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["surgenet"] = "SurgeNetBackbone"
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["surgical"] = "SurgicalForImageClassification"
    modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["surgical"] = "SurgicalForSemanticSegmentation"


def pytest_collection_finish():
    """Leave the imported modules out of garbage collections, as in tests/conftest.py."""
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()
