//! Other tools for the same work, each by a script of our own beside this crate: all of `users` through an SSH tunnel to
//! NDJSON, or the tool's nearest format, on the local disk.

use std::path::PathBuf;

/// What the Python bastion example is made of.
pub(crate) const PYTHON_EXAMPLE: &str = "sshtunnel, paramiko, psycopg2";

/// A tool, in a virtual environment of its own.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    environment: &'static str,
    script: &'static str,
    pub(crate) opens_its_own_tunnel: bool,
}

impl Rival {
    pub(crate) fn all() -> [Self; 4] {
        [
            Self {
                name: PYTHON_EXAMPLE,
                environment: "python-example",
                script: "python_example.py",
                opens_its_own_tunnel: true,
            },
            Self {
                name: "DuckDB",
                environment: "duckdb",
                script: "duckdb_ndjson.py",
                opens_its_own_tunnel: false,
            },
            Self { name: "dlt", environment: "dlt", script: "dlt_ndjson.py", opens_its_own_tunnel: false },
            Self {
                name: "ingestr (no gzip)",
                environment: "ingestr",
                script: "ingestr_jsonl.py",
                opens_its_own_tunnel: false,
            },
        ]
    }

    fn python(&self) -> PathBuf {
        ["target/bench", self.environment, "bin/python"].iter().collect()
    }

    /// Whether `benches/setup.sh` could install it.
    pub(crate) fn is_installed(&self) -> bool {
        self.python().with_file_name("installed").exists()
    }

    pub(crate) fn command(&self) -> String {
        format!("{} benches/rivals/{}", self.python().display(), self.script)
    }
}
