"""Removal of access tokens, paths, and names of the user's own videos from published files.

`results.json` and the models on the local disk keep the real names. `publishing.prepare` passes everything through
`Sanitizer` before the upload.
"""

import hashlib
import hmac
import os
import re
import secrets
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.utils import WeakFileLock

from .checkpoints.catalog import CATALOG, earlier_leakage_note, known_videos, leakage_note
from .errors import UserError

MASK = "***"
NO_TOKEN = (
    "an access token cannot be given as an option, because options are recorded; use `hf auth login` or HF_TOKEN"
)
_TOKEN = re.compile(r"((?:hf|api_org)_)(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[\w.-]+)")
_CREDENTIAL = re.compile(r"(?i)(bearer\s+|--[\w-]*token[ =])[^\s\"']+")  # tokens in other formats than the Hub's
_TOKEN_BYTES = re.compile(rb"(?:hf|api_org)_(?:[A-Za-z0-9]{30,}|(?:oauth|jwt)_[\w.-]{30,})")

_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"(?<![\w.)\]])[/\\]\w")
# folders whose name is a user name: a home folder in any parent folder, and ~alice
_HOME = re.compile(r"(?i)(.*[/\\])?(home|users)[/\\][^/\\]+[/\\]*|/root/*|~[^/\\]*[/\\]*")
_REMOTE = re.compile(r"[\w.-]+@[\w.-]+:")  # alice@host:path
# format and separators of `config.pretraining["name"]`, see `checkpoints.catalog.pretraining_name`
_PRETRAINING = re.compile(r"^DINO on |, continued on ")
_LISTED = re.compile(r"(, continued on | \+ |^DINO on )")
_OPTION = re.compile(r"(--?[A-Za-z][\w-]*=)(.*)", re.DOTALL)
_SPLIT_PROTOCOL = re.compile(r"\d+(/\d+)+")  # e.g. 32/8/40, the value of --split_protocol

# texts with a slash that are public and do not identify the user
_PUBLIC = frozenset(
    text
    for entry in CATALOG
    for text in (entry.repo_id, entry.upstream_repo, f"{entry.upstream_repo}/{entry.teacher_file}")
)
# characters; shorter names also occur as ordinary words and numbers
_SHORTEST_IN_TEXT = 4
_WITHOUT_VIDEOS = ("schema", "task", "seed", "metrics", "intervals", "bootstrap", "versions")
_SALT_BYTES = 32


def mask_tokens(text: str) -> str:
    """Replace access tokens in a text by `MASK`.

    These are Hub tokens, the value of HF_TOKEN, and the text after "Bearer" or --...token. Use this for all text that
    is printed, logged, or recorded and can quote a command line or a response of the Hub.
    """
    token = os.environ.get("HF_TOKEN")
    if token:
        text = text.replace(token, MASK)
    return _CREDENTIAL.sub(rf"\g<1>{MASK}", _TOKEN.sub(rf"\g<1>{MASK}", text))


def check_no_tokens(folder: Path) -> None:
    """Check that no file name or content in a folder contains an access token.

    Raises:
        UserError: a file contains a token. The message names the file, with the token masked.
    """
    token = get_token()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        content = name.encode() + b"\0" + path.read_bytes()
        if (token and token.encode() in content) or _TOKEN_BYTES.search(content):
            raise UserError(
                f"{mask_tokens(name)} contains an access token, which anyone could use after publication. Remove it "
                "from the source of this file, and replace the token at https://huggingface.co/settings/tokens"
            )


def last_part(path: str) -> str:
    """Return the last component of a path in the format of any operating system.

    The result is "~" for a folder whose name is a user name.
    """
    path = _REMOTE.sub("", path)
    if _HOME.fullmatch(path):
        return "~"
    part = next((part for part in reversed(_SEPARATOR.split(path)) if part), "")
    return "~" if part == Path.home().name else part


