"""Tests that published results hold no token, no path beyond its last part, and no name of user videos."""

import json
import shlex

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from surgenet_hf.checkpoints.catalog import find_entry, leakage_note
from surgenet_hf.evaluation.results import SCHEMA
from surgenet_hf.privacy import (
    Sanitizer,
    check_no_tokens,
    last_part,
    mask_tokens,
    neutral_names,
    sanitize_results,
    video_hashes,
)

TOKEN = "hf_" + "AbCdEfGh01" * 4


@pytest.fixture(autouse=True)
def hf_home(monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("hf_home")
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return home


def results_of(videos, command="python x.py", model="model", notes=(), pretraining="unknown", public=False, values=()):
    figures = {"mean_dice": 0.5, **{f"metric_{i}": value for i, value in enumerate(values)}}
    return {
        "schema": SCHEMA,
        "task": "semantic-segmentation",
        "model": {"name": model, "type": "surgenet", "parameters": 9, "pretraining": pretraining},
        "seed": 1,
        "data": {
            "name": "folder",
            "split": "validation",
            "split_protocol": "40/8/32 videos",
            "frames": 30,
            "videos": list(videos),
            "videos_are_public": public,
            "labels": ["clip/cut", "a"],
            "notes": list(notes),
            "leakage": "unknown: where the backbone's weights come from is not recorded",
        },
        "metrics": {**figures, "per_class": {"clip/cut": {"dice": 0.25}, "a": {"dice": None}}},
        "definitions": {"pooling": "per video/class"},
        "intervals": {"mean_dice": {"low": 0.25, "high": 0.75, "videos": 9, "method": "Student's t"}},
        "bootstrap": {"mean_dice": list(values)},
        "per_video": {video: {"mean_dice": i / 100} for i, video in enumerate(videos)},
        "comparisons": {"majority_class": {"mean_dice": 0.1}},
        "versions": {"torch": "2.9.0"},
        "command": command,
    }


def strings_of(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, str):
        yield value


def numbers_of(value):
    if isinstance(value, dict | list):
        return [
            number for item in (value.values() if isinstance(value, dict) else value) for number in numbers_of(item)
        ]
    return [value] if isinstance(value, int | float) else []


# prefix and suffix make secrets differ from all other text in the results
word = st.text(st.characters(categories=("Lu", "Ll", "Nd"), include_characters=" -._'=+\""), min_size=1, max_size=12)
secret = word.map(lambda text: f"Qz{text}9x")
video = st.one_of(secret, st.tuples(secret, secret).map("/".join))
token = st.text("ABCXYZabcxyz0189", min_size=30, max_size=40).map(lambda text: f"hf_{text}")


@st.composite
def path_of(draw):
    """Draw a path, absolute or not, and its folders, which must not be published."""
    folders = draw(st.lists(secret, min_size=1, max_size=4))
    separator = draw(st.sampled_from("/\\"))
    start = draw(st.sampled_from(["", "/", "/home/", "C:\\Users\\", "~/", "\\\\server\\"]))
    return start + separator.join([*folders, "last"]), folders


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_nothing_that_identifies_anyone_is_left(data):
    videos = data.draw(st.lists(video, min_size=1, max_size=5, unique=True))
    token_ = data.draw(token)
    paths = data.draw(st.lists(path_of(), min_size=4, max_size=4))
    (script, _), (data_dir, _), (model, _), (source, _) = paths
    values = data.draw(st.lists(st.floats(0, 1), max_size=5))
    first = videos[0]
    arguments = [
        *(
            "python",
            script,
            "--data_dir",
            data_dir,
            f"--model={model}",
            "--hub_token",
            token_,
            "--note",
            f"of {first}",
        ),
        *("--data_split", "32/8/40", f"--output_dir=outputs/{first}", f"--key={token_}"),
    ]
    pretraining = {
        "name": f"SurgeNetXL, continued on {source} + {first}",
        "source": source,
        "base": {"name": "SurgeNetXL", "source": model},
        "data": [source, first],
        source: {"epoch": 3, "note": f"{token_} {first}"},
    }
    notes = [f"Found {first} in {data_dir}.", f"Mask {data_dir}/{first}_0001.png"]
    results = results_of(videos, shlex.join(arguments), model, notes, pretraining, values=values)
    results["comparisons"][f"{data_dir}/{first}"] = {"mean_dice": 0.2}
    before = json.dumps(results)
    names = neutral_names(results)
    cleaned = sanitize_results(results, "me/mine", names)

    texts = list(strings_of(cleaned))
    folders = {folder for _, of_path in paths for folder in of_path}
    for text in texts:
        # a command line escapes quotes
        parts = [text, *(shlex.split(text) if text == cleaned["command"] else ())]
        for part in parts:
            assert token_ not in part
            assert not [name for name in videos if name in part]
            assert not [folder for folder in folders if folder in part]
    assert "32/8/40" in cleaned["command"]
    assert numbers_of(cleaned) == numbers_of(results)
    assert json.dumps(results) == before  # the local results keep the real names
    assert cleaned["data"]["videos"] == list(cleaned["per_video"]) == list(cleaned["data"]["video_hashes"])
    assert sanitize_results(cleaned, "me/mine", neutral_names(cleaned)) == cleaned


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python /home/jane/eval.py --data_dir /data/4711/", "python eval.py --data_dir 4711"),
        (
            "python eval.py '--data_dir=/home/Jane Doe/My Videos' --seed 3",
            "python eval.py '--data_dir=My Videos' --seed 3",
        ),
        ("python C:\\\\Users\\\\jane\\\\eval.py --data_split 40/8/32", "python eval.py --data_split 40/8/32"),
        ("python eval.py --data_split=40/40 --x ~/a/b", "python eval.py --data_split=40/40 --x b"),
        ("surgenet evaluate --split_protocol 40/8/32", "surgenet evaluate --split_protocol 40/8/32"),
        ("python eval.py --data_dir /home/jane --cache /Users/jane/", "python eval.py --data_dir '~' --cache '~'"),
        (f"python eval.py --hub_token {TOKEN} --k=x", "python eval.py --hub_token 'hf_***' --k=x"),
        ("python eval.py --data_dir 'C:\\open", "open"),
    ],
)
def test_commands(command, expected):
    assert Sanitizer({}).command(command) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"refused {TOKEN}", "refused hf_***"),
        ("Authorization: Bearer abc.def, again", "Authorization: Bearer *** again"),
        ("--hub_token=abc --seed 3", "--hub_token=*** --seed 3"),
        ("hf_oauth_eyJh.eyJz-1_x", "hf_***"),
        ("surgenet_hf hf_finetuned refuses the token: 401", "surgenet_hf hf_finetuned refuses the token: 401"),
    ],
)
def test_masked_tokens(text, expected):
    assert mask_tokens(text) == expected


