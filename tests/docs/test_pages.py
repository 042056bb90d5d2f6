"""Tests that the documentation agrees with the code: tables, examples, and adjacent files."""

import ast
import configparser
import contextlib
import io
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

import surgenet_hf
from surgenet_cli import COMMANDS
from surgenet_hf.checkpoints.catalog import CATALOG, CITATIONS, NORMALIZATIONS, find_entry
from surgenet_hf.data import DATASETS, load_data
from surgenet_hf.metrics import MultiLabelMetric, PhaseMetric, SegmentationMetric

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASE.md"))]


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of all tables below a header line."""
    found = []
    for table in text.split(f"{header}\n")[1:]:
        lines = table.split("\n\n")[0].splitlines()[1:]
        found += [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found, header
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_table_of_commands():
    table = rows(read("index.md"), "| command | job |")
    assert {command.strip("`").removeprefix("surgenet "): job for command, job in table} == COMMANDS


def test_table_of_checkpoints():
    header = "| name | backbone | parameters | frames in pretraining | pretrained on | license |"
    table = rows(read("models.md"), header)
    assert [row[0] for row in table] == [entry.name for entry in CATALOG]
    for entry, (_, _, _, frames, _, license) in zip(CATALOG, table, strict=True):
        is_exact = entry.pretraining_sets != find_entry("SurgeNet2M-DINOv1-ViT-B").pretraining_sets
        assert frames == (f"{entry.pretraining_frames:,}" if is_exact else "about 2,000,000")
        expected = {"other": "CC BY-NC-SA 4.0 and DINOv3 License", "apache-2.0": "Apache-2.0"}
        assert license == expected.get(entry.license, "CC BY-NC-SA 4.0")


@pytest.mark.parametrize("kind", ["teacher", "full"])
def test_tables_of_checksums(kind):
    title = "teacher file" if kind == "teacher" else "full DINO file"
    table = rows(read("models.md"), f"| name | {title} | SHA-256 |")
    expected = [
        [entry.name, f"`{file}`", f"`{sha256}`" if sha256 else "not known"]
        for entry in CATALOG
        if (file := getattr(entry, f"{kind}_file"))
        for sha256 in [getattr(entry, f"{kind}_sha256")]
    ]
    assert table == expected


def test_table_of_the_original_names():
    table = rows(read("models.md"), "| `urls[...]` of the original | `load_checkpoint(...)` |")
    assert [ours.strip('`"') for _, ours in table] == [entry.name for entry in CATALOG if not entry.is_vit]
    for theirs, ours in table:
        assert find_entry(theirs.strip("`")) is find_entry(ours.strip('`"'))


def test_table_of_pretraining_data():
    table = rows(read("models.md"), "| dataset | procedure | videos | frames | public |")
    sets = CATALOG[0].pretraining_sets
    assert [row[0] for row in table] == [data.name for data in sets]
    for data, (_, _, videos, frames, public) in zip(sets, table, strict=True):
        assert (frames, public) == (f"{data.frames:,}", "yes" if data.public else "no")
        assert videos == ("not published" if data.videos is None else f"{data.videos:,}")


def test_normalizations():
    table = rows(read("guides/load.md"), "| normalization | mean (R, G, B) | standard deviation (R, G, B) |")
    found = {row[0].strip("`"): tuple(tuple(map(float, cell.split(", "))) for cell in row[1:]) for row in table}
    assert found == NORMALIZATIONS


def labels_of(name: str) -> tuple[str, ...] | None:
    """Return the classes of a dataset as its module defines them, or None for user data."""
    dataset = DATASETS[name]
    module = import_module(f"surgenet_hf.data.sets.{dataset.module}")
    if "classes" in dataset.options:
        return module.CLASS_LISTS[dataset.options["classes"]][0]
    task = str(dataset.options.get("task", "")).removesuffix("s").upper()
    names = (f"{task}S", "LABELS", "PHASES")  # such as TOOLS
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def test_every_dataset_has_a_row_and_a_section():
    text = read("datasets.md")
    tasks = {"segmentation": "semantic-segmentation", "classification": "image-classification"}
    tasks["phases"] = "phase-recognition"
    table = rows(text, "| name | task | classes | source |")
    assert [re.match(r"\[`(.+)`\]", row[0])[1] for row in table] == list(DATASETS)
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(DATASETS)
    for (name, dataset), row in zip(DATASETS.items(), table, strict=True):
        labels, section = labels_of(name), " ".join(sections[name].split())
        assert tasks[row[1]] == dataset.task
        assert row[2] == ("yours" if labels is None else str(len(labels)))
        assert "**Task**" in section
        assert "**License**" in section
        assert "**Classes**" in section
        assert "**Splits**" in section
        if labels is not None:
            assert all(label in section.split("**Classes**")[1].split("**Splits**")[0] for label in labels), name


def test_links_of_datasets_are_those_of_the_modules():
    modules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "surgenet_hf/data/sets").glob("*.py"))
    table = read("datasets.md").split("## synthetic")[0]
    for url in re.findall(r"\((https://[^)]+)\)", table):
        assert url.removeprefix("https://doi.org/") in modules


def scalars(metric) -> set[str]:
    return {name for name, value in metric.compute().items() if isinstance(value, float)}


def test_every_metric_is_defined():
    """Test that the first columns of the tables name exactly the metrics that are computed."""
    segmentation, phases = SegmentationMetric(3, background_id=0), PhaseMetric(3)
    multilabel = MultiLabelMetric(3, video_wise=True)
    rng = np.random.default_rng(0)
    for video in ("a", "b"):
        segmentation.add(rng.integers(0, 3, (8, 8)), rng.integers(0, 3, (8, 8)), video)
        phases.add(rng.integers(0, 3, 40), rng.integers(0, 3, 40), video)
        multilabel.add(rng.random((8, 3)), rng.random((8, 3)), video)
    computed = {name.removesuffix("_with_background") for name in scalars(segmentation)}
    computed |= scalars(phases) | scalars(multilabel)
    documented = {
        name for row in rows(read("results.md"), "| metric | definition |") for name in re.findall(r"`(.+?)`", row[0])
    }
    assert documented == computed


def test_every_field_of_results_is_documented():
    from surgenet_hf.evaluation.evaluate import evaluate
    from surgenet_hf.image_processing import build_image_processor
    from surgenet_hf.models import TINY

    data = load_data("synthetic", num_videos=2, frames_per_video=1, size=(32, 32))
    model = surgenet_hf.SurgeNetForSemanticSegmentation(surgenet_hf.SurgeNetConfig(**TINY, num_labels=5))
    found = evaluate(model, build_image_processor(image_size=32), data, resamples=0, command="x").results

    def fields(header: str) -> set[str]:
        return {name for row in rows(read("results.md"), header) for name in re.findall(r"`(\w+)`", row[0])}

    assert fields("| field | content |") == set(found)
    assert fields("| field of `data` | content |") == set(found["data"])


def blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^ *```{language}\n(.*?)^ *```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_use_names_that_exist(page):
    for block in blocks(page, "python"):
        if block.startswith("    "):  # a fragment to insert elsewhere
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                if node.module.startswith("surgenet_hf") or node.module == "transformers":
                    module = import_module(node.module)
                    assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "surgenet_hf":
                assert hasattr(surgenet_hf, node.attr), node.attr


@cache
def help_of(command: str) -> str:
    module = import_module(f"surgenet_hf.cli.{command.replace('-', '_')}")
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit):
        module.main(["--help"])
    return output.getvalue()


def command_lines(page: Path) -> list[str]:
    """Return the lines of all shell examples of a page, and its inline code that begins with `surgenet`."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`(surgenet [^`]+)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page):
    for line in command_lines(page):
        found = re.search(r"(?:\bsurgenet |surgenet_hf\.cli\.)([a-z][a-z_-]+)(.*?)(?:#|&&|$)", line)
        if not found:
            continue
        command = found[1].replace("_", "-")
        assert command in COMMANDS, line
        for option in re.findall(r"--[a-z][a-z_0-9]*", found[2]):
            assert re.search(rf"{option}\b", help_of(command)), f"{command} {option}"


