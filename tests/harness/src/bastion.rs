//! A bastion: a real sshd that lets our keys forward to named ports, and nothing else.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    process::{self, Daemon},
    random, tools,
};

/// Under the stack's directory.
pub(crate) const CLIENT_KEYS: &str = "client_keys";

/// Where a bastion is, and how to know it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BastionAddress {
    pub host: String,
    pub port: u16,
    pub user: String,
    /// One line for each host key, in the order of [`BastionOptions::host_keys`].
    pub known_hosts: Vec<String>,
    /// `SHA256:…`, in the same order.
    pub fingerprints: Vec<String>,
    pub version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKey {
    Ed25519,
    Ecdsa,
    Rsa,
}

#[derive(Clone, Debug)]
pub struct BastionOptions {
    /// A free one if `None`.
    pub port: Option<u16>,
    /// What clients may forward to, as `host:port`. Empty: nothing.
    pub permit_open: Vec<String>,
    /// Made anew for each bastion.
    pub host_keys: Vec<HostKey>,
    /// Lines for sshd_config, such as `ClientAliveInterval 3`. They go before ours, and the first of a name wins.
    pub config: Vec<String>,
}

/// A running bastion; dropping it ends it and its sessions.
#[derive(Debug)]
pub struct Bastion {
    pub address: BastionAddress,
    daemon: Daemon,
}

impl Default for BastionOptions {
    fn default() -> BastionOptions {
        BastionOptions {
            port: None,
            permit_open: Vec::new(),
            host_keys: vec![HostKey::Ed25519, HostKey::Ecdsa, HostKey::Rsa],
            config: Vec::new(),
        }
    }
}

impl HostKey {
    fn name(self) -> &'static str {
        match self {
            HostKey::Ed25519 => "ed25519",
            HostKey::Ecdsa => "ecdsa",
            HostKey::Rsa => "rsa",
        }
    }
}

impl Bastion {
    /// Starts a bastion under `dir`, the stack's directory, whose client keys get in.
    pub async fn start(dir: &Path, options: BastionOptions) -> Bastion {
        let sshd = tools::sshd().unwrap_or_else(|| panic!("{}", tools::missing().unwrap_or_default()));
        let port = options.port.unwrap_or_else(random::port);
        let own = dir.join(format!("sshd-{port}-{}", random::hex(2)));
        fs::create_dir(&own).unwrap_or_else(|error| panic!("{}: {error}", own.display()));
        create_privilege_separation_directory(&own);
        create_host_keys(&own, &options.host_keys).await;
        let version = version(&sshd).await;
        let config = own.join("sshd_config");
        fs::write(&config, configuration(dir, &own, port, version, &options))
            .expect("the bastion's directory is writable");

        let mut command = process::command(&sshd);
        // In the foreground (-D), with its log on stderr (-e).
        command.args(["-D", "-e", "-f"]).arg(&config);
        let mut daemon = Daemon::spawn("sshd", "TERM", command, own.join("log"));
        while !is_listening(port).await {
            daemon.keep_waiting().await;
        }
        let mut whoami = process::command("id");
        whoami.arg("-un");
        let address = BastionAddress {
            host: "127.0.0.1".to_owned(),
            port,
            user: process::run(whoami).await.trim().to_owned(),
            known_hosts: known_hosts(&own, port, &options.host_keys),
            fingerprints: fingerprints(&own, &options.host_keys).await,
            version: format!("{}.{}", version.0, version.1),
        };
        Bastion { address, daemon }
    }

    /// Connections that sshd is serving, logged in or not.
    pub fn session_count(&self) -> usize {
        process::children(self.daemon.pid()).len()
    }

    /// Kills the sessions and keeps listening: a bastion that loses its connections.
    pub fn kill_sessions(&self) {
        process::signal(&process::descendants(self.daemon.pid()), "KILL");
    }

