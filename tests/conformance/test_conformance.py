"""Run transformers' common model tests on the model classes of this package.

The tests download the source distribution of the installed transformers version from PyPI into `.cache/`. It contains
the common tests, but not everything that they import. `standins/` adds the missing files and these classes.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "transformers"
COMMON_TESTS = ("test_modeling_common.py", "test_backbone_common.py", "test_configuration_common.py")
BACKBONES = ("Caformer", "ConvNextV2", "PvtV2")


def fetch_sdist(directory: Path) -> Path:
    """Return the path to the source distribution of the installed transformers.

    Skip the test if pip cannot download it.
    """
    name = f"transformers-{transformers.__version__}.tar.gz"
    if not (CACHE / name).exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers"]
        command += ["--retries", "1", "--timeout", "20", "--dest", str(directory)]
        command += [f"transformers=={transformers.__version__}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"{name} cannot be downloaded from PyPI: {' '.join(result.stderr.splitlines()[-3:])}")
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / name, CACHE / f"{name}.part")
        os.replace(CACHE / f"{name}.part", CACHE / name)
    return CACHE / name


@pytest.mark.slow
def test_common_tests_of_transformers(tmp_path):
    sdist = fetch_sdist(tmp_path)
    tree = tmp_path / "tree"
    shutil.copytree(HERE / "standins", tree, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(sdist) as archive:
        for name in COMMON_TESTS:
            source = archive.extractfile(f"transformers-{transformers.__version__}/tests/{name}")
            (tree / "tests" / name).write_bytes(source.read())

    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "tests/models", "-q", "--tb=short", f"--junitxml={report}"]
    command += ["-c", os.devnull, "--rootdir", str(tree), "-p", "no:cacheprovider"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout.splitlines()[-1])
    assert result.returncode == 0, result.stdout

    # guard against a run that collects no tests; transformers 5.23 passes 64 or 65 and 8 tests
    passed = defaultdict(set)
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            passed[case.get("classname").rpartition(".")[2]].add(case.get("name"))
    counts = {name: len(tests) for name, tests in passed.items()}
    print(counts)
    for backbone in BACKBONES:
        assert counts[f"{backbone}ModelTest"] >= 50, counts
        assert counts[f"{backbone}BackboneTest"] >= 8, counts
    assert counts["SurgicalModelTest"] >= 50, counts
