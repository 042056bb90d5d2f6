import pytest

from surgenet_hf.data.annotations import match_labels, read_label_file


def _label_file(tmp_path, text):
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    return read_label_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "Frame\tPhase\n0\tfirst cut\n1\tb\n2\tb\n",
        "Frame,Phase\r\n0, first cut\r\n1, b\r\n2, b\r\n\r\n",
        "0;first cut\n1;b\n2;b",
        "Frame Phase\n0   first cut\n1 b\n2 b\n",
    ],
)
def test_label_files(tmp_path, text):
    labels = _label_file(tmp_path, text)
    assert labels.frames == (0, 1, 2)
    assert labels.values == (("first cut",), ("b",), ("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no labels"),
        ("Frame\tPhase\n", "contains no labels"),
        ("Frame\tPhase\n0\ta\n1\n", "line 3: expected a frame number and 1 value"),
        ("Frame\tPhase\n0\ta\t7\n", "line 2: expected a frame number and 1 value"),
        ("Frame\tPhase\n0\ta\nx\tb\n", "line 3: expected a frame number"),
        ("0\ta\n1\ta\n3\ta\n", "line 3: frame 3 follows 1"),
        ("0\ta\n0\ta\n", "must start at 0 or 1 and increase, found 0, 0"),
        ("5\ta\n6\ta\n", "must start at 0 or 1 and increase, found 5, 6"),
    ],
)
def test_label_files_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"labels\.txt.*{message}"):
        _label_file(tmp_path, text)


def test_labels_in_another_encoding(tmp_path):
    (tmp_path / "labels.txt").write_bytes("0\tNähen\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"labels\.txt is not UTF-8 text"):
        read_label_file(tmp_path / "labels.txt")


def test_labels_of_seconds(tmp_path):
    rows = "".join(f"{i}\t{i}\n" for i in range(100))
    values, note = match_labels(_label_file(tmp_path, rows), 4, (25,))
    assert values == [("0",), ("25",), ("50",), ("75",)]
    assert note is None
    values, note = match_labels(_label_file(tmp_path, rows), 100, (1, 25))
    assert values == [(str(i),) for i in range(100)]
    values, _ = match_labels(_label_file(tmp_path, rows), 4, (1, 29.97))  # 3.3 s include part of a fourth second
    assert values == [("0",), ("29",), ("59",), ("89",)]
