import json

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from surgenet_hf.evaluation.compare import compare, rank
from surgenet_hf.evaluation.results import check_results, read_results
from surgenet_hf.evaluation.statistics import (
    bootstrap_interval,
    mean_draws,
    metric_bounds,
    sign_flip_test,
    student_interval,
)
from surgenet_hf.evaluation.tables import markdown_table, paired_table
from surgenet_hf.privacy import neutral_names, sanitize_results
from surgenet_hf.tasks import TASKS

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
VIDEOS = ["v1", "v2", "v3"]


def result(
    name="outputs/xl/model", seed=0, metrics=None, draws=None, per_video=None, task="semantic-segmentation", **changes
):
    """Build the content of a results file.

    Args:
        metrics: {name: value}, without values per video.
        draws: {name: bootstrap draws}.
        per_video: {name: value for each video}, from which the metric and its interval are computed.
        changes: Replacements in `data`, or `pretraining` or `parameters` of the model.
    """
    metrics = {"video_dice": 0.5} if metrics is None and per_video is None else metrics or {}
    model = {"name": name, "type": "surgenet", "parameters": 9, "pretraining": {"name": "SurgeNetXL"}}
    model |= {key: changes.pop(key) for key in ("pretraining", "parameters") if key in changes}
    videos, table, intervals = list(VIDEOS), {}, {}
    if per_video:
        videos = [f"v{i:02d}" for i in range(len(next(iter(per_video.values()))))]
        rows = zip(*per_video.values(), strict=True)
        table = {video: dict(zip(per_video, row, strict=True)) for video, row in zip(videos, rows, strict=True)}
        values = {metric: np.array(column, float) for metric, column in per_video.items()}
        metrics = {**metrics, **{metric: float(np.nanmean(column)) for metric, column in values.items()}}
        found = {metric: student_interval(column, metric_bounds(metric)) for metric, column in values.items()}
        intervals = {metric: vars(interval) for metric, interval in found.items() if interval}
    data = {"name": "endoscapes", "split": "test", "frames": 30, "videos": videos, "labels": ["a", "b"], "notes": []}
    return {
        "schema": "surgenet_hf.results/2",
        "task": task,
        "model": model,
        "seed": seed,
        "data": {**data, "leakage": None, **changes},
        "metrics": {**metrics, "per_class": {}},
        "intervals": intervals,
        "bootstrap": draws or {},
        "per_video": table,
    }


@pytest.fixture
def write(tmp_path):
    """Return a function that writes each result to its own folder and reads all of them."""

    def write(*contents):
        for i, content in enumerate(contents):
            folder = tmp_path / f"run{i}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(content))
        return read_results([tmp_path])

    return write