def test_a_token_of_another_form_is_known_from_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "company-secret")
    assert mask_tokens("refused company-secret!") == "refused ***!"


@pytest.mark.parametrize("path", ["config.json", f"{TOKEN}.txt", "weights.bin"])
def test_a_folder_with_a_token_is_refused(path, tmp_path, monkeypatch):
    (tmp_path / "fine.py").write_text("surgenet_hf_something = 'hf_hub'")
    check_no_tokens(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "company-secret")
    (tmp_path / path).write_bytes(b"\xff\x00company-secret" if path == "weights.bin" else TOKEN.encode())
    with pytest.raises(ValueError, match="contains an access token") as caught:
        check_no_tokens(tmp_path)
    assert TOKEN not in str(caught.value)
    assert "company-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"), [("/a/b", "b"), ("a\\b\\", "b"), ("/", ""), ("plain", "plain"), ("/home/jane/", "~")]
)
def test_last_part(path, expected):
    assert last_part(path) == expected


def test_facts_of_the_catalogue_and_classes_stay():
    entry = find_entry("SurgeNetXL")
    pretraining = {"name": "SurgeNetXL", "source": f"{entry.upstream_repo}/{entry.teacher_file}"}
    results = results_of(["v1"], pretraining=pretraining)
    seen = "1 of 1 videos were used to train this model (matched by name)"
    results["data"]["leakage"] = f"{seen}; {leakage_note('SurgeNetXL', 'folder')}"
    results["data"]["split_protocol"] = "40/8/32 (train 1-40, validation 41-48, test 49-80)"
    cleaned = sanitize_results(results, "me/mine", {"v1": "video_001"})
    assert cleaned["data"]["split_protocol"] == results["data"]["split_protocol"]
    assert cleaned["model"]["pretraining"] == pretraining
    assert cleaned["model"]["name"] == "me/mine"
    assert cleaned["data"]["labels"] == ["clip/cut", "a"]
    assert cleaned["metrics"]["per_class"] == {"clip/cut": {"dice": 0.25}, "a": {"dice": None}}
    assert cleaned["data"]["leakage"] == f"{seen}; it is unknown whether SurgeNetXL was pretrained on these videos"