    /// What sshd logged (LogLevel VERBOSE).
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

impl Drop for Bastion {
    fn drop(&mut self) {
        // sshd's sessions outlive it.
        self.kill_sessions();
    }
}

/// As root, sshd wants an empty directory that only root can write to. The path is built in; Debian's is made at boot.
fn create_privilege_separation_directory(own: &Path) {
    let is_root = fs::metadata(own).expect("we just created it").uid() == 0;
    if is_root && cfg!(target_os = "linux") {
        // If another one is built in, sshd says so.
        let _ = fs::create_dir_all("/run/sshd");
    }
}

async fn create_host_keys(own: &Path, host_keys: &[HostKey]) {
    let keygen = |key: &HostKey| {
        let mut command = process::command("ssh-keygen");
        command.args(["-q", "-N", "", "-C", "host", "-t", key.name()]);
        if *key == HostKey::Rsa {
            // OpenSSH's own default, 3072, takes three times as long.
            command.args(["-b", "2048"]);
        }
        command.arg("-f").arg(host_key(own, *key));
        command
    };
    process::run_all(host_keys.iter().map(keygen).collect()).await;
}

fn host_key(own: &Path, key: HostKey) -> PathBuf {
    own.join(format!("host_{}", key.name()))
}

/// Major and minor, from "OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17". An sshd too old for -V prints it as well.
async fn version(sshd: &Path) -> (u32, u32) {
    let output = process::command(sshd).arg("-V").output().await.expect("sshd runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let number = || -> Option<(u32, u32)> {
        let (_, rest) = text.split_once("OpenSSH_")?;
        let mut numbers = rest.split(|letter: char| !letter.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    number().unwrap_or_else(|| panic!("no version in what sshd -V printed: {text}"))
}

fn configuration(dir: &Path, own: &Path, port: u16, version: (u32, u32), options: &BastionOptions) -> String {
    let mut lines = options.config.clone();
    lines.push(format!("Port {port}"));
    lines.push("ListenAddress 127.0.0.1".to_owned());
    lines.extend(options.host_keys.iter().map(|key| format!("HostKey {}", host_key(own, *key).display())));
    lines.push(format!("AuthorizedKeysFile {}", dir.join(CLIENT_KEYS).join("authorized_keys").display()));
    let permitted =
        if options.permit_open.is_empty() { "none".to_owned() } else { options.permit_open.join(" ") };
    lines.push(format!("PermitOpen {permitted}"));
    // Since 9.8, sshd shuts out an address that fails to log in. All the tests share one address.
    if version >= (9, 8) {
        lines.push("PerSourcePenalties no".to_owned());
    }
    let fixed = "AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
AllowTcpForwarding local
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitTTY no
PermitUserRC no
PidFile none
MaxStartups 1000
MaxSessions 100
LoginGraceTime 30
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
";
    lines.join("\n") + "\n" + fixed
}

async fn is_listening(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).await.is_ok() && banner == *b"SSH-"
}

fn known_hosts(own: &Path, port: u16, host_keys: &[HostKey]) -> Vec<String> {
    let line = |key: &HostKey| {
        let public =
            fs::read_to_string(host_key(own, *key).with_extension("pub")).expect("ssh-keygen wrote the key");
        let key: Vec<&str> = public.split_whitespace().take(2).collect();
        format!("[127.0.0.1]:{port} {}", key.join(" "))
    };
    host_keys.iter().map(line).collect()
}

async fn fingerprints(own: &Path, host_keys: &[HostKey]) -> Vec<String> {
    let mut fingerprints = Vec::new();
    for key in host_keys {
        let mut command = process::command("ssh-keygen");
        command.args(["-l", "-E", "sha256", "-f"]).arg(host_key(own, *key));
        // "256 SHA256:HRbzdRwZKJNWqfg6cMLXmmjx1LP9VoHJjAhBPvC1ATg host (ED25519)"
        let printed = process::run(command).await;
        let fingerprint =
            printed.split_whitespace().nth(1).expect("ssh-keygen prints the fingerprint second");
        fingerprints.push(fingerprint.to_owned());
    }
    fingerprints
}
