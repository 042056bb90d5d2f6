"""Tables with feature maps, which `datasets` reads as arrays."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Array3D, Features
from datasets.features.features import numpy_to_pyarrow_listarray

from ..atomic import atomic_write
from ..data.frame_folders import writing

GROUP_ROWS, GROUP_BYTES = 32, 2**25  # of rows that are written and read together; at least one row


class DenseTable:
    """Parquet file with feature maps, which is written while rows arrive.

    The rows of one group are in memory at a time. The file appears with `close`.

    Args:
        path: file.
        first: first row, with "features" float32 (C, h, w). Float16 would overflow for some models.
        schema: schema of the other columns.
    """

    def __init__(self, path: Path, first: dict, schema: pa.Schema):
        self.path, self.schema = path, schema
        maps = first["features"]
        self.size = max(1, min(GROUP_ROWS, GROUP_BYTES // maps.nbytes))
        self.group: list[dict] = []
        features = Features.from_arrow_schema(schema) | {"features": Array3D(maps.shape, "float32")}
        self.full = Features(features).arrow_schema
        self.stack = ExitStack()
        with writing(path):
            for left in path.parent.glob(f".{path.name}.*.partial"):  # large files of a run that was killed
                left.unlink()
            self.writer = pq.ParquetWriter(self.stack.enter_context(atomic_write(path, durable=True)), self.full)
            self.stack.callback(self.writer.close)

    def add(self, row: dict) -> None:
        """Add a row, whose feature map has the shape of the first one."""
        self.group.append(row)
        if len(self.group) == self.size:
            self._write()

    def close(self) -> None:
        """Write the last rows, and replace the file."""
        if self.group:
            self._write()
        with writing(self.path):
            self.stack.close()

    def discard(self, *error) -> None:
        """Delete the incomplete file, after an error of a `with` block."""
        self.stack.__exit__(*error)

    def _write(self) -> None:
        names = self.schema.names
        others = pa.Table.from_pylist(self.group, self.schema).cast(pa.schema([self.full.field(x) for x in names]))
        maps = numpy_to_pyarrow_listarray(np.stack([row["features"] for row in self.group]))
        column = pa.ExtensionArray.from_storage(self.full.field("features").type, maps)
        arrays = [*(each.combine_chunks() for each in others.columns), column]
        with writing(self.path):
            self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.full))
        self.group = []
