import os
import pickle
import pickletools

import pytest

from surgenet_hf.data.plain_pickle import read_plain_pickle
from surgenet_hf.errors import MissingFileError, UserError

PLAIN = {"a": [1, 2.5, None, True, b"x", ("t", {"s"}, frozenset("f"))], 3: -(2**70)}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_values(tmp_path, protocol):
    path = tmp_path / "plain.pickle"
    values = PLAIN if protocol >= 4 else {"a": [1, 2.5, None, True, ("t",)], 3: -(2**70)}  # sets need protocol 4
    path.write_bytes(pickle.dumps(values, protocol))
    assert read_plain_pickle(path) == values


class Payload:
    """Object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_payload_is_refused_and_not_run(tmp_path, protocol):
    trace, path = tmp_path / "trace", tmp_path / "bad.pickle"
    content = pickle.dumps({"BBP01": [Payload(os.mkdir, str(trace))]}, protocol)
    pickle.loads(content)
    assert trace.exists()  # the payload works
    trace.rmdir()
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"bad\.pickle was refused: it refers to (posix|nt)\.mkdir, which could run code"
    ):
        read_plain_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [Payload(eval, "1"), Payload(getattr, "", "join"), complex(1, 2), bytearray(b"x")])
def test_harmless_objects_are_refused_too(tmp_path, value):
    path = tmp_path / "bad.pickle"
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(UserError, match="was refused: it refers to "):
        read_plain_pickle(path)


def test_other_ways_to_refer_to_objects_are_refused(tmp_path):
    """Test persistent ids, registered extensions, and out-of-band buffers."""
    path = tmp_path / "bad.pickle"
    for content in (b"Pid\n.", b"\x80\x02\x82\x01.", b"\x80\x05\x97."):
        list(pickletools.genops(content))  # they are valid
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a pickle, or is damaged"):
            read_plain_pickle(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps(PLAIN)[:40]])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "labels.pickle"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.pickle \([0-9]+ bytes\) is not a pickle, or is damaged"):
        read_plain_pickle(path)
    with pytest.raises(MissingFileError, match=r"there is no .*none\.pickle"):
        read_plain_pickle(tmp_path / "none.pickle")
