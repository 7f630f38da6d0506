"""ingestr: all of `users` to JSON lines, without gzip, which it does not have; through a tunnel that stands (PGHOST)."""
import json
import os
import resource
import subprocess
import sys

env = os.environ
out = os.path.join(env["OUT"], "users.jsonl")
source = f"postgresql://{env['PGUSER']}:{env['PGPASSWORD']}@/{env['PGDATABASE']}?host={env['PGHOST']}&port={env['PGPORT']}&sslmode=disable"
program = os.path.join(os.path.dirname(sys.executable), "ingestr")
subprocess.run(
    [program, "ingest", "--yes", "--progress", "log", "--source-uri", source, "--source-table", "public.users",
     "--dest-uri", f"jsonl://{out}", "--dest-table", "bench.users"],
    check=True, stdout=subprocess.DEVNULL, env={**env, "INGESTR_DISABLE_TELEMETRY": "true", "DISABLE_TELEMETRY": "true"},
)
with open(out, "rb") as file:
    rows = sum(1 for _ in file)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
print(json.dumps({"rows": rows, "peak_bytes": peak}))