def test_names_of_options_in_tables_exist():
    for page, command in (("segmentation", "finetune-segmentation"), ("phases", "finetune-phase")):
        for option in re.findall(r"^\| `(--\w+)", read(f"guides/{page}.md"), re.MULTILINE):
            assert option in help_of(command)


def test_classes_of_the_models_exist():
    table = rows(read("guides/load.md"), "| class | Auto class | what it adds |")
    for name, auto_class, _ in table:
        assert hasattr(surgenet_hf, name.strip("`"))
        assert hasattr(transformers, auto_class.strip("`"))


def test_pictures_are_small():
    pictures = list((DOCS / "images").iterdir())
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [picture.name for picture in pictures if picture.stat().st_size > 150_000]
    assert not [picture.name for picture in pictures if f"images/{picture.name}" not in text]


def test_citations():
    assert re.findall(r"```bibtex\n(.*?)\n```", read("index.md"), re.DOTALL) == [CITATIONS["surgenetxl"]]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert citation["version"] == surgenet_hf.__version__
    for value in (paper["doi"], paper["title"], paper["start"], *(a["family-names"] for a in paper["authors"])):
        assert value in CITATIONS["surgenetxl"]


def test_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[:2] == ["Unreleased", surgenet_hf.__version__]
    assert set(re.findall(r"^### (.+)", text, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def pins(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_oldest_versions_are_the_bounds_of_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    requirements = settings["options"]["install_requires"] + "".join(settings["options.extras_require"].values())
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", requirements, re.MULTILINE))
    oldest = pins(".github/constraints-oldest.txt")
    for name, bound in bounds.items():
        assert oldest[name].startswith(bound), name
    tools = pins("constraints.txt")
    assert all(oldest[name] == tools[name] for name in ("codespell", "import-linter", "ruff"))


def test_workflows_run_what_ci_runs():
    workflows = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").iterdir()
    }
    assert workflows.keys() == {"tests", "docs", "release"}
    for job in workflows["tests"]["jobs"].values():
        assert job["steps"][-1] == {"run": ".ci/run"}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    versions = re.findall(r"Python :: (3\.\d+)$", settings["metadata"]["classifiers"], re.MULTILINE)
    assert workflows["tests"]["jobs"]["python"]["strategy"]["matrix"]["python"] == versions
