import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments, set_seed

import surgenet_hf
from surgenet_hf import (
    SurgeNetConfig,
    SurgeNetForImageClassification,
    SurgeNetForPhaseRecognition,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
    SurgeNetPhaseConfig,
)
from surgenet_hf.modeling_surgenet_phase import phase_loss

WIDTH = 64  # size of the tiny backbone's embedding
PHASES = ["preparation", "dissection", "clipping", "retrieval"]


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)


@pytest.fixture
def phase_config(tiny_config):
    """Return a function `phase_config(**changes)` that builds the config of a tiny phase model.

    It has a tiny backbone, 2 stages of 3 layers, 4 phases, and a receptive field of 29 frames.
    """

    def build(backbone="caformer_s18", **changes):
        sizes = {"num_layers": 3, "num_feature_maps": 16, "num_labels": 4}
        return SurgeNetPhaseConfig(**{"backbone_config": tiny_config(backbone), **sizes, **changes})

    return build


@pytest.fixture
def model(phase_config):
    return SurgeNetForPhaseRecognition(phase_config()).eval()


def stream(model, frames):
    """Pass frames (B, T, ...) to the model one at a time.

    Returns:
        Tuple of the logits (B, T, K) and the last state.
    """
    state, outputs = None, []
    for t in range(frames.shape[1]):
        logits, state = model.stream(frames[:, t], state)
        outputs.append(logits)
    return torch.stack(outputs, dim=1), state


def assert_same(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def assert_within(fraction, actual, expected):
    """Assert that no value is off by more than `fraction` of the largest expected value."""
    assert_same(actual, expected, rtol=0, atol=fraction * expected.abs().max().item())


# ------------------------------------------------------------------------------------------------------ configuration


def test_defaults():
    config = SurgeNetPhaseConfig()
    assert config.backbone_config.to_dict() == SurgeNetConfig().to_dict()
    assert (config.num_stages, config.num_layers, config.num_feature_maps) == (2, 9, 64)
    assert (config.smoothing_weight, config.smoothing_threshold, config.dropout) == (0.25, 4, 0.5)
    assert (config.stage_reduction, config.ignore_index, config.frames_per_second) == ("sum", -100, 1)
    assert config.receptive_field == 2045


def test_every_field_survives_save_and_load(backbone, tiny_config, phase_config, tmp_path):
    provenance = {"name": "SurgeNetXL", "sha256": "0" * 64}
    changes = {
        "num_stages": 3,
        "dropout": 0,
        "smoothing_weight": 0.5,
        "smoothing_threshold": 2.5,
        "stage_reduction": "mean",
        "ignore_index": -1,
        "frames_per_second": 5,
        "id2label": dict(enumerate(PHASES)),
        "label2id": {name: i for i, name in enumerate(PHASES)},
    }
    nested = tiny_config(backbone, pretraining=provenance, drop_path_rate=0.1)
    config = phase_config(backbone_config=nested.to_dict(), **changes)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SurgeNetPhaseConfig
    assert type(loaded.backbone_config) is SurgeNetConfig
    for name, value in changes.items():
        assert getattr(loaded, name) == value
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert loaded.backbone_config.drop_path_rate == 0.1
    # results and leakage notes read these attributes of any model
    assert loaded.pretraining == loaded.backbone_config.pretraining == provenance
    assert (loaded.backbone, loaded.activation) == (nested.backbone, nested.activation)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_stages": 0}, "num_stages must be positive, got 0"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"num_feature_maps": -1}, "num_feature_maps must be positive, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"smoothing_weight": -0.1}, "smoothing_weight must not be negative"),
        ({"smoothing_threshold": 0}, "smoothing_threshold must be above 0, got 0"),
        ({"stage_reduction": "max"}, "stage_reduction must be 'sum' or 'mean', got 'max'"),
        ({"frames_per_second": 0}, "frames_per_second must be above 0, got 0"),
        ({"num_labels": 1}, "num_labels must be at least 2"),
        ({"num_layers": "9"}, "expected int, got str"),
        ({"backbone_config": {"model_type": "mine"}}, "does not know the model type 'mine' of backbone_config"),
        ({"backbone_config": {"hidden_sizes": [1, 2, 3]}}, "hidden_sizes must be four positive numbers"),
        ({"backbone": "pvt_v2_b2"}, "give backbone_config"),
    ],
)
def test_what_makes_no_model_is_refused_with_the_reason(changes, reason):
    with pytest.raises((ValueError, StrictDataclassError), match=reason):
        SurgeNetPhaseConfig(**changes)


