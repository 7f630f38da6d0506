//! Reads the bastion's private key, in whatever shape it was pasted into the secret.
//!
//! russh reports a wrong passphrase, a trailing space and a cipher that it lacks alike, as ASN.1 that does not
//! decode. So the text is first normalised to the bytes inside one PEM block, and what russh cannot load is
//! recognised before it is tried. The errors are made of fixed words: they hold no byte of the key, no
//! passphrase, and no cause from a library that could quote either.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
pub(crate) use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Cipher, Kdf};

use crate::error::{Error, Kind};

/// RSA of 16,384 bits, which is OpenSSH's own limit, takes 17 KiB as base64 of a PEM.
const MAX_TEXT_BYTES: usize = 32 << 10;

/// sshd refuses shorter ones (`RequiredRSASize`, OpenSSH 9.1 and later); nobody should trust them.
const MIN_RSA_BITS: usize = 1024;

// What deriving a key from a passphrase may cost, so that no input holds an invocation up: seconds, not minutes.
// `ssh-keygen` makes 16 or 24 rounds, OpenSSL 2048 iterations, or scrypt over 16 MiB.
const MAX_BCRYPT_ROUNDS: u32 = 1000;
const MAX_PBKDF2_ITERATIONS: u64 = 1_000_000;
const MAX_SCRYPT_BYTES: u64 = 64 << 20;
const MAX_SCRYPT_LANES: u64 = 16;

/// As russh: a public key inside the file is decoded by recursion where it is a certificate signed by a certificate.
const MAX_CERTIFICATE_NESTING: usize = 8;

/// Decodes `bastion_private_key`: a PEM, base64 of one, or one whose line breaks were mangled on the way.
///
/// A passphrase that the key does not need is ignored; an empty one counts as none. Blocks for as long as the key's
/// own derivation takes (bcrypt: 110 ms), so keep the result.
///
/// # Errors
/// `SecretMalformed`, saying what the value is instead and how to convert it.
pub(crate) fn decode(value: &str, passphrase: Option<&str>) -> Result<PrivateKey, Error> {
    let passphrase = passphrase.filter(|passphrase| !passphrase.is_empty());
    load(value, passphrase).map_err(Refusal::into_error)
}

fn load(value: &str, passphrase: Option<&str>) -> Result<PrivateKey, Refusal> {
    let text = key_text(value)?;
    let (label, body) = private_block(&text)?;
    let key = match label.as_str() {
        "OPENSSH PRIVATE KEY" => openssh(body, passphrase),
        "RSA PRIVATE KEY" => rsa(body, passphrase),
        "EC PRIVATE KEY" => ec(body),
        "PRIVATE KEY" => pkcs8(body),
        "ENCRYPTED PRIVATE KEY" => encrypted_pkcs8(body, passphrase),
        "DSA PRIVATE KEY" => Err(Refusal::dsa()),
        other => Err(Refusal::unknown_label(other)),
    }?;
    check_type(&key)?;
    Ok(key)
}

// From the pasted value to one PEM block.

/// The text that holds the key: the value itself, or what it is base64 of.
fn key_text(value: &str) -> Result<String, Refusal> {
    if value.len() > MAX_TEXT_BYTES {
        return Err(Refusal::too_long(value.len()));
    }
    let text = unescape(value);
    if text.is_empty() {
        return Err(Refusal::empty());
    }
    if is_key_text(&text) {
        return Ok(text);
    }
    if text.contains("PRIVATE KEY") {
        return Err(Refusal::damaged_begin());
    }
    let bytes = decode_base64(&text).ok_or_else(Refusal::not_base64)?;
    match std::str::from_utf8(&bytes).map(unescape) {
        Ok(inner) if is_key_text(&inner) => Ok(inner),
        _ => Err(Refusal::not_a_pem(&bytes)),
    }
}

/// Undoes what JSON and shells do to line breaks, and drops quotes and byte order marks around the text.
fn unescape(text: &str) -> String {
    let text = text.replace("\\\\", "\\").replace("\\r", "\n").replace("\\n", "\n");
    let is_around = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\u{feff}');
    text.trim_matches(is_around).to_owned()
}

fn is_key_text(text: &str) -> bool {
    text.contains("-----BEGIN ") || foreign_format(text).is_some()
}

/// Standard or URL-safe, with line breaks or without, padded or not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let standard = |c| match c {
        '-' => '+',
        '_' => '/',
        c => c,
    };
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).map(standard).collect();
    STANDARD_NO_PAD.decode(compact.trim_end_matches('=')).ok()
}

/// What is recognisably a key and not a PEM.
fn foreign_format(text: &str) -> Option<Refusal> {
    const PUBLIC_KEY_TYPES: [&str; 6] =
        ["ssh-rsa", "ssh-dss", "ssh-ed25519", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    let first = text.split_whitespace().next()?;
    if text.contains("-----BEGIN ") {
        None
    } else if first.starts_with("PuTTY-User-Key-File-") {
        Some(Refusal::putty())
    } else if text.starts_with("---- BEGIN SSH2 PUBLIC") {
        Some(Refusal::public_key())
    } else if text.starts_with("---- BEGIN SSH2") {
        Some(Refusal::ssh_com())
    } else if first.contains("-cert-v01@") {
        Some(Refusal::certificate())
    } else if PUBLIC_KEY_TYPES.iter().any(|key_type| first.starts_with(key_type)) {
        Some(Refusal::public_key())
    } else {
        None
    }
}

/// The first private key among the PEM blocks: its label, and what stands between its BEGIN and END lines.
/// `openssl ecparam -genkey` puts `EC PARAMETERS` before it, others a certificate.
fn private_block(text: &str) -> Result<(String, &str), Refusal> {
    if let Some(refusal) = foreign_format(text) {
        return Err(refusal);
    }
    let mut rest = text;
    let mut other = None;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after.split_once("-----").ok_or_else(Refusal::cut_short)?;
        let (body, after) = after.split_once("-----END").ok_or_else(Refusal::cut_short)?;
        let label = label.split_whitespace().collect::<Vec<_>>().join(" ");
        if label.ends_with("PRIVATE KEY") {
            return Ok((label, body));
        }
        other = other.or(Some(label));
        rest = after;
    }
    Err(Refusal::no_private_key(&other.unwrap_or_default()))
}

// From the block to the key, one function for each label.

/// OpenSSH's own format (`PROTOCOL.key`), plain or encrypted.
fn openssh(body: &str, passphrase: Option<&str>) -> Result<PrivateKey, Refusal> {
    let blob = contents(body)?;
    let nesting = blob.windows(10).filter(|window| *window == b"-cert-v01@").count();
    if nesting > MAX_CERTIFICATE_NESTING {
        return Err(Refusal::certificate());
    }
    let key = PrivateKey::from_bytes(&blob).map_err(|_| Refusal::damaged("OpenSSH key"))?;
    if !key.is_encrypted() {
        return Ok(key);
    }
    check_openssh_encryption(&key)?;
    let passphrase = passphrase.ok_or_else(Refusal::passphrase_missing)?;
    key.decrypt(passphrase).map_err(|error| match error {
        ssh_key::Error::Crypto => Refusal::passphrase_wrong(),
        _ => Refusal::damaged("OpenSSH key"),
    })
}

fn check_openssh_encryption(key: &PrivateKey) -> Result<(), Refusal> {
    if key.cipher() == Cipher::TdesCbc {
        return Err(Refusal::unsupported_cipher("3des-cbc"));
    }
    match key.kdf() {
        Kdf::Bcrypt { rounds, .. } if *rounds > MAX_BCRYPT_ROUNDS => Err(Refusal::too_expensive()),
        _ => Ok(()),
    }
}

/// PKCS#1, plain or with OpenSSL's old encryption, of which russh has AES-128-CBC only.
fn rsa(body: &str, passphrase: Option<&str>) -> Result<PrivateKey, Refusal> {
    const LABEL: &str = "RSA PRIVATE KEY";
    let (encryption, base64) = split_headers(body);
    let contents = contents(base64)?;
    match encryption {
        None => decode_pem(LABEL, "", &contents, None).map_err(|_| Refusal::damaged("PKCS#1 RSA key")),
        Some(("AES-128-CBC", iv)) if iv.len() == 32 => {
            let passphrase = passphrase.ok_or_else(Refusal::passphrase_missing)?;
            let header = format!("DEK-Info: AES-128-CBC,{iv}\n");
            decode_pem(LABEL, &header, &contents, Some(passphrase)).map_err(|_| Refusal::passphrase_wrong())
        }
        Some(("AES-128-CBC", _)) => Err(Refusal::damaged("PKCS#1 RSA key")),
        Some((cipher, _)) => Err(Refusal::unsupported_cipher(cipher)),
    }
}

