"""The published checkpoints: one record each, and nowhere else."""

from dataclasses import dataclass

# Channel means and standard deviations of RGB in [0, 1]. SurgeNet's own were used in pretraining and stand in the full
# checkpoints' `args.data_mean` and `args.data_std`; the authors' ATLAS code has the same numbers.
STATISTICS = {
    "surgenet": ((0.46888983, 0.29536288, 0.28712815), (0.24689102, 0.21034359, 0.21188641)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
UPSTREAM_REPO = "TimJaspersTue/SurgeNetModels"


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint: its files in `upstream_repo`, and how to read them."""

    name: str
    teacher_file: str
    full_file: str | None
    backbone: str = "caformer_s18"
    activation: str | None = "relu"
    statistics: str = "surgenet"
    teacher_sha256: str | None = None  # None: not known
    full_sha256: str | None = None
    upstream_repo: str = UPSTREAM_REPO


CATALOG = (
    CatalogEntry(
        name="SurgeNetXL",
        teacher_file="SurgeNetXL_checkpoint_epoch0050_teacher.pth",
        full_file="SurgeNetXL_checkpoint0050.pth",
        teacher_sha256="bd2709b010b6ad58c2451d37f009ad07bfacb797bd69ee6c951d04de747ffff8",
        full_sha256="ac0e40990cccf7dbec0c819bdce6c594427ccaadf8c02e01539e3147778a1517",
    ),
    CatalogEntry(
        name="SurgeNet",
        teacher_file="SurgeNet_checkpoint_epoch0050_teacher.pth",
        full_file="SurgeNet_checkpoint0050.pth",
        teacher_sha256="1a9d3317a12e843d57e60c1702b534a3a1ec24ffb6b07dc30925d42eac0c2f96",
    ),
    CatalogEntry(
        name="SurgeNet-Small",
        teacher_file="SurgeNetSmall_checkpoint_epoch0050_teacher.pth",
        full_file="SurgeNetSmall_checkpoint0050.pth",
    ),
    CatalogEntry(
        name="SurgeNet-Cholec",
        teacher_file="CHOLEC_checkpoint_epoch0050_teacher.pth",
        full_file="CHOLEC_checkpoint0050.pth",
    ),
    CatalogEntry(
        name="SurgeNet-RAMIE",
        teacher_file="RAMIE_checkpoint_epoch0050_teacher.pth",
        full_file="RAMIE_checkpoint0050.pth",
    ),
    CatalogEntry(
        name="SurgeNet-RARP",
        teacher_file="RARP_checkpoint_epoch0050_teacher.pth",
        full_file="RARP_checkpoint0050.pth",
    ),
    CatalogEntry(
        # the authors' README points to the full file, which their loader then takes for a teacher: a random network
        name="SurgeNet-Public",
        teacher_file="Public_checkpoint_epoch0050_teacher.pth",
        full_file="Public_checkpoint0050.pth",
    ),
    CatalogEntry(
        name="SurgeNet-ConvNeXtV2",
        teacher_file="SurgeNet_ConvNextv2_checkpoint_epoch0050_teacher.pth",
        full_file="SurgeNet_ConvNextv2_checkpoint0050.pth",
        backbone="convnextv2_tiny",
        activation=None,
        teacher_sha256="a53cafa6b8920e0de3e6c82ae9516f4a0cf1e1861d6b732b20feb2ee5e1d975a",
        full_sha256="b20eff4ef3a8cd5704da12067118ac349c3c633493d22c72d2dccf5c5f83cfa2",
    ),
    CatalogEntry(
        name="SurgeNet-PVTv2",
        teacher_file="SurgeNet_PVTv2_checkpoint_epoch0050_teacher.pth",
        full_file="SurgeNet_PVTv2_checkpoint0050.pth",
        backbone="pvt_v2_b2",
        activation=None,
    ),
    CatalogEntry(
        name="ImageNet1k",
        teacher_file="caformer/caformer_s18.pth",
        full_file=None,
        activation="star_relu",
        statistics="imagenet",
        upstream_repo="sail/dl",
    ),
)


def find_by_sha256(sha256: str) -> CatalogEntry | None:
    """The entry whose teacher or full file has this checksum, if any."""
    return next((entry for entry in CATALOG if sha256 in (entry.teacher_sha256, entry.full_sha256)), None)
