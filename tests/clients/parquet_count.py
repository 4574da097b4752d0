"""Rows and distinct sequence numbers in the Parquet files under the directory of argument 1."""

import sys

import duckdb

files = f"read_parquet('{sys.argv[1]}/*/*/*.parquet')"
print(*duckdb.sql(f"SELECT count(*), count(DISTINCT seq) FROM {files}").fetchall()[0])
