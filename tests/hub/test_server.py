"""Tests of the stand-in Hub with the real client."""

import hashlib
import json
import math
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, errors, hf_hub_download, snapshot_download
from safetensors.torch import save_file
from transformers import AutoModel
from transformers.utils import cached_file

import surgenet_hf

REPO = "surgenet/tiny"
CARD = "---\nlicense: cc-by-4.0\nlibrary_name: transformers\ntags:\n- surgery\n---\n# Tiny\n"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a text file, a text file in a subfolder, a card, and 2 MB that require LFS."""
    folder = tmp_path / "upload"
    (folder / "code").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    (folder / "code" / "model.py").write_text("print('hello')\n")
    (folder / "README.md").write_text(CARD)
    save_file({"x": torch.rand(512, 1024, generator=torch.manual_seed(0))}, folder / "model.safetensors")
    return folder


@pytest.fixture
def filled(hub, folder):
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return hub.add_files(REPO, paths, tag="v1")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_upload_and_download(hub, client, folder, tmp_path):
    assert client.whoami()["name"] == "maintainer"
    for _ in range(2):
        assert client.create_repo(REPO, exist_ok=True) == f"{hub.endpoint}/{REPO}"
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        client.create_repo(REPO)

    first = client.upload_folder(folder_path=folder, repo_id=REPO, commit_message="first")
    assert [commit.title for commit in client.list_repo_commits(REPO)] == ["first", "initial commit"]
    assert len(hub.matching("PUT /lfs/")) == 1
    again = client.upload_folder(folder_path=folder, repo_id=REPO, commit_message="again")
    assert again.oid == first.oid == client.model_info(REPO).sha
    assert len(hub.matching("POST .*/commit/")) == len(hub.matching("PUT /lfs/")) == 1

    data = contents(folder)
    attributes = {".gitattributes": hub.repos[REPO].files()[".gitattributes"]}
    assert hub.repos[REPO].files() == data | attributes
    info = client.model_info(REPO, files_metadata=True)
    assert info.card_data.license == "cc-by-4.0"
    assert "surgery" in info.tags
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes == {path: len(content) for path, content in (data | attributes).items()}
    tree = {entry.path: entry for entry in client.list_repo_tree(REPO)}
    assert sorted(tree) == [".gitattributes", "README.md", "code", "config.json", "model.safetensors"]
    assert [entry.path for entry in client.list_repo_tree(REPO, "code")] == ["code/model.py"]
    assert tree["model.safetensors"].lfs.sha256 == hashlib.sha256(data["model.safetensors"]).hexdigest()
    (config,) = client.get_paths_info(REPO, ["config.json", "absent"])
    git = subprocess.run(["git", "hash-object", folder / "config.json"], capture_output=True, text=True)
    assert config.blob_id == git.stdout.strip()

    path = hf_hub_download(REPO, "model.safetensors")
    assert path.startswith(str(tmp_path))
    assert Path(path).read_bytes() == data["model.safetensors"]
    assert hf_hub_download(REPO, "model.safetensors") == path
    assert cached_file(REPO, "model.safetensors") == path
    assert len(hub.matching("GET /lfs/")) == 1  # later reads use the cache
    assert contents(snapshot_download(REPO)) == data | attributes
    assert {request.authorization for request in hub.requests if request.origin == "hub"} == {f"Bearer {hub.token}"}
    assert {request.authorization for request in hub.requests if request.origin == "storage"} == {None}


def test_revisions(hub, client, filled):
    client.create_tag(REPO, tag="v2")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        client.create_tag(REPO, tag="v2")
    client.create_tag(REPO, tag="v2", exist_ok=True)
    old = client.model_info(REPO).sha
    add = CommitOperationAdd("config.json", b"{}")
    new = client.create_commit(REPO, operations=[add], commit_message="new").oid
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        client.create_commit(
            REPO, operations=[CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=old
        )
    refs = client.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags + refs.branches} == {"v1": old, "v2": old, "main": new}

    paths = {
        revision: hf_hub_download(REPO, "config.json", revision=revision) for revision in ("v2", old, "main", new)
    }
    read = {revision: Path(path).read_text() for revision, path in paths.items()}
    assert read == {"v2": '{"a": 1}', old: '{"a": 1}', "main": "{}", new: "{}"}
    client.delete_file("code/model.py", REPO)
    assert "code/model.py" not in client.list_repo_files(REPO)
    assert "code/model.py" in client.list_repo_files(REPO, revision="v1")
    with pytest.raises(errors.RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="v3")
    with pytest.raises(errors.HfHubHTTPError, match="doesn't exist"):
        client.delete_file("absent", REPO)


def test_who_may(hub, client, filled):
    add = [CommitOperationAdd("a.txt", b"a")]
    with pytest.raises(errors.RemoteEntryNotFoundError):
        hf_hub_download(REPO, "absent.json")
    with pytest.raises(errors.RepositoryNotFoundError, match="404"):
        client.model_info("surgenet/absent")
    with pytest.raises(errors.RepositoryNotFoundError, match="401"):
        client.create_commit(REPO, operations=add, commit_message="anonymous", token=False)
    with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials") as caught:
        client.create_commit(REPO, operations=add, commit_message="wrong token", token="hf_wrong")
    assert caught.value.response.status_code == 401
    hub.add_files("someone/else", {"a.txt": "a"})
    with pytest.raises(errors.HfHubHTTPError, match="403 Forbidden"):
        client.create_commit("someone/else", operations=add, commit_message="foreign")
    assert len(filled.commits) == 2

    filled.gated = "manual"
    with pytest.raises(errors.GatedRepoError):
        hf_hub_download(REPO, "config.json", token=False)
    assert hf_hub_download(REPO, "config.json")
    client.create_repo("surgenet/private", private=True)
    assert client.model_info("surgenet/private").private
    with pytest.raises(errors.RepositoryNotFoundError):
        client.model_info("surgenet/private", token=False)


def test_errors_on_the_way(hub, client, filled, folder):
    # too many requests: the client waits as requested plus one second, then continues
    limited = hub.fail("PUT /lfs/", status=429, headers={"Retry-After": "7"})
    save_file({"x": torch.rand(512, 1024, generator=torch.manual_seed(1))}, folder / "model.safetensors")
    client.upload_folder(folder_path=folder, repo_id=REPO)
    assert (limited.hits, hub.waits) == (1, [8.0])

    # the client does not retry a failed commit, and none of its changes are stored
    hub.fail("POST .*/commit/", status=503)
    (folder / "config.json").write_text("{}")
    before = len(filled.commits)
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        client.upload_folder(folder_path=folder, repo_id=REPO)
    assert len(filled.commits) == before
    assert filled.files()["config.json"] == b'{"a": 1}'

    # the reply is lost but not the commit, so the next run finds nothing to do
    hub.lose_reply("POST .*/commit/")
    with pytest.raises(Exception, match="disconnected"):
        client.upload_folder(folder_path=folder, repo_id=REPO)
    client.upload_folder(folder_path=folder, repo_id=REPO)
    assert len(filled.commits) == before + 1

    hub.waits.clear()
    hub.fail("HEAD .*/config.json", status=500, times=math.inf)
    with pytest.raises(errors.LocalEntryNotFoundError) as caught:
        hf_hub_download(REPO, "config.json")
    assert caught.value.__cause__.response.status_code == 500
    assert hub.waits == [1, 2, 4, 8, 8]


def test_cut_connections(hub, client, filled, folder, monkeypatch):
    data = (folder / "model.safetensors").read_bytes()
    # downloads resume at whole chunks
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    hub.cut("GET /lfs/", after_bytes=1_000_000)
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == data
    assert [request.headers.get("Range") for request in hub.matching("GET /lfs/")] == [None, "bytes=983040-"]
    assert [request.status for request in hub.matching("GET /lfs/")] == [200, 206]

    hub.cut("GET .*/config.json", after_bytes=3, times=math.inf)
    with pytest.raises(Exception, match="peer closed connection"):
        hf_hub_download(REPO, "config.json")
    assert len(hub.matching("GET .*/config.json")) == 6
    assert "config.json" not in contents(Path(huggingface_hub.constants.HF_HUB_CACHE))

    save_file({"x": torch.rand(512, 1024, generator=torch.manual_seed(1))}, folder / "model.safetensors")
    hub.cut("PUT /lfs/", after_bytes=100_000)
    client.upload_folder(folder_path=folder, repo_id=REPO)
    assert filled.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.matching("PUT /lfs/")) == 2
    assert len(filled.commits) == 3


def test_cards(hub, client, filled):
    def push(text):
        operations = [CommitOperationAdd("README.md", text.encode())]
        return client.create_commit(REPO, operations=operations, commit_message="card")

    with pytest.raises(ValueError, match='"license" must be one of'):
        push(CARD.replace("cc-by-4.0", "CC BY 4.0"))
    with pytest.raises(ValueError, match="bad YAML"):
        push("---\nlicense: [\n---\n")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push("# no metadata\n")
    assert len(filled.commits) == 3


def test_collections(hub, client, filled):
    made = client.create_collection("SurgeNet models", namespace="surgenet", description="All of them")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        client.create_collection("SurgeNet models", namespace="surgenet")
    assert client.create_collection("SurgeNet models", namespace="surgenet", exists_ok=True).slug == made.slug
    client.add_collection_item(made.slug, REPO, "model", note="the smallest")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        client.add_collection_item(made.slug, REPO, "model")
    client.add_collection_item(made.slug, REPO, "model", exists_ok=True)
    with pytest.raises(errors.HfHubHTTPError, match="404"):
        client.add_collection_item(made.slug, "surgenet/absent", "model")
    (item,) = client.get_collection(made.slug).items
    assert (item.item_id, item.item_type, item.note) == (REPO, "model", "the smallest")
    assert [found.slug for found in client.list_collections(owner="surgenet")] == [made.slug]
    assert not list(client.list_collections(owner="someone"))


def test_space(hub, client, folder):
    client.create_repo("surgenet/demo", repo_type="space", space_sdk="gradio")
    client.upload_folder(folder_path=folder, repo_id="surgenet/demo", repo_type="space")
    assert client.space_info("surgenet/demo").sdk == "gradio"
    snapshot = contents(snapshot_download("surgenet/demo", repo_type="space"))
    assert snapshot == hub.repos["spaces/surgenet/demo"].files()

    (folder / "README.md").write_text(f"---\nsdk: gradio\ncolorFrom: teal\nshort_description: {'x' * 61}\n---\n")
    with pytest.raises(ValueError, match=r'"colorFrom" must be one of .*\n.*"short_description" length must be'):
        client.upload_folder(folder_path=folder, repo_id="surgenet/demo", repo_type="space")


@pytest.mark.slow
def test_auto_model(hub, client):
    config = surgenet_hf.SurgeNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 64])
    model = surgenet_hf.SurgeNetModel(config)
    model.push_to_hub(REPO)
    assert len(hub.repos[REPO].commits) == 2
    loaded = AutoModel.from_pretrained(REPO)
    assert isinstance(loaded, surgenet_hf.SurgeNetModel)
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
