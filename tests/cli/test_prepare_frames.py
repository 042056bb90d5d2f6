import pytest

from surgenet_hf.cli import prepare_frames
from tests.data.videos import write_video
from tests.preparation.test_shards import files, read_index


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "colectomy" / "a.mp4", 75)
    write_video(root / "myomectomy" / "b.mp4", 50)
    return root


@pytest.mark.slow
def test_shards_do_not_depend_on_the_number_of_workers(videos, tmp_path, capsys):
    output = tmp_path / "new" / "shards"
    prepare_frames.main(["--videos_dir", str(videos), "--output_dir", str(output), "--num_workers", "2"])
    printed = capsys.readouterr()
    assert printed.out == (
        "2 videos: 5 of 5 frames kept, 0 black, 0 duplicates\n"
        f"Written: 2 shards, index.parquet and report.json in {output}\n"
    )
    assert "5/5" in printed.err  # the progress bar
    prepare_frames.main(["--videos_dir", str(videos), "--output_dir", str(tmp_path / "again")])
    assert files(tmp_path / "again").keys() == files(output).keys()
    for name in files(output).keys() - {"run.yaml"}:
        assert files(tmp_path / "again")[name] == files(output)[name]


def test_options_reach_the_frames(videos, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a_frame_1_Sample0.jpg\na_frame_2_Sample1.jpg\nb_frame_7_Sample0.jpg")
    arguments = "--max_side 24 --shard_format zip --drop_black --black_threshold 35 --drop_duplicates"
    arguments += f" --frame_list {tmp_path}/list.txt --videos_dir {videos} --output_dir {tmp_path}/out"
    prepare_frames.main(arguments.split())
    index = read_index(tmp_path / "out")  # second 1 has gray 30, second 2 has gray 40
    assert index[["shard", "video", "number", "width"]].to_numpy().tolist() == [
        ["colectomy-00000.zip", "colectomy/a.mp4", 2, 24]
    ]
    assert capsys.readouterr().out.startswith(
        "2 videos: 1 of 2 frames kept, 1 black, 0 duplicates\n"
        f"1 of 3 entries or videos unmatched: {tmp_path}/out/unmatched.txt\n"
    )


def test_broken_videos_are_named_and_the_exit_status_is_1(tmp_path, capsys):
    write_video(tmp_path / "v" / "good.mp4", 75)
    (tmp_path / "v" / "bad.mp4").write_bytes(b"")
    arguments = ["--videos_dir", str(tmp_path / "v"), "--output_dir", str(tmp_path / "out")]
    for _ in range(2):  # a rerun must report the failure again
        with pytest.raises(
            SystemExit, match=r"error: 1 of 2 videos skipped, because they cannot be read:\n.*bad\.mp4 cannot be read"
        ):
            prepare_frames.main(arguments)
        assert "2 videos: 3 of 3 frames kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos_dir", "nowhere"], "error: there is no folder nowhere"),
        (["--videos_dir", __file__], r"error: .*\.py is a file; expected a folder of videos"),
        (["--videos_dir", ".", "--jpeg_quality", "0"], "error: jpeg_quality must be from 1 to 95, got 0"),
    ],
)
def test_errors(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        prepare_frames.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