# ------------------------------------------------------------------------------------------------------------- shapes


def test_outputs_have_the_documented_shapes(backbone, phase_config):
    model = SurgeNetForPhaseRecognition(phase_config(backbone, num_stages=3)).eval()
    width = model.config.backbone_config.hidden_sizes[-1]
    pixel_values, labels = torch.randn(2, 5, 3, 32, 64), torch.randint(4, (2, 5))
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels)
        again = model(features=outputs.features)
        separately = torch.stack([model.extract_features(video) for video in pixel_values])
    assert outputs.loss.shape == ()
    assert outputs.logits.shape == (2, 5, 4)
    assert outputs.stage_logits.shape == (3, 2, 5, 4)
    assert outputs.features.shape == separately.shape == (2, 5, width)
    assert_same(outputs.logits, outputs.stage_logits[-1])
    assert again.loss is None
    assert_same(again.logits, outputs.logits)
    assert_same(separately, outputs.features, rtol=1e-5, atol=1e-5)
    assert_same(model(features=outputs.features, return_dict=False)[0], again.logits)


def test_features_do_not_touch_the_backbone(model):
    model.surgenet = None
    assert model(features=torch.randn(1, 3, WIDTH)).logits.shape == (1, 3, 4)
    assert model.stream(torch.randn(1, WIDTH))[0].shape == (1, 4)


