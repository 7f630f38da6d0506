"""dlt with its fastest backend for this: all of `users` to gzip JSON lines, through a tunnel that stands (PGHOST)."""
import gzip
import json
import os
import resource

env = os.environ
env["RUNTIME__DLTHUB_TELEMETRY"] = "false"
env["RUNTIME__LOG_LEVEL"] = "ERROR"
import dlt
from dlt.sources.sql_database import sql_table

url = f"postgresql+psycopg2://{env['PGUSER']}:{env['PGPASSWORD']}@/{env['PGDATABASE']}?host={env['PGHOST']}&port={env['PGPORT']}"
source = sql_table(url, table="users", schema="public", backend="pyarrow", chunk_size=50_000)
pipeline = dlt.pipeline(
    pipeline_name="bench", pipelines_dir=os.path.join(env["OUT"], "state"), dataset_name="bench",
    destination=dlt.destinations.filesystem("file://" + os.path.join(env["OUT"], "data")),
)
pipeline.run(source, loader_file_format="jsonl")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
rows = 0
for at, _, names in os.walk(os.path.join(env["OUT"], "data", "bench", "users")):
    for name in names:
        path = os.path.join(at, name)
        with gzip.open(path) if name.endswith(".gz") else open(path, "rb") as file:
            rows += sum(1 for _ in file)
print(json.dumps({"rows": rows, "peak_bytes": peak}))
