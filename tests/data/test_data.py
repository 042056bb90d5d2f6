import subprocess
import sys

import pytest

from surgenet_hf.data import DATASETS, dataset_names, load_data
from surgenet_hf.errors import MissingFileError, UserError

FOLDERS = [name for name, dataset in DATASETS.items() if dataset.needs_folder]


def test_names_come_without_heavy_imports():
    """Test that the names of datasets need no heavy imports.

    The command line reads the names; only the package itself may import more.
    """
    code = (
        "import sys, types; package = types.ModuleType('surgenet_hf'); package.__path__ = ['surgenet_hf']; "
        "sys.modules['surgenet_hf'] = package; import surgenet_hf.data; "
        "print([name for name in ('datasets', 'torch', 'numpy', 'PIL', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_an_unknown_name_gives_the_closest_and_all():
    with pytest.raises(
        UserError, match=r"'cholec80'; did you mean cholec80-tools or cholec80-phase\? .*synthetic, .*endoscapes"
    ):
        load_data("cholec80")


def test_unknown_options_give_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"'cholecseg8k-8' has no option classes; its options are split_protocol"):
        load_data("cholecseg8k-8", tmp_path, classes=13)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_data_dir_is_an_error_of_its_own(name, tmp_path):
    with pytest.raises(UserError, match=f"'{name}' needs data_dir"):
        load_data(name)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(MissingFileError, match=r"^Expected .*nowhere does not exist .*contains elsewhere"):
        load_data(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "source"), [("cholecseg8k", "kaggle"), ("cholecseg8k-8", "kaggle"), ("dsad", "figshare")]
)
def test_sets_say_where_to_get_them(name, source, tmp_path):
    with pytest.raises(MissingFileError, match=source):
        load_data(name, tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic", "synthetic-phases"])
def test_the_registry_and_the_data_agree(name):
    data = load_data(name, num_videos=3)
    assert (data.name, data.task) == (name, DATASETS[name].task)
    assert name in dataset_names(data.task)
