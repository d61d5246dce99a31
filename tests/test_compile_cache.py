"""Compiled programs: whose folder is trusted, which switch counts, and what is kept."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from ubrain_jax import compile_cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """An accelerator, a user's cache folder, and no folder of JAX's; undone after."""
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_enable_compilation_cache",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (tmp_path / "cache").mkdir(mode=0o700)
    yield {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_a_folder_of_the_users_own(unset):
    previous = os.umask(0)  # the mode does not rest on it
    try:
        line = compile_cache.begin(unset)
    finally:
        os.umask(previous)
    folder = pathlib.Path(unset["XDG_CACHE_HOME"], "ubrain_jax", "compiled")
    assert line == f"compiled programs are kept in {folder}"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == 4 * 2**30
    for path in (folder, folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700
    assert compile_cache.begin(unset) == line


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("which", ["ubrain_jax/compiled", "ubrain_jax"])
def test_a_folder_that_others_can_write_to_is_not_used(unset, mode, which):
    folder = pathlib.Path(unset["XDG_CACHE_HOME"], "ubrain_jax", "compiled")
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    shared = folder.parents[1] / which
    shared.chmod(mode)
    line = compile_cache.begin(unset)
    if shared != folder and mode & 0o1000:  # sticky: entries stay their owners'
        assert line == f"compiled programs are kept in {folder}"
        return
    assert line.endswith(f"{shared} can be written by others (mode {mode:o})")
    assert jax.config.jax_compilation_cache_dir is None
    # Whoever names it gets it, and is told.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    line = compile_cache.begin(unset)
    assert line.startswith(f"compiled programs are kept in {folder}; note: {shared}")
    assert shared.stat().st_mode & 0o7777 == mode  # not ours to mend


@pytest.mark.parametrize("above", [0, 1])
def test_a_folder_of_another_user_is_not_used(unset, monkeypatch, above):
    folder = pathlib.Path(unset["XDG_CACHE_HOME"], "ubrain_jax", "compiled")
    compile_cache.begin(unset)
    jax.config.update("jax_compilation_cache_dir", None)
    other = (folder, *folder.parents)[above]
    real = pathlib.Path.stat

    def stat(path, **options):
        found = real(path, **options)
        fields = list(found[:10])
        fields[4] = 12345 if path == other else os.geteuid()
        return os.stat_result(fields)

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    assert compile_cache.begin(unset).endswith(f"{other} belongs to user 12345")
    assert jax.config.jax_compilation_cache_dir is None


def test_a_link_to_a_shared_folder_is_not_used(unset, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    folder = pathlib.Path(unset["XDG_CACHE_HOME"], "ubrain_jax")
    folder.mkdir(mode=0o700)
    (folder / "compiled").symlink_to(tmp_path / "shared")
    assert "can be written by others" in compile_cache.begin(unset)


def test_what_cannot_be_made_is_a_note(unset, tmp_path):
    (tmp_path / "file").write_text("")
    line = compile_cache.begin({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert line.startswith("compiled programs are not kept: ")
    assert compile_cache.begin({}).endswith("not kept: no home folder")
    assert jax.config.jax_compilation_cache_dir is None


def test_jax_own_variables_come_first(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compile_cache.begin(unset) == f"compiled programs are kept in {tmp_path}"
    jax.config.update("jax_enable_compilation_cache", False)
    assert "JAX_ENABLE_COMPILATION_CACHE is off" in compile_cache.begin(unset)


def test_a_cpu_keeps_programs_only_when_told(unset, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "not kept: on a CPU" in compile_cache.begin(unset)
    assert jax.config.jax_compilation_cache_dir is None


SCRIPT = """
import jax
from ubrain_jax import compile_cache
jax.default_backend = lambda: "gpu"  # it keeps those of a CPU as well
print(compile_cache.begin())
print(jax.jit(lambda x: x * 3 + 1)(2))
"""


def test_a_second_start_reads_what_the_first_compiled(tmp_path):
    """In fresh processes, as a user without variables of JAX's."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environ |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    folder, kept = tmp_path / "ubrain_jax" / "compiled", []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"compiled programs are kept in {folder}\n7\n"
        kept.append(sorted(folder.glob("*-cache")))
    assert kept[0]
    assert kept[0] == kept[1]