def test_wrong_inputs_are_named(model):
    video, features = torch.randn(1, 3, 3, 32, 32), torch.randn(1, 3, WIDTH)
    for both_or_neither in ({}, {"pixel_values": video, "features": features}):
        with pytest.raises(ValueError, match="give either pixel_values"):
            model(**both_or_neither)
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, T, num_channels, H, W\), got \(3, 3, 32, 32\)"):
        model(video[0])
    for wrong in (features[..., :-1], features[0], features[:, :0]):
        with pytest.raises(ValueError, match=r"features must be \(B, T, 64\)"):
            model(features=wrong)
    with pytest.raises(
        ValueError, match=r"labels must have one class id per frame, shape \(B, T\) = \(1, 3\), got \(1, 2\)"
    ):
        model(features=features, labels=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(IndexError):
        model(features=features, labels=torch.full((1, 3), 4))
    with pytest.raises(TypeError, match="lengths"):
        model(features=features, lengths=torch.tensor([3]))
    # errors of the stream
    with pytest.raises(ValueError, match=r"a frame must be .*, got \(1, 3, 64\)"):
        model.stream(features)
    with pytest.raises(ValueError, match=r"features must be \(B, T, 64\)"):
        model.stream(features[:, 0, :5])
    _, state = model.stream(features[:, 0])
    with pytest.raises(ValueError, match="state does not match this model and 2 videos"):
        model.stream(torch.randn(2, WIDTH), state)
    with pytest.raises(ValueError, match="state does not match this model and 1 videos"):
        model.stream(features[:, 0], state[1:])
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        model.train().stream(features[:, 0])


def test_outputs_worked_out_frame_by_frame(model):
    """Test TeCNO's causal form of MS-TCN as defined in the paper, one frame and one layer at a time."""

    def weights(convolution):
        return convolution.weight.double(), convolution.bias.double()

    def at(frames, t):
        return frames[t] if t >= 0 else torch.zeros_like(frames[0])

    features = torch.randn(20, WIDTH, dtype=torch.float64)
    frames, expected = list(features), []
    for stage in model.stages:
        weight, bias = weights(stage.projection)
        frames = [weight[..., 0] @ frame + bias for frame in frames]
        for i, layer in enumerate(stage.layers):
            (dilated, bias), (pointwise, second_bias) = weights(layer.dilated), weights(layer.pointwise)
            updates = []
            for t in range(20):
                taps = (at(frames, t - 2 * 2**i), at(frames, t - 2**i), frames[t])
                hidden = sum(dilated[..., j] @ tap for j, tap in enumerate(taps)) + bias
                updates.append(pointwise[..., 0] @ hidden.relu() + second_bias)
            frames = [frame + update for frame, update in zip(frames, updates, strict=True)]
        weight, bias = weights(stage.classifier)
        logits = [weight[..., 0] @ frame + bias for frame in frames]
        expected.append(torch.stack(logits))
        frames = [frame.softmax(dim=0) for frame in logits]
    with torch.no_grad():
        stage_logits = model(features=features[None].float()).stage_logits[:, 0]
    assert_within(1e-5, stage_logits.double(), torch.stack(expected).detach())


# ---------------------------------------------------------------------------------------------- causality and streams


@pytest.mark.parametrize("length", [1, 2, 28, 29, 30, 100])
@pytest.mark.parametrize(("num_stages", "num_layers"), [(1, 1), (2, 3), (3, 3)])
def test_a_stream_gives_what_the_whole_video_gives(num_stages, num_layers, length, phase_config):
    model = SurgeNetForPhaseRecognition(phase_config(num_stages=num_stages, num_layers=num_layers)).eval()
    assert model.config.receptive_field == {(1, 1): 3, (2, 3): 29, (3, 3): 43}[num_stages, num_layers]
    features = torch.randn(2, length, WIDTH)
    with torch.no_grad():
        expected = model(features=features).logits
    actual, _ = stream(model, features)
    assert_within(1e-5, actual, expected)


def test_a_stream_of_images_of_all_backbones(backbone, phase_config):
    model = SurgeNetForPhaseRecognition(phase_config(backbone)).eval()
    pixel_values = torch.randn(2, 6, 3, 48, 64)
    with torch.no_grad():
        expected = model(pixel_values).logits
    actual, _ = stream(model, pixel_values)
    assert_within(1e-5, actual, expected)


@pytest.mark.slow
def test_a_stream_at_full_depth_beyond_its_receptive_field(phase_config):
    config = phase_config(num_stages=1, num_layers=9)
    model = SurgeNetForPhaseRecognition(config).eval()
    features = torch.randn(1, config.receptive_field + 55, WIDTH)
    with torch.no_grad():
        expected = model(features=features).logits
    actual, _ = stream(model, features)
    assert_within(1e-5, actual, expected)


@pytest.mark.slow
def test_the_state_of_a_stream_never_grows(model):
    sizes = set()
    state = None
    for _ in range(2000):
        logits, state = model.stream(torch.randn(1, WIDTH), state)
        assert not logits.requires_grad
        sizes.add(tuple((past.shape, past.untyped_storage().nbytes()) for past in state))
    (size,) = sizes
    assert [shape[-1] for shape, _ in size] == [2, 4, 8] * 2
    assert sum(nbytes for _, nbytes in size) <= 4 * 16 * (model.config.receptive_field + len(state))


def test_a_frame_can_be_tried_again_from_the_state_before_it(model):
    first, frame = torch.randn(2, 1, WIDTH)
    _, state = model.stream(first)
    kept = copy.deepcopy(state)
    expected, _ = model.stream(frame, state)
    model.stream(torch.randn(1, WIDTH), state)
    assert_same(state, kept)
    assert_same(model.stream(frame, state)[0], expected)


def test_no_output_changes_when_later_frames_change(model):
    features = torch.randn(2, 40, WIDTH)
    with torch.no_grad():
        expected = model(features=features).stage_logits
        for t in range(40):
            changed = features.clone()
            changed[:, t + 1 :] = 100 * torch.randn(2, 39 - t, WIDTH)
            found = model(features=changed).stage_logits
            assert_same(found[:, :, : t + 1], expected[:, :, : t + 1])
            assert t == 39 or not torch.equal(found, expected)
            # missing later frames change nothing, either: no layer normalizes over the length of the video
            assert_within(1e-5, model(features=features[:, : t + 1]).stage_logits, expected[:, :, : t + 1])


def test_no_output_changes_when_later_images_change(backbone, phase_config):
    model = SurgeNetForPhaseRecognition(phase_config(backbone)).eval()
    pixel_values = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values).logits
        for t in range(4):
            changed = pixel_values.clone()
            changed[:, t + 1 :] = torch.randn(1, 3 - t, 3, 32, 32)
            assert_same(model(changed).logits[:, : t + 1], expected[:, : t + 1])