class Sanitizer:
    """Sanitizer that removes identifying information about users and videos from texts, lists, and dictionaries.

    Numbers are not changed. A text with a path separator is treated as a path, and only its last component is kept.

    Args:
        names: {name of a video: replacement}. Names of at least 4 characters are replaced anywhere in a text. Shorter
            names are replaced only if they are the entire text or the last component of a path.
        kept: texts that are not changed, such as class names.
    """

    def __init__(self, names: Mapping[str, str], kept: Collection[str] = ()):
        self.names = dict(names)
        self.kept = _PUBLIC | frozenset(kept)
        longest_first = sorted((name for name in names if len(name) >= _SHORTEST_IN_TEXT), key=len, reverse=True)
        self._in_text = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def value(self, value):
        """Sanitize a JSON value, including keys."""
        if isinstance(value, dict):
            return self._dictionary(value)
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Sanitize a text that can be a path, or a list of datasets as in the name of a pretraining."""
        if text in self.kept:
            return text
        if text in self.names:
            return self.names[text]
        text = mask_tokens(self._rename(text))
        if _PRETRAINING.search(text):
            return "".join(part if _LISTED.fullmatch(part) else self._path(part) for part in _LISTED.split(text))
        return self._path(text)

    def command(self, command: str) -> str:
        """Sanitize each argument of a command line."""
        try:
            arguments = shlex.split(command)
        except ValueError:  # an unclosed quote does not occur in recorded command lines
            return self.text(command)
        cleaned = []
        for previous, argument in zip(["", *arguments], arguments, strict=False):
            option, value = match.groups() if (match := _OPTION.fullmatch(argument)) else ("", argument)
            name = (option.rstrip("=") or previous).replace("-", "_")
            is_split = name in ("__split_protocol", "__data_split")  # the second name is from the previous version
            if not (is_split and _SPLIT_PROTOCOL.fullmatch(value)):
                value = self.text(value)
            cleaned.append(self._rename(option) + value)
        return mask_tokens(shlex.join(cleaned))

    def _dictionary(self, values: dict) -> dict:
        cleaned = {}
        for key, item in values.items():
            name = self.text(key)
            while name in cleaned:  # two paths can have the same last component
                name += "'"
            cleaned[name] = self.value(item)
        return cleaned

    def _rename(self, text: str) -> str:
        return self._in_text.sub(lambda match: self.names[match[0]], text) if self._in_text else text

    def _path(self, text: str) -> str:
        if text in self.kept or not (_SEPARATOR.search(text) or _REMOTE.match(text) or text.startswith("~")):
            return text
        part = last_part(text)
        stem, dot, suffix = part.partition(".")
        return self.names.get(part) or (self.names[stem] + dot + suffix if stem in self.names else part)


def neutral_names(results: dict) -> dict[str, str]:
    """Return {name of a video: "video_001", ...} for the user's own videos, in the order of the results file.

    The result is empty if the names are those of a public dataset (`data.videos_are_public`) or already neutral.
    """
    data = results["data"]
    if data.get("videos_are_public") or "video_hashes" in data:
        return {}
    videos = dict.fromkeys([*(data.get("videos") or ()), *(results.get("per_video") or ())])
    return {name: f"video_{number:03d}" for number, name in enumerate(videos, start=1)}


def sanitize_results(results: dict, model_name: str, names: Mapping[str, str]) -> dict:
    """Return a copy of results that can be published.

    Notes on the user's own data list videos and frames, so they are removed if names are replaced. Notes with an
    absolute path are always removed.

    Args:
        results: content of results.json.
        model_name: published name of the model.
        names: names from `neutral_names`, or {} to keep the names of the videos.
    """
    data = results["data"]
    kept = {results["schema"], "train", "validation", "test", *(data.get("labels") or ())}
    kept.add(data.get("split_protocol"))  # "32/8/40 (...)" is not a path
    plain, named = Sanitizer({}, kept), Sanitizer(names, kept)
    # some fields never contain a video's name, but a metric can have the same name as a video
    cleaned = {key: (plain if key in _WITHOUT_VIDEOS else named).value(item) for key, item in results.items()}
    cleaned["model"]["name"] = model_name
    # texts of this package, in which a slash is not a path separator
    if "definitions" in results:
        cleaned["definitions"] = results["definitions"]
    if "split_protocol" in data:
        cleaned["data"]["split_protocol"] = data["split_protocol"]
    cleaned["data"]["labels"] = plain.value(data.get("labels"))
    cleaned["data"]["videos"] = [names.get(video, video) for video in data.get("videos") or ()]
    cleaned["data"]["notes"] = [
        mask_tokens(note) for note in data.get("notes") or () if not names and not _ABSOLUTE.search(note)
    ]
    if names:
        cleaned["data"]["video_hashes"] = {names[video]: digest for video, digest in video_hashes(names).items()}
    if data.get("leakage"):
        cleaned["data"]["leakage"] = _clean_leakage(results, cleaned, named)
    for part, clean_key in (("per_video", lambda video: names.get(video, video)), ("comparisons", named.text)):
        cleaned[part] = {clean_key(key): plain.value(figures) for key, figures in (results.get(part) or {}).items()}
    if results.get("command"):
        cleaned["command"] = named.command(results["command"])
    return cleaned


def _clean_leakage(results: dict, cleaned: dict, named: Sanitizer) -> str:
    """Sanitize the note on leakage. Its part on pretraining quotes dataset names and is built again.

    Results files of earlier versions contain this part in an earlier wording.
    """

    def of_pretraining(part: dict, wording: Callable[..., str | None]) -> str:
        pretraining = part["model"].get("pretraining")
        name = pretraining.get("name") if isinstance(pretraining, dict) else None
        num_videos = known_videos(results["data"]["name"], results["data"].get("videos") or ())
        return wording(name, part["data"]["name"], num_videos) or ""

    for wording in (leakage_note, earlier_leakage_note):
        before, note, after = results["data"]["leakage"].rpartition(of_pretraining(results, wording) or "\0")
        if note:
            return named.text(before) + of_pretraining(cleaned, wording) + named.text(after)
    return named.text(results["data"]["leakage"])


def video_hashes(videos: Iterable[str]) -> dict[str, str]:
    """Return {name of a video: 16 hexadecimal digits}, the first 64 bits of HMAC-SHA256 with a secret salt.

    The salt is 32 random bytes in `HF_HOME/surgenet_hf/salt`. It is generated on first use, is readable only by the
    user, and is never published.

    Protection: without the salt, a name cannot be recovered, not even by trying all dates and patient numbers. This
    would be easy with a plain hash. It is also impossible to test whether a given video is among the published ones.

    Limits: a video has the same hash in all files published with one salt. The hashes therefore reveal that two files
    share a video, which is their purpose. With the salt, guesses can be tested, so it is as confidential as the names.
    The hashes do not hide the number of videos, their alphabetical order (the order of the neutral names), or the
    metrics of each video.

    Results that were published with different salts cannot be matched. This is the case for different machines, or
    after the salt was lost.

    Raises:
        UserError: the salt file has a wrong size.
    """
    path = Path(constants.HF_HOME, "surgenet_hf", "salt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name("salt.lock")):  # another process may be writing the salt
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise UserError(f"{path} contains {len(salt)} bytes, expected {_SALT_BYTES}. Delete it to generate a new salt")
    return {video: hmac.new(salt, video.encode(), hashlib.sha256).hexdigest()[:16] for video in videos}
