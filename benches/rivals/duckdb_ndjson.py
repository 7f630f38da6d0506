"""DuckDB with its PostgreSQL extension: all of `users` to gzip NDJSON, through a tunnel that stands (PGHOST)."""
import json
import os
import resource

import duckdb
import duckdb_extension_postgres_scanner

env = os.environ
extension = os.path.dirname(duckdb_extension_postgres_scanner.__file__)
files = [os.path.join(at, name) for at, _, names in os.walk(extension) for name in names if name.endswith(".duckdb_extension")]
connection = duckdb.connect()
connection.execute(f"load '{files[0]}'")
connection.execute("attach '' as db (type postgres, read_only)")
out = os.path.join(env["OUT"], "users.json.gz")
rows = connection.execute(f"copy db.public.users to '{out}' (format json, compression gzip)").fetchone()[0]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"rows": rows, "peak_bytes": peak}))