def test_an_output_depends_on_its_receptive_field_and_nothing_else(phase_config):
    config = phase_config(dropout=0)
    model = SurgeNetForPhaseRecognition(config).double().train()
    with torch.no_grad():
        for parameter in model.stages.parameters():
            parameter.uniform_(0.01, 0.05)  # every path contributes: no ReLU is inactive
    features = torch.rand(1, 40, WIDTH, dtype=torch.float64).mul_(0.1).requires_grad_()
    for t in (0, 27, 28, 29, 39):
        (gradient,) = torch.autograd.grad(model(features=features).logits[0, t, 0], features)
        used = gradient[0].any(dim=-1).nonzero().flatten().tolist()
        assert used == list(range(max(0, t + 1 - config.receptive_field), t + 1))


def test_nothing_is_normalised(model):
    kinds = {type(module) for module in model.stages.modules() if not list(module.children())}
    assert kinds == {nn.Conv1d, nn.Dropout}


def test_right_padding_is_harmless(model):
    lengths, longest = (7, 20), 20
    videos = [torch.randn(length, WIDTH) for length in lengths]
    labels = [torch.randint(4, (length,)) for length in lengths]
    features = torch.full((2, longest, WIDTH), 1e3)
    padded_labels = torch.full((2, longest), -100)
    for i, length in enumerate(lengths):
        features[i, :length], padded_labels[i, :length] = videos[i], labels[i]
    outputs = model(features=features, labels=padded_labels)
    for i, length in enumerate(lengths):
        alone = model(features=videos[i][None], labels=labels[i][None])
        assert_within(1e-5, outputs.logits[i, :length], alone.logits[0])
    # the loss gives frames and pairs equal weights, regardless of their position and of the padding
    features[0, 7:] = 0
    assert_same(model(features=features, labels=padded_labels).loss, outputs.loss, rtol=1e-5, atol=1e-6)
    longer = nn.functional.pad(features, (0, 0, 0, 9)), nn.functional.pad(padded_labels, (0, 9), value=-100)
    assert_same(model(features=longer[0], labels=longer[1]).loss, outputs.loss, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_worked_by_hand():
    """Test the loss for probabilities (1/2, 1/2), (8/9, 1/9), (1/2, 1/2) and labels 0, 0, 1."""
    probabilities = torch.tensor([[1 / 2, 1 / 2], [8 / 9, 1 / 9], [1 / 2, 1 / 2]])
    stage_logits = probabilities.log()[None, None] + 5  # logits are defined up to a constant
    labels = torch.tensor([[0, 0, 1]])
    cross_entropy = (math.log(2) + math.log(9 / 8) + math.log(2)) / 3
    up, down = math.log(16 / 9), math.log(9 / 2)  # |differences| of the two log-probabilities, both steps
    smoothing = (up**2 + down**2) / 2
    assert phase_loss(stage_logits, labels).item() == pytest.approx(cross_entropy + 0.25 * smoothing, rel=1e-5)
    truncated = (up**2 + 1) / 2
    assert phase_loss(stage_logits, labels, 0.5, 1.0).item() == pytest.approx(
        cross_entropy + 0.5 * truncated, rel=1e-5
    )
    assert phase_loss(stage_logits, labels, 0).item() == pytest.approx(cross_entropy, rel=1e-5)
    # the losses of stages add up
    assert phase_loss(stage_logits.repeat(3, 1, 1, 1), labels).item() == pytest.approx(
        3 * phase_loss(stage_logits, labels).item(), rel=1e-5
    )
    assert phase_loss(stage_logits.repeat(3, 1, 1, 1), labels, stage_reduction="mean").item() == pytest.approx(
        phase_loss(stage_logits, labels).item(), rel=1e-5
    )
    # without the last frame: neither its cross-entropy nor the second step
    shorter = (math.log(2) + math.log(9 / 8)) / 2 + 0.25 * smoothing
    assert phase_loss(stage_logits, torch.tensor([[0, 0, -100]])).item() == pytest.approx(shorter, rel=1e-5)
    # without the middle frame no neighbors remain
    assert phase_loss(stage_logits, torch.tensor([[0, -100, 1]])).item() == pytest.approx(math.log(2), rel=1e-5)
    # a weighted mean
    weights = torch.tensor([1.0, 3.0])
    weighted = (math.log(2) + math.log(9 / 8) + 3 * math.log(2)) / 5
    assert phase_loss(stage_logits, labels, 0, class_weights=weights).item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.slow
def test_new_models_have_the_authors_loss_and_saved_ones_keep_theirs(tiny_config, tmp_path):
    backbone = SurgeNetModel(tiny_config())
    model = SurgeNetForPhaseRecognition.from_backbone(backbone, num_labels=3, num_layers=2).eval()
    assert (model.config.smoothing_weight, model.config.stage_reduction) == (0.15, "mean")
    features, labels = torch.randn(1, 6, 64), torch.tensor([[0, 0, 1, 1, 2, 2]])
    outputs = model(features=features, labels=labels)
    assert_same(outputs.loss, phase_loss(outputs.stage_logits, labels, 0.15) / 2)
    own = SurgeNetForPhaseRecognition.from_backbone(backbone, num_labels=3, smoothing_weight=0.25)
    assert own.config.smoothing_weight == 0.25

    # the config of an earlier version has no stage_reduction
    model.config.smoothing_weight = 0.25
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["stage_reduction"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    old = SurgeNetForPhaseRecognition.from_pretrained(tmp_path).eval()
    outputs = old(features=features, labels=labels)
    assert_same(outputs.loss, phase_loss(outputs.stage_logits, labels))


def test_the_loss_as_nested_loops():
    stage_logits = 6 * torch.randn(2, 3, 9, 4)
    labels = torch.randint(4, (3, 9))
    labels[0, 5:], labels[1, 3] = -1, -1
    log_probs = stage_logits.log_softmax(-1).tolist()
    expected = 0
    for stage in log_probs:
        frames, pairs = [], []
        for b in range(3):
            for t in range(9):
                if labels[b, t] == -1:
                    continue
                frames.append(-stage[b][t][labels[b, t]])
                if t and labels[b, t - 1] != -1:
                    steps = [abs(stage[b][t][k] - stage[b][t - 1][k]) for k in range(4)]
                    pairs.append(sum(min(step, 4) ** 2 for step in steps) / 4)
        expected += sum(frames) / len(frames) + 0.25 * sum(pairs) / len(pairs)
    assert phase_loss(stage_logits, labels, ignore_index=-1).item() == pytest.approx(expected, rel=1e-5)


def test_smoothing_pulls_a_frame_to_the_one_before_not_back():
    stage_logits = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]]]], requires_grad=True)
    labels = torch.zeros(1, 2, dtype=torch.int64)
    difference = phase_loss(stage_logits, labels, 1.0) - phase_loss(stage_logits, labels, 0.0)
    (gradient,) = torch.autograd.grad(difference, stage_logits)
    assert_same(gradient[0, 0, 0], torch.zeros(2))
    assert gradient[0, 0, 1, 0] > 0


