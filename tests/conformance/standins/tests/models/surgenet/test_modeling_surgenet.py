"""transformers' common tests for all SurgeNet classes on one backbone, and for two of them on the other backbones.

The classes share their encoders, and the heads know only the maps of an encoder. `tests/test_modeling_surgenet.py`
tests all classes on all backbones.
"""

import os
import tempfile
import unittest

import pytest
import torch
from safetensors.torch import save_file
from transformers.testing_utils import torch_device

from surgenet_hf import (
    SurgeNetBackbone,
    SurgeNetConfig,
    SurgeNetForImageClassification,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor

WIDTHS = {
    "caformer_s18": [16, 24, 32, 64],
    "convnextv2_tiny": [8, 16, 24, 32],
    "pvt_v2_b2": [8, 16, 20, 32],
}


class SurgeNetModelTester:
    def __init__(self, backbone):
        self.backbone = backbone
        self.batch_size, self.num_channels, self.image_size, self.num_labels = 3, 3, 64, 10
        self.is_training = True

    def get_config(self):
        return SurgeNetConfig(
            backbone=self.backbone,
            depths=[1, 1, 1, 1],
            hidden_sizes=WIDTHS[self.backbone],
            pyramid_channels=32,
            segmentation_channels=32,
            num_labels=self.num_labels,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": floats_tensor(shape)}


class ModelTests(ModelTesterMixin):
    all_model_classes = (
        SurgeNetModel,
        SurgeNetBackbone,
        SurgeNetForImageClassification,
        SurgeNetForSemanticSegmentation,
    )
    test_resize_embeddings = False  # there are no token embeddings
    has_attentions = False  # stages without attention have no maps to return, and timm's blocks return none
    # else skipped, for want of a "# Copyright 2023" or later in the file of the config
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = SurgeNetModelTester(self.backbone)
        self.config_tester = ConfigTester(
            self,
            config_class=SurgeNetConfig,
            has_text_modality=False,
            common_properties=["backbone", "depths", "hidden_sizes", "num_channels"],
            backbone=self.backbone,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="a vision model without token embeddings")
    def test_model_get_set_embeddings(self):
        pass

    def test_model_weights_reload_no_missing_tied_weights(self):
        """The common test loads a file without any of the weights, which from_pretrained refuses on purpose."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                model_class(config).save_pretrained(folder)
                weights = os.path.join(folder, "model.safetensors")
                save_file({"tensor": torch.tensor([1, 2])}, weights, metadata={"format": "pt"})
                with pytest.raises(ValueError, match="do not match this backbone"):
                    model_class.from_pretrained(folder)

    def test_bc_torch_dtype(self):
        """On one class: all share from_pretrained, and the test loads each of them 14 times."""
        self.all_model_classes = (SurgeNetForImageClassification,)
        super().test_bc_torch_dtype()

    def test_hidden_states_output(self):
        """Five maps (the common test expects the tokens of a transformer): the stem's and those of the four stages."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        channels = [config.hidden_sizes[0], *config.hidden_sizes]
        expected = [
            (self.model_tester.batch_size, width, 64 // stride, 64 // stride)
            for width, stride in zip(channels, (4, 4, 8, 16, 32), strict=True)
        ]
        for model_class in self.all_model_classes:
            for by_config in (True, False):
                config.output_hidden_states = by_config
                model = model_class(config).to(torch_device).eval()
                with torch.no_grad():
                    outputs = model(**inputs) if by_config else model(**inputs, output_hidden_states=True)
                assert [tuple(hidden.shape) for hidden in outputs.hidden_states] == expected


class CaformerModelTest(ModelTests, unittest.TestCase):
    backbone = "caformer_s18"


class OtherBackboneTests(ModelTests):
    all_model_classes = (SurgeNetModel, SurgeNetForSemanticSegmentation)

    @unittest.skip(reason="from_pretrained treats all backbones in the same way")
    def test_bc_torch_dtype(self):
        pass


class ConvNextV2ModelTest(OtherBackboneTests, unittest.TestCase):
    backbone = "convnextv2_tiny"


class PvtV2ModelTest(OtherBackboneTests, unittest.TestCase):
    backbone = "pvt_v2_b2"


class BackboneTests(BackboneTesterMixin):
    all_model_classes = (SurgeNetBackbone,)
    config_class = SurgeNetConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = SurgeNetModelTester(self.backbone)


class CaformerBackboneTest(BackboneTests, unittest.TestCase):
    backbone = "caformer_s18"


class ConvNextV2BackboneTest(BackboneTests, unittest.TestCase):
    backbone = "convnextv2_tiny"


class PvtV2BackboneTest(BackboneTests, unittest.TestCase):
    backbone = "pvt_v2_b2"
