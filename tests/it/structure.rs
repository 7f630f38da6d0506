//! The house: which module may use which library and which other module.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut BTreeMap<String, String>, root: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found, root);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().with_extension("");
            let text = std::fs::read_to_string(&path).unwrap();
            found.insert(name.to_str().unwrap().replace('\\', "/"), without_tests(&text).to_owned());
        }
    }
}

fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests").map_or(text, |at| &text[..at])
}

fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    sources(&root, &mut found, &root);
    found
}

#[test]
fn foreign_crates_stay_in_their_modules() {
    let rules: [(&str, &[&str]); 5] = [
        ("russh::", &["source/ssh", "source/host_key", "source/private_key"]),
        ("tokio_postgres::", &["source/", "encode/"]),
        ("aws_sdk", &["aws", "credentials", "sink/storage"]),
        ("aws_config", &["main", "app", "credentials", "sink/storage"]),
        ("lambda_runtime::", &["main", "handler"]),
    ];
    for (name, text) in modules() {
        for (library, allowed) in rules {
            let uses = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let is_used = uses.into_iter().any(|line| line.contains(library));
            let is_allowed = allowed
                .iter()
                .any(|place| name == *place || (place.ends_with('/') && name.starts_with(place)));
            assert!(!is_used || is_allowed, "{library} is used in src/{name}.rs");
        }
    }
}

#[test]
fn modules_depend_downwards_only() {
    // Each may use itself and what stands after it.
    let order = [
        &["main"][..],
        &["lib"],
        &["handler"],
        &["metrics", "log"],
        &["sync", "check", "status", "discover"],
        &["page", "report"],
        &["app"],
        &["credentials"],
        &["source", "sink", "entry"],
        &["plan", "cursor", "warehouse"],
        &["table"],
        &["encode", "config"],
        &["request"],
        &["table_name", "deadline", "aws", "text"],
        &["error"],
    ];
    let level = |module: &str| order.iter().position(|level| level.contains(&module));
    for (name, text) in modules() {
        let module = name.split('/').next().unwrap();
        let own = level(module).unwrap_or_else(|| panic!("src/{name}.rs has no place in the order"));
        for used in text
            .match_indices("crate::")
            .filter_map(|(at, _)| text[at + 7..].split(|c: char| !c.is_alphanumeric() && c != '_').next())
        {
            let Some(other) = level(used) else { continue };
            assert!(other > own || used == module || order[own].contains(&used), "src/{name}.rs uses {used}");
        }
    }
}

#[test]
fn the_readme_calls_retryable_exactly_what_the_code_does() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for kind in bastion_sync::error::Kind::ALL {
        let name = kind.name();
        assert_eq!(readme.contains(&format!("**`{name}`**")), kind.is_retryable(), "{name} in bold");
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the table of errors");
    }
}