def test_the_model_takes_its_loss_from_the_config(phase_config):
    features, labels = torch.randn(2, 6, WIDTH), torch.tensor([[0, 1, 1, 2, 9, 9], [3, 3, 0, 0, 1, 9]])
    config = phase_config(smoothing_weight=0.7, smoothing_threshold=0.01, ignore_index=9)
    model = SurgeNetForPhaseRecognition(config).eval()
    outputs = model(features=features, labels=labels)
    assert_same(outputs.loss, phase_loss(outputs.stage_logits, labels, 0.7, 0.01, 9))


@pytest.mark.parametrize("length", [1, 5])
def test_a_batch_of_padding_costs_nothing(length, model):
    loss = model(features=torch.randn(2, length, WIDTH), labels=torch.full((2, length), -100)).loss
    assert loss.item() == 0
    loss.backward()
    assert all(not parameter.grad.any() for parameter in model.stages.parameters())


def test_a_video_of_one_frame_has_no_smoothing(model):
    features, labels = torch.randn(3, 1, WIDTH), torch.tensor([[0], [3], [1]])
    outputs = model(features=features, labels=labels)
    expected = sum(nn.functional.cross_entropy(logits[:, 0], labels[:, 0]) for logits in outputs.stage_logits)
    assert_same(outputs.loss, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- saving and loading


def test_save_and_load(backbone, phase_config, tmp_path):
    model = SurgeNetForPhaseRecognition(phase_config(backbone)).eval()
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 3, 32, 32)
    for loader in (AutoModel, SurgeNetForPhaseRecognition):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is SurgeNetForPhaseRecognition
        assert not any(info.values()), info
        assert not loaded.training
        with torch.no_grad():
            assert_same(loaded(pixel_values).stage_logits, model(pixel_values).stage_logits)
    assert type(AutoModel.from_config(loaded.config)) is SurgeNetForPhaseRecognition
    # the reverse: the backbone of a phase model
    assert_same(SurgeNetModel.from_pretrained(tmp_path).state_dict(), model.surgenet.state_dict())


