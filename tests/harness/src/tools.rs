//! The programs that the stack needs: where they are, and what to install when they are not.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const POSTGRES_MAJORS: std::ops::RangeInclusive<u32> = 14..=18;
/// 5.2.1 breaks the Rust SDK's CompleteMultipartUpload.
const MOTO_MINIMUM: [u32; 3] = [5, 2, 5];

/// What is missing and how to install it, all at once; `None` if the stack can start.
pub fn missing() -> Option<String> {
    let mut lacks: Vec<String> = Vec::new();
    let mut packages = Vec::new();
    let mut commands = Vec::new();
    let is_mac = cfg!(target_os = "macos");
    if postgres_bin().is_none() {
        lacks.push(
            "PostgreSQL 14 to 18: initdb and postgres (BASTION_SYNC_POSTGRES_BIN names their directory)"
                .into(),
        );
        packages.push(if is_mac { "postgresql@17" } else { "postgresql" });
    }
    if sshd().is_none() {
        lacks.push("the OpenSSH server: sshd".into());
        packages.push(if is_mac { "openssh" } else { "openssh-server" });
    }
    for (program, package) in
        [("ssh-keygen", if is_mac { "openssh" } else { "openssh-client" }), ("openssl", "openssl")]
    {
        if in_path(program).is_none() {
            lacks.push(format!("{program}, in PATH"));
            packages.push(package);
        }
    }
    let venv = venv();
    if moto_server().is_none() {
        lacks.push(format!("moto_server 5.2.5 or later, in {} (or in BASTION_SYNC_VENV)", venv.display()));
        if !is_mac && !venv.join("bin/python").exists() {
            packages.push("python3-venv");
        }
        let venv = venv.display();
        commands.push(format!("python3 -m venv {venv} && {venv}/bin/pip install 'moto[server]>=5.2.5'"));
    }
    if lacks.is_empty() {
        return None;
    }
    packages.dedup();
    if !packages.is_empty() {
        let installer = if is_mac { "brew install" } else { "apt-get install" };
        commands.insert(0, format!("{installer} {}", packages.join(" ")));
    }
    Some(format!(
        "the local stack lacks\n  {}\nInstall with\n  {}",
        lacks.join("\n  "),
        commands.join("\n  ")
    ))
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// The directory of `initdb` and `postgres`.
pub(crate) fn postgres_bin() -> Option<PathBuf> {
    if let Some(directory) = env::var_os("BASTION_SYNC_POSTGRES_BIN") {
        return Some(PathBuf::from(directory)).filter(|directory| is_postgres_bin(directory));
    }
    let mut candidates: Vec<PathBuf> = Vec::new();
    for major in POSTGRES_MAJORS.rev() {
        candidates.push(format!("/usr/lib/postgresql/{major}/bin").into());
        candidates.push(format!("/usr/pgsql-{major}/bin").into());
        candidates.push(format!("/opt/homebrew/opt/postgresql@{major}/bin").into());
        candidates.push(format!("/usr/local/opt/postgresql@{major}/bin").into());
    }
    candidates.extend(in_path("postgres").and_then(|file| file.parent().map(Path::to_path_buf)));
    candidates.extend(output("pg_config", "--bindir").map(PathBuf::from));
    candidates.into_iter().find(|directory| is_postgres_bin(directory))
}

/// sshd, by its absolute path: it runs itself again.
pub(crate) fn sshd() -> Option<PathBuf> {
    let known = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/opt/homebrew/sbin/sshd"];
    let known = known.into_iter().map(PathBuf::from).find(|file| file.is_file());
    known.or_else(|| in_path("sshd"))
}

pub(crate) fn moto_server() -> Option<PathBuf> {
    let venv = venv();
    let server = venv.join("bin/moto_server");
    (server.is_file() && moto_version(&venv)? >= MOTO_MINIMUM).then_some(server)
}

/// AWS's runtime interface emulator, which the wheel of aws-sam-cli brings.
pub(crate) fn runtime_interface_emulator() -> Option<PathBuf> {
    let architecture = if env::consts::ARCH == "aarch64" { "arm64" } else { env::consts::ARCH };
    let file = format!("samcli/local/rapid/aws-lambda-rie-{architecture}");
    site_packages(&venv()).map(|packages| packages.join(&file)).find(|file| file.is_file())
}

pub(crate) fn cargo_lambda() -> Option<PathBuf> {
    let program = venv().join("bin/cargo-lambda");
    if program.is_file() { Some(program) } else { in_path("cargo-lambda") }
}

/// Python, with the packages of tests/requirements.txt.
pub fn python() -> PathBuf {
    venv().join("bin/python")
}

fn venv() -> PathBuf {
    match env::var_os("BASTION_SYNC_VENV") {
        Some(path) => PathBuf::from(path),
        None => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            fs::canonicalize(&workspace).unwrap_or(workspace).join(".venv")
        }
    }
}

/// `lib/python3.11/site-packages`, for each Python that it has.
fn site_packages(venv: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let libraries = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    libraries.map(|python| python.path().join("site-packages"))
}

/// From the name of the package's metadata, since asking Python takes most of a second.
fn moto_version(venv: &Path) -> Option<[u32; 3]> {
    let packages = site_packages(venv).filter_map(|packages| fs::read_dir(packages).ok());
    packages.flatten().flatten().find_map(|package| {
        let name = package.file_name();
        let version = name.to_str()?.strip_prefix("moto-")?.strip_suffix(".dist-info")?;
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        Some([numbers.next()?, numbers.next()?, numbers.next()?])
    })
}

fn is_postgres_bin(directory: &Path) -> bool {
    directory.join("initdb").is_file()
        && postgres_major(directory).is_some_and(|major| POSTGRES_MAJORS.contains(&major))
}

/// From "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)".
fn postgres_major(directory: &Path) -> Option<u32> {
    let version = output(directory.join("postgres"), "--version")?;
    let number = version.split_whitespace().nth(2)?;
    // "18beta1" before a release.
    number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn output(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
