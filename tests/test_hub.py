"""Encoders from and to a hub: a real server on this machine, the real client."""

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest

import ubrain_jax
from tests import bundles, hub_server
from ubrain_jax import errors
from ubrain_jax.model import bundle, card

GONE = "http://127.0.0.1:9"  # discard: nobody listens


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, asked by a client that has a cache of its own and no token."""
    with hub_server.running() as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setenv("HF_TOKEN", "")
        yield running


def files_of(folder) -> dict[str, bytes]:
    """Content by path."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.fixture
def made(tiny_dict):
    return bundles.make(tiny_dict)


@pytest.fixture
def files(made, tmp_path):
    """Of a bundle, and one that is none of it."""
    bundle.write(tmp_path / "bundle", made, card.text(made))
    return {**files_of(tmp_path / "bundle"), "more.bin": b"not of the bundle"}


def load(name):
    return ubrain_jax.UniversalEncoder.load(name)


def assert_is(enc, made):
    """The encoder has the subjects of a bundle, bit for bit."""
    assert enc.subjects == tuple(s.name for s in made.subjects)
    for subject in made.subjects:
        np.testing.assert_array_equal(
            enc.subject(subject.name).embedding, subject.embedding
        )


def go_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_what_was_downloaded_once_loads_without_a_network(
    hub, made, files, tmp_path, monkeypatch
):
    hub.commit("lab/enc", files)
    assert_is(load("lab/enc"), made)
    assert not list((tmp_path / "cache").rglob("more.bin"))
    go_offline(monkeypatch)
    assert_is(load("lab/enc"), made)
    with pytest.raises(errors.MissingInputError, match=r"lab/other: not a folder here"):
        load("lab/other")


def test_a_server_that_is_gone_leaves_the_cache(hub, made, files, monkeypatch):
    hub.commit("lab/enc", files)
    assert_is(load("lab/enc"), made)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", GONE)
    assert_is(load("lab/enc"), made)
    with pytest.raises(errors.MissingInputError, match=r"lab/new.*hf download lab/new"):
        load("lab/new")


def test_a_repository_that_is_not_there_or_no_bundle_is_named(hub):
    with pytest.raises(errors.MissingInputError, match=r"lab/none: .*not in the cache"):
        load("lab/none")
    hub.commit("lab/text", {"README.md": b"# Nothing else\n"})
    with pytest.raises(errors.MissingInputError, match=r"lab/text:encoder.json: no s"):
        load("lab/text")


def test_a_revision_stays_while_main_goes_on(hub, made, files, tiny_dict, tmp_path):
    first = hub.commit("lab/enc", files)
    fewer = made._replace(subjects=made.subjects[:1])
    bundle.write(tmp_path / "second", fewer)
    hub.commit("lab/enc", files_of(tmp_path / "second"))
    assert_is(load("lab/enc"), fewer)
    assert_is(load(f"lab/enc@{first}"), made)


@pytest.mark.parametrize(
    "name", ["encoder.safetensors", "subjects/lab-ann.safetensors"]
)
def test_a_byte_that_changed_on_the_way_is_refused_by_name(hub, files, name):
    hub.commit("lab/enc", files)
    content = bytearray(files[name])
    content[-3] ^= 1
    hub.damaged["lab/enc", name] = bytes(content)
    file = name.rpartition("/")[2]
    with pytest.raises(errors.InputError, match=rf"{file}: sha256 .*download the bun"):
        load("lab/enc")


def test_what_was_pushed_loads_and_replaces_what_was_there(hub, made, files, tmp_path):
    (tmp_path / "local").mkdir()
    bundle.write(tmp_path / "local/enc", made, card.text(made))
    enc = load(tmp_path / "local/enc")
    url = enc.push_to_hub("lab/enc", token="hf_mine")  # noqa: S106
    assert url == f"{hub.address}/lab/enc/commit/{hub.newest['lab/enc']}"
    assert (hub.private["lab/enc"], hub.tokens) == (True, {"Bearer hf_mine"})
    del files["more.bin"]
    kept = {".gitattributes"}
    assert set(hub.files("lab/enc")) == {*files, *kept}
    assert_is(load("lab/enc"), made)

    fewer = made._replace(subjects=made.subjects[:1], seen=None)
    bundle.write(tmp_path / "local/fewer", fewer)
    load(tmp_path / "local/fewer").push_to_hub("lab/enc", token="hf_mine")  # noqa: S106
    gone = {"subjects/lab-ann.safetensors", "seen.json"}
    assert set(hub.files("lab/enc")) == {*files, *kept} - gone
    assert_is(load("lab/enc"), fewer)


@pytest.mark.parametrize("how", ["offline", "gone", "refused"])
def test_what_a_hub_does_not_take_is_an_error_of_output(
    hub, made, tmp_path, monkeypatch, how
):
    bundle.write(tmp_path / "enc", made)
    enc, name = load(tmp_path / "enc"), "lab/enc"
    if how == "offline":
        go_offline(monkeypatch)
    elif how == "gone":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", GONE)
    else:
        name = "no/such/name"
    with pytest.raises(errors.OutputError, match=rf"{name}: the Hugging Face hub did"):
        enc.push_to_hub(name, token="hf_mine")  # noqa: S106
    assert not hub.commits


def test_a_network_that_ends_in_the_middle_is_named(hub, files, monkeypatch):
    hub.commit("lab/enc", files)
    hub.silent = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(errors.MissingInputError, match=r"lab/enc: not a folder here"):
        load("lab/enc")
