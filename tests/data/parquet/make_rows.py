"""Makes rows.parquet: five rows in two row groups, with an empty text and the Pile's subset field. Run by hand
with pyarrow (26.0.1); other versions may write other bytes."""

from pathlib import Path

import pyarrow
import pyarrow.parquet

TEXTS = ["a first text " * 9, "", "naïve </s>\0", "again and again", "a last one"]
rows = [{"text": text, "meta": {"pile_set_name": "AB"[number % 2]}, "id": number} for number, text in enumerate(TEXTS)]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), Path(__file__).with_name("rows.parquet"), row_group_size=3,
                            write_page_checksum=True)
