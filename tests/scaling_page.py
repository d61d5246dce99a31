"""The computed tables of docs/scaling.md; tests/test_memory.py compares them.

    python -m tests.scaling_page

For configs/nsd8.py with 40,000 voxels a subject: ViT-g/14, E = 256, 5000 voxels of each
picture. Formulas alone: `ubrain_jax.memory` and `scale_table.count_traffic`.
"""

from typing import NamedTuple

from tests import scale_table
from ubrain_jax import config, memory
from ubrain_jax.backbone import dinov2

GIANT = dinov2.GEOMETRIES["dinov2-giant"]
VOXELS = 40_000  # of a subject


class Layout(NamedTuple):
    """How a batch lies on devices."""

    data: int
    voxel: int
    images: int
    stripes: int
    voxels_per_image: int

    @property
    def name(self) -> str:
        """As in the page: data x voxel."""
        return f"{self.data}x{self.voxel}"

    def paper(self, dtype: str, attention: str) -> config.Experiment:
        """configs/nsd8.py on this mesh."""
        sections = {
            "data": {
                "crowd": ("nsd.zarr",),
                "batch_images": self.images,
                "stripes": self.stripes,
                "voxels_per_image": self.voxels_per_image,
            },
            "backbone": {"dtype": dtype, "attention": attention},
            "head": {"dtype": dtype},
            "train": {"epochs": 30.0},
        }
        return config.from_dict(sections, "page")


ONE, EIGHT = Layout(1, 1, 32, 8, 5000), Layout(1, 8, 32, 8, 5000)
# 32 pictures cannot share 64 devices.
BLOCK, LINE = Layout(8, 8, 64, 8, 5000), Layout(1, 64, 64, 64, 4992)
LAYOUTS = (ONE, EIGHT, BLOCK, LINE)
MIXED, DATA = Layout(2, 4, 32, 8, 5000), Layout(8, 1, 32, 8, 5000)
PRECISIONS = (("bfloat16", "cudnn"), ("bfloat16", "xla"), ("float32", "xla"))


def totals(dtype: str, attention: str) -> str:
    """GB on each device, by subjects, mesh and optimiser of the table."""
    kinds = ("dense", "sparse")
    head = ["subjects", *(f"{x.name} {kind}" for x in LAYOUTS for kind in kinds)]
    body = []
    for subjects in (1, 8, 30, 93, 200, 1000):
        row = [str(subjects)]
        for x in LAYOUTS:
            paper = x.paper(dtype, attention)
            for kind in kinds:
                found = memory.predict(
                    paper, GIANT, subjects * VOXELS, x.data, x.voxel, table=kind
                )
                row.append(f"{found.total / 1e9:.1f}")
        body.append(row)
    return markdown(head, body)


def parts() -> str:
    """GB on each device of what does not grow with subjects."""
    head = ["mesh", "pictures", "precision", "attention", "frozen", "adapter and head"]
    head += ["kept by the backbone", "kept by the head"]
    body = []
    for x in LAYOUTS:
        for dtype, attention in PRECISIONS:
            paper = x.paper(dtype, attention)
            found = memory.predict(paper, GIANT, VOXELS, x.data, x.voxel)
            sizes = (found.frozen, found.shared, found.backbone, found.head)
            body.append([x.name, str(x.images), dtype, attention])
            body[-1] += [f"{size / 1e9:.2f}" for size in sizes]
    return markdown(head, body)


def traffic() -> str:
    """MB that one device receives in a step."""
    crowds = (1, 8, 93, 1000)
    head = ["mesh", "pictures", "features", "adapter and head"]
    head += [f"dense, {n} subjects" for n in crowds] + ["sparse"]
    body = []
    for x in (EIGHT, MIXED, DATA, BLOCK, LINE):
        paper, mesh = x.paper("bfloat16", "cudnn"), (x.data, x.voxel)
        found = [
            scale_table.count_traffic(paper, GIANT, n * VOXELS, *mesh) for n in crowds
        ]
        sparse = scale_table.count_traffic(paper, GIANT, VOXELS, *mesh, table="sparse")
        sizes = [
            found[0]["features"] + found[0]["gradient of the features"],
            found[0]["gradient of adapter and head"],
            *(each["gradient of the table"] for each in found),
            sparse["gradient of the table"],
        ]
        body.append([x.name, str(x.images), *(f"{size / 1e6:,.0f}" for size in sizes)])
    return markdown(head, body)


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def tables() -> dict[str, str]:
    """All of them, by name."""
    return {
        "bfloat16": totals("bfloat16", "cudnn"),
        "float32": totals("float32", "xla"),
        "parts": parts(),
        "traffic": traffic(),
    }


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