def test_a_leakage_note_keeps_its_findings_without_the_paths_of_pretraining():
    pretraining = {"name": "DINO on /home/jane/frames"}
    results = results_of(["v1"], pretraining=pretraining)
    found = "1 of 1 videos were used to train this model"
    results["data"]["leakage"] = f"{found}; {leakage_note(pretraining['name'], 'folder', 1)}"
    cleaned = sanitize_results(results, "me/mine", {"v1": "video_001"})
    assert cleaned["data"]["leakage"] == (
        f"{found}; it is unknown whether its pretraining on frames included these videos"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DINO on /home/jane/frames", "frames"),
        ("SurgeNetXL, continued on jane@host:frames, continued on /data/v1", "frames and video_001"),
    ],
)
def test_a_leakage_note_of_an_earlier_version_keeps_its_findings(name, expected):
    found = "1 of 1 videos trained this model; the pretraining of SurgeNetXL saw frames of 76 of the 80 videos"
    own = name.removeprefix("DINO on ").removeprefix("SurgeNetXL, continued on ").replace(", continued on ", " and ")
    results = results_of(["v1"], pretraining={"name": name})
    results["data"]["leakage"] = f"{found}; unknown: whether its pretraining on {own} saw these videos"
    cleaned = sanitize_results(results, "me/mine", {"v1": "video_001"})
    assert cleaned["data"]["leakage"] == (f"{found}; unknown: whether its pretraining on {expected} saw these videos")


def test_short_names_are_replaced_only_as_names():
    """Test that the short video names 1 and a are replaced only where they are names.

    The seed, the schema, and the class of that name remain.
    """
    results = results_of(["1", "a"], command="python eval.py --seed 1 --data_dir 2/1_frames")
    cleaned = sanitize_results(results, "me/mine", neutral_names(results))
    assert cleaned["data"]["videos"] == ["video_001", "video_002"]
    assert cleaned["per_video"].keys() == {"video_001", "video_002"}
    assert cleaned["command"].endswith("--data_dir 1_frames")
    assert cleaned["schema"] == SCHEMA
    assert "a" in cleaned["metrics"]["per_class"]


def test_a_name_that_begins_with_another_is_replaced_as_a_whole():
    results = results_of(["case_1", "case_10"], command="python eval.py --data_dir case_10_frames")
    cleaned = sanitize_results(results, "me/mine", neutral_names(results))
    assert cleaned["command"] == "python eval.py --data_dir video_002_frames"


def test_names_of_public_data_and_harmless_notes_stay():
    notes = ["The split 32/8/40 has no validation videos.", "Found /home/jane/cholec80/video01.", "One of video01/02."]
    results = results_of(["video01", "video02"], notes=notes, public=True)
    assert neutral_names(results) == {}
    cleaned = sanitize_results(results, "me/mine", {})
    assert cleaned["data"]["videos"] == ["video01", "video02"]
    assert cleaned["data"]["notes"] == [notes[0], notes[2]]
    assert "video_hashes" not in cleaned["data"]


def test_results_that_do_not_say_whose_videos_they_are_of_count_as_the_users():
    results = results_of(["2023-11-05_4711"])
    del results["data"]["videos_are_public"]
    assert neutral_names(results) == {"2023-11-05_4711": "video_001"}


def test_hashes_match_within_one_salt_only(hf_home, monkeypatch, tmp_path):
    first = video_hashes(["2023-11-05_4711", "other"])
    assert video_hashes(["2023-11-05_4711"]).items() <= first.items()
    assert len(set(first.values())) == 2
    salt = hf_home / "surgenet_hf" / "salt"
    assert len(salt.read_bytes()) == 32
    assert salt.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    assert not set(video_hashes(first).values()) & set(first.values())
    (tmp_path / "surgenet_hf" / "salt").write_bytes(b"")
    with pytest.raises(ValueError, match="contains 0 bytes, expected 32"):
        video_hashes(["a"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/gpfs/home/alice", "~"),
        ("/data/Users/alice/", "~"),
        ("\\\\nas\\home\\alice", "~"),
        ("~alice", "~"),
        ("~alice/frames", "frames"),
        ("alice@host:data", "data"),
        ("alice@host:/data/frames", "frames"),
        ("/home/alice/frames", "frames"),
        ("/scratch/me", "~"),
        ("frames", "frames"),
    ],
)
def test_users_are_not_named(monkeypatch, path, expected):
    monkeypatch.setenv("HOME", "/somewhere/me")
    assert Sanitizer({}).text(path) == expected
    assert Sanitizer({}).command(f"python x.py {shlex.quote(path)}").split()[-1].strip("'") == expected


def test_short_names_of_videos_in_paths():
    sanitizer = Sanitizer({"P01": "video_001"})
    assert sanitizer.command("python x.py --data_dir /data/P01 --video /data/P01.mp4 --seed 1") == (
        "python x.py --data_dir video_001 --video video_001.mp4 --seed 1"
    )


def test_phrases_of_the_package_are_kept_whole():
    cleaned = sanitize_results(results_of(["a video"]), "org/name", {"a video": "video_001"})
    assert cleaned["data"]["split_protocol"] == "40/8/32 videos"
    assert cleaned["definitions"] == {"pooling": "per video/class"}
    assert cleaned["intervals"] == results_of([])["intervals"]
