"""Tries the SQL that `discover` answers. Standard input: a JSON list of {"warehouse": name, "statements": [[name, sql], ...]}.

warehouse.py parse   parses every statement in its warehouse's dialect (sqlglot); prints how many
warehouse.py run     runs DuckDB's, `merge` twice; prints the rows of the target, each as the JSON that lies in S3
"""

import base64
import json
import sys

# (warehouse, statement) that sqlglot keeps as text instead of parsing it. None, with the version in requirements.txt.
UNPARSED = set()


def parse(warehouses):
    from sqlglot import ErrorLevel, exp
    from sqlglot import parse as parse_sql

    count = 0
    failures = []
    for warehouse in warehouses:
        for name, sql in warehouse["statements"]:
            place = (warehouse["warehouse"], name)
            try:
                trees = parse_sql(sql, read=warehouse["warehouse"], error_level=ErrorLevel.RAISE)
            except Exception as error:
                failures.append(f"{place}: {error}\n{sql}")
                continue
            is_unparsed = any(tree is None or tree.find(exp.Command) for tree in trees)
            if is_unparsed != (place in UNPARSED):
                failures.append(f"{place}: {'kept as text' if is_unparsed else 'is parsed by now'}\n{sql}")
            count += len(trees)
    if failures:
        sys.exit("\n\n".join(failures))
    print(count)


def run(warehouses):
    import duckdb

    statements = next(w["statements"] for w in warehouses if w["warehouse"] == "duckdb")
    connection = duckdb.connect(config={"autoinstall_known_extensions": False})
    connection.execute("SET TimeZone = 'UTC'")
    for name, sql in statements:
        for _ in range(2 if name == "merge" else 1):
            connection.execute(sql)
    # The others are views.
    (table,) = connection.execute("SELECT table_name FROM duckdb_tables()").fetchone()
    columns = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [table]
    ).fetchall()
    selected = ", ".join(as_text(quoted(name), type_name) for name, type_name in columns)
    for row in connection.execute(f"SELECT {selected} FROM {quoted(table)}").fetchall():
        values = (f"{as_json(name)}:{value(v, ty)}" for (name, ty), v in zip(columns, row))
        print("{" + ",".join(values) + "}")


def quoted(identifier):
    return '"' + identifier.replace('"', '""') + '"'


def as_json(value):
    return json.dumps(value, ensure_ascii=False)


def as_text(column, type_name):
    """SQL for a column's values as Python can take them: infinity is no datetime."""
    if type_name.startswith("TIMESTAMP"):
        zone = "Z" if type_name == "TIMESTAMP WITH TIME ZONE" else ""
        return f"CASE WHEN isfinite({column}) THEN strftime({column}, '%Y-%m-%dT%H:%M:%S.%f{zone}') ELSE {column}::VARCHAR END"
    if type_name == "DATE" or type_name == "JSON" or type_name.startswith("DECIMAL"):
        return f"{column}::VARCHAR"
    return column


def value(value, type_name):
    """One value as README.md's table of types has it."""
    if value is None:
        return "null"
    if type_name == "JSON":
        return value
    if isinstance(value, bytes):
        return as_json(base64.b64encode(value).decode())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return as_json("NaN" if value != value else "Infinity" if value > 0 else "-Infinity")
    return as_json(value)


if __name__ == "__main__":
    {"parse": parse, "run": run}[sys.argv[1]](json.load(sys.stdin))
