"""transformers' common tests for the heads on any backbone, here on a small ConvNext."""

import unittest

from transformers import ConvNextConfig

from surgenet_hf import SurgicalConfig, SurgicalForImageClassification, SurgicalForSemanticSegmentation

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor


class SurgicalModelTester:
    def __init__(self):
        self.batch_size, self.num_channels, self.image_size, self.num_labels = 3, 3, 64, 10
        self.is_training = True

    def get_config(self):
        backbone = ConvNextConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage1", "stage2", "stage3", "stage4"]
        )
        return SurgicalConfig(backbone_config=backbone, head_channels=32, num_labels=self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": floats_tensor(shape)}


class SurgicalModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SurgicalForImageClassification, SurgicalForSemanticSegmentation)
    test_resize_embeddings = False  # there are no token embeddings
    has_attentions = False
    # else skipped, for want of a "# Copyright 2023" or later in the file of the config
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = SurgicalModelTester()
        self.config_tester = ConfigTester(self, config_class=SurgicalConfig, has_text_modality=False, head="linear")

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="a vision model without token embeddings")
    def test_model_get_set_embeddings(self):
        pass

    def test_bc_torch_dtype(self):
        """On one class: both share from_pretrained, which the test calls 56 times for a class."""
        self.all_model_classes = (SurgicalForSemanticSegmentation,)
        super().test_bc_torch_dtype()

    @unittest.skip(reason="the heads return no hidden states")
    def test_hidden_states_output(self):
        pass

    @unittest.skip(reason="the heads return no hidden states")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip(reason="it reads the file of the backbone with the config of the whole model")
    def test_correct_missing_keys(self):
        pass