/// SEC1. Encrypted, russh would take it for RSA.
fn ec(body: &str) -> Result<PrivateKey, Refusal> {
    match split_headers(body) {
        (None, base64) => decode_pem("EC PRIVATE KEY", "", &contents(base64)?, None)
            .map_err(|error| Refusal::unloadable(&error, "SEC1 EC key")),
        (Some((cipher, _)), _) => Err(Refusal::unsupported_cipher(cipher)),
    }
}

fn pkcs8(body: &str) -> Result<PrivateKey, Refusal> {
    // russh takes a PKCS#8 key for encrypted as soon as there is a passphrase.
    decode_pem("PRIVATE KEY", "", &contents(body)?, None)
        .map_err(|error| Refusal::unloadable(&error, "PKCS#8 key"))
}

fn encrypted_pkcs8(body: &str, passphrase: Option<&str>) -> Result<PrivateKey, Refusal> {
    let contents = contents(body)?;
    match pkcs8_encryption(&contents) {
        Some(Encryption::Supported) => {}
        Some(Encryption::Unsupported(scheme)) => return Err(Refusal::unsupported_pkcs8(scheme)),
        Some(Encryption::TooExpensive) => return Err(Refusal::too_expensive()),
        None => return Err(Refusal::damaged("encrypted PKCS#8 key")),
    }
    let passphrase = passphrase.ok_or_else(Refusal::passphrase_missing)?;
    decode_pem("ENCRYPTED PRIVATE KEY", "", &contents, Some(passphrase)).map_err(|error| match error {
        // Only the right passphrase gets as far as the type of the key inside.
        russh::keys::Error::UnknownAlgorithm(_) => Refusal::unloadable(&error, "PKCS#8 key"),
        _ => Refusal::passphrase_wrong(),
    })
}

fn contents(base64: &str) -> Result<Vec<u8>, Refusal> {
    decode_base64(base64).ok_or_else(|| Refusal::damaged("PEM"))
}

/// The cipher and initialisation vector of `DEK-Info: CIPHER,IV` (RFC 1421), if the body has it, and its base64.
fn split_headers(body: &str) -> (Option<(&str, &str)>, &str) {
    let Some((_, info)) = body.split_once("DEK-Info:") else {
        return (None, body);
    };
    let (cipher, rest) = info.split_once(',').unwrap_or((info, ""));
    // Where the line breaks are gone, the base64 follows the vector at once.
    let iv_len = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len()).min(32);
    let (iv, base64) = rest.split_at(iv_len);
    (Some((cipher.trim(), iv)), base64)
}

/// Hands russh a canonical PEM: no header but the one it reads, the base64 on one line.
fn decode_pem(
    label: &str,
    header: &str,
    contents: &[u8],
    passphrase: Option<&str>,
) -> Result<PrivateKey, russh::keys::Error> {
    let base64 = STANDARD.encode(contents);
    let pem = format!("-----BEGIN {label}-----\n{header}{base64}\n-----END {label}-----\n");
    russh::keys::decode_secret_key(&pem, passphrase)
}

/// russh decodes more types than it can sign with.
fn check_type(key: &PrivateKey) -> Result<(), Refusal> {
    match key.key_data() {
        KeypairData::Ed25519(_) | KeypairData::Ecdsa(_) => Ok(()),
        KeypairData::Rsa(pair) => {
            let bits = bit_len(pair.public().n().as_positive_bytes().unwrap_or_default());
            if bits < MIN_RSA_BITS { Err(Refusal::short_rsa(bits)) } else { Ok(()) }
        }
        KeypairData::Dsa(_) => Err(Refusal::dsa()),
        KeypairData::SkEd25519(_) | KeypairData::SkEcdsaSha2NistP256(_) => Err(Refusal::security_key()),
        _ => Err(Refusal::unknown_type()),
    }
}

/// Of a big-endian integer without leading zero bytes.
fn bit_len(bytes: &[u8]) -> usize {
    bytes.first().map_or(0, |first| bytes.len() * 8 - first.leading_zeros() as usize)
}

// How an encrypted PKCS#8 key is encrypted (RFC 5958 section 3, RFC 8018 appendix A).

enum Encryption {
    Supported,
    Unsupported(&'static str),
    TooExpensive,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// 1.2.840.113549.1.5.13
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
/// 1.2.840.113549.1.5.12
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
/// 1.3.6.1.4.1.11591.4.11 (RFC 7914)
const SCRYPT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
/// 1.2.840.113549.2.8 to .11: HMAC with SHA-224, SHA-256, SHA-384, SHA-512
const HMAC_SHA2: [&[u8]; 4] = [
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x08],
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09],
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0a],
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x0b],
];
/// 2.16.840.1.101.3.4.1.2, .22 and .42: AES-128, AES-192, AES-256
const AES_CBC: [&[u8]; 3] = [
    &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02],
    &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x16],
    &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a],
];

/// `None` where it cannot be read.
fn pkcs8_encryption(contents: &[u8]) -> Option<Encryption> {
    let (scheme, mut parameters) = Der(Der(contents).take(SEQUENCE)?).algorithm()?;
    if scheme != PBES2 {
        return Some(Encryption::Unsupported("PBES1"));
    }
    let mut parameters = Der(parameters.take(SEQUENCE)?);
    let (derivation, derivation_parameters) = parameters.algorithm()?;
    let (cipher, _) = parameters.algorithm()?;
    if !AES_CBC.contains(&cipher) {
        return Some(Encryption::Unsupported("PBES2 with a cipher other than AES-CBC"));
    }
    match derivation {
        PBKDF2 => pbkdf2(derivation_parameters),
        SCRYPT => scrypt(derivation_parameters),
        _ => Some(Encryption::Unsupported("PBES2 with neither PBKDF2 nor scrypt")),
    }
}

fn pbkdf2(mut parameters: Der<'_>) -> Option<Encryption> {
    let mut fields = Der(parameters.take(SEQUENCE)?);
    fields.take(OCTET_STRING)?;
    let iterations = fields.integer()?;
    let _key_length = fields.integer();
    // Left out, the hash is SHA-1: what OpenSSL wrote before 1.1.0.
    let is_sha2 = fields.algorithm().is_some_and(|(hash, _)| HMAC_SHA2.contains(&hash));
    Some(match iterations {
        _ if !is_sha2 => Encryption::Unsupported("PBES2 with HMAC-SHA1"),
        0 => return None,
        1..=MAX_PBKDF2_ITERATIONS => Encryption::Supported,
        _ => Encryption::TooExpensive,
    })
}

fn scrypt(mut parameters: Der<'_>) -> Option<Encryption> {
    let mut fields = Der(parameters.take(SEQUENCE)?);
    fields.take(OCTET_STRING)?;
    let (cost, block, lanes) = (fields.integer()?, fields.integer()?, fields.integer()?);
    // The library panics on a cost of 0.
    if cost < 2 || !cost.is_power_of_two() || block == 0 || lanes == 0 {
        return None;
    }
    let bytes = cost.saturating_mul(block).saturating_mul(128);
    let is_cheap = bytes <= MAX_SCRYPT_BYTES && lanes <= MAX_SCRYPT_LANES;
    Some(if is_cheap { Encryption::Supported } else { Encryption::TooExpensive })
}

