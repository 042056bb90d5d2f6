import json

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from surgenet_hf.comparison import (
    METRICS,
    Score,
    compare,
    markdown_table,
    paired_bootstrap,
    paired_table,
    rank,
)
from surgenet_hf.privacy import neutral_names, sanitize_results
from surgenet_hf.results import check_results, read_results

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
VIDEOS = ["v1", "v2", "v3"]


def result(name="outputs/xl/model", seed=0, metrics=None, draws=None, task="semantic-segmentation", **changes):
    """A results file's content; `changes` of `data`, or `pretraining`, `parameters`."""
    metrics = {"mean_video_dice": 0.5} if metrics is None else metrics
    model = {"name": name, "type": "surgenet", "parameters": 9, "pretraining": {"name": "SurgeNetXL"}}
    model |= {key: changes.pop(key) for key in ("pretraining", "parameters") if key in changes}
    data = {"name": "endoscapes", "split": "test", "frames": 30, "videos": VIDEOS, "labels": ["a", "b"], "notes": []}
    bootstrap = {name: draws or [value] * 4 for name, value in metrics.items()}
    return {
        "schema": "surgenet_hf.results/1",
        "task": task,
        "model": model,
        "seed": seed,
        "data": {**data, "leakage": None, **changes},
        "metrics": {**metrics, "per_class": {}},
        "intervals": {},
        "bootstrap": bootstrap,
    }


@pytest.fixture
def write(tmp_path):
    """Write results, one a folder, and read them back as a user does."""

    def write(*contents):
        for i, content in enumerate(contents):
            folder = tmp_path / f"run{i}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(content))
        return read_results([tmp_path])

    return write


def column_of(comparison, metric):
    (column,) = [column for column in comparison.columns if column.metric == metric]
    return column


