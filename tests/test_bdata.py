"""BData tables in every encoding against what was written, and damage."""

import numpy as np
import pytest

from tests import god_files
from ubrain_jax.datasets import bdata

TABLE, METADATA = god_files.make_subject(0)


@pytest.fixture
def write(tmp_path):
    """Writes a table under a name that says nothing; returns its path."""

    def make(encoding, table=TABLE, metadata=METADATA):
        path = tmp_path / f"{encoding}.data"
        god_files.write_table(path, table, metadata, encoding)
        return path

    return make


@pytest.mark.parametrize("encoding", god_files.ENCODINGS)
def test_every_encoding_gives_the_planted_table_bit_for_bit(write, encoding):
    table = bdata.open_table(write(encoding))
    assert table.layout.shape == TABLE.shape
    assert table.layout.dtype == np.float64
    assert list(table.metadata) == list(METADATA)
    for key, value in METADATA.items():
        assert table.metadata[key].tobytes() == value.astype(float).tobytes()
    columns = bdata.select(table, "ROI_VC")
    np.testing.assert_array_equal(columns, np.flatnonzero(METADATA["ROI_VC"] == 1))
    for chosen in (columns, np.arange(TABLE.shape[1]), columns[:0]):
        read = bdata.read_columns(table, chosen)
        assert read.dtype == np.float64
        assert read.tobytes() == np.ascontiguousarray(TABLE[:, chosen]).tobytes()


@pytest.mark.parametrize("encoding", god_files.ENCODINGS)
def test_nan_and_infinity_survive(write, encoding):
    table = TABLE.copy()
    table[3, :3] = np.nan, np.inf, -np.inf
    opened = bdata.open_table(write(encoding, table))
    read = bdata.read_columns(opened, np.arange(3))
    np.testing.assert_array_equal(read, table[:, :3])
