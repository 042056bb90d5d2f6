import numpy as np
import pytest

from surgenet_hf.figures import feature_figure, pca_to_rgb, scatter_figure, tsne


def clusters(size=20, centers=((0, 0), (10, 0), (0, 10)), seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(center, 1, (size, 2)) for center in centers])


def test_tsne_keeps_clusters_and_its_seed():
    embeddings = np.random.default_rng(0).normal(0, 0.1, (24, 8)) + np.repeat(np.eye(8)[:2] * 5, 12, 0)
    found = tsne(embeddings)  # a perplexity of 30 would exceed the number of points
    assert found.shape == (24, 2)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.diag(np.full(24, np.inf))
    assert (distances.argmin(1) // 12 == np.arange(24) // 12).all()
    np.testing.assert_array_equal(found, tsne(embeddings))
    assert tsne(embeddings[:4]).shape == (4, 2)


@pytest.mark.parametrize("embeddings", [np.ones((3, 5)), np.full((9, 5), np.nan), np.ones(9)])
def test_tsne_of_too_little_is_refused(embeddings):
    with pytest.raises(ValueError, match="N at least 4"):
        tsne(embeddings)


def test_every_point_is_drawn_in_the_look_of_its_group():
    points, groups = clusters(), np.repeat(["a", "b", "c"], 20)
    figure = scatter_figure(points, groups, "Title", "dataset")
    (axes,) = figure.axes
    drawn = {}
    for collection in axes.collections:
        look = tuple(collection.get_facecolor()[0]), collection.get_paths()[0].vertices.shape
        drawn.setdefault(look, []).append(collection.get_offsets())
    assert len(drawn) == 3
    for found, name in zip(drawn.values(), "abc", strict=True):
        found = np.concatenate(found)
        assert set(map(tuple, found.data)) == set(map(tuple, points[groups == name]))
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a (20)", "b (20)", "c (20)"]
    assert legend.get_title().get_text() == "dataset (frames)"
    for axis in (axes.get_xlim(), axes.get_ylim()):
        assert axis[0] < points.min() + 0.5
        assert axis[1] > points.max() - 0.5


def test_names_stand_at_groups_that_stand_apart():
    groups = np.repeat(["a", "b", "c"], 20)
    (axes,) = scatter_figure(clusters(), groups).axes
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c"}
    for text, center in zip(axes.texts, ((0, 0), (10, 0), (0, 10)), strict=True):
        assert np.linalg.norm(np.subtract(text.xy, center)) < 4
    (axes,) = scatter_figure(clusters(centers=((0, 0),) * 3), groups).axes  # one cluster
    assert not axes.texts
    (axes,) = scatter_figure(
        clusters(centers=[(20 * i, 0) for i in range(14)]), np.repeat(np.arange(14).astype(str), 20)
    ).axes
    assert not axes.texts


def test_one_group_or_a_single_point_are_no_problem():
    assert len(scatter_figure(np.zeros((1, 2)), ["a"]).axes) == 1


def test_the_same_feature_has_the_same_color_in_every_frame():
    rng = np.random.default_rng(0)
    codes = rng.normal(0, 1, (4, 16))
    maps = [rng.integers(0, 4, (5, 6)), rng.integers(0, 4, (3, 4))]
    colors = pca_to_rgb([codes[one].transpose(2, 0, 1) for one in maps])
    assert [one.shape for one in colors] == [(5, 6, 3), (3, 4, 3)]
    of_codes = [np.concatenate([found[one == i] for found, one in zip(colors, maps, strict=True)]) for i in range(4)]
    for found in of_codes:
        np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-9)
    assert min(np.abs(a[0] - b[0]).max() for i, a in enumerate(of_codes) for b in of_codes[:i]) > 0.2
    everything = np.concatenate([found.reshape(-1, 3) for found in colors])
    np.testing.assert_allclose(everything.min(0), 0, atol=1e-9)
    np.testing.assert_allclose(everything.max(0), 1, atol=1e-9)


def test_the_first_component_is_the_one_that_varies_most():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (5, 8, 8)) * np.array([1, 1, 9, 3, 1])[:, None, None]
    (colors,) = pca_to_rgb([features])
    correlation = np.corrcoef(colors[..., 0].ravel(), features[2].ravel())[0, 1]
    assert abs(correlation) > 0.95


def test_the_longer_tail_of_a_component_is_the_bright_one():
    """Test that the longer tail of a component is bright.

    The sign of a component is arbitrary; a few outlying pixels must be bright in either direction.
    """
    features = np.random.default_rng(0).normal(0, 0.1, (4, 8, 8))
    for channel, height in enumerate((20, 10, 5)):
        features[channel, channel, :4] += height
    for sign in (1, -1):
        (colors,) = pca_to_rgb([sign * features])
        for channel in range(3):
            np.testing.assert_allclose(colors[channel, :4, channel], 1, atol=0.1)
            assert np.median(colors[..., channel]) < 0.3


def test_constant_features_are_no_problem():
    assert np.isfinite(pca_to_rgb([np.ones((4, 2, 2))])[0]).all()


def test_frames_and_maps_stand_in_rows():
    frames = [np.full((40, 60, 3), 90, np.uint8), np.full((60, 60, 3), 90, np.uint8)]
    features = [np.random.default_rng(i).normal(0, 1, (4, 5, 6)) for i in range(2)]
    figure = feature_figure(frames, features, ["one", "two"], "Title")
    assert len(figure.axes) == 6
    maps = pca_to_rgb(features)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), frames[0])
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), maps[1])
    np.testing.assert_array_equal(figure.axes[5].images[0].get_array(), maps[1][..., 0])
    assert {"Title", "one", "two"} <= {text.get_text() for text in figure.texts}