def rows(table):
    """{model: cells} of a Markdown table."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_files_and_folders_are_read_once(tmp_path, write):
    write(result(), result("b"))
    found = read_results([tmp_path / "run1" / "results.json", tmp_path, tmp_path / "run0"])
    assert [path.parent.name for path in found] == ["run1", "run0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("\xff\xfe", "is not JSON"),
        ("[]", "is not a results file: its schema is None"),
        (json.dumps({**result(), "schema": "other/2"}), "is not a results file: its schema is 'other/2'"),
        (json.dumps({**result(), "metrics": {}}), "lacks metrics"),
        (json.dumps({**result(), "data": {"name": "a"}}), "lacks data.split"),
    ],
)
def test_a_file_that_is_no_results_file_is_named(tmp_path, text, message):
    (tmp_path / "broken.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"broken.json {message}"):
        read_results([tmp_path / "broken.json"])


def test_an_empty_folder_or_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no results\.json"):
        read_results([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_results([tmp_path / "absent.json"])


@pytest.mark.parametrize("seeds", [(0, 1, 2), (None, None, None)])
def test_runs_that_differ_in_seed_are_one_row(write, seeds):
    runs = [
        result(f"outputs/xl-seed{i}/model", seed, {"mean_video_dice": value}, [value, value + 0.2, value - 0.2, value])
        for i, (seed, value) in enumerate(zip(seeds, (0.5, 0.6, 0.7), strict=True))
    ]
    comparison = compare(write(*runs))
    assert comparison.models == ("xl",)
    (score,) = comparison.scores.values()
    assert score.mean == pytest.approx(0.6)
    assert score.sd == pytest.approx(0.1)
    np.testing.assert_allclose(score.draws, [0.6, 0.8, 0.4, 0.6])
    assert rows(markdown_table(comparison))["xl"] == ["60.0 ± 10.0 (3) [41.5, 78.5]"]


def test_labels_are_as_short_as_tells_models_apart(write):
    names = ["outputs/a/xl_seed=3/checkpoint-40", "outputs/b/xl_seed=3/best", "outputs/b/small-seed3"]
    assert set(compare(write(*(result(name, 3) for name in names))).models) == {"a/xl", "b/xl", "b/small"}


def test_a_model_on_two_data_sets_is_one_row(write):
    contents = [result("outputs/endoscapes/xl"), result("outputs/dsad/xl", name_of_data="dsad")]
    contents[1]["data"]["name"] = "dsad"
    comparison = compare(write(*contents))
    assert comparison.models == ("xl",)
    assert [column.data for column in comparison.columns] == ["dsad", "endoscapes"]


def test_labels_by_pretraining(write):
    contents = [
        result("a"),
        result("b", 1),
        result("c", pretraining={"name": "ImageNet1k"}),
        result("d", pretraining="unknown"),
        result("e", pretraining={"source": "somewhere"}),
    ]
    found = compare(write(*contents), "pretraining")
    assert set(found.models) == {"SurgeNetXL", "ImageNet1k", "unknown (d)", "unknown (e)"}
    score = found.scores["SurgeNetXL", found.columns[0]]
    assert len(score.values) == 2


def test_one_name_for_different_weights_is_refused(write):
    contents = [result("a/run1"), result("b/run1", pretraining={"name": "ImageNet1k"})]
    contents[1]["data"]["name"] = "dsad"
    with pytest.raises(ValueError, match=r"both called run1, but started from SurgeNetXL and ImageNet1k"):
        compare(write(*contents))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result("b", videos=["v1", "v4"]), r"run0.*run1.*differ in videos: v1, v2, v3 against v1, v4"),
        (result("b", frames=31), "differ in frames: 30 against 31"),
        (result("b", labels=["a", "c"]), "differ in labels: a, b against a, c"),
        (result(seed=0), "both called xl, with seeds 0 and 0, but"),
        (result(seed=None), "both called xl, with seeds 0 and None, but"),
        (result(seed=1, parameters=10), "differ in parameters: 9 and 10"),
        (result("b", draws=[0.5] * 7), "bootstrap draws differ: 4 in .*run0.*, 7 in .*run1"),
    ],
)
def test_what_cannot_be_compared_is_refused(write, other, message):
    with pytest.raises(ValueError, match=message):
        compare(write(result(), other)).pairs()


def test_order_of_videos_does_not_matter(write):
    assert len(compare(write(result(), result("b", videos=VIDEOS[::-1]))).models) == 2


def test_another_split_is_another_column(write):
    comparison = compare(write(result(), result("b", split="validation", videos=["v9"])))
    assert [str(column) for column in comparison.columns] == ["endoscapes, test: Dice", "endoscapes, validation: Dice"]
    cells = rows(markdown_table(comparison))
    assert cells["xl"][1] == "-"
    assert cells["b"][0] == "-"
    assert not comparison.pairs()
    assert not comparison.bootstrap_ranks()


def test_ranks_with_ties_and_lower_is_better(write):
    names = ("mean_video_dice", "mean_assd")
    values = {"a": (0.7, 9.0), "b": (0.8, 3.0), "c": (0.7, 5.0), "d": (0.1, None)}
    contents = [result(model, metrics=dict(zip(names, pair, strict=True))) for model, pair in values.items()]
    comparison = compare(write(*contents))
    assert comparison.models == ("b", "c", "a", "d")  # by mean rank
    np.testing.assert_array_equal(comparison.ranks(), [[1, 1], [2.5, 2], [2.5, 3], [4, np.nan]])
    cells = rows(markdown_table(comparison))
    assert [cell.split()[0] for cell in cells["b"]] == ["**80.0**", "**3.00**"]
    assert cells["d"][1] == "-"
    assert cells["model"][1].endswith("ASSD, px ↓")


def test_rank_is_scipys():
    values = np.random.default_rng(0).integers(0, 4, (6, 50)).astype(float)
    np.testing.assert_array_equal(rank(values), rankdata(-values, axis=0))
    values[2, :10] = np.nan
    np.testing.assert_array_equal(rank(values), rankdata(-values, axis=0, nan_policy="omit"))


def test_bootstrap_ranks_draw_by_draw(write):
    contents = [
        result("a", metrics={"mean_assd": 2.0}, draws=[1.0, 2.0, 3.0, None]),
        result("b", metrics={"mean_assd": 2.5}, draws=[2.0, 2.0, 2.0, 2.0]),
    ]
    comparison = compare(write(*contents))
    (found,) = comparison.bootstrap_ranks().values()
    np.testing.assert_array_equal(found, [[1, 1.5, 2], [2, 1.5, 1]])


def test_a_column_without_draws_of_one_model_is_left_out_of_bootstrap_ranks(write):
    contents = [result("a"), result("b")]
    del contents[1]["bootstrap"]
    contents[1]["intervals"] = {"mean_video_dice": [0.4, 0.55]}
    comparison = compare(write(*contents))
    assert not comparison.bootstrap_ranks()
    assert not comparison.pairs()
    assert rows(markdown_table(comparison))["b"] == ["**50.0** [40.0, 55.0]"]


def test_bootstrap_is_paired():
    """Two models that always differ by the same amount: their intervals overlap, that of the difference is a point."""
    draws = np.random.default_rng(0).normal(0.5, 0.1, 1000)
    first, second = Score((0.52,), draws + 0.02), Score((0.5,), draws)
    pair = paired_bootstrap(first, second, higher_is_better=True)
    assert pair["difference"] == pytest.approx(0.02)
    assert pair["interval"] == pytest.approx((0.02, 0.02))
    assert pair["probability"] == 1
    assert paired_bootstrap(first, second, higher_is_better=False)["probability"] == 0
    assert paired_bootstrap(first, first, higher_is_better=True)["probability"] == 0.5
    some = Score((0.5,), np.array([1, np.nan, 3, 5, 1.0]))
    other = Score((0.4,), np.array([0, 1.0, 4, 5, 0]))
    assert paired_bootstrap(some, other, True)["probability"] == pytest.approx(2.5 / 4)
    for unpaired in (Score((1.0,)), Score((1.0,), np.ones(3))):
        with pytest.raises(ValueError, match="draws of both models"):
            paired_bootstrap(some, unpaired, True)


def test_table_of_pairs(write):
    contents = [
        result("a", metrics={"mean_assd": 2.0}, draws=[1.0, 2.0, 3.0, 2.0]),
        result("b", metrics={"mean_assd": 3.0}, draws=[2.0, 3.0, 4.0, 1.0]),
    ]
    cells = rows(paired_table(compare(write(*contents))))["endoscapes, test: ASSD, px"]
    assert cells == ["a", "b", "-1.00", "[-1.00, +0.85]", "0.750"]


def test_leakage_and_notes_are_under_the_table(write):
    contents = [
        result("a", leakage="Trained on Cholec80.", notes=["One mask is missing."]),
        result("b", leakage="Trained on Cholec80.", notes=["One mask is missing."]),
        result("c", pretraining="unknown"),
        result("d", pretraining={"name": "ImageNet1k"}),
    ]
    del contents[2]["data"]["leakage"]
    table = markdown_table(compare(write(*contents)))
    cells = {model: cell for model, (cell,) in rows(table).items()}
    assert [cells[model][-12:] for model in "abc"] == ["<sup>1</sup>", "<sup>1</sup>", "<sup>2</sup>"]
    assert "<sup>" not in cells["d"]
    assert "\n<sup>1</sup> Leakage: Trained on Cholec80.\n" in table
    assert "\n<sup>2</sup> Leakage: unknown: the results file does not say.\n" in table
    assert "\n- endoscapes, test (semantic-segmentation): 30 frames of 3 videos; One mask is missing.\n" in table


def test_headlines_of_each_task_or_the_metrics_asked_for(write):
    everything = dict.fromkeys(METRICS, 0.5)
    contents = [result(task=task, metrics=everything) for task in ("phase-recognition", "semantic-segmentation")]
    contents.append(result(task="image-classification", metrics={"mean_average_precision": 0.4, "macro_recall": 1.0}))
    results = write(*contents)
    assert [(column.task[:5], column.metric) for column in compare(results).columns] == [
        ("seman", "mean_video_dice"),
        ("seman", "mean_assd"),
        ("seman", "mean_hd95"),
        ("image", "mean_average_precision"),
        ("phase", "accuracy"),
        ("phase", "macro_f1"),
    ]
    chosen = compare(results, metrics=["edit_score"])
    assert [column.metric for column in chosen.columns] == ["edit_score"] * 2
    with pytest.raises(ValueError, match="unknown metrics: speed; known are"):
        compare(results, metrics=["speed"])


def test_models_without_the_metrics_asked_for_are_left_out(write):
    contents = [result("a"), result("b"), result("c", task="phase-recognition", metrics={"accuracy": 0.5})]
    comparison = compare(write(*contents), metrics=["mean_video_dice"])
    assert comparison.models == ("a", "b")
    assert len(comparison.bootstrap_ranks()) == 1
    table = markdown_table(comparison)
    assert "Without a value in any column: c." in table
    assert "phase-recognition" not in table


def test_nothing_to_compare_is_said(write):
    results = write(result(metrics={"mean_video_dice": None}))
    with pytest.raises(ValueError, match="no file has a value of f1@50"):
        compare(results, metrics=["f1@50"])
    with pytest.raises(ValueError, match="no file has a value"):
        compare(results)


def test_missing_path_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give results\.json files, or the folders"):
        read_results([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "metrics.mean_video_dice",
            "0.5",
            r"metrics\.mean_video_dice is '0\.5'; expected a number from 0 to 1, or null",
        ),
        ("metrics.mean_video_dice", 1.7, r"metrics\.mean_video_dice is 1\.7"),
        ("metrics.mean_video_dice", True, r"metrics\.mean_video_dice is True"),
        ("metrics.mean_assd", float("nan"), r"metrics\.mean_assd is nan; expected a number from 0, or null"),
        ("metrics.mean_assd", float("inf"), r"metrics\.mean_assd is inf"),
        ("metrics.mean_assd", -1, r"metrics\.mean_assd is -1"),
        ("metrics.own_metric", [1], r"metrics\.own_metric is \[1\]; expected a number, or null"),
        ("metrics.per_class", [1], r"metrics\.per_class is \[1\]; expected an object of objects"),
        ("metrics.per_class", {"tool": {"dice": -0.1}}, r"metrics\.per_class\.tool\.dice is -0\.1"),
        ("metrics", [1], r"metrics is \[1\]; expected an object"),
        ("data", [1], r"data is \[1\]; expected an object"),
        ("data.frames", -3, r"data\.frames is -3; expected a whole number from 0"),
        ("data.frames", 3.5, r"data\.frames is 3\.5"),
        ("data.videos", ["a", 1], r"data\.videos is \['a', 1\]; expected a list of texts"),
        ("model", "xl", r"model is 'xl'; expected an object"),
        ("seed", "1", r"seed is '1'; expected a whole number"),
        (
            "intervals.mean_video_dice",
            [0.6, 0.4],
            r"intervals\.mean_video_dice is \[0\.6, 0\.4\]; expected \[lower, upper\]",
        ),
        ("intervals.mean_video_dice", [0.6], r"intervals\.mean_video_dice is \[0\.6\]"),
        ("intervals.mean_video_dice", 0.6, r"intervals is .*; expected an object of lists"),
        ("bootstrap.mean_video_dice", [0.5, "x"], r"bootstrap\.mean_video_dice\[1\] is 'x'"),
        ("per_video", {"v1": {"mean_dice": 2}}, r"per_video\.v1\.mean_dice is 2; expected a number from 0 to 1"),
        ("per_video", {"v1": 0.5}, "per_video is .*; expected an object of objects"),
        ("comparisons", {"x": {"per_class": {"a": {"iou": "1"}}}}, r"comparisons\.x\.per_class\.a\.iou is '1'"),
        ("comparisons", {"x": {"per_class": [1]}}, r"comparisons\.x\.per_class is \[1\]"),
    ],
)
def test_impossible_values_are_named(field, value, message, write):
    content = result()
    *parents, name = field.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    part[name] = value
    with pytest.raises(ValueError, match=rf"run0.results\.json: {message}"):
        write(content)


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_whatever_a_results_file_holds_the_error_names_it(data):
    """Any value replaced by any other: the file is accepted, or refused with a ValueError that names it."""
    content = result(draws=[0.5, None])
    content |= {"intervals": {"mean_video_dice": [0.4, 0.6]}, "per_video": {"v1": {"mean_dice": 0.5}}}
    content["comparisons"] = {"x": {"mean_dice": 0.5, "per_class": {"a": {"iou": 0.5}}}}
    part = content
    while isinstance(part, dict | list) and part:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
            part[key] = data.draw(ANYTHING)
            break
        part = part[key]
    try:
        check_results(content, "results.json")
        refused = None
    except ValueError as error:
        refused = str(error)
    if refused is None:
        values = [value for value in content["metrics"].values() if value is not None and not isinstance(value, dict)]
        assert all(0 <= value <= 1 + 1e-6 for value in values)
    else:
        assert refused.startswith("results.json")


def test_published_files_are_compared_by_the_hashes_of_their_videos(write, monkeypatch, tmp_path_factory):
    """Neutral names are alike in all published files: other videos must not count as the same."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
    mine, others = ["case_1", "case_2", "case_3"], ["case_4", "case_5", "case_6"]
    published = [
        sanitize_results(each, name, neutral_names(each))
        for each, name in (
            (result(videos=mine), "me/a"),
            (result(videos=others), "me/b"),
            (result(videos=mine), "me/c"),
        )
    ]
    assert published[0]["data"]["videos"] == published[1]["data"]["videos"]
    local = result("local", videos=mine)
    first, second, third, own = write(*published, local).items()
    for group in ([first, third], [first, own]):
        assert len(compare(dict(group)).models) == 2
    for group in ([first, second], [second, own]):
        with pytest.raises(ValueError, match="differ in videos"):
            compare(dict(group))
