"""What the Python bastion example is made of, reading all of `users`: sshtunnel, paramiko, psycopg2; gzip NDJSON."""
import gzip
import json
import os
import resource

import psycopg2
from sshtunnel import SSHTunnelForwarder

env = os.environ
rows = 0
with SSHTunnelForwarder(
    (env["BASTION_HOST"], int(env["BASTION_PORT"])),
    ssh_username=env["BASTION_USER"],
    ssh_pkey=env["BASTION_KEY"],
    remote_bind_address=(env["DB_HOST"], int(env["DB_PORT"])),
) as tunnel:
    connection = psycopg2.connect(
        host="127.0.0.1", port=tunnel.local_bind_port, user=env["PGUSER"], password=env["PGPASSWORD"],
        dbname=env["PGDATABASE"], sslmode="disable",
    )
    cursor = connection.cursor()
    cursor.execute("SELECT id, name, modified_at FROM users")
    with gzip.open(os.path.join(env["OUT"], "users.ndjson.gz"), "wt", compresslevel=1, encoding="utf-8") as file:
        for key, name, modified_at in cursor:
            file.write(json.dumps({"id": key, "name": name, "modified_at": modified_at.isoformat()}) + "\n")
            rows += 1
    connection.close()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"rows": rows, "peak_bytes": peak}))
