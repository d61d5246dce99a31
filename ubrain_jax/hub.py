"""Where an encoder is: a folder, a run's workdir, or the Hugging Face hub.

With a network the hub is asked for the newest files; without one its cache is used,
so an encoder that was loaded once loads again on a node without internet.
"""

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from ubrain_jax import errors
from ubrain_jax.model import bundle

# OWNER/NAME or OWNER/NAME@REVISION.
_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?")
_FILES = ["encoder.*", "seen.json", "subjects/*.safetensors", "README.md"]


class Found(NamedTuple):
    """A bundle on this machine.

    Attributes:
        folder: Of the bundle.
        within: Folder that its links may lead into.
        backbone: What a run's own settings say of the frozen network; None: the
            bundle says it.
    """

    folder: pathlib.Path
    within: pathlib.Path
    backbone: str | None


def find(path: str | os.PathLike, cache_dir: str | None = None) -> Found:
    """Finds the bundle of an encoder, downloading it where it is not here.

    Args:
        path: Folder of a bundle, workdir of a run that has one, or a hub id
            (OWNER/NAME, with @REVISION if wanted). A folder goes first.
        cache_dir: Of the hub; default: its own.

    Raises:
        errors.MissingInputError: If there is none, or the hub is out of reach and its
            cache has it not.
    """
    folder = pathlib.Path(path)
    if bundle.is_bundle(folder):
        return Found(folder, folder, None)
    inside = folder / "encoder"
    if bundle.is_bundle(inside):
        return Found(inside, inside, _backbone_of_run(folder))
    if folder.exists():
        raise errors.MissingInputError(
            folder,
            "",
            f"neither {bundle.DESCRIPTION} nor encoder/{bundle.DESCRIPTION}",
            "a bundle, or the workdir of a finished run",
            "Check the path; python -m ubrain_jax.main --mode=evaluate writes the "
            "bundle of a run that has none.",
        )
    match = _ID.fullmatch(os.fspath(path))
    if not match:
        raise errors.MissingInputError(
            path, "", "no such folder, and no hub id", "an encoder", "Check the path."
        )
    return _download(match[1], match[2], cache_dir)


def _backbone_of_run(workdir: pathlib.Path) -> str | None:
    """backbone.weights of a run's config.json, which names folders in full."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        return str(told["backbone"]["weights"])
    return None


def _download(repo: str, revision: str | None, cache_dir: str | None) -> Found:
    """The bundle in the hub's cache, brought up to date where there is a network."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, cache_dir=cache_dir, allow_patterns=_FILES
        )
    except _faults() as error:
        cache = cache_dir or huggingface_hub.constants.HF_HUB_CACHE
        lines = str(error.__cause__ or error).strip().splitlines() or ["no reason"]
        raise errors.MissingInputError(
            repo,
            "",
            f"not a folder here, not in the cache {cache}, and the Hugging Face hub "
            f"did not give it ({lines[0][:200]})",
            "an encoder that can be reached",
            f"On a machine with internet run 'hf download {repo}', then copy its cache "
            "here and set HF_HUB_CACHE to it, or give the folder of the bundle.",
        ) from None
    snapshot = pathlib.Path(folder)
    if not bundle.is_bundle(snapshot):
        raise errors.MissingInputError(
            repo,
            bundle.DESCRIPTION,
            "no such file in the repository",
            "a bundle of ubrain_jax",
            "Check the name.",
        )
    return Found(snapshot, snapshot.parents[1], None)


def _faults() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its own errors (of HTTP, of names, of its threads),
    and those of the HTTP library, which are none of the system's."""
    from huggingface_hub import errors as hub_errors

    library = hub_errors.HfHubHTTPError.__bases__
    return (OSError, ValueError, RuntimeError, hub_errors.HFValidationError, *library)


def push(
    save: Callable[[str], None],
    repo_id: str,
    *,
    private: bool,
    token: str | None = None,
) -> str:
    """Uploads what `save` writes to a folder; returns the commit's address.

    Args:
        save: Writes a bundle to a folder.
        repo_id: OWNER/NAME; made if absent.
        private: Of a repository that is made now.
        token: Of the hub; None: the one on this machine.

    Raises:
        errors.OutputError: If the hub cannot be reached or refuses.
    """
    import huggingface_hub

    with tempfile.TemporaryDirectory(prefix="ubrain-push-") as parent:
        folder = os.path.join(parent, "bundle")
        save(folder)
        api = huggingface_hub.HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Upload an encoder",
                # What an older bundle had and this one has not.
                delete_patterns=["subjects/*", "seen.json"],
            )
        except _faults() as error:
            lines = str(error).strip().splitlines() or ["no reason"]
            raise errors.OutputError(
                repo_id,
                "",
                f"the Hugging Face hub did not take it ({lines[0][:200]})",
                "a repository that may be written",
                "Check the network, run 'hf auth login', or save() to a folder and "
                "upload that.",
            ) from None
    return str(done.commit_url)