def rows(table):
    """Return the cells of a Markdown table as {model: cells}."""
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
        (json.dumps({**result(), "schema": "other/9"}), "is not a results file: its schema is 'other/9'"),
        (json.dumps({**result(), "metrics": {}}), "lacks metrics"),
        (json.dumps({**result(), "data": {"name": "a"}}), "lacks data.split"),
    ],
)
def test_a_file_that_is_no_results_file_is_named(tmp_path, text, message):
    (tmp_path / "broken.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"broken.json {message}"):
        read_results([tmp_path / "broken.json"])


def test_an_empty_folder_or_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contain no results\.json"):
        read_results([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_results([tmp_path / "absent.json"])


@pytest.mark.parametrize("seeds", [(0, 1, 2), (None, None, None)])
def test_runs_that_differ_in_seed_are_one_row(write, seeds):
    """Test that runs that differ only in seed form one row.

    Values per video are averaged over runs before Student's interval is computed.
    """
    of_videos = np.random.default_rng(0).uniform(0.3, 0.9, (3, 7))
    runs = [
        result(f"outputs/xl-seed{i}/model", seed, per_video={"video_dice": values.tolist()})
        for i, (seed, values) in enumerate(zip(seeds, of_videos, strict=True))
    ]
    comparison = compare(write(*runs))
    assert comparison.models == ("xl",)
    (score,) = comparison.scores.values()
    assert score.mean == pytest.approx(of_videos.mean())
    assert score.sd == pytest.approx(of_videos.mean(1).std(ddof=1))
    expected = student_interval(of_videos.mean(0))
    assert score.interval == pytest.approx((expected.low, expected.high))
    cell = (
        f"{100 * score.mean:.1f} ± {100 * score.sd:.1f} (3 runs) [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"
    )
    assert rows(markdown_table(comparison))["xl"] == [f"{cell} n = 7, rough"]


def test_the_interval_of_several_runs_stays_in_the_range_of_the_metric(write):
    runs = [result(f"xl-seed{seed}", seed, per_video={"video_dice": [1, 1, 1, 1, 0.2]}) for seed in (0, 1)]
    (score,) = compare(write(*runs)).scores.values()
    assert score.interval[1] == 1


def test_draws_of_several_runs_are_averaged_resample_by_resample(write):
    """Test that the draws of several runs are averaged for each resample.

    This applies to metrics that are not means over videos, such as mAP. A resample without a value in one run has
    none.
    """
    videos = [f"v{i}" for i in range(12)]
    draws = np.random.default_rng(0).uniform(0.4, 1.1, (2, 400)).clip(max=1)
    draws[0, :10] = np.nan
    runs = [
        result(
            f"outputs/xl-seed{i}",
            i,
            {"mean_average_precision": 0.7},
            {"mean_average_precision": [None if np.isnan(value) else value for value in of_run.tolist()]},
            task="image-classification",
            videos=videos,
        )
        for i, of_run in enumerate(draws)
    ]
    (score,) = compare(write(*runs)).scores.values()
    expected = bootstrap_interval(draws.mean(0)[10:], 12, (0, 1))
    assert score.interval == pytest.approx((expected.low, expected.high))
    assert score.videos == 12


@pytest.mark.parametrize(
    ("videos", "ending"),
    [(4, "n = 4"), (5, "] n = 5, rough"), (9, "] n = 9, rough"), (10, "] n = 10, few videos"), (20, "] n = 20")],
)
def test_an_interval_is_shown_with_its_number_of_videos(write, videos, ending):
    values = np.linspace(0.2, 0.8, videos).tolist()
    table = markdown_table(compare(write(result(per_video={"video_dice": values}))))
    (cell,) = rows(table)["xl"]
    assert cell.startswith("50.0 ")
    assert cell.endswith(ending)
    assert ("[" in cell) == (videos >= 5)
    assert "No interval is given below 5 videos" in table


def test_the_interval_of_one_run_is_that_of_its_file(write):
    content = result(per_video={"video_dice": [0.1, 0.2, 0.3, 0.4, None, 0.6]})
    content["intervals"]["video_dice"] |= {"low": 0.111, "high": 0.555}
    assert rows(markdown_table(compare(write(content))))["xl"] == ["32.0 [11.1, 55.5] n = 5, rough"]


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
        (result(seed=1, image_size=[224, 224]), r"differ in image_size: None and \[224, 224\]"),
        (result("b", draws={"video_dice": [0.5] * 7}), "bootstrap draws differ: 4 in .*run0.*, 7 in .*run1"),
    ],
)
def test_what_cannot_be_compared_is_refused(write, other, message):
    with pytest.raises(ValueError, match=message):
        compare(write(result(draws={"video_dice": [0.5] * 4}), other))


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


def test_files_of_the_old_schema_are_read_but_not_compared(write):
    """Test that results with the old schema are read but not compared.

    Their metrics have other names and definitions, and no values per video.
    """
    old = result("old", metrics={"mean_video_dice": 0.5}) | {"schema": "surgenet_hf.results/1"}
    results = write(old, result("new"))
    assert len(results) == 2
    with pytest.raises(ValueError, match=r"run0.*has the schema 'surgenet_hf\.results/1'.*evaluate the model again"):
        compare(results)


def test_ranks_with_ties_and_lower_is_better(write):
    names = ("video_dice", "video_assd")
    values = {"a": (0.7, 9.0), "b": (0.8, 3.0), "c": (0.7, 5.0), "d": (0.1, None)}
    contents = [result(model, metrics=dict(zip(names, pair, strict=True))) for model, pair in values.items()]
    comparison = compare(write(*contents))
    assert comparison.models == ("b", "c", "a", "d")  # ordered by mean rank
    np.testing.assert_array_equal(comparison.ranks(), [[1, 1], [2, 2], [2, 3], [4, np.nan]])
    cells = rows(markdown_table(comparison))
    assert cells["b"] == ["**80.0** n = 3", "**3.00** n = 3"]
    assert cells["d"][1] == "-"
    assert cells["model"][1].endswith("ASSD, px ↓")


def test_rank_is_scipys():
    values = np.random.default_rng(0).integers(0, 4, (6, 50)).astype(float)
    np.testing.assert_array_equal(rank(values), rankdata(-values, "min", axis=0))
    values[2, :10] = np.nan
    np.testing.assert_array_equal(rank(values), rankdata(-values, "min", axis=0, nan_policy="omit"))


def test_bootstrap_ranks_of_stored_draws(write):
    """Test the bootstrap ranks of stored draws of a metric where lower is better.

    A resample without a value for one model is left out.
    """
    videos = [f"v{i}" for i in range(6)]
    contents = [
        result("a", metrics={"own_assd": 2.0}, draws={"own_assd": [1.0, 2.0, 3.0, None]}, videos=videos),
        result("b", metrics={"own_assd": 2.5}, draws={"own_assd": [2.0, 2.0, 2.0, 2.0]}, videos=videos),
    ]
    (found,) = compare(write(*contents), metrics=["own_assd"]).bootstrap_ranks().values()
    np.testing.assert_array_equal(found, [[1, 1, 2], [2, 1, 1]])


def test_bootstrap_ranks_of_means_over_videos_use_the_same_resamples_for_all_models(write):
    values = np.random.default_rng(0).uniform(0.3, 0.9, 8)
    missing = np.where(np.arange(8) == 3, None, values - 0.01)
    a = result("a", per_video={"video_dice": values.tolist()})
    b = result("b", per_video={"video_dice": (values + 0.1).tolist()})
    c = result("c", per_video={"video_dice": missing.tolist()})
    b["data"]["videos"] = b["data"]["videos"][::-1]
    b["per_video"] = dict(reversed(b["per_video"].items()))
    comparison = compare(write(a, b, c))
    (found,) = comparison.bootstrap_ranks().values()
    assert found.shape == (3, 10_000)
    assert comparison.models[0] == "b"
    draws = np.stack([mean_draws(list(values + 0.1)), mean_draws(values), mean_draws(missing.astype(float))])
    order = [("b", "a", "c").index(model) for model in comparison.models]
    np.testing.assert_array_equal(found, rankdata(-draws[order], axis=0))
    of_b, of_a = (found[comparison.models.index(model)] for model in "ba")
    assert (of_b < of_a).all()  # b is 0.1 better on each video, although their intervals overlap


@pytest.mark.parametrize("videos", [4, 6])
def test_columns_without_draws_or_with_too_few_videos_have_no_bootstrap_ranks(write, videos):
    values = np.linspace(0.2, 0.8, videos).tolist()
    contents = [result("a", per_video={"video_dice": values}), result("b", per_video={"video_dice": values})]
    if videos > 4:
        contents[1]["per_video"] = {}
    comparison = compare(write(*contents))
    assert not comparison.bootstrap_ranks()


def test_pairs_are_tested_by_sign_flips_with_holms_correction(write):
    values = np.random.default_rng(1).uniform(0.3, 0.6, 12)
    shifts = {"a": 0, "b": np.random.default_rng(2).normal(0.02, 0.02, 12), "c": 0.2}
    contents = [result(model, per_video={"video_dice": (values + shift).tolist()}) for model, shift in shifts.items()]
    pairs = {(pair.first, pair.second): pair for pair in compare(write(*contents)).pairs()}
    assert list(pairs) == [("c", "b"), ("c", "a"), ("b", "a")]
    for (first, second), pair in pairs.items():
        assert pair.test == sign_flip_test(values + shifts[first], values + shifts[second])
        assert pair.tests == 3
    assert pairs["c", "a"].test.p == 2 / 2**12
    assert pairs["c", "a"].adjusted_p == pytest.approx(3 * 2 / 2**12)
    weakest = pairs["b", "a"]
    assert weakest.adjusted_p == pytest.approx(max(weakest.test.p, pairs["c", "a"].adjusted_p))
    assert {pair.verdict for pair in pairs.values()} == {"c is better", "b is better"}


def test_the_correction_is_within_one_dataset_and_metric(write):
    rng = np.random.default_rng(0)
    contents = []
    for split in ("test", "validation"):
        for model in ("a", "b"):
            table = {name: rng.uniform(0.3, 0.9, 8).tolist() for name in ("video_dice", "video_assd")}
            contents.append(result(model, per_video=table, split=split))
    pairs = compare(write(*contents)).pairs()
    assert len(pairs) == 4
    assert all(pair.tests == 1 and pair.adjusted_p == pair.test.p for pair in pairs)


def test_table_of_pairs(write):
    """Test the table of pairs with a distance, for which lower is better.

    Runs are averaged before the test, so that two runs do not count as 14 videos.
    """
    values = np.linspace(2, 3, 7)
    contents = [
        result("a-seed0", 0, per_video={"video_assd": values.tolist()}),
        result("a-seed1", 1, per_video={"video_assd": (values + 0.2).tolist()}),
        result("b", per_video={"video_assd": (values + 1.1).tolist()}),
    ]
    table = paired_table(compare(write(*contents)).pairs())
    (line,) = [line for line in table.splitlines() if line.startswith("| endoscapes")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["endoscapes, test: ASSD, px", "a", "b", "-1.00", "7", "0.0156", "0.0156", "a is better"]


def test_what_no_data_could_show_is_said(write):
    """Test that pairs that can never be significant are reported.

    With 7 videos the smallest p is 2 / 128. Times 6 pairs it exceeds 0.05; for 1 pair it does not.
    """
    values = np.linspace(0.3, 0.6, 7)
    contents = [result(model, per_video={"video_dice": (values + i / 10).tolist()}) for i, model in enumerate("abcd")]
    results = write(*contents)
    pairs = compare(results).pairs()
    assert {pair.verdict for pair in pairs} == {"cannot be significant at n = 7"}
    assert paired_table(pairs).count("| cannot be significant at n = 7 |") == 6
    (pair,) = compare(dict(list(results.items())[:2])).pairs()
    assert pair.verdict == "b is better"


def test_pairs_that_could_be_significant_but_are_not(write):
    values = np.random.default_rng(0).uniform(0.3, 0.6, (2, 12))
    contents = [result(model, per_video={"video_dice": of.tolist()}) for model, of in zip("ab", values, strict=True)]
    (pair,) = compare(write(*contents)).pairs()
    assert pair.adjusted_p > 0.05
    assert pair.verdict == "not significant"


def test_metrics_without_values_per_video_are_not_tested(write):
    """Test the comparison of a metric without values per video.

    Since mAP pools frames, the stored draws give a paired bootstrap interval of the difference, but no p.
    """
    metric, videos = "mean_average_precision", [f"v{i}" for i in range(12)]
    rng = np.random.default_rng(0)
    draws = rng.normal(0.5, 0.1, 1000).clip(0, 1)
    others = draws + rng.normal(0.02, 0.001, 1000)
    kinds = {"task": "image-classification", "videos": videos}
    contents = [
        result("a", metrics={metric: 0.52}, draws={metric: others.clip(0, 1).tolist()}, **kinds),
        result("b", metrics={metric: 0.5}, draws={metric: draws.tolist()}, **kinds),
        result("c", metrics={metric: 0.4}, **kinds),
    ]
    pairs = compare(write(*contents)).pairs()
    table = paired_table(pairs)
    assert pairs[0].interval == pytest.approx((0.017, 0.023), abs=0.003)  # far narrower than the intervals of a and b
    first, second, third = [line for line in table.splitlines() if line.startswith("| endoscapes")]
    assert first.startswith("| endoscapes, test: mAP, % | a | b | +2.0 [+1.")
    assert first.endswith("| 12 | - | - | not tested: no values per video |")
    assert "| a | c | +12.0 | 12 | - | - | not tested" in second
    assert "| b | c | +10.0 | 12 |" in third
    assert "such as mAP, is not a mean over videos" in table


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


def test_a_split_that_selected_the_checkpoint_is_marked(write):
    note = "3 of 3 videos selected its checkpoint (v1, v2, v3), so the result is optimistic"
    contents = [result("a", selected=["v1", "v2", "v3"], leakage=note), result("b"), result("c")]
    table = markdown_table(compare(write(*contents)))
    cells = {model: cell for model, (cell,) in rows(table).items()}
    assert cells["a"].endswith("n = 3<sup>1</sup>")
    assert "<sup>" not in cells["b"] + cells["c"]
    assert f"\n<sup>1</sup> Leakage: {note}" in table


def test_the_main_metrics_of_each_task(write):
    everything = dict.fromkeys([name for task in TASKS.values() for name in task.headlines] + ["video_iou"], 0.5)
    contents = [result(task=task, metrics=everything) for task in ("phase-recognition", "semantic-segmentation")]
    contents.append(result(task="image-classification", metrics={"mean_average_precision": 0.4, "macro_recall": 1.0}))
    comparison = compare(write(*contents))
    assert [(column.task[:5], column.metric) for column in comparison.columns] == [
        ("seman", "video_dice"),
        ("seman", "video_assd"),
        ("image", "mean_average_precision"),
        ("phase", "accuracy"),
        ("phase", "macro_f1"),
    ]
    assert [column.title for column in comparison.columns] == ["Dice", "ASSD", "mAP", "accuracy", "F1"]


def test_any_scalar_of_a_results_file_can_be_compared(write):
    """Test that any scalar in a results file can be compared.

    Only video_dice is titled Dice. Distances are in px and lower is better; other metrics are percentages.
    """
    values = {"pooled_dice": (0.5, 0.6), "own_score": (0.1, 0.2), "video_hd95_found": (9.0, 8.0), "f1@50": (0.3, 0.4)}
    contents = [
        result(model, metrics={name: pair[i] for name, pair in values.items()}) for i, model in enumerate("ab")
    ]
    comparison = compare(write(*contents), metrics=list(values))
    header, *_ = markdown_table(comparison).splitlines()
    titles = [cell.split("<br>")[1].strip() for cell in header.strip("|").split("|")[1:]]
    assert titles == ["pooled dice, % ↑", "own score, % ↑", "video hd95 found, px ↓", "f1@50, % ↑"]
    assert comparison.models == ("b", "a")
    np.testing.assert_array_equal(comparison.ranks(), [[1] * 4, [2] * 4])
    assert rows(markdown_table(comparison))["b"][1:3] == ["**20.0** n = 3", "**8.00** n = 3"]


def test_metrics_that_cannot_be_compared_are_named(write):
    results = write(result(metrics={"video_dice": 0.5, "accuracy": None, "macro_f1": 0.5, "macro_f1_sd": 0.1}))
    with pytest.raises(ValueError, match=r"metric 'mean_video_dice'; similar metrics are video_dice$"):
        compare(results, metrics=["mean_video_dice"])
    with pytest.raises(ValueError, match=r"metric 'speed'; available metrics are accuracy, macro_f1, video_dice$"):
        compare(results, metrics=["speed"])
    with pytest.raises(ValueError, match=r"macro_f1_sd is a standard deviation over videos.*compare macro_f1 instead"):
        compare(results, metrics=["macro_f1_sd"])
    with pytest.raises(ValueError, match="No results file has a value for accuracy"):
        compare(results, metrics=["accuracy"])


def test_models_without_the_metrics_asked_for_are_left_out(write):
    values = {"video_dice": np.linspace(0.2, 0.8, 6).tolist()}
    contents = [
        result("a", per_video=values),
        result("b", per_video=values),
        result("c", task="phase-recognition", metrics={"accuracy": 0.5}),
    ]
    comparison = compare(write(*contents), metrics=["video_dice"])
    assert comparison.models == ("a", "b")
    assert len(comparison.bootstrap_ranks()) == 1
    table = markdown_table(comparison)
    assert "Models without a value in any column: c." in table
    assert "phase-recognition" not in table


def test_nothing_to_compare_is_said(write):
    with pytest.raises(ValueError, match="No results file has a value for video_dice or video_assd"):
        compare(write(result(metrics={"video_dice": None})))


def test_missing_path_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give results\.json files, or the folders"):
        read_results([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "metrics.video_dice",
            "0.5",
            r"metrics\.video_dice is '0\.5'; expected a number from 0 to 1, or null",
        ),
        ("metrics.video_dice", 1.7, r"metrics\.video_dice is 1\.7"),
        ("metrics.video_dice", True, r"metrics\.video_dice is True"),
        ("metrics.video_assd", float("nan"), r"metrics\.video_assd is nan; expected a number from 0, or null"),
        ("metrics.video_assd", float("inf"), r"metrics\.video_assd is inf"),
        ("metrics.video_assd", -1, r"metrics\.video_assd is -1"),
        ("metrics.own_metric", [1], r"metrics\.own_metric is \[1\]; expected a number, or null"),
        ("metrics.per_class", [1], r"metrics\.per_class is \[1\]; expected an object with object values"),
        ("metrics.per_class", {"tool": {"dice": -0.1}}, r"metrics\.per_class\.tool\.dice is -0\.1"),
        ("metrics", [1], r"metrics is \[1\]; expected an object"),
        ("data", [1], r"data is \[1\]; expected an object"),
        ("data.frames", -3, r"data\.frames is -3; expected a non-negative integer"),
        ("data.frames", 3.5, r"data\.frames is 3\.5"),
        ("data.videos", ["a", 1], r"data\.videos is \['a', 1\]; expected a list of strings"),
        ("model", "xl", r"model is 'xl'; expected an object"),
        ("seed", "1", r"seed is '1'; expected a non-negative integer"),
        (
            "intervals.video_dice",
            [0.6, 0.4],
            r"intervals\.video_dice is \[0\.6, 0\.4\]; expected \[lower, upper\]",
        ),
        ("intervals.video_dice", [0.6], r"intervals\.video_dice is \[0\.6\]"),
        ("intervals.video_dice", 0.6, "intervals is .*; expected an object with object or list values"),
        ("bootstrap.video_dice", [0.5, "x"], r"bootstrap\.video_dice\[1\] is 'x'"),
        ("per_video", {"v1": {"pooled_dice": 2}}, r"per_video\.v1\.pooled_dice is 2; expected a number from 0 to 1"),
        ("per_video", {"v1": 0.5}, "per_video is .*; expected an object with object values"),
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


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_a_results_file_holds_the_error_names_it(data):
    """Test that a results file with any changed value is accepted, or refused with a ValueError that names it."""
    content = result(draws={"video_dice": [0.5, None]})
    content |= {
        "intervals": {"video_dice": {"low": 0.4, "high": 0.6, "videos": 5, "method": "t"}},
        "per_video": {"v1": {"pooled_dice": 0.5}},
    }
    content["comparisons"] = {"x": {"pooled_dice": 0.5, "per_class": {"a": {"iou": 0.5}}}}
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
        value = content["metrics"].get("video_dice")  # the range of other metrics is unknown
        assert value is None or -1e-6 <= value <= 1 + 1e-6  # as `check_results` allows for rounding
    else:
        assert refused.startswith("results.json")


def test_published_files_are_compared_by_the_hashes_of_their_videos(write, monkeypatch, tmp_path_factory):
    """Test that published files are compared by the hashes of their videos.

    All published files use the same neutral names, so different videos must not count as equal.
    """
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


def test_a_published_file_is_paired_with_a_local_one(write, monkeypatch, tmp_path_factory):
    """Test that a published file can be paired with a local one.

    Its neutral names stand for the same videos in the same order.
    """
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
    first, second = np.random.default_rng(0).uniform(0.3, 0.9, (2, 12))
    published = result("a", per_video={"video_dice": first.tolist()})
    published = sanitize_results(published, "me/a", neutral_names(published))
    assert "v00" not in published["per_video"]
    (pair,) = compare(write(published, result("b", per_video={"video_dice": second.tolist()}))).pairs()
    pairs = {"a": first, "b": second}
    assert pair.test == sign_flip_test(pairs[pair.first], pairs[pair.second])


def test_different_sizes_of_the_input_are_noted(write):
    sizes = {"a": [224, 224], "b": [518, 518], "c": [224, 224]}
    results = write(*(result(name, image_size=size) for name, size in sizes.items()))
    assert "input in pixels: a 224 x 224, b 518 x 518, c 224 x 224" in markdown_table(compare(results))
    same = {path: found for path, found in results.items() if found["model"]["name"] != "b"}
    assert "input" not in markdown_table(compare(same))


def test_fractions_and_probes_have_their_own_rows(write):
    """Test that a model has one row for each fraction of the training videos and each mode."""
    kinds = [None, {"mode": "fine-tuning", "train_fraction": 0.1}, {"mode": "fine-tuning", "train_fraction": 1.0}]
    knn = {"mode": "k-NN", "train_fraction": 1.0, "pooling": "default", "k": 20, "temperature": 0.07}
    kinds += [knn, knn | {"pooling": "mean", "train_fraction": 0.25}]
    kinds += [{"mode": "frozen backbone", "train_fraction": 1.0}]
    contents = [result(seed=seed) | {"training": kind} for seed, kind in enumerate(kinds)]
    expected = ["xl", "xl (10 % of the videos)", "xl (frozen backbone)", "xl (k-NN)"]
    expected += ["xl (k-NN, mean pooling, 25 % of the videos)"]
    results = write(*contents)
    assert sorted(compare(results).models) == expected
    by_weights = [name.replace("xl", "SurgeNetXL", 1) for name in expected]
    assert sorted(compare(results, "pretraining").models) == by_weights


def test_probes_with_other_settings_are_not_one_row(write):
    settings = {"mode": "k-NN", "train_fraction": 1.0, "pooling": "default", "temperature": 0.07}
    with pytest.raises(ValueError, match="differ in k: 20 and 5"):
        compare(write(*(result(seed=k) | {"training": settings | {"k": k}} for k in (20, 5))))
