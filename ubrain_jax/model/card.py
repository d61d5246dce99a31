"""The page that goes with an encoder: README.md of its bundle, made from it alone."""

import json
from typing import Any

from ubrain_jax.model import bundle

# Licences of what a bundle is made of or needs, as their owners state them.
_DATASETS = {
    "nsd": ("Natural Scenes Dataset", "its terms and conditions; no redistribution"),
    "algonauts": ("Algonauts 2023", "the terms of NSD"),
    "god": ("fMRI-on-ImageNet", "CC0 (OpenNeuro ds001246); pictures: ImageNet's terms"),
    "vim1": ("vim-1", "CRCNS terms; no redistribution"),
    "mosaic": ("MOSAIC", "its terms and those of the datasets in it"),
}


def text(given: bundle.Bundle) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        given: The encoder.

    Returns:
        Data, preprocessing, splits, units, accuracy per subject and region, licences.
    """
    told = given.provenance
    settings = given.experiment
    front = {
        "library_name": "ubrain_jax",
        "tags": ["fmri", "neuroscience", "brain-encoding", "universal-brain-encoder"],
    }
    if not given.backbone.random and given.backbone.source.count("/") == 1:
        front["base_model"] = given.backbone.source
    lines = ["---", *(f"{k}: {json.dumps(v)}" for k, v in front.items()), "---", ""]
    lines += [
        "# A Universal Brain Encoder",
        "",
        "Predicts the fMRI response of each voxel of "
        f"{_count(len(given.subjects), 'subject')} to any picture. Model: "
        "[arXiv:2406.12179](https://arxiv.org/abs/2406.12179), as implemented in "
        f"ubrain_jax {told.get('ubrain_jax', '')}.",
        "",
        *(f"> **Note.** {line}" for line in told.get("warnings", [])),
        "",
        "```python",
        "import ubrain_jax",
        "",
        "enc = ubrain_jax.UniversalEncoder.load(PATH_OR_HUB_ID)",
        f'enc.predict("pictures/", subject="{_first(given)}")  # (image, voxel)',
        "```",
        "",
        "## What it is made of",
        "",
        "| | |",
        "|---|---|",
        f"| frozen network | {given.backbone.source}"
        f"{' (random weights)' if given.backbone.random else ''}, not included |",
        f"| its sha256 | {_digests(given.backbone.sha256)} |",
        f"| read after blocks | {', '.join(map(str, settings.backbone.taps))} |",
        f"| pictures | {settings.backbone.image_px} px squares: shorter side scaled "
        "(bicubic), middle cut |",
        f"| adapter | {settings.adapter.kind}, rank {settings.adapter.rank} |",
        f"| embedding of a voxel | {settings.head.embed_dim} numbers |",
        f"| loss | {settings.loss.kind}, alpha {settings.loss.alpha} |",
        f"| trained for | {told.get('step', 'an unknown number of')} steps, seed "
        f"{settings.train.seed} |",
        f"| sha256 of this encoder | `{given.sha256}` |",
        "",
        "## Subjects",
        "",
        "| subject | voxels | space | dataset | responses | role |",
        "|---|---|---|---|---|---|",
        *(_subject_row(given, s) for s in given.subjects),
        "",
        "Units: what the responses were, z-scores within session or run; repeats of a "
        "picture averaged. Splits are by picture: a test picture of one subject is in "
        "no subject's training.",
        "",
        *_accuracy(told.get("metrics") or {}),
        "## Where it is from",
        "",
        "```json",
        json.dumps(
            {k: v for k, v in told.items() if k not in ("metrics", "warnings")},
            indent=1,
            sort_keys=True,
        ),
        "```",
        "",
        "## Licences",
        "",
        "| part | licence |",
        "|---|---|",
        "| code (ubrain_jax) | Apache-2.0 |",
        "| frozen network (DINOv2), not included | its owner's, Apache-2.0 for the "
        "released weights |",
        *_licences(given),
        "| weights and embeddings in this folder | decided by who trained them, within "
        "the terms of the data |",
        "",
    ]
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _first(given: bundle.Bundle) -> str:
    return given.subjects[0].name if given.subjects else "NAME"


def _digests(sha256: dict[str, str]) -> str:
    found = [f"{_cell(k)} `{v}`" for k, v in sha256.items()]
    return ", ".join(found) or "none"


def _cell(value: Any) -> str:
    """Text that does not break a table."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _subject_row(given: bundle.Bundle, subject: bundle.Subject) -> str:
    attrs = subject.attrs
    role = "trained" if subject.name in given.trained_with else "fitted later"
    cells = [
        subject.name,
        len(subject.embedding),
        attrs.get("space", "not told"),
        attrs.get("dataset", "not told"),
        attrs.get("normalisation", "not told"),
        role,
    ]
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _accuracy(scores: dict[str, Any]) -> list[str]:
    """Tables of the final evaluation."""
    if not scores:
        return ["## Accuracy", "", "Not evaluated here.", ""]
    lines = [
        "## Accuracy",
        "",
        "On test pictures: median (quartiles) over voxels of Pearson's r and of r over "
        "its noise ceiling; retrieval of a picture among the pool by its measured "
        "response.",
        "",
        "| subject / region | voxels | r | r / ceiling | top-1 | pool |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in scores.items():
        retrieval = found.get("retrieval", {})
        top = [_number(retrieval.get("top1")), retrieval.get("pool", "")]
        lines.append(_score_row(name, found, *top))
        for region, own in found.get("roi", {}).items():
            lines.append(_score_row(f"{name} / {region}", own, "", ""))
    return [*lines, ""]


def _score_row(name: str, found: dict[str, Any], *more: Any) -> str:
    cells = [
        name,
        found.get("num_voxels", ""),
        _spread(found.get("pearson", {})),
        _spread(found.get("noise_normalised", {})),
        *more,
    ]
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _spread(found: dict[str, Any]) -> str:
    median = _number(found.get("median"))
    low, high = _number(found.get("p25")), _number(found.get("p75"))
    return f"{median} ({low}, {high})"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _licences(given: bundle.Bundle) -> list[str]:
    names = {str(s.attrs.get("dataset", "")) for s in given.subjects}
    rows = []
    for name in sorted(names):
        label, terms = _DATASETS.get(name.lower(), (name or "data", "its owner's"))
        rows.append(f"| data: {_cell(label)} | {terms} |")
    return rows
