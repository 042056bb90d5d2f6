"""Tables with feature maps, which `datasets` reads as arrays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Array3D, Features
from datasets.features.features import numpy_to_pyarrow_listarray

_GROUP = 32  # rows that are written and read together


def write_dense(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows to a Parquet file, in groups of 32 rows.

    Args:
        path: file.
        rows: rows with "features" float32 (C, h, w), all of the same shape. Float16 would overflow for some models.
        schema: schema of the other columns.
    """
    shape = rows[0]["features"].shape
    features = Features.from_arrow_schema(schema) | {"features": Array3D(shape, "float32")}
    full = Features(features).arrow_schema
    with pq.ParquetWriter(path, full) as writer:
        for start in range(0, len(rows), _GROUP):
            group = rows[start : start + _GROUP]
            others = pa.Table.from_pylist(group, schema).cast(pa.schema([full.field(name) for name in schema.names]))
            maps = numpy_to_pyarrow_listarray(np.stack([row["features"] for row in group]))
            column = pa.ExtensionArray.from_storage(full.field("features").type, maps)
            arrays = [*(each.combine_chunks() for each in others.columns), column]
            writer.write_table(pa.Table.from_arrays(arrays, schema=full))