/// DER, element by element.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next element, if it has this tag; else it stays where it is.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (contents, rest) = der_element(self.0, tag)?;
        self.0 = rest;
        Some(contents)
    }

    /// Non-negative and below 2^64.
    fn integer(&mut self) -> Option<u64> {
        let bytes = self.take(INTEGER)?;
        let is_small = bytes.len() <= 8 && bytes.first().is_some_and(|first| *first < 0x80);
        is_small.then(|| bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    /// An AlgorithmIdentifier: its object identifier and its parameters.
    fn algorithm(&mut self) -> Option<(&'a [u8], Der<'a>)> {
        let mut fields = Der(self.take(SEQUENCE)?);
        Some((fields.take(OBJECT_IDENTIFIER)?, fields))
    }
}

/// The contents of the element at the start, and what follows it. Lengths to 65,535: more than the text may have.
fn der_element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (len, rest) = match der {
        [found, ..] if *found != tag => return None,
        [_, len @ 0..=0x7f, rest @ ..] => (usize::from(*len), rest),
        [_, 0x81, len, rest @ ..] => (usize::from(*len), rest),
        [_, 0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    rest.split_at_checked(len)
}

// What can be wrong with a key, and how to mend it.

const STORE: &str = "store the whole file of the private key, as it is or as `base64 -w0 KEY` prints it";

const CONVERT: &str = "convert a copy of it with `ssh-keygen -p -f KEY`, which writes OpenSSH's own format, and \
                       store that";

const CONVERT_PKCS8: &str = "convert it with `openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW` (for PBES1 \
                             under OpenSSL 3 add `-provider legacy -provider default`), or a copy of it with \
                             `ssh-keygen -p -f KEY`, and store that";

const REPLACE: &str = "make a key with `ssh-keygen -t ed25519 -f KEY`, add KEY.pub to the authorized_keys of \
                       bastion_user, and store KEY";

/// Why the value is refused, in words that follow `bastion_private_key`, and the way out.
#[derive(Debug)]
struct Refusal {
    what: String,
    hint: &'static str,
}

impl Refusal {
    fn new(what: impl Into<String>, hint: &'static str) -> Self {
        Self { what: what.into(), hint }
    }

    fn into_error(self) -> Error {
        Error::new(Kind::SecretMalformed, format!("bastion_private_key {}", self.what)).with_hint(self.hint)
    }

    fn empty() -> Self {
        Self::new("is empty", STORE)
    }

    fn too_long(len: usize) -> Self {
        Self::new(format!("has {len} bytes, more than any private key"), STORE)
    }

    fn damaged_begin() -> Self {
        Self::new("has a damaged BEGIN line, which is five dashes, BEGIN, the type and five dashes", STORE)
    }

    fn not_base64() -> Self {
        Self::new("is neither a PEM nor base64", STORE)
    }

    fn not_a_pem(bytes: &[u8]) -> Self {
        if bytes.starts_with(b"openssh-key-v1\0") || matches!(bytes, [SEQUENCE, 0x2e | 0x81 | 0x82, ..]) {
            return Self::new("is a key without its BEGIN and END lines", STORE);
        }
        let after_length = bytes.get(4..).unwrap_or_default();
        if [&b"ssh-"[..], b"ecdsa-sha2-", b"sk-"].iter().any(|name| after_length.starts_with(name)) {
            return Self::public_key();
        }
        Self::new("is base64 of something that is not a PEM", STORE)
    }

    fn cut_short() -> Self {
        Self::new("is cut short: its BEGIN line has no END line", STORE)
    }

    fn damaged(format: &str) -> Self {
        let hint =
            "check the file with `ssh-keygen -y -f KEY`, which prints its public half, and store it whole";
        Self::new(format!("is damaged: it does not decode as the {format} that it claims to be"), hint)
    }

    fn no_private_key(label: &str) -> Self {
        match label {
            label if label.ends_with("PUBLIC KEY") => Self::public_key(),
            label if label.contains("CERTIFICATE") => Self::certificate(),
            "EC PARAMETERS" => Self::new("holds the parameters of an EC key without the key", STORE),
            label => Self::unknown_label(label),
        }
    }

    fn unknown_label(label: &str) -> Self {
        // A label in lower case may be the key itself, after a BEGIN line that lost its dashes.
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ';
        let name = if label.len() <= 40 && label.chars().all(is_name) { label } else { "unknown type" };
        Self::new(format!("is a PEM of a kind that is not an SSH private key: {name}"), CONVERT)
    }

    fn public_key() -> Self {
        Self::new("is a public key", "store the private half: the file of the same name without .pub")
    }

    fn certificate() -> Self {
        let hint = "store the private key that belongs to the certificate; certificates are not used";
        Self::new("is a certificate", hint)
    }

    fn putty() -> Self {
        let hint = "export it with `puttygen key.ppk -O private-openssh -o KEY`, and store KEY";
        Self::new("is a PuTTY key (.ppk)", hint)
    }

    fn ssh_com() -> Self {
        let hint =
            "convert it with `ssh-keygen -i -f KEY > NEW` (after removing its passphrase), and store NEW";
        Self::new("is a key in ssh.com's format", hint)
    }

    fn dsa() -> Self {
        Self::new("is a DSA key, which OpenSSH no longer accepts", REPLACE)
    }

    fn security_key() -> Self {
        Self::new("is a handle to a hardware security key, which cannot sign here", REPLACE)
    }

    fn short_rsa(bits: usize) -> Self {
        let what = format!("is an RSA key of {bits} bits; sshd accepts none below {MIN_RSA_BITS}");
        Self::new(what, REPLACE)
    }

    fn unknown_type() -> Self {
        Self::new("is of a type other than Ed25519, ECDSA and RSA", REPLACE)
    }

    fn unloadable(error: &russh::keys::Error, format: &str) -> Self {
        match error {
            // id-dsa (RFC 3279)
            russh::keys::Error::UnknownAlgorithm(oid) if oid.to_string() == "1.2.840.10040.4.1" => {
                Self::dsa()
            }
            russh::keys::Error::UnknownAlgorithm(_) => Self::unknown_type(),
            _ => Self::damaged(format),
        }
    }

    fn unsupported_cipher(cipher: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let name =
            if cipher.len() <= 20 && cipher.chars().all(is_name) { cipher } else { "an unknown cipher" };
        Self::new(format!("is encrypted in an old way that is not supported: {name}"), CONVERT)
    }

    fn unsupported_pkcs8(scheme: &str) -> Self {
        Self::new(format!("is encrypted in an old way that is not supported: {scheme}"), CONVERT_PKCS8)
    }

    fn too_expensive() -> Self {
        let hint = "write a copy of it again with `ssh-keygen -p -a 16 -f KEY`, and store that";
        Self::new("takes too long to decrypt: too many rounds of key derivation", hint)
    }

    fn passphrase_missing() -> Self {
        let hint = "add bastion_passphrase to the secret, or store a copy of the key from which \
                    `ssh-keygen -p -N '' -f KEY` removed it";
        Self::new("is encrypted and bastion_passphrase is missing", hint)
    }

    fn passphrase_wrong() -> Self {
        let hint = "try it with `ssh-keygen -y -f KEY`, which asks for the passphrase";
        Self::new("is encrypted and bastion_passphrase does not open it", hint)
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
    use russh::keys::HashAlg;

    use super::*;

    #[test]
    fn every_format_loads() {
        for (pem, fingerprint) in PLAIN {
            assert_eq!(fingerprint_of(pem, None), fingerprint, "{}", first_line(pem));
        }
        for (pem, fingerprint) in ENCRYPTED {
            assert_eq!(fingerprint_of(pem, Some(PASSPHRASE)), fingerprint, "{}", first_line(pem));
        }
    }

    #[test]
    fn a_superfluous_or_empty_passphrase_is_ignored() {
        for (pem, fingerprint) in PLAIN {
            assert_eq!(fingerprint_of(pem, Some(PASSPHRASE)), fingerprint, "{}", first_line(pem));
            assert_eq!(fingerprint_of(pem, Some("")), fingerprint, "{}", first_line(pem));
        }
    }

    #[test]
    fn a_missing_passphrase_is_told_from_a_wrong_one() {
        for (pem, _) in ENCRYPTED {
            for none in [None, Some("")] {
                assert_refused(
                    pem,
                    none,
                    &["encrypted", "bastion_passphrase is missing", "ssh-keygen -p -N ''"],
                );
            }
            assert_refused(
                pem,
                Some("open-barley"),
                &["bastion_passphrase does not open it", "ssh-keygen -y"],
            );
        }
    }

    #[test]
    fn every_way_of_pasting_a_pem_is_undone() {
        type Mangling = (&'static str, fn(&str) -> String);
        let manglings: [Mangling; 18] = [
            ("as it is", str::to_owned),
            ("base64", |pem| STANDARD.encode(pem)),
            ("base64 without padding", |pem| STANDARD_NO_PAD.encode(pem)),
            ("url-safe base64", |pem| URL_SAFE.encode(pem)),
            ("url-safe base64 without padding", |pem| URL_SAFE_NO_PAD.encode(pem)),
            ("base64 in lines", |pem| in_lines(&STANDARD.encode(pem), "\n") + "\n"),
            ("base64 in lines joined by spaces", |pem| in_lines(&STANDARD.encode(pem), " ")),
            ("base64 in lines with literal breaks", |pem| in_lines(&STANDARD.encode(pem), "\\n")),
            ("base64 with carriage returns", |pem| STANDARD.encode(pem.replace('\n', "\r\n"))),
            ("literal breaks", |pem| pem.replace('\n', "\\n")),
            ("literal breaks, escaped twice", |pem| pem.replace('\n', "\\\\n")),
            ("literal carriage returns", |pem| pem.replace('\n', "\\r\\n")),
            ("spaces for breaks", |pem| pem.replace('\n', " ")),
            ("no breaks", |pem| pem.replace('\n', "")),
            ("carriage returns", |pem| pem.replace('\n', "\r\n")),
            ("spaces around each line", |pem| pem.replace('\n', " \t\n  ")),
            ("no final newline", |pem| pem.trim_end().to_owned()),
            ("quotes and a byte order mark", |pem| format!("\u{feff}\"{pem}\"\n")),
        ];
        for pem in [ED25519, RSA, EC, ED25519_PKCS8, RSA_AES128, PBES2_PBKDF2] {
            let expected = fingerprint_of(pem, Some(PASSPHRASE));
            for (name, mangle) in &manglings {
                let fingerprint = fingerprint_of(&mangle(pem), Some(PASSPHRASE));
                assert_eq!(fingerprint, expected, "{name}: {}", first_line(pem));
            }
        }
    }

    #[test]
    fn the_private_key_is_found_among_other_blocks() {
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        assert_eq!(fingerprint_of(&format!("{parameters}{EC}"), None), EC_FINGERPRINT);
        assert_eq!(fingerprint_of(&format!("Bag Attributes\n{X509}{EC}{PUBLIC_PEM}"), None), EC_FINGERPRINT);
        assert_refused(parameters, None, &["parameters of an EC key without the key"]);
    }

    #[test]
    fn an_unsupported_encryption_is_named_with_the_way_to_convert_it() {
        for (pem, scheme, command) in [
            (RSA_AES256, "AES-256-CBC", "ssh-keygen -p -f KEY"),
            (RSA_3DES, "DES-EDE3-CBC", "ssh-keygen -p -f KEY"),
            (EC_ENCRYPTED, "AES-128-CBC", "ssh-keygen -p -f KEY"),
            (ED25519_3DES, "3des-cbc", "ssh-keygen -p -f KEY"),
            (PBES1, "PBES1", "-provider legacy"),
            (PBES1_PKCS12, "PBES1", "openssl pkcs8 -topk8"),
            (PBES2_SHA1, "HMAC-SHA1", "openssl pkcs8 -topk8"),
            (PBES2_3DES, "cipher other than AES-CBC", "openssl pkcs8 -topk8"),
        ] {
            for passphrase in [None, Some(PASSPHRASE)] {
                assert_refused(pem, passphrase, &["not supported", scheme, command]);
            }
        }
    }

    #[test]
    fn what_is_no_private_key_for_ssh_is_named() {
        let putty = "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: test\n";
        let certificate = "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAx test";
        for (value, what) in [
            (PUBLIC, "is a public key"),
            (PUBLIC_PEM, "is a public key"),
            ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----", "is a public key"),
            ("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nAAAA", "ssh.com"),
            (certificate, "is a certificate"),
            (X509, "is a certificate"),
            (putty, "puttygen key.ppk -O private-openssh"),
            (DSA, "is a DSA key"),
            (DSA_OPENSSH, "is a DSA key"),
            (DSA_PKCS8, "is a DSA key"),
            (DSA_PKCS8_ENCRYPTED, "is a DSA key"),
            (ED448, "type other than Ed25519, ECDSA and RSA"),
            (EC_SECP256K1, "type other than Ed25519, ECDSA and RSA"),
            (RSA_512, "RSA key of 512 bits; sshd accepts none below 1024"),
            ("-----BEGIN PGP MESSAGE-----\nAAAA\n-----END PGP MESSAGE-----", "PGP MESSAGE"),
        ] {
            assert_refused(value, Some(PASSPHRASE), &[what]);
            assert_refused(&STANDARD.encode(value), Some(PASSPHRASE), &[what]);
        }
    }

    #[test]
    fn a_mangled_paste_is_told_how() {
        let body: String = ED25519.lines().filter(|line| !line.starts_with('-')).collect();
        for (value, what) in [
            ("", "is empty"),
            (" \n\t", "is empty"),
            ("\"\"", "is empty"),
            ("the key, please!", "neither a PEM nor base64"),
            ("aGVsbG8gd29ybGQ=", "base64 of something that is not a PEM"),
            (body.as_str(), "without its BEGIN and END lines"),
            ("AAAAC3NzaC1lZDI1NTE5AAAAII4V2GBzUTpTk0qADIFtbOO+g1kF30I468XFGzYiKuS2", "is a public key"),
            (&ED25519[..200], "cut short"),
            (ED25519.replace("-----", "----").as_str(), "damaged BEGIN line"),
            (ED25519.replacen("AAAA", "AAAB", 1).as_str(), "damaged"),
            (EC.replace("MHc", "!!!").as_str(), "damaged"),
            (RSA.replace("MII", "MIA").as_str(), "damaged"),
            ("A".repeat(MAX_TEXT_BYTES + 1).as_str(), "more than any private key"),
            ("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", "damaged"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----", "damaged"),
        ] {
            assert_refused(value, Some(PASSPHRASE), &[what]);
        }
    }

    #[test]
    fn no_input_can_make_a_derivation_run_for_minutes() {
        assert_refused(PBES2_SLOW, Some(PASSPHRASE), &["takes too long", "ssh-keygen -p -a 16"]);
        // The salt is 16 bytes long, the one round follows it.
        let mut blob = contents(body_of(ED25519_CTR)).expect("base64");
        blob[63..67].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_refused(&pem("OPENSSH PRIVATE KEY", &blob), Some(PASSPHRASE), &["takes too long"]);
        let der = contents(body_of(PBES2_SCRYPT)).expect("base64");
        let at = der.windows(9).position(|bytes| bytes == [2, 1, 16, 2, 1, 8, 2, 1, 1]).expect("N, r, p") + 2;
        for (cost, what) in [(0, "damaged"), (1, "damaged"), (17, "damaged"), (32, "does not open it")] {
            let mut der = der.clone();
            der[at] = cost;
            assert_refused(&pem("ENCRYPTED PRIVATE KEY", &der), Some(PASSPHRASE), &[what]);
        }
        assert!(matches!(
            scrypt(Der(&[SEQUENCE, 13, 4, 0, 2, 3, 1, 0, 0, 2, 1, 127, 2, 1, 1])),
            Some(Encryption::TooExpensive)
        ));
    }

    #[test]
    fn nested_certificates_do_not_exhaust_the_stack() {
        let blob = [&b"openssh-key-v1\0"[..], &b"a-cert-v01@x".repeat(1000)].concat();
        assert_refused(&pem("OPENSSH PRIVATE KEY", &blob), None, &["is a certificate"]);
    }

    /// The errors' text is public: each must hold these words, and nothing of the value or the passphrase.
    fn assert_refused(value: &str, passphrase: Option<&str>, words: &[&str]) {
        let error = decode(value, passphrase).expect_err("refused");
        assert_eq!(error.kind(), Kind::SecretMalformed);
        let text = format!("{error} {error:?}");
        assert!(text.contains("bastion_private_key"), "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        let secrets = value.split_whitespace().filter(|word| word.len() >= 20).chain(passphrase);
        for secret in secrets.filter(|secret| !secret.is_empty()) {
            assert!(!text.contains(secret), "a secret is in: {text}");
        }
    }

    fn fingerprint_of(value: &str, passphrase: Option<&str>) -> String {
        decode(value, passphrase).expect("a key").fingerprint(HashAlg::Sha256).to_string()
    }

    fn first_line(pem: &str) -> &str {
        pem.lines().next().unwrap_or_default()
    }

    fn in_lines(text: &str, separator: &str) -> String {
        let lines: Vec<_> = text.as_bytes().chunks(76).map(String::from_utf8_lossy).collect();
        lines.join(separator)
    }

    fn body_of(pem: &str) -> &str {
        let (_, body) = pem.split_once("KEY-----").expect("a BEGIN line");
        body.split_once("-----END").expect("an END line").0
    }

    fn pem(label: &str, contents: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(contents))
    }

    // Throwaway keys, made for these tests by ssh-keygen 9.2 and openssl 3.0, with one round of bcrypt, 64 iterations
    // of PBKDF2 and a scrypt of 16 KiB. They open nothing.

    const PASSPHRASE: &str = "open-sesame";
    const ED25519_FINGERPRINT: &str = "SHA256:R5doDlfHOyAAbZJACaqVzqLI4vk7SBum9E2uQxkLEmU";
    const EC_FINGERPRINT: &str = "SHA256:l6fnY6Djg+k0hts2LSsWzHtZitbsGfKUKwIN8nM3leM";
    const RSA_FINGERPRINT: &str = "SHA256:2Gh56+c5Q5ZX21UWbo0N2CTpy3Gk2C014X6Jqy+r1cg";

    const PLAIN: [(&str, &str); 8] = [
        (ED25519, ED25519_FINGERPRINT),
        (ED25519_PKCS8, ED25519_FINGERPRINT),
        (EC, EC_FINGERPRINT),
        (EC_OPENSSH, EC_FINGERPRINT),
        (EC_PKCS8, EC_FINGERPRINT),
        (RSA, RSA_FINGERPRINT),
        (RSA_OPENSSH, RSA_FINGERPRINT),
        (RSA_PKCS8, RSA_FINGERPRINT),
    ];

    const ENCRYPTED: [(&str, &str); 6] = [
        (ED25519_CTR, ED25519_FINGERPRINT),
        (ED25519_GCM, ED25519_FINGERPRINT),
        (ED25519_CHACHA, ED25519_FINGERPRINT),
        (PBES2_PBKDF2, ED25519_FINGERPRINT),
        (PBES2_SCRYPT, ED25519_FINGERPRINT),
        (RSA_AES128, RSA_FINGERPRINT),
    ];

    const PUBLIC: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAII4V2GBzUTpTk0qADIFtbOO+g1kF30I468XFGzYiKuS2 test key";
    const ED25519: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACCOFdhgc1E6U5NKgAyBbWzjvoNZBd9COOvFxRs2IirktgAAAJDi1+0F4tft
BQAAAAtzc2gtZWQyNTUxOQAAACCOFdhgc1E6U5NKgAyBbWzjvoNZBd9COOvFxRs2Iirktg
AAAEADmjcHD0SwMlvPT4nsgMnt4fIGgNTSMsQgQXcabRPwcY4V2GBzUTpTk0qADIFtbOO+
g1kF30I468XFGzYiKuS2AAAACHRlc3Qga2V5AQIDBAU=
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_CTR: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABDk1BNq1b
sH3f4HV+ICWH7eAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAII4V2GBzUTpTk0qA
DIFtbOO+g1kF30I468XFGzYiKuS2AAAAkEdh3RXBZvoSeaLesCuLrGlLDBpmZSwEuRNl8O
TzcMq331GnXtkeo+ICZz5C2CXRg85Q6V51jvNEnlpWIcNmfdZps7BHWOgs5zB/MneTqCbF
KUtrF0wTBAjNCO3co42QBz1UJmvnxKuQa6TthgEX/LOFvMHDlCb93QJSdPl33wmKLP3lZW
hMHEzMsS7j6GvdTw==
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_GCM: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAAFmFlczI1Ni1nY21Ab3BlbnNzaC5jb20AAAAGYmNyeXB0AA
AAGAAAABB6dkflSZ8VIdDNT9eJBbIEAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAA
II4V2GBzUTpTk0qADIFtbOO+g1kF30I468XFGzYiKuS2AAAAkEfKE5zee6Hvkb5Dr2ZNeT
2DVr3bZMGfAEDuIk3cJpfdOHtrBJAnjfi7od3LIXazZMEddiJr6YWsCSAslWDO07fa1gxx
7AlULYGOjhGlTJ+pxwg1V+s8KS96G1KPz2fh0SQlHVudKNb4+QTpW2DhEME2ulBzeyFv4p
HI4dw3U0T22oVipwabRai0fjVRmWpFGZggsY+vVblmNZkGk5GwdAs=
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_CHACHA: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAAHWNoYWNoYTIwLXBvbHkxMzA1QG9wZW5zc2guY29tAAAABm
JjcnlwdAAAABgAAAAQoRz+Zq05+0JnSzRyY5442gAAAAEAAAABAAAAMwAAAAtzc2gtZWQy
NTUxOQAAACCOFdhgc1E6U5NKgAyBbWzjvoNZBd9COOvFxRs2IirktgAAAJBpse17HpSg4Z
DrkxDxhciTwARIkITxjxUp9ENw+mozVKGodLVnxU0Uw146Ph8DJOL+wG/LpaxJRDYtbTSC
fJFKnEj9VZwujySW1sh7qg5XJzCb9mv7wU+IB/2EMbgijpSDnCKDPJoRXIektCSswXIk+1
Bn7b7joBgaq5Fetgg1B5eQ4UvNWLwpLh+IVNGepquwuJA+c4u0k1JQzjbXq8W9
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_3DES: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACDNkZXMtY2JjAAAABmJjcnlwdAAAABgAAAAQAgZsujn/Vo
TYVgv8WeIO0gAAAAEAAAABAAAAMwAAAAtzc2gtZWQyNTUxOQAAACCOFdhgc1E6U5NKgAyB
bWzjvoNZBd9COOvFxRs2IirktgAAAJBJPWTQIUXQXPbcMPXOTEEpgAmcOt74JhFZTiliXU
p+7g4A4p6ActQmjtKlEkdE04rwlx9GNq5d4/hqSCtkEPk5IJLySSx1TWO0nNLTCxMklQFV
6HUMeM3Ih+FggZsMhReprjDMRVvwS4xZg+5BapptW42Iu6YvXucmu0NgadiF7KlV/Zuw+M
pUk+dJ9eBtiEI=
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAOaNwcPRLAyW89PieyAye3h8gaA1NIyxCBBdxptE/Bx
-----END PRIVATE KEY-----
";
    const PBES2_PBKDF2: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGaMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAh3KsOdtoTvLQIBQDAM
BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQMLrqye6kqy6GmZHWEdix1gRAkTme
54eHYCfBl60sYHQJSj8LktfnnZ+rLSIn5wsV9N6A50UlfaPAhtbjU36ztwY0jVHm
6ZgD7VaVUZRT68AYBg==
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES2_SCRYPT: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGSME4GCSqGSIb3DQEFDTBBMCAGCSsGAQQB2kcECzATBAhlKBaexrrHMgIBEAIB
CAIBATAdBglghkgBZQMEASoEELq1mLvVBwl7eNAw0YiKCCAEQAkOvZHoKddRL4Dp
4BBzk3iqjWjkGiFKNKIY6pMYDKFYj0/64pCp19mBUBPU/24yX/N+GgzZv5+r4Gmz
zaSytTE=
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES2_SHA1: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGMMEgGCSqGSIb3DQEFDTA7MBoGCSqGSIb3DQEFDDANBAixHjeDPaRIqwIBQDAd
BglghkgBZQMEASoEEHAG24zJ6K8W3TYIza8MfKoEQAHP1QxzpYC5pUDRLtAfWHUp
+EEhzmycUp0qE4KEtttVVVdfsTSVjLHlEIzigKOwXBzSNmdxOE8YyiBkNGwDK2U=
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES2_3DES: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGJME0GCSqGSIb3DQEFDTBAMCgGCSqGSIb3DQEFDDAbBAipryB1fui6AAIBQDAM
BggqhkiG9w0CCQUAMBQGCCqGSIb3DQMHBAis5jogNA2VDwQ4+QugnDZ8vCZloeE6
6qdxRSM/s8wq/cpxIdauFDN9J/ozV8SX3bTJEo//QrWMMtJSjO6yQMIw6NE=
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES2_SLOW: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGdMFkGCSqGSIb3DQEFDTBMMCsGCSqGSIb3DQEFDDAeBAjYYBezG8cGvQIEATEt
ADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQzQnme43MSIZYhmp9hBWcQARA
v19mRZERGddTiSdGQvuNZVrT7BS7Ljohn0Q8d/jSf5ujV2VmUkQIBgDX1L5bDBnS
Yo2ZFM5LnvIxuCqkNfVU+Q==
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES1: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MFYwGgYJKoZIhvcNAQUDMA0ECJg4gd977G6VAgFABDiu7VUFgEwc/VlgrbzK/tUC
+Xu9kD2GUqCBQhDHG+hsuAg1mBdauLjNrpN5smpwisU8iYJSpPAnEA==
-----END ENCRYPTED PRIVATE KEY-----
";
    const PBES1_PKCS12: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MFcwGwYKKoZIhvcNAQwBAzANBAiLSfPdv0ub6wIBQAQ4Dk1fme2+UyCL+z9WyzlH
L7t/2TjwGFjVdCGWnfCvnHuPiQJZ8eaV5bk+yxhBYLXyOQdTo+rrjSc=
-----END ENCRYPTED PRIVATE KEY-----
";
    const EC: &str = "-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIEvcjDvUa2pfILkWpplgheD5Tvg9ob3rtM6zwlVq814goAoGCCqGSM49
AwEHoUQDQgAEj1wFXoIhc6AkYT+0ZRAK2/EY/QFb3rqMlpSB+Qjqd9jc9TDgPITE
XqNHgppuEYDnQKMFmLN5J167HMRC1P/9Tw==
-----END EC PRIVATE KEY-----
";
    const EC_OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQSPXAVegiFzoCRhP7RlEArb8Rj9AVve
uoyWlIH5COp32Nz1MOA8hMReo0eCmm4RgOdAowWYs3knXrscxELU//1PAAAAmEH4LBJB+C
wSAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBI9cBV6CIXOgJGE/
tGUQCtvxGP0BW966jJaUgfkI6nfY3PUw4DyExF6jR4KabhGA50CjBZizeSdeuxzEQtT//U
8AAAAgS9yMO9Rral8guRammWCF4PlO+D2hveu0zrPCVWrzXiAAAAAA
-----END OPENSSH PRIVATE KEY-----
";
    const EC_PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgS9yMO9Rral8guRam
mWCF4PlO+D2hveu0zrPCVWrzXiChRANCAASPXAVegiFzoCRhP7RlEArb8Rj9AVve
uoyWlIH5COp32Nz1MOA8hMReo0eCmm4RgOdAowWYs3knXrscxELU//1P
-----END PRIVATE KEY-----
";
    const EC_ENCRYPTED: &str = "-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,5712EA76C22C72900AFC0826980ABCE0

IqVh20z3d8XVUx1Wj3Rkdlv5IoN2jrRA+HIlFVV5B/VstLiPo8xNVTN5x5/bWYHc
H0Fs6Fq4vjLvxXdGoLz+W8RvfF2NxBAmffPELfwKAyV04d+P/GkUl6jystbPNR9r
xZ4s1CnkDabSE0gxpWQ+OzbxKrmNh3MUvR1mjHv2Jy8=
-----END EC PRIVATE KEY-----
";
    const EC_SECP256K1: &str = "-----BEGIN EC PRIVATE KEY-----
MHQCAQEEII7Kd3WbM/FMaYQa4AsX9WGAThm9Tzsrqf1XN1nzXzrGoAcGBSuBBAAK
oUQDQgAEwtrAE4RGm64MtMxeD09likSYIue4ulYQC/rLWsxFD14X4kdQS3fiSEq6
oxrj4b4AhF7//aqDLl14IFIzkewfjg==
-----END EC PRIVATE KEY-----
";
    const RSA: &str = "-----BEGIN RSA PRIVATE KEY-----
MIICXAIBAAKBgQDcjgWUgysykI+q9kv+R1ELceOVUShcZuS89lOk+CNoPQkdwBfB
fwV45qJzznZKdy3y+H0N2GzM60RLg2gilgZqZoxxAgR8lfUv1hOgWwZDk1Yd/Dl+
DbnkqJ+mqLXL8Q9DQ0UWk1QOsXCtCGfVhkcBGmwY0NbIGN/I0j3oQUckiwIDAQAB
AoGAeMrbqYPRQ8dCt/pekmwSqfb9Esk5FqpPumIaW25/TdanyIBtQk9D+vwtmslH
pe7x3nFTZCLVK8HqTIUyokaSSez+9B7ipzIDp4+Lmnias6ij5qmYI51JyONU8OTF
owPSsckXk5ZRENvrbjJMZz+T+w2n0z/M81br4L1IJWeVKmECQQD9hbNET/YAU3ZM
OPoyI8KD+jlNcG/GMHvIEOllApv+bLIhlJQ6ZKAIyYZHQs/5pd7nO7mFeU9mGRRY
8OrvaQB7AkEA3rXWq2tnmqdpiLC7e9xgJ/1uSj4cGUuOmWDbBcJaI6Z8P+2K6gB2
hMokRGkWqsEyKic3DKgLwNNGR0wDv3kXMQJALDBEqdCCIVZq1ShNO7YN7nEL0dqa
MOI8gQeplqiYxgTuG3pJR9BIMJ/nnr4ff/UQYB+B26jkVPhkGoiLeoVDxwJAYw1E
+ODAJ4yl52GTQTd2nNKepu6Q2L8+IQFu6FTUel6ljFk+G20xSUYOc066AiADC7R9
S2fCMnTFIRix4gsdQQJBANPi0xu32Eok8IUG+ep1OJ1E0FEahIqTeewCeUqivLB2
X1jsEQh0gS5WJS4+AkMEadwMjzGvnTh6AcivrsFFQnE=
-----END RSA PRIVATE KEY-----
";
    const RSA_OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAlwAAAAdzc2gtcn
NhAAAAAwEAAQAAAIEA3I4FlIMrMpCPqvZL/kdRC3HjlVEoXGbkvPZTpPgjaD0JHcAXwX8F
eOaic852Snct8vh9DdhszOtES4NoIpYGamaMcQIEfJX1L9YToFsGQ5NWHfw5fg255Kifpq
i1y/EPQ0NFFpNUDrFwrQhn1YZHARpsGNDWyBjfyNI96EFHJIsAAAH4NCAofDQgKHwAAAAH
c3NoLXJzYQAAAIEA3I4FlIMrMpCPqvZL/kdRC3HjlVEoXGbkvPZTpPgjaD0JHcAXwX8FeO
aic852Snct8vh9DdhszOtES4NoIpYGamaMcQIEfJX1L9YToFsGQ5NWHfw5fg255Kifpqi1
y/EPQ0NFFpNUDrFwrQhn1YZHARpsGNDWyBjfyNI96EFHJIsAAAADAQABAAAAgHjK26mD0U
PHQrf6XpJsEqn2/RLJORaqT7piGltuf03Wp8iAbUJPQ/r8LZrJR6Xu8d5xU2Qi1SvB6kyF
MqJGkkns/vQe4qcyA6ePi5p4mrOoo+apmCOdScjjVPDkxaMD0rHJF5OWURDb624yTGc/k/
sNp9M/zPNW6+C9SCVnlSphAAAAQQDT4tMbt9hKJPCFBvnqdTidRNBRGoSKk3nsAnlKoryw
dl9Y7BEIdIEuViUuPgJDBGncDI8xr504egHIr67BRUJxAAAAQQD9hbNET/YAU3ZMOPoyI8
KD+jlNcG/GMHvIEOllApv+bLIhlJQ6ZKAIyYZHQs/5pd7nO7mFeU9mGRRY8OrvaQB7AAAA
QQDetdara2eap2mIsLt73GAn/W5KPhwZS46ZYNsFwlojpnw/7YrqAHaEyiREaRaqwTIqJz
cMqAvA00ZHTAO/eRcxAAAAAAEC
-----END OPENSSH PRIVATE KEY-----
";
    const RSA_PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIICdgIBADANBgkqhkiG9w0BAQEFAASCAmAwggJcAgEAAoGBANyOBZSDKzKQj6r2
S/5HUQtx45VRKFxm5Lz2U6T4I2g9CR3AF8F/BXjmonPOdkp3LfL4fQ3YbMzrREuD
aCKWBmpmjHECBHyV9S/WE6BbBkOTVh38OX4NueSon6aotcvxD0NDRRaTVA6xcK0I
Z9WGRwEabBjQ1sgY38jSPehBRySLAgMBAAECgYB4ytupg9FDx0K3+l6SbBKp9v0S
yTkWqk+6Yhpbbn9N1qfIgG1CT0P6/C2ayUel7vHecVNkItUrwepMhTKiRpJJ7P70
HuKnMgOnj4uaeJqzqKPmqZgjnUnI41Tw5MWjA9KxyReTllEQ2+tuMkxnP5P7DafT
P8zzVuvgvUglZ5UqYQJBAP2Fs0RP9gBTdkw4+jIjwoP6OU1wb8Ywe8gQ6WUCm/5s
siGUlDpkoAjJhkdCz/ml3uc7uYV5T2YZFFjw6u9pAHsCQQDetdara2eap2mIsLt7
3GAn/W5KPhwZS46ZYNsFwlojpnw/7YrqAHaEyiREaRaqwTIqJzcMqAvA00ZHTAO/
eRcxAkAsMESp0IIhVmrVKE07tg3ucQvR2pow4jyBB6mWqJjGBO4beklH0Egwn+ee
vh9/9RBgH4HbqORU+GQaiIt6hUPHAkBjDUT44MAnjKXnYZNBN3ac0p6m7pDYvz4h
AW7oVNR6XqWMWT4bbTFJRg5zTroCIAMLtH1LZ8IydMUhGLHiCx1BAkEA0+LTG7fY
SiTwhQb56nU4nUTQURqEipN57AJ5SqK8sHZfWOwRCHSBLlYlLj4CQwRp3AyPMa+d
OHoByK+uwUVCcQ==
-----END PRIVATE KEY-----
";
    const RSA_AES128: &str = "-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,97C17E19F8FBC1076A08876CFE34C9C4

Z/pKS15H9NB2kNPGd6hIdcruHt+C+A1wmiYDkJ1tmY4ANaxJV+MsLt/W7vWilBrt
wYLIrDfSP2anB8q12qE9mBRp7zZ7SBMwzPEIBQL0qpcfpcdumli2YSfyBika1xUp
+OoNQiLsbbAyFjKcmrytKNwP4HtQ1P48B1hIB0tWWdLF85OHTHG6woO+WiCwQ5K2
GCvDgFIdKNeRNNj4h5UBKFEYBJiVI0L4EkHVp1E2bgkeMfDPc/kdzn+cMP7NOG/B
149gqs48Eo5oa81zBm6xMnTFMNzuDOi8bV/qsT6M1rrR9lRfS26ZXmQukr64wmFb
YrXIpl5ZIvogfjcQcVy5lYMX13lC1CEVzc8sn9GWe2AijY6A3uaK8bBbOb0eFCZB
ycyOomippnIqlxXx2LoZrs7PkWRW3a4GYFOXdTTQu1dDb0wrMgRjg3nIzZjCeFZ6
IalDx+yi44hOj6K3hFlMHTaVpdU7IY0kUGKeoHWyPlR9ZaY4aYFpkgz1v/xCDT4N
YjPN1GjuAf5SSLx6wLRnXTH2g5tkwicJdrJeuK4gx9BZW++ChpBRRNIHtkmMGt2O
07GiZphqQMhKyy16/cD6RiKU+2o6wtX/WlQ2UTEgpgKHXJjgxXpLsSr3JANDiLgH
oD9QgdkcVGeY7OVeVKrEnQbLS9GDV0/zRbhXLUQD+xfMDpb343AR/rdaDQGRsy6/
FqqUK6ddwIbagGl2Dr3nhsds4VFr5GUSoHahPPt1Ne+CmYlD7/7Ezenag+7FFojx
/vJ/NReGI5nI/FiTJeAHTPU0LYqkJW8ckqhlkttqufbD5luZKdECXwYVqn9qm0Sy
-----END RSA PRIVATE KEY-----
";
    const RSA_AES256: &str = "-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,B16AF581CAA3838FD5FB3D072A78F208

7gIkl7gK7sMJFEjf75SKVExxQwHcsmj+GBez9LiYf/Oy2nu0CnopY2tEsixURdAs
saMFFxfZvEkXROmaUUGeki3rKHpT7tC+bpCpxOL6GHst2+CecjakSrG9nzgPS+lf
ovLA0RLmB3AglHt/oSNHX8ioXi/gDqquJACMZxSXm52I7g0YKXyvVBIWhBHrefqO
/jCmUOK29Jsfn3+RM5WKOzHWM2don6haPZcD2xSKeCuifFkOms1PxLOCb1nnxdc7
OO6M/5/bQu0ixZfbon/rZ9F7CDa2Y6d7sPky/TLaIhEroRuGhwhOUuZCVjaRvNcy
DXoAkp3YLQ5f5Fa0SR18XrykwWzJl03zGGOM4EuV+MYrptH6++1vHiejkU/UfbtG
gpWwI7UKw6nOQkoVBllm95ZrW8cotoIBgZB/5BPYmavxOyQGQ3aAn3x/Mdb4AuNI
Zqjhpu/7NDVrjVk6IPm/9L2QgnUrH3fYp8dq7CGS2UPUgsddomOw1KGHbS3UeYY9
wm4XaGtg/xtH2EbIGFGwD3MpyitVFgLtOkZWxdZv2l9OpKOa7/tD4RzeUXYEKAOM
7CyB+FfofbbpDhihB8c79Dv5zY9ETp5AmGh4/sUxzhsEgOdYs6/H6+9HxO+uMYxy
PRRFHnOZjQPspLCjk+FzCU21qaMMCkkREaiTF1lraTsiKHoi1zwQkt5iixUcUQH/
sB48aI6xAqDTipU1ZoKqvrwcH5kaDntO4l155ZUmbjh0UH0tzuTzmrS3cTiRP4QP
0iS7Y7xCsT2538SWKB/0/P5em5fdSbyoJSq3vSXAxdsJX/akCMVU9gdT2Kpxw6uA
-----END RSA PRIVATE KEY-----
";
    const RSA_3DES: &str = "-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: DES-EDE3-CBC,1624E318AB6CBD2A

DXj2qODGn9kWGmulx7nV4fpUYFzW3JKXOZ8eme5rtqdwimwq+9zN/yBmqCMVDbqp
ilAyhCsybOSdt+ttCZNtojWURPUNgrXCzrvDVxJTqkL4aieSv4HaRraht2Atl+O4
TN5q8Xw7T1Q3QD2ECdGBAjJUb952U0zeFt9Q2EeKEFdrpRJCAg2m/2TlrCtoM0Qj
1OmVA4LeYeAlaih08iyTwM8tBkCmMHoKHgYcgByd9tZZqUbkpMNHKXEJuKZdq0iN
tj1mSUYfbRt7nanZY/qa0sQuXmMKWDKXx/Z75hIaEfkNUce46jn7swuEbd1QaTMy
yRL3JL5yb9BSzT1WyLg0ZdGOOUayjyaWFwq53UvEdhminr2WzvuK5xzOro5tFlvI
hCHVVi7NXBMG5SzhWMdbnhWNJy1KvgXlwyUQYbAgGBAQ1I0BZsC/tf1DxJjlJoqO
Jny7n1qER7/nwUhJvbR6A5yp5+1kVfwvtALPY69tVjV1B8axS1PExl3UykveC1P8
02ApZ0hqoRXdKFNwIpeXXKszyv28N68E1S51j4ZSKDHmAdCJoXpSUJuEGBTsh4p9
oZjiq61UQoK7cgA2SNcvFbSVOfgd9p0J8s7mnY62kS94fEYL7FrsBpHY1V6fHsXp
y2Xyk1XBvBkoc/h+zEU+2znsPtvR+pTxiqme/tDxV8n4ieBsFR4TPzNxKa/UcaMH
6to7VWp43MGvdv1mwhgQlbFuTc4uZsSExA6z19udHPcSY8AVdTntuq1L/gy9pu7i
TbDuqRm6QxwWgx8SYghGiUl/aKzf36ubX0J90ThsH3EMp4lqy+m+3w==
-----END RSA PRIVATE KEY-----
";
    const RSA_512: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIBOQIBAAJBAJxHOGA/m3VyWIcAp8YdYZkinFQOmQLCBOORx0KeIr0Ys6wEBT/Z
MH/w4XQ2FshJ/LTPxbvnoF3y9+YwcPDcGfUCAwEAAQJAH7quDYyciZnvs2lEpwqs
GCVYzBAyrMarq3CbnkDxGKcsB5j2OVzIfmuOg6dR2CtNQbxHaH+lX5eGOJ2VfzLJ
wQIhAMuzJjniPwSkxgIa7A+Z7tcHMAKobK2nFKyLbTZOG1CJAiEAxGcgtm1IQKZp
damZCOwmewr7ls93wb7Q8h6MAnriKw0CIGvQ5uq8VZ6fmC6FEW0wjLpDk6XUf7Fq
PgcVxTh5HvwBAiA+Sr8zXQHXj3BPY1UoYU3rJJabRH4lMxIuWMXrW3I0WQIgYLoB
m8J1kfGWiaAX+15LKDgoHWJ5taprbFu08jxykZY=
-----END RSA PRIVATE KEY-----
";
    const DSA: &str = "-----BEGIN DSA PRIVATE KEY-----
MIIBugIBAAKBgQDFp9NpprHFU+HW2rU+8WJmgF1CtUdNPYH50hIFpNWPBzIDbL3R
23iOoC7yhwb1xfqf2iAK6LsOFKqYpjmL60nzUCVFw3PJioeDPNM6WJXB/hNvtfwc
HQZsBX+/FKcDppgAj4yDwBs3qasdiv9qVjkiw+PCGLPUUr8htorCcZg8jQIVAO46
qApEO6HXl7v6dv/lhCeEomIRAoGAWPe+eay7cEVMoH2EjZ8X7Yiqfsioj7FRZIsA
KUPDI0rJys0E/6ENHQ0puykg0dZKsfVJZq/UbwdQklpPc3TXk+yId704scmaAD4C
95kLIGrbeKiqUduvJcamiSl6VWY3FIgZouGxTIXJYbi/ORMEGFMy6z58b7xYuVTX
3IHldaACgYBjyS1AHP7iUuK8QsjioP2ylh9AQiqPueQhS4FHhI+nVKdzLewj5gyu
vom7DJS1K5ID5zrFGiQ0nNI5HiV1oluzzpI8jdSoeV2IRb/zX1lyDEPY/vLb2fRi
hO4YnsX2UylhSbHxkSJ6TysRoeVHB4iAhujh3cf538XOipNhiFNC+AIUDbktreME
3HbaUgMMB/mPegZajXM=
-----END DSA PRIVATE KEY-----
";
    const DSA_OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAABsgAAAAdzc2gtZH
NzAAAAgQDfxFlvO2w1wYEUzRbkU3rb0GA8WAsBjwMadf9EHZvpGmx4ytwdS5jSQUyCYMeA
l0oty2+ZeOGTt7JlcZlNQdrh/xyHNKTGTRfqQJ7oB+Rk5ytTqUL3DJaRwHSuaMnXUXZmQH
CS+MzYNm3A8oaFGdtQ04fSKoZX7lTvyRsmbrMK7wAAABUAxp3HAD7om/cDcb6u2c89JWhg
WRcAAACBAInpe+SxQ2XLwq/gyCOL6lYqQ+8hTQK22UsqZjlSZmwynXzEnq6GM2dCba80q1
6lVGLNQDEcr3GU6PhbVCGV1fQ0L8JCYfeL/YBGcBkHZauWT9GKUCMprBucNqcB09O4nyRM
Vd+Wl0e71DBI2bHs7JVKSFQNxOljr3DvjgpiYdfMAAAAgGmqCLkOA4UHscy/5GXqPyIdAo
cYzqweAtqspNJGSWPeZhAKr95rtTD2vI3+WhRdckqlbph592Y2VpAwrexB/V5vaz+1ue+L
1ejAqRVAJajwMWXGjfAdAbApRQQP3wkHu3aa+r2EYa2MTkHpwEFEMUUNfVxEiSajU9DO/z
U6OB85AAAB4HvD9Qh7w/UIAAAAB3NzaC1kc3MAAACBAN/EWW87bDXBgRTNFuRTetvQYDxY
CwGPAxp1/0Qdm+kabHjK3B1LmNJBTIJgx4CXSi3Lb5l44ZO3smVxmU1B2uH/HIc0pMZNF+
pAnugH5GTnK1OpQvcMlpHAdK5oyddRdmZAcJL4zNg2bcDyhoUZ21DTh9IqhlfuVO/JGyZu
swrvAAAAFQDGnccAPuib9wNxvq7Zzz0laGBZFwAAAIEAiel75LFDZcvCr+DII4vqVipD7y
FNArbZSypmOVJmbDKdfMSeroYzZ0JtrzSrXqVUYs1AMRyvcZTo+FtUIZXV9DQvwkJh94v9
gEZwGQdlq5ZP0YpQIymsG5w2pwHT07ifJExV35aXR7vUMEjZsezslUpIVA3E6WOvcO+OCm
Jh18wAAACAaaoIuQ4DhQexzL/kZeo/Ih0ChxjOrB4C2qyk0kZJY95mEAqv3mu1MPa8jf5a
FF1ySqVumHn3ZjZWkDCt7EH9Xm9rP7W574vV6MCpFUAlqPAxZcaN8B0BsClFBA/fCQe7dp
r6vYRhrYxOQenAQUQxRQ19XESJJqNT0M7/NTo4HzkAAAAUbXlRu2p9SHP24d639ttk+IT4
DCAAAAAIdGVzdCBrZXkBAg==
-----END OPENSSH PRIVATE KEY-----
";
    const DSA_PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIIBSgIBADCCASsGByqGSM44BAEwggEeAoGBAMWn02mmscVT4dbatT7xYmaAXUK1
R009gfnSEgWk1Y8HMgNsvdHbeI6gLvKHBvXF+p/aIArouw4UqpimOYvrSfNQJUXD
c8mKh4M80zpYlcH+E2+1/BwdBmwFf78UpwOmmACPjIPAGzepqx2K/2pWOSLD48IY
s9RSvyG2isJxmDyNAhUA7jqoCkQ7odeXu/p2/+WEJ4SiYhECgYBY9755rLtwRUyg
fYSNnxftiKp+yKiPsVFkiwApQ8MjSsnKzQT/oQ0dDSm7KSDR1kqx9Ulmr9RvB1CS
Wk9zdNeT7Ih3vTixyZoAPgL3mQsgatt4qKpR268lxqaJKXpVZjcUiBmi4bFMhclh
uL85EwQYUzLrPnxvvFi5VNfcgeV1oAQWAhQNuS2t4wTcdtpSAwwH+Y96BlqNcw==
-----END PRIVATE KEY-----
";
    const DSA_PKCS8_ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIIBrDBWBgkqhkiG9w0BBQ0wSTAoBgkqhkiG9w0BBQwwGwQIDND5SKB5+OUCAUAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEDnUJOaQbhyqOKUTmtZiyicEggFQ
lcaMYhqPV0yvG8Nk/xmsP+64bsunMaFgpxs1+C+3Lp0gw6fCjHeEMm8LQmSo9a0q
lgVOKkTtkV4qq/HP6rRwz0YEI6hmpfsn7CDe02KeQH6NEkOtYihQ2kLdEhISGdlC
5jKdcryYJch+MAAc3KT1JXpGOjcETeaDRc5mNTBdQLVK811BcM0lQACUEsxIk+PL
Kt2EBzZWZmXdRilAseZxXU2bkdoY9gfjfX8wXChN6nI4YLZt/PfC+Ry9vFPJmcZT
Nce0dJR5uD7FNKDZ9jVhrMNfm21ONteVfT0aAZ4Ef/LFJOTZ/eF3kI1VT6/JRg16
DX3xGUn/imly2HecW8WFRg6+uqbxhRLQL/aIlgkCk5IWnRK7xVvYc86EAmdqmj+i
HN+PF1Ag7IB7A91nwPIo5Yymq0CEQTIc5hoG+zOVsOFP8LGjs95eiYzRhKhf3fP3
-----END ENCRYPTED PRIVATE KEY-----
";
    const ED448: &str = "-----BEGIN PRIVATE KEY-----
MEcCAQAwBQYDK2VxBDsEOU4iveVCbOs+zBlD+ErxKZYR+XSqRleMC+xgWcQwFGLI
wwj4zWmFVwI9u8oAUsQ8TD990YRtIq/ZXw==
-----END PRIVATE KEY-----
";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDcjgWUgysykI+q9kv+R1ELceOV
UShcZuS89lOk+CNoPQkdwBfBfwV45qJzznZKdy3y+H0N2GzM60RLg2gilgZqZoxx
AgR8lfUv1hOgWwZDk1Yd/Dl+DbnkqJ+mqLXL8Q9DQ0UWk1QOsXCtCGfVhkcBGmwY
0NbIGN/I0j3oQUckiwIDAQAB
-----END PUBLIC KEY-----
";
    const X509: &str = "-----BEGIN CERTIFICATE-----
MIIBdDCCARmgAwIBAgIUBG1qp+Jeklz+0lnYwo4XH+3RD1MwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAeFw0yNjExMjIxMzI0NTZaFw0yNjExMjMxMzI0NTZa
MA8xDTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASPXAVe
giFzoCRhP7RlEArb8Rj9AVveuoyWlIH5COp32Nz1MOA8hMReo0eCmm4RgOdAowWY
s3knXrscxELU//1Po1MwUTAdBgNVHQ4EFgQUcRVGDFFDZTsAcX7bFgiEqlyg3RUw
HwYDVR0jBBgwFoAUcRVGDFFDZTsAcX7bFgiEqlyg3RUwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNJADBGAiEA2hlxXcdk0n0YoHuSaAg/1QaH/0R0hZ1drJRH
FffDpioCIQCbCl/HCAatuBvY9/R00RpgfB49YGx+m8kKQdEC1TKtUw==
-----END CERTIFICATE-----
";
}