def test_a_backbone_loads_whole_or_not_at_all(phase_config, tmp_path):
    SurgeNetForPhaseRecognition(phase_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if "encoder.stages.2.blocks" in key)
    rest = {key: weight for key, weight in weights.items() if key != lost}
    save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"caformer_s18, activation relu.*1 parameters missing.*{lost}"):
        AutoModel.from_pretrained(tmp_path)

    rest = {key: weight for key, weight in weights.items() if not key.startswith("stages.1.")}
    save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)  # a new head causes only a warning
    assert {key[:9] for key in info["missing_keys"]} == {"stages.1."}


def test_another_number_of_phases_needs_consent(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path, num_labels=7)
    changed = AutoModel.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert changed(features=torch.randn(1, 2, WIDTH)).logits.shape == (1, 2, 7)
    assert_same(changed.surgenet.state_dict(), model.surgenet.state_dict())


def test_new_weights_are_those_of_pytorch_whether_made_or_loaded(phase_config, tmp_path):
    def spread(model):
        # uniform in +-1/sqrt(fan in); 0.02 on three phases would make later stages insensitive to their input
        return [model.stages[i].projection.weight.abs().max().item() * n**0.5 for i, n in enumerate((WIDTH, 4))]

    config = phase_config(num_feature_maps=64)
    model = SurgeNetForPhaseRecognition(config)
    assert spread(model) == pytest.approx([1, 1], abs=0.05)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: weight for key, weight in weights.items() if not key.startswith("stages.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert spread(AutoModel.from_pretrained(tmp_path)) == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize("source", ["model", "classifier", "phase model", "folder", "folder of a classifier"])
def test_from_backbone(source, tiny_config, phase_config, tmp_path):
    labels = {"id2label": dict(enumerate(PHASES)), "label2id": {name: i for i, name in enumerate(PHASES)}}
    config = tiny_config(pretraining={"name": "SurgeNetXL"}, num_labels=4, **labels)
    trained = SurgeNetForImageClassification(config) if "classifier" in source else SurgeNetModel(config)
    if source == "phase model":
        trained = SurgeNetForPhaseRecognition(phase_config(backbone_config=config, **labels))
    if "folder" in source:
        trained.save_pretrained(tmp_path / "source")
    given = tmp_path / "source" if "folder" in source else trained
    model = SurgeNetForPhaseRecognition.from_backbone(given, num_layers=2, num_feature_maps=8)
    assert_same(model.surgenet.state_dict(), trained.base_model.state_dict())
    assert (model.config.num_layers, model.config.id2label) == (2, labels["id2label"])
    assert model.config.pretraining == {"name": "SurgeNetXL"}
    with torch.no_grad():  # the backbone is a copy
        model.surgenet.layernorm.weight.zero_()
    assert trained.base_model.layernorm.weight.all()

    model.save_pretrained(tmp_path / "phase")
    assert str(tmp_path) not in (tmp_path / "phase" / "config.json").read_text()
    assert SurgeNetForPhaseRecognition.from_backbone(given, num_labels=7).config.num_labels == 7


def test_from_backbone_refuses_what_is_none(tiny_config, tmp_path):
    with pytest.raises(RuntimeError, match="layernorm"):
        SurgeNetForPhaseRecognition.from_backbone(SurgeNetForSemanticSegmentation(tiny_config()))
    with pytest.raises(OSError, match="nowhere"):
        SurgeNetForPhaseRecognition.from_backbone(tmp_path / "nowhere")
    SurgeNetModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_backbone"):
        SurgeNetForPhaseRecognition.from_pretrained(tmp_path)


REMOTE = """
import sys
sys.modules["surgenet_hf"] = None
import torch
from transformers import AutoConfig, AutoModel
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
for part in (config, model, config.backbone_config, model.surgenet):
    assert type(part).__module__.startswith("transformers_modules"), type(part)
pixel_values = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save(model(pixel_values).stage_logits, f"{folder}/output.pt")
state = None
for frame in pixel_values.unbind(1):
    logits, state = model.stream(frame, state)
torch.save(logits, f"{folder}/last.pt")
model.save_pretrained(f"{folder}/again")
"""


@pytest.mark.slow
def test_remote_code_without_the_package(model, tmp_path, monkeypatch):
    model.config.auto_map = {
        "AutoConfig": "configuration_surgenet_phase.SurgeNetPhaseConfig",
        "AutoModel": "modeling_surgenet_phase.SurgeNetForPhaseRecognition",
    }
    folder = tmp_path / "repository"
    model.save_pretrained(folder)
    for stem in ("surgenet", "surgenet_phase", "surgical"):
        for kind in ("configuration", "modeling"):
            shutil.copy(Path(surgenet_hf.__file__).parent / f"{kind}_{stem}.py", folder)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    subprocess.run([sys.executable, "-c", REMOTE, str(folder)], check=True, cwd=tmp_path)
    pixel_values = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values).stage_logits
    assert_within(1e-5, torch.load(folder / "output.pt"), expected)
    assert_within(1e-5, torch.load(folder / "last.pt"), expected[-1, :, -1])
    # the package loads what the remote code saves
    assert json.loads((folder / "again" / "config.json").read_text())["model_type"] == "surgenet_phase"
    loaded = SurgeNetForPhaseRecognition.from_pretrained(folder / "again")
    assert_same(loaded.state_dict(), model.state_dict())


