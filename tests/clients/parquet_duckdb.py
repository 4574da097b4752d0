"""DuckDB over the Parquet files of a gateway: argument 1 is the directory. Prints types and rows as JSON."""

import base64
import json
import sys

import duckdb

FILES = f"read_parquet('{sys.argv[1]}/*/*/*.parquet', hive_partitioning = true)"
duckdb.sql("SET TimeZone = 'UTC'")
types = {name: kind for name, kind, *_ in duckdb.sql(f"DESCRIBE SELECT * FROM {FILES}").fetchall()}
rows = duckdb.sql(
    f"""SELECT seq, epoch_us(ts), device, tenant, protocol, topic, qos, content_format, payload,
               strftime(ts, '%Y-%m-%d') = CAST(dt AS VARCHAR) AND strftime(ts, '%H') = lpad(CAST(hr AS VARCHAR), 2, '0')
        FROM {FILES} ORDER BY seq"""
).fetchall()
names = ["seq", "ts_us", "device", "tenant", "protocol", "topic", "qos", "content_format", "payload", "in_its_partition"]
encode = lambda value: base64.b64encode(value).decode() if isinstance(value, (bytes, bytearray)) else value
print(json.dumps({"types": types, "rows": [dict(zip(names, map(encode, row))) for row in rows]}))
