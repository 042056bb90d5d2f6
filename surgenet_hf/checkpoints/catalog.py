"""Catalog of the published checkpoints, their pretraining data, and their citations.

Sources: the authors' repositories github.com/TimJaspers0801/SurgeNet, github.com/rlpddejong/SurgeNetDINO,
huggingface.co/TimJaspersTue/SurgeNetModels, and huggingface.co/rlpddejong, and the papers in `CITATIONS`. We computed
the sums of frames over the datasets of a subset.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError

# Channel means and standard deviations of RGB in [0, 1]. SurgeNet's own were used in pretraining. The full checkpoints
# record them as `args.data_mean` and `args.data_std`, and the authors' ATLAS code has the same numbers.
NORMALIZATIONS = {
    "surgenet": ((0.46888983, 0.29536288, 0.28712815), (0.24689102, 0.21034359, 0.21188641)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "endovit": ((0.3464, 0.2280, 0.2228), (0.2520, 0.2128, 0.2093)),  # endovit_demo.py of DominikBatic/EndoViT
}
# reason for ImageNet's normalization of the vision transformers
UNKNOWN_STATISTICS = (
    "the statistics of pretraining are not published, and the authors fine-tune their vision transformers with "
    "ImageNet's"
)
NAMESPACE = "surgenet"
UPSTREAM_REPO = "TimJaspersTue/SurgeNetModels"
VIT_REPO = "rlpddejong/SurgeNetXL_DINOv1-v3"
ATLAS_REPO = "rlpddejong/ATLAS-pretraining-weights"


@dataclass(frozen=True)
class PretrainingSet:
    """Dataset whose frames were used in pretraining, at one frame per second.

    Attributes:
        name: name of the dataset.
        procedure: surgical procedure. RA means robot-assisted.
        videos: number of videos, or None if it is not published.
        frames: number of frames in SurgeNetXL.
        url: address of the dataset or its paper.
        public: whether the dataset is available to others.
    """

    name: str
    procedure: str
    videos: int | None
    frames: int
    url: str | None = None
    public: bool = True


_CHOLEC = (
    PretrainingSet("Cholec80", "laparoscopic cholecystectomy", 76, 179_164, "https://arxiv.org/abs/1602.03012"),
    PretrainingSet(
        "HeiChole", "laparoscopic cholecystectomy", 30, 53_427, "https://www.synapse.org/Synapse:syn25101790"
    ),
    PretrainingSet("hSDB-Chole", "laparoscopic cholecystectomy", 24, 18_064, "https://arxiv.org/abs/2110.12555"),
)
_RAMIE = (PretrainingSet("RAMIE-UMCU", "RA esophagectomy", 28, 377_287, public=False),)
_RARP = (
    # The authors' table says esophagectomy. According to its paper, ESAD is prostatectomy.
    PretrainingSet("ESAD", "RA prostatectomy", 28, 47_282, "https://arxiv.org/abs/2006.07164"),
    PretrainingSet("PSI-AVA", "RA prostatectomy", 8, 73_618, "https://arxiv.org/abs/2212.04582"),
    PretrainingSet("RARP-AvL", "RA prostatectomy", 8, 261_516, public=False),
)
_OTHERS = (
    PretrainingSet(
        "DSAD", "RA rectal resection/extirpation", 32, 14_623, "https://doi.org/10.1038/s41597-022-01719-2"
    ),
    PretrainingSet("GLENDA", "gynecologic laparoscopy", 400, 25_682, "https://doi.org/10.1007/978-3-030-37734-2_36"),
    PretrainingSet("LapGyn4", "gynecologic laparoscopy", 500, 59_616, "https://doi.org/10.1145/3204949.3208127"),
    PretrainingSet(
        "MultiBypass140", "laparoscopic gastric bypass", 140, 749_419, "https://github.com/CAMMA-public/MultiBypass140"
    ),
    PretrainingSet("hSDB-Gastric", "RA gastrectomy", 24, 35_576, "https://arxiv.org/abs/2110.12555"),
    PretrainingSet("SurgToolLoc2022", "11 RA porcine procedures", None, 741_516, "https://arxiv.org/abs/2305.07152"),
)
_YOUTUBE = (
    PretrainingSet(
        "SurgeNetYoutube",
        "23 procedures",
        3_253,
        2_074_234,
        "https://huggingface.co/datasets/TimJaspersTue/SurgeNetYoutube",
    ),
)
# The datasets of these frames, and their exact number, are not known.
_TWO_MILLION = (
    PretrainingSet("not published (about 2 million frames)", "not published", None, 2_000_000, public=False),
)
_SURGENET = _CHOLEC + _RAMIE + _RARP + _OTHERS

CITATIONS = {
    "surgenetxl": """@article{jaspers2026scaling,
  title   = {Scaling up self-supervised learning for improved surgical foundation models},
  author  = {Jaspers, Tim J. M. and de Jong, Ronald L. P. D. and Li, Yiping and Kusters, Carolus H. J. and
             Bakker, Franciscus H. A. and van Jaarsveld, Romy C. and Kuiper, Gino M. and van Hillegersberg, Richard and
             Ruurda, Jelle P. and Brinkman, Willem M. and Pluim, Josien P. W. and de With, Peter H. N. and
             Breeuwer, Marcel and Al Khalil, Yasmina and van der Sommen, Fons},
  journal = {Medical Image Analysis},
  volume  = {108},
  pages   = {103873},
  year    = {2026},
  doi     = {10.1016/j.media.2025.103873}
}""",
    "demi2024": """@inproceedings{jaspers2024exploring,
  title     = {Exploring the Effect of Dataset Diversity in Self-supervised Learning for Surgical Computer Vision},
  author    = {Jaspers, Tim J. M. and de Jong, Ronald L. P. D. and Al Khalil, Yasmina and Zeelenberg, Tijn and
               Kusters, Carolus H. J. and Li, Yiping and van Jaarsveld, Romy C. and Bakker, Franciscus H. A. and
               Ruurda, Jelle P. and Brinkman, Willem M. and de With, Peter H. N. and van der Sommen, Fons},
  booktitle = {Data Engineering in Medical Imaging},
  pages     = {43--53},
  year      = {2024},
  doi       = {10.1007/978-3-031-73748-0_5}
}""",
    "surgenetdino": """@inproceedings{dejong2026towards,
  title     = {Towards Effective Surgical Representation Learning with {DINO} Models},
  author    = {de Jong, Ronald L. P. D. and Li, Yiping and Jaspers, Tim J. M. and van Jaarsveld, Romy C. and
               Kuiper, Gino M. and Badaloni, Franco and van Hillegersberg, Richard and Ruurda, Jelle P. and
               van der Sommen, Fons and Pluim, Josien P. W. and Breeuwer, Marcel},
  booktitle = {Medical Imaging with Deep Learning},
  year      = {2026},
  url       = {https://openreview.net/forum?id=6FoIDPKzRV}
}""",
    "metaformer": """@article{yu2022metaformer,
  title   = {MetaFormer Baselines for Vision},
  author  = {Yu, Weihao and Si, Chenyang and Zhou, Pan and Luo, Mi and Zhou, Yichen and Feng, Jiashi and
             Yan, Shuicheng and Wang, Xinchao},
  journal = {arXiv:2210.13452},
  year    = {2022}
}""",
}


@dataclass(frozen=True)
class CatalogEntry:
    """Published checkpoint.

    Attributes:
        name: name as the authors write it.
        repo_name: name of our repository in `NAMESPACE`.
        teacher_file, full_file: the weights, and the full DINO checkpoint (None: not published), in `upstream_repo`.
        teacher_sha256, full_sha256: SHA-256 of these files, or None if unknown.
        backbone, activation: as in `SurgeNetConfig`. The backbone of a vision transformer is its architecture, see
            `checkpoints.vit.architecture`.
        normalization: key of `NORMALIZATIONS` for the images.
        normalization_reason: reason for it if it is not known to be that of pretraining.
        image_size: side of the global crops in pretraining, in pixels.
        epochs: number of epochs of pretraining.
        pretraining_sets: datasets of pretraining.
        pretraining_share: fraction of their frames that was used.
        license: license of the weights, as the Hub writes it. "other" means two licenses: CC BY-NC-SA 4.0 and Meta's
            DINOv3 License.
        citations: keys of `CITATIONS`.
        tensors, elements: numbers of tensors and of their elements in the teacher file, or None if unknown.
    """

    name: str
    repo_name: str
    teacher_file: str
    full_file: str | None
    pretraining_sets: tuple[PretrainingSet, ...]
    pretraining_share: float = 1.0
    backbone: str = "caformer_s18"
    activation: str | None = "relu"
    normalization: str = "surgenet"
    normalization_reason: str | None = None
    teacher_sha256: str | None = None
    full_sha256: str | None = None
    upstream_repo: str = UPSTREAM_REPO
    image_size: int = 224
    epochs: int | None = 50
    license: str = "cc-by-nc-sa-4.0"
    citations: tuple[str, ...] = ("surgenetxl", "demi2024")
    tensors: int | None = None
    elements: int | None = None

    @property
    def is_vit(self) -> bool:
        return self.backbone.startswith("dinov")

    @property
    def is_surgical(self) -> bool:
        """Whether the weights were pretrained on surgical frames, and not on photographs only."""
        return all(data.name != "ImageNet-1k" for data in self.pretraining_sets)

    @property
    def repo_id(self) -> str:
        return f"{NAMESPACE}/{self.repo_name}"

    @property
    def pretraining_frames(self) -> int:
        # The authors count 263,679 frames for SurgeNet-Small, a tenth of SurgeNet's 2,636,790.
        return round(self.pretraining_share * sum(data.frames for data in self.pretraining_sets))


def _dino(name: str, file_prefix: str, sets: tuple[PretrainingSet, ...], **others) -> CatalogEntry:
    """Return the entry of a DINO training by the authors, whose file names follow one pattern."""
    return CatalogEntry(
        name=name,
        repo_name=name.lower(),
        teacher_file=f"{file_prefix}_checkpoint_epoch0050_teacher.pth",
        full_file=f"{file_prefix}_checkpoint0050.pth",
        pretraining_sets=sets,
        **others,
    )


def _vit(
    family: int, letter: str, name: str, file: str, image_size: int, epochs: int | None = None, **others
) -> CatalogEntry:
    """Return the entry of a vision transformer, pretrained with DINOv1, v2, or v3."""
    patch = 14 if family == 2 else 16
    full_name = f"{name}-DINOv{family}-ViT-{letter.upper()}"
    return CatalogEntry(
        name=full_name,
        repo_name=full_name.lower(),
        teacher_file=file,
        full_file=None,
        backbone=f"dinov{family}_vit{letter}{patch}",
        activation=None,
        normalization="imagenet",
        normalization_reason=UNKNOWN_STATISTICS,
        image_size=image_size,
        epochs=epochs,
        license="other" if family == 3 else "cc-by-nc-sa-4.0",
        citations=("surgenetdino", "surgenetxl"),
        **others,
    )


def _xl(family: int, letter: str, epochs: int, tensors: int, elements: int, sha256: str | None = None) -> CatalogEntry:
    """Return the entry of a vision transformer that was pretrained on SurgeNetXL."""
    size = 224 if family == 1 else 336
    file = f"DINOv{family}_ViT{letter}{14 if family == 2 else 16}_size{size}_SurgeNetXL.pth"
    counts = {"tensors": tensors, "elements": elements}
    sets = {"pretraining_sets": _SURGENET + _YOUTUBE, "upstream_repo": VIT_REPO, "teacher_sha256": sha256}
    return _vit(family, letter, "SurgeNetXL", file, size, epochs, **counts, **sets)


def _two_million(family: int, letter: str, size: int) -> CatalogEntry:
    """Return the entry of a vision transformer that was pretrained on 2 million frames."""
    file = f"DINOv{family}-vit{letter}-{size}-surgenet2M.pth"
    return _vit(family, letter, "SurgeNet2M", file, size, pretraining_sets=_TWO_MILLION, upstream_repo=ATLAS_REPO)


CATALOG = (
    _dino(
        "SurgeNetXL",
        "SurgeNetXL",
        _SURGENET + _YOUTUBE,
        teacher_sha256="bd2709b010b6ad58c2451d37f009ad07bfacb797bd69ee6c951d04de747ffff8",
        full_sha256="ac0e40990cccf7dbec0c819bdce6c594427ccaadf8c02e01539e3147778a1517",
    ),
    _dino(
        "SurgeNet",
        "SurgeNet",
        _SURGENET,
        teacher_sha256="1a9d3317a12e843d57e60c1702b534a3a1ec24ffb6b07dc30925d42eac0c2f96",
    ),
    _dino("SurgeNet-Small", "SurgeNetSmall", _SURGENET, pretraining_share=0.1),
    _dino("SurgeNet-Cholec", "CHOLEC", _CHOLEC),
    _dino("SurgeNet-RAMIE", "RAMIE", _RAMIE),
    _dino("SurgeNet-RARP", "RARP", _RARP),
    # The authors' README links to the full file. Their loader takes it for a teacher file and returns a random
    # network.
    _dino("SurgeNet-Public", "Public", tuple(data for data in _SURGENET if data.public)),
    _dino(
        "SurgeNet-ConvNeXtV2",
        "SurgeNet_ConvNextv2",
        _SURGENET,
        backbone="convnextv2_tiny",
        activation=None,
        teacher_sha256="a53cafa6b8920e0de3e6c82ae9516f4a0cf1e1861d6b732b20feb2ee5e1d975a",
        full_sha256="b20eff4ef3a8cd5704da12067118ac349c3c633493d22c72d2dccf5c5f83cfa2",
    ),
    _dino("SurgeNet-PVTv2", "SurgeNet_PVTv2", _SURGENET, backbone="pvt_v2_b2", activation=None),
    CatalogEntry(
        name="ImageNet1k",
        repo_name="caformer-s18-imagenet1k",
        teacher_file="caformer/caformer_s18.pth",
        full_file=None,
        activation="star_relu",
        normalization="imagenet",
        upstream_repo="sail/dl",
        epochs=None,
        license="apache-2.0",
        citations=("metaformer", "surgenetxl"),
        pretraining_sets=(
            PretrainingSet("ImageNet-1k", "none (photographs)", None, 1_281_167, "https://image-net.org"),
        ),
    ),
    # The numbers of epochs are from the file names of a third party.
    _xl(1, "s", 50, 150, 21_665_664),
    _xl(1, "b", 50, 150, 85_798_656),
    _xl(2, "s", 50, 176, 21_753_600),
    _xl(2, "b", 50, 175, 85_971_456, "cd6e73e692074f1d58d2e4125998818121acc61748ff941849784616b03c2def"),
    _xl(2, "l", 30, 344, 303_560_704),
    _xl(3, "s", 15, 175, 21_599_632),
    _xl(3, "b", 15, 175, 85_666_576),
    _xl(3, "l", 15, 343, 303_150_096),
    # The tensors of these files are not known. They are converted if they match one of the layouts above.
    _two_million(1, "b", 224),
    _two_million(2, "b", 336),
    _two_million(3, "s", 256),
    _two_million(3, "b", 256),
    _two_million(3, "l", 256),
)


def find_entry(name: str, advice: str = "Load your own folder or Hub repository with from_pretrained") -> CatalogEntry:
    """Return the entry of a name, ignoring case, separators, the namespace, and the spelling "SurgNet".

    Args:
        name: name of a published checkpoint.
        advice: last sentence of the error message, with advice for other models.

    Raises:
        UserError: there is no such checkpoint. The message lists the closest names.
    """
    spellings = {
        spelling: entry for entry in CATALOG for spelling in (_spelling(entry.name), _spelling(entry.repo_name))
    }
    wanted = _spelling(name)
    for spelling in (wanted, f"surgenet{wanted}"):
        if spelling in spellings:
            return spellings[spelling]
    near = difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.5)
    suggestion = (
        f"did you mean {' or '.join(dict.fromkeys(spellings[match].name for match in near))}? " if near else ""
    )
    raise UserError(
        f"no published checkpoint is called {name!r}; {suggestion}the names are {', '.join(e.name for e in CATALOG)}. "
        f"{advice}"
    )


def find_by_sha256(sha256: str) -> CatalogEntry | None:
    """Return the entry whose teacher or full file has this checksum, or None."""
    return next((entry for entry in CATALOG if sha256 in (entry.teacher_sha256, entry.full_sha256)), None)


def recorded_normalization(pretraining: Mapping | None) -> str | None:
    """Return the normalization in a `config.pretraining`, or None. Earlier versions recorded it as "statistics"."""
    pretraining = pretraining or {}
    return pretraining.get("normalization", pretraining.get("statistics"))


# Datasets of `surgenet_hf.data` whose overlap with pretraining is known, and their titles on cards.
_LEAKAGE_TITLES = {
    "cholec80": "Cholec80 (and its videos in CholecT50)",
    "cholecseg8k": "CholecSeg8k",
    "endoscapes": "Endoscapes",
    "dsad": "DSAD",
    "autolaparo": "AutoLaparo",
    "multibypass140": "MultiBypass140",
}
CHOLEC80_LEFT_OUT = 4  # number of its 80 videos; which ones is not published
CHOLECT50_IN_CHOLEC80 = 45  # number of its 50 videos

# Value of `config.pretraining["name"]` for EndoViT (Batić et al., 2024), and the datasets of its Endo700k that
# `surgenet_hf.data` also has. Source: the README of github.com/DominikBatic/EndoViT.
ENDOVIT = "EndoViT"
_ENDOVIT_DATA = {
    "cholec80": "Cholec80",
    "cholecseg8k": "Cholec80",
    "cholect50": "Cholec80, with which CholecT50 shares 45 of its 50 videos",
    "endoscapes": "Cholec80, with which Endoscapes shares videos",
    "dsad": "DSAD",
}

# Value of `config.pretraining["name"]` for random weights.
RANDOM_WEIGHTS = "none (random initialization)"
_FROM_SCRATCH = "DINO on "
_CONTINUED = ", continued on "


def pretraining_name(base_name: str, data_names: Sequence[str]) -> str:
    """Return the name of weights after further DINO pretraining, e.g. "SurgeNetXL, continued on mydata".

    Leakage notes read this name.

    Args:
        base_name: name of the start weights. `RANDOM_WEIGHTS`: random weights.
        data_names: names of the datasets with the frames.
    """
    data = " + ".join(data_names)
    return f"{_FROM_SCRATCH}{data}" if base_name == RANDOM_WEIGHTS else f"{base_name}{_CONTINUED}{data}"


def is_from_scratch(pretraining_name: str | None) -> bool:
    """Return whether weights are random or were trained from random ones."""
    return (pretraining_name or "").startswith(("none (random ", _FROM_SCRATCH))


def base_entry(pretraining_name: str | None) -> CatalogEntry | None:
    """Return the published checkpoint that the weights are, or were continued from, or None."""
    base = (pretraining_name or "").split(_CONTINUED)[0]
    return next((entry for entry in CATALOG if entry.name == base), None)


def leakage_note(pretraining_name: str | None, data_name: str, num_videos: int | None = None) -> str | None:
    """Describe which videos of an evaluation were used in pretraining (without labels).

    Args:
        pretraining_name: `config.pretraining["name"]` of the model. None: not recorded.
        data_name: name of the dataset, e.g. "cholec80-phase".
        num_videos: number of videos of the evaluation, see `known_videos`. None: the note is about the dataset in
            general.

    Returns:
        One sentence without a period, or None if pretraining used none of its videos.
    """
    if data_name.startswith("synthetic"):
        return None
    base = (pretraining_name or "").split(_CONTINUED)[0]
    notes = [None if is_from_scratch(base) else _leakage_of_published(base, data_name, num_videos)]
    if own := _own_data(pretraining_name):
        notes.append(f"it is unknown whether its pretraining on {own} included these videos")
    return "; ".join(note for note in notes if note) or None


def known_videos(data_name: str, videos: Iterable[str]) -> int:
    """Return the number of videos of an evaluation about which `leakage_note` can tell something.

    For CholecT50, these are the videos that are also in Cholec80, which have the numbers 1 to 80. For other datasets,
    these are all videos.
    """
    number_above_80 = re.compile(r"VID(8[1-9]|9\d|\d{3,})")
    return sum(not (data_name.startswith("cholect50") and number_above_80.fullmatch(video)) for video in videos)


def earlier_leakage_note(pretraining_name: str | None, data_name: str, num_videos: int | None = None) -> str | None:
    """Return the part of `leakage_note` about the user's own datasets, as earlier versions worded it.

    Results files of these versions contain it.

    Args:
        pretraining_name, data_name, num_videos: as in `leakage_note`.
    """
    own = None if data_name.startswith("synthetic") else _own_data(pretraining_name)
    return f"unknown: whether its pretraining on {own} saw these videos" if own else None


def _own_data(pretraining_name: str | None) -> str | None:
    """Return the names of the user's own datasets in the name of a pretraining, joined by "and", or None."""
    base, *own = (pretraining_name or "").split(_CONTINUED)
    if base.startswith(_FROM_SCRATCH):
        own.insert(0, base.removeprefix(_FROM_SCRATCH))
    return " and ".join(own) if own else None


def known_leakage(entry: CatalogEntry) -> dict[str, str]:
    """Return {title of a dataset on cards: sentence of `leakage_note`} of all datasets with such a sentence."""
    notes = {title: leakage_note(entry.name, name) for name, title in _LEAKAGE_TITLES.items()}
    return {title: note for title, note in notes.items() if note}


def _leakage_of_published(name: str, data_name: str, num_videos: int | None) -> str | None:
    entry = base_entry(name)
    if name == ENDOVIT:
        if (data := _ENDOVIT_DATA.get(data_name.split("-")[0])) is None:
            return None
        return (
            f"EndoViT was pretrained without labels on frames of {data}. Each of its published files omits the "
            "validation and test frames of one task on Cholec80, or none"
        )
    if entry is None and name not in ("", "unknown"):
        return f"it is unknown whether {name} was pretrained on these videos"
    if entry is None:
        return "the origin of the backbone's weights is unknown (not recorded)"
    if not entry.is_surgical:
        return None
    name = data_name.split("-")[0]
    if name not in (*_LEAKAGE_TITLES, "cholect50") or entry.pretraining_sets == _TWO_MILLION:
        return f"it is unknown whether {entry.name} was pretrained on these videos"
    used = {data.name for data in entry.pretraining_sets}
    if name == "autolaparo":
        if "SurgeNetYoutube" in used:
            return (
                f"it is unknown whether the YouTube videos in the pretraining data of {entry.name} include videos of "
                "AutoLaparo"
            )
        return None
    if {"dsad": "DSAD", "multibypass140": "MultiBypass140"}.get(name, "Cholec80") not in used:
        return None
    share = "one tenth of the " if entry.pretraining_share == 0.1 else ""
    pretrained = f"{entry.name} was pretrained without labels on {share}frames of "
    if name == "dsad":
        return f"{pretrained}DSAD"
    if name == "multibypass140":
        return f"{pretrained}all 140 videos of MultiBypass140"
    pretrained += f"{80 - CHOLEC80_LEFT_OUT} of the 80 videos of Cholec80"
    if name == "endoscapes":
        return f"{pretrained}, and Endoscapes shares videos with Cholec80 (listed in CAMMA's camma_dataset_overlaps)"
    if name == "cholecseg8k":
        # EndoViT's four videos last 6,444 s in total. The four omitted videos have only 184,498 - 179,164 = 5,334 s
        # (one frame per second), so at least one of EndoViT's videos was used.
        return (
            f"{pretrained}, including at least 13 of the 17 videos of CholecSeg8k and at least one of EndoViT's "
            "validation and test videos (12, 17, 27, 52)"
        )
    if name == "cholect50":
        if num_videos == 0:
            return f"it is unknown whether {entry.name} was pretrained on these videos, which are not in Cholec80"
        shared = num_videos or CHOLECT50_IN_CHOLEC80
        note = f"{pretrained}, which share {shared} videos with {'this evaluation' if num_videos else 'CholecT50'}"
        if shared > CHOLEC80_LEFT_OUT:
            return f"{note}, at least {shared - CHOLEC80_LEFT_OUT} of them in the pretraining data"
        return f"{note}; which {CHOLEC80_LEFT_OUT} videos were omitted is not published"
    if num_videos is None:
        return f"{pretrained}, including at least {40 - CHOLEC80_LEFT_OUT} of its 40 test videos (41 to 80)"
    if num_videos > CHOLEC80_LEFT_OUT:
        return f"{pretrained}, including at least {num_videos - CHOLEC80_LEFT_OUT} of these {num_videos}"
    return f"{pretrained}; which {CHOLEC80_LEFT_OUT} videos were omitted is not published"


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().split("/")[-1]).replace("surgnet", "surgenet")