# ----------------------------------------------------------------------------------------------------------- training


def test_every_parameter_is_trained(phase_config):
    model = SurgeNetForPhaseRecognition(phase_config())
    model(torch.randn(2, 3, 3, 32, 32), labels=torch.randint(4, (2, 3))).loss.backward()
    # distributed training refuses parameters without a gradient
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_distributed_training_on_features_with_a_frozen_backbone(phase_config, tmp_path):
    features, labels = torch.randn(2, 5, WIDTH), torch.randint(4, (2, 5))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for frozen in (True, False):
            model = SurgeNetForPhaseRecognition(phase_config())
            model.surgenet.requires_grad_(not frozen)
            before = copy.deepcopy(model.surgenet.state_dict())
            parallel = nn.parallel.DistributedDataParallel(model)
            parallel(features=features, labels=labels).loss.backward()
            if frozen:
                parallel(features=features, labels=labels).loss.backward()
                assert all(parameter.grad is not None for parameter in model.stages.parameters())
                assert_same(model.surgenet.state_dict(), before)
            else:
                with pytest.raises(RuntimeError, match="finished reduction"):
                    parallel(features=features, labels=labels)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_it_learns_a_sequence_that_single_frames_do_not_tell(phase_config):
    """Test that the model learns a sequence that single frames cannot identify.

    Frames show an event only where a phase begins, and the phase is the number of events so far.
    """
    model = SurgeNetForPhaseRecognition(phase_config(dropout=0, num_layers=4)).train()
    labels = torch.arange(4).repeat_interleave(6)[None]
    features = 0.1 * torch.randn(1, 24, WIDTH)
    features[0, ::6] += 1
    optimizer = torch.optim.Adam(model.stages.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(features=features, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3  # not 0, since smoothing penalizes the three transitions
    assert_same(model.eval()(features=features).logits.argmax(-1), labels)


@pytest.mark.slow
def test_trainer_on_features(phase_config, tmp_path):
    def arguments(batch_size, accumulation):
        return TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=0.5,
            max_grad_norm=0.1,  # hides that transformers 5.4 divides accumulated gradients twice
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )

    initial = SurgeNetForPhaseRecognition(phase_config(dropout=0))
    initial.surgenet.requires_grad_(False)
    data = [{"features": torch.randn(9, WIDTH), "labels": torch.randint(4, (9,))} for _ in range(4)]

    def train(batch_size, accumulation):
        model = copy.deepcopy(initial)
        trainer = Trainer(model=model, args=arguments(batch_size, accumulation), train_dataset=data)
        trainer.train()
        return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    trainer, losses = train(batch_size=2, accumulation=1)
    accumulated, accumulated_losses = train(batch_size=1, accumulation=2)
    assert len(losses) == 3
    assert accumulated_losses == pytest.approx(losses, rel=1e-4)
    assert_same(accumulated.model.state_dict(), trainer.model.state_dict(), rtol=1e-3, atol=1e-5)
    assert_same(trainer.model.surgenet.state_dict(), initial.surgenet.state_dict())
    assert not torch.equal(trainer.model.stages[0].classifier.weight, initial.stages[0].classifier.weight)

    predictions = trainer.predict(data)
    assert predictions.predictions.shape == (4, 9, 4)  # only the logits
    assert predictions.label_ids.shape == (4, 9)


def test_gradient_checkpointing_of_the_backbone(backbone, phase_config):
    model = SurgeNetForPhaseRecognition(phase_config(backbone, dropout=0)).train()
    pixel_values, labels = torch.randn(2, 2, 3, 32, 32), torch.randint(4, (2, 2))
    calls = []
    block = model.surgenet.encoder.stages[2].blocks[0]
    block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    def step():
        calls.clear()
        model.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, len(calls)

    expected, plain_calls = step()
    model.gradient_checkpointing_enable()
    checkpointed, checkpointed_calls = step()
    assert (plain_calls, checkpointed_calls) == (1, 2)
    assert_same(checkpointed, expected)


def test_dropout_acts_in_training_only(phase_config):
    model = SurgeNetForPhaseRecognition(phase_config())
    features = torch.randn(2, 8, WIDTH)
    with torch.no_grad():
        assert not torch.equal(model.train()(features=features).logits, model(features=features).logits)
        assert_same(model.eval()(features=features).logits, model(features=features).logits)


# ---------------------------------------------------------------------------------------------- precision and compile


@pytest.mark.slow
def test_compiles_into_one_graph(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    features, labels = torch.randn(2, 12, WIDTH), torch.randint(4, (2, 12))
    expected = model(features=features, labels=labels)
    outputs = compiled(features=features, labels=labels)
    assert_same(outputs.logits, expected.logits)
    assert_same(outputs.loss, expected.loss)


def test_bfloat16(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.surgenet.dtype == half.dtype == torch.bfloat16
    pixel_values, labels = torch.randn(1, 5, 3, 32, 32), torch.randint(4, (1, 5))
    with torch.no_grad():
        expected = model(pixel_values, labels=labels)
        outputs = half(pixel_values.bfloat16(), labels=labels)
    assert outputs.logits.dtype == outputs.features.dtype == torch.bfloat16
    assert_within(0.05, outputs.logits.float(), expected.logits)
    assert outputs.loss.dtype == torch.float32
    assert_same(outputs.loss, expected.loss, rtol=0.02, atol=0.01)
    streamed, state = stream(half, pixel_values.bfloat16())
    assert {past.dtype for past in state} == {torch.bfloat16}
    assert_within(0.05, streamed.float(), expected.logits)


def test_mixed_precision(phase_config):
    model = SurgeNetForPhaseRecognition(phase_config())
    features, labels = torch.randn(2, 9, WIDTH), torch.randint(4, (2, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(features=features, labels=labels).loss
        streamed, _ = stream(model.eval(), features)
        whole = model(features=features).logits
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.stages.parameters())
    assert_within(0.05, streamed.float(), whole.detach().float())
