//! The clients' SSH keys, in every format that a secret may hold.

use std::{fs, path::Path};

use crate::process;

/// All but `unauthorized` get in. Those that end in `-passphrase` are encrypted.
pub const NAMES: [&str; 10] = [
    "ed25519",
    "ed25519-passphrase",
    "rsa-pkcs1",
    "rsa-pkcs1-passphrase", // DEK-Info: AES-128-CBC
    "rsa-pkcs8",
    "rsa-pkcs8-passphrase", // PBES2
    "ecdsa",
    "ecdsa-sec1",
    "ecdsa-pkcs8",
    "unauthorized",
];

const PASSPHRASE: &str = "open sesame";

/// A private key as a user would hold it.
#[derive(Clone, Debug)]
pub struct ClientKey {
    pub name: String,
    pub pem: String,
    pub passphrase: Option<String>,
}

impl ClientKey {
    /// Reads a key that [`generate`] made.
    pub(crate) fn read(dir: &Path, name: &str) -> ClientKey {
        let path = dir.join(name);
        let pem = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; the keys are {NAMES:?}", path.display()));
        let passphrase = name.ends_with("-passphrase").then(|| PASSPHRASE.to_owned());
        ClientKey { name: name.to_owned(), pem, passphrase }
    }
}

/// Makes the keys and `authorized_keys`. The formats of RSA are one key, and so are those of ECDSA.
pub(crate) async fn generate(dir: &Path) {
    fs::create_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let tool = |program: &str, arguments: &[&str]| {
        let mut command = process::command(program);
        command.current_dir(dir).args(arguments);
        command
    };
    let keygen = |arguments: &[&str]| tool("ssh-keygen", &[&["-q"][..], arguments].concat());
    process::run_all(vec![
        keygen(&["-t", "ed25519", "-N", "", "-C", "ed25519", "-f", "ed25519"]),
        // Four rounds of bcrypt instead of 16 or 24: this passphrase guards nothing.
        keygen(&[
            "-t",
            "ed25519",
            "-a",
            "4",
            "-N",
            PASSPHRASE,
            "-C",
            "ed25519-passphrase",
            "-f",
            "ed25519-passphrase",
        ]),
        keygen(&["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-C", "rsa", "-f", "rsa-pkcs1"]),
        keygen(&["-t", "ecdsa", "-b", "256", "-m", "PEM", "-N", "", "-C", "ecdsa", "-f", "ecdsa-sec1"]),
        keygen(&["-t", "ed25519", "-N", "", "-C", "unauthorized", "-f", "unauthorized"]),
    ])
    .await;

    let passout = format!("pass:{PASSPHRASE}");
    let pkcs8 = |arguments: &[&str]| tool("openssl", &[&["pkcs8", "-topk8"][..], arguments].concat());
    // ssh-keygen changes a key in place.
    copy(dir, "rsa-pkcs1", "rsa-pkcs1-passphrase");
    copy(dir, "ecdsa-sec1", "ecdsa");
    process::run_all(vec![
        keygen(&["-p", "-m", "PEM", "-P", "", "-N", PASSPHRASE, "-f", "rsa-pkcs1-passphrase"]),
        keygen(&["-p", "-P", "", "-N", "", "-f", "ecdsa"]),
        pkcs8(&["-nocrypt", "-in", "rsa-pkcs1", "-out", "rsa-pkcs8"]),
        pkcs8(&[
            "-v2",
            "aes-256-cbc",
            "-passout",
            &passout,
            "-in",
            "rsa-pkcs1",
            "-out",
            "rsa-pkcs8-passphrase",
        ]),
        pkcs8(&["-nocrypt", "-in", "ecdsa-sec1", "-out", "ecdsa-pkcs8"]),
    ])
    .await;

    let authorized = ["ed25519", "ed25519-passphrase", "rsa-pkcs1", "ecdsa-sec1"];
    let authorized = authorized.map(|name| {
        fs::read_to_string(dir.join(format!("{name}.pub"))).expect("ssh-keygen wrote the public key")
    });
    fs::write(dir.join("authorized_keys"), authorized.concat()).expect("the keys' directory is writable");
}

fn copy(dir: &Path, from: &str, to: &str) {
    fs::copy(dir.join(from), dir.join(to)).expect("ssh-keygen wrote the private key");
}
