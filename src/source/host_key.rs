//! Knows the bastion by its host key: what was pinned, and what to say of a key that was not.
//!
//! Written here because russh's own known_hosts helper ignores `@revoked`, wildcards, tabs and rotation, and lets one
//! bad line fail a host. The rules are those of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT", with two exceptions: a line
//! that cannot be read is an error and never skipped, and a revoked key is refused whatever host its line names.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, HashAlg, PublicKey};

use crate::error::{Error, Kind};

/// Some hundred keys.
const MAX_TEXT_BYTES: usize = 32 << 10;

const ACCEPT_ANY: &str = "accept-any";
const REVOKED: &str = "@revoked";
const CERT_AUTHORITY: &str = "@cert-authority";

/// Those that a server can prove itself with to russh.
const KEY_TYPES: [&str; 5] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];

/// SHA-1's: OpenSSH writes salts of the same length.
const HASHED_NAME_BYTES: usize = 20;

/// The keys by which the bastion is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostKeys {
    entries: Vec<Entry>,
    accepts_any: bool,
}

/// What the pinned keys say of a presented one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    /// By `accept-any` alone: nothing tells the bastion from an impostor.
    AcceptedUnpinned,
    Revoked,
    /// Nothing is pinned for this host.
    Unknown,
    /// Keys are pinned for this host, and this is none of them.
    Changed,
}

impl HostKeys {
    /// Reads known_hosts lines, bare public keys, `SHA256:` fingerprints and the word `accept-any`: one to a line, the
    /// lines separated by line breaks or literal `\n`; fingerprints also by commas.
    ///
    /// # Errors
    /// `kind`, which also tells where the text stood (`InvalidConfig`: `BASTION_HOST_KEY`; else the secret), with the
    /// number of the bad line and never its text.
    pub(crate) fn parse(text: &str, kind: Kind) -> Result<Self, Error> {
        if text.len() > MAX_TEXT_BYTES {
            let context = format!("bastion_host_key has {} bytes, more than {MAX_TEXT_BYTES}", text.len());
            return Err(Error::new(kind, context));
        }
        let mut keys = Self::default();
        for (index, line) in unescape(text).lines().enumerate() {
            keys.add_line(line).map_err(|refusal| refusal.into_error(index + 1, kind))?;
        }
        Ok(keys)
    }

    fn add_line(&mut self, line: &str) -> Result<(), Refusal> {
        if line.trim_start().starts_with('#') {
            return Ok(());
        }
        let pins = split_pins(line);
        if pins.len() > 1 && line.contains(REVOKED) {
            return Err(Refusal::REVOKED_LIST);
        }
        for text in pins {
            let words: Vec<&str> = text.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [ACCEPT_ANY] => self.accepts_any = true,
                words => self.entries.push(parse_entry(words)?),
            }
        }
        Ok(())
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.accepts_any |= other.accepts_any;
    }

    pub(crate) fn accepts_any(&self) -> bool {
        self.accepts_any
    }

    /// Judges the key that the server at `host:port` presented. Nothing outweighs `@revoked`, and `accept-any` does not
    /// outweigh a pin that does not match.
    pub(crate) fn verify(&self, host: &str, port: u16, presented: &PublicKey) -> Verdict {
        if self.is_revoked(presented.key_data()) {
            return Verdict::Revoked;
        }
        let name = host_name(host, port);
        let mut has_entry = false;
        for entry in self.pinned(&name) {
            if entry.pin.matches(presented.key_data()) {
                return Verdict::Accepted;
            }
            has_entry = true;
        }
        match (self.accepts_any, has_entry) {
            // A pin that does not match is a warning that `accept-any` must not swallow.
            (_, true) => Verdict::Changed,
            (true, false) => Verdict::AcceptedUnpinned,
            (false, false) => Verdict::Unknown,
        }
    }

    /// The algorithms of the keys pinned for this host, to be put first in negotiation, so that a bastion with several
    /// keys presents a pinned one. Empty where only fingerprints are pinned, which do not tell.
    pub(crate) fn key_types(&self, host: &str, port: u16) -> Vec<Algorithm> {
        let name = host_name(host, port);
        let mut types = Vec::new();
        for entry in self.pinned(&name) {
            let algorithms = match &entry.pin {
                Pin::Key(key) if !self.is_revoked(key) => signature_algorithms(key),
                Pin::Key(_) | Pin::Sha256(_) => Vec::new(),
            };
            for algorithm in algorithms {
                if !types.contains(&algorithm) {
                    types.push(algorithm);
                }
            }
        }
        types
    }

    fn pinned<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| !entry.is_revoked && entry.hosts.contain(name))
    }

    fn is_revoked(&self, key: &KeyData) -> bool {
        self.entries.iter().any(|entry| entry.is_revoked && entry.pin.matches(key))
    }
}

/// The error for a verdict that refuses: what was presented, and the line to paste once it has been checked.
pub(crate) fn refusal(verdict: Verdict, host: &str, port: u16, presented: &PublicKey) -> Option<Error> {
    let name = host_name(host, port);
    let fingerprint = presented.fingerprint(HashAlg::Sha256);
    let key = format!("bastion {name} presented host key {} {fingerprint}", presented.algorithm());
    let (context, hint) = match verdict {
        Verdict::Accepted | Verdict::AcceptedUnpinned => return None,
        Verdict::Unknown => {
            (format!("{key}, and bastion_host_key has no entry for it"), how_to_pin(&name, presented))
        }
        Verdict::Changed => (
            format!("{key}, which is none of those in bastion_host_key"),
            format!(
                "this may be an attack, or the bastion was rebuilt; find out which before you pin the key: {}",
                how_to_pin(&name, presented)
            ),
        ),
        Verdict::Revoked => (
            format!("{key}, which is marked {REVOKED} in bastion_host_key"),
            "whoever answers holds a key that was given up; give the bastion a new one and pin that"
                .to_owned(),
        ),
    };
    Some(Error::new(Kind::BastionHostKeyMismatch, context).with_hint(hint))
}

fn how_to_pin(name: &str, presented: &PublicKey) -> String {
    let file = match presented.algorithm() {
        Algorithm::Rsa { .. } => "rsa",
        Algorithm::Ecdsa { .. } => "ecdsa",
        _ => "ed25519",
    };
    // Without the comment, which is the server's word. A fingerprint is a pin as well, should the key not encode.
    let line = PublicKey::from(presented.key_data().clone())
        .to_openssh()
        .map_or_else(|_| presented.fingerprint(HashAlg::Sha256).to_string(), |key| format!("{name} {key}"));
    format!(
        "on the bastion itself, compare the fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_{file}_key.pub`; only \
         if they are equal add this line to bastion_host_key: {line}"
    )
}

/// As known_hosts has it: lower case, and with the port unless that is 22.
fn host_name(host: &str, port: u16) -> String {
    let host = canonical(host);
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// In lower case, and `host` for `[host]:22` and `[host]`.
fn canonical(name: &str) -> String {
    let bracketed = name.strip_prefix('[');
    let plain = bracketed.and_then(|name| name.strip_suffix("]:22").or_else(|| name.strip_suffix(']')));
    plain.unwrap_or(name).to_ascii_lowercase()
}

/// What a key of this type signs with; RSA never with SHA-1.
fn signature_algorithms(key: &KeyData) -> Vec<Algorithm> {
    match key.algorithm() {
        Algorithm::Rsa { .. } => {
            [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).to_vec()
        }
        algorithm => vec![algorithm],
    }
}

/// One line: whom it is about, and the key.
#[derive(Debug, Clone)]
struct Entry {
    hosts: Hosts,
    pin: Pin,
    is_revoked: bool,
}

#[derive(Debug, Clone)]
enum Hosts {
    Any,
    Named(Vec<Pattern>),
}

#[derive(Debug, Clone)]
struct Pattern {
    name: Name,
    is_negated: bool,
}

#[derive(Debug, Clone)]
enum Name {
    /// With `*` and `?`.
    Glob(String),
    /// `|1|salt|HMAC-SHA1(salt, name)`, as `ssh-keygen -H` writes it.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

#[derive(Debug, Clone)]
enum Pin {
    Key(KeyData),
    Sha256([u8; 32]),
}

impl Hosts {
    /// A negated pattern that matches rules the line out, wherever it stands.
    fn contain(&self, name: &str) -> bool {
        let Self::Named(patterns) = self else {
            return true;
        };
        let mut matching = patterns.iter().filter(|pattern| pattern.name.matches(name)).peekable();
        matching.peek().is_some() && matching.all(|pattern| !pattern.is_negated)
    }
}

impl Name {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Glob(pattern) => matches_glob(pattern.as_bytes(), name.as_bytes()),
            Self::Hashed { salt, hash } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                hmac::verify(&key, name.as_bytes(), hash).is_ok()
            }
        }
    }
}

impl Pin {
    /// Compares the key alone: a comment is no part of it.
    fn matches(&self, key: &KeyData) -> bool {
        match self {
            Self::Key(pinned) => pinned == key,
            Self::Sha256(digest) => key.fingerprint(HashAlg::Sha256).sha256() == Some(*digest),
        }
    }
}

/// In time proportional to the product of the lengths, however many stars there are.
fn matches_glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0_usize, 0_usize);
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                // Let the last star take one byte more.
                let Some((star_at, taken)) = star else {
                    return false;
                };
                star = Some((star_at, taken + 1));
                (at, read) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Literal `\n` counts only where there is no real line break: comments such as `CORP\nancy@pc` hold it too.
fn unescape(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}').trim_end();
    if text.contains('\n') { text.to_owned() } else { text.replace("\\r", "").replace("\\n", "\n") }
}

/// Splits at the commas that another pin follows. Those within a list of hosts or a comment stay.
fn split_pins(line: &str) -> Vec<&str> {
    let mut pins = Vec::new();
    let mut start = 0;
    for (at, _) in line.match_indices(',') {
        if starts_pin(&line[at + 1..]) {
            pins.push(&line[start..at]);
            start = at + 1;
        }
    }
    pins.push(&line[start..]);
    pins.into_iter().map(|pin| pin.trim_matches(|c: char| c == ',' || c.is_whitespace())).collect()
}

fn starts_pin(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let is_word =
        |word: &str| first == word || first.strip_prefix(word).is_some_and(|rest| rest.starts_with(','));
    first.starts_with("SHA256:")
        || [ACCEPT_ANY, REVOKED, CERT_AUTHORITY].into_iter().any(is_word)
        || (KEY_TYPES.contains(&first) && words.next().is_some_and(|key| key.starts_with("AAAA")))
}

fn parse_entry(words: &[&str]) -> Result<Entry, Refusal> {
    match words {
        [REVOKED, words @ ..] => Ok(Entry { is_revoked: true, ..parse_pin(words)? }),
        [CERT_AUTHORITY, ..] => Err(Refusal::CERTIFICATE_AUTHORITY),
        [marker, ..] if marker.starts_with('@') => Err(Refusal::MARKER),
        [dashes, ..] if dashes.starts_with("-----") => Err(Refusal::PEM),
        words => parse_pin(words),
    }
}

fn parse_pin(words: &[&str]) -> Result<Entry, Refusal> {
    let (hosts, pin) = match words {
        [key_type, ..] if is_certificate(key_type) => return Err(Refusal::CERTIFICATE),
        [pin, ..] if pin.starts_with("SHA256:") => (Hosts::Any, parse_fingerprint(pin)?),
        // What `ssh-keygen -l` prints: bits, fingerprint, comment, type.
        [bits, pin, ..] if is_number(bits) && pin.starts_with("SHA256:") => {
            (Hosts::Any, parse_fingerprint(pin)?)
        }
        [key_type, key, ..] if KEY_TYPES.contains(key_type) => (Hosts::Any, parse_key(key_type, key)?),
        [hosts, key_type, key, ..] => (parse_hosts(hosts)?, parse_key(key_type, key)?),
        _ => return Err(Refusal::FORMAT),
    };
    Ok(Entry { hosts, pin, is_revoked: false })
}

fn is_certificate(key_type: &str) -> bool {
    key_type.contains("-cert-v01@")
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_fingerprint(pin: &str) -> Result<Pin, Refusal> {
    let digest: Option<[u8; 32]> =
        pin.strip_prefix("SHA256:").and_then(decode_base64).and_then(|digest| digest.try_into().ok());
    digest.map(Pin::Sha256).ok_or(Refusal::FINGERPRINT)
}

fn parse_key(key_type: &str, key: &str) -> Result<Pin, Refusal> {
    if is_certificate(key_type) {
        return Err(Refusal::CERTIFICATE);
    }
    if !KEY_TYPES.contains(&key_type) {
        return Err(Refusal::KEY_TYPE);
    }
    decode_base64(key).and_then(|blob| decode_key(key_type, &blob)).map(Pin::Key).ok_or(Refusal::KEY)
}

/// The blob must name the same type as the line does: for a certificate the library decodes it by a recursion without
/// limit, and a text that came in an event must not exhaust the stack.
fn decode_key(key_type: &str, blob: &[u8]) -> Option<KeyData> {
    let (len, named) = blob.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*len) as usize != key_type.len() || !named.starts_with(key_type.as_bytes()) {
        return None;
    }
    PublicKey::from_bytes(blob).ok().map(KeyData::from)
}

fn parse_hosts(list: &str) -> Result<Hosts, Refusal> {
    let patterns = list.split(',').filter(|pattern| !pattern.is_empty()).map(parse_pattern);
    let patterns = patterns.collect::<Result<Vec<_>, _>>()?;
    if patterns.is_empty() { Err(Refusal::HOSTS) } else { Ok(Hosts::Named(patterns)) }
}

fn parse_pattern(pattern: &str) -> Result<Pattern, Refusal> {
    let (pattern, is_negated) = match pattern.strip_prefix('!') {
        Some(pattern) => (pattern, true),
        None => (pattern, false),
    };
    let name = match pattern.strip_prefix('|') {
        Some(hashed) if !is_negated => parse_hashed(hashed).ok_or(Refusal::HOSTS)?,
        Some(_) => return Err(Refusal::HOSTS),
        None => Name::Glob(canonical(pattern)),
    };
    Ok(Pattern { name, is_negated })
}

fn parse_hashed(hashed: &str) -> Option<Name> {
    let (salt, hash) = hashed.strip_prefix("1|")?.split_once('|')?;
    let (salt, hash) = (decode_base64(salt)?, decode_base64(hash)?);
    let is_sha1 = salt.len() == HASHED_NAME_BYTES && hash.len() == HASHED_NAME_BYTES;
    is_sha1.then_some(Name::Hashed { salt, hash })
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// Why a line is refused, and the way out. Never the line itself: a secret may have been pasted into the wrong field.
#[derive(Debug)]
struct Refusal {
    what: &'static str,
    hint: &'static str,
}

impl Refusal {
    const CERTIFICATE_AUTHORITY: Self = Self {
        what: "@cert-authority: host certificates are not supported",
        hint: "pin the bastion's host key itself: the line that `ssh-keyscan -t ed25519 BASTION` prints, compared with \
               `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the bastion",
    };
    const CERTIFICATE: Self = Self {
        what: "a certificate, which is not supported",
        hint: "pin the host key that it certifies: /etc/ssh/ssh_host_ed25519_key.pub on the bastion",
    };
    const MARKER: Self = Self {
        what: "an unknown marker: of the words that begin with @ only @revoked is known",
        hint: FORMATS,
    };
    const REVOKED_LIST: Self = Self {
        what: "@revoked and commas: of which pins it speaks cannot be told",
        hint: "give each @revoked a line of its own",
    };
    const PEM: Self = Self {
        what: "a PEM block",
        hint: "give the public host key in one line, as in /etc/ssh/ssh_host_ed25519_key.pub on the bastion; a private \
               key does not belong here",
    };
    const FINGERPRINT: Self = Self {
        what: "SHA256: is not followed by the 43 characters of a fingerprint",
        hint: "copy it from `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the bastion",
    };
    const KEY_TYPE: Self = Self {
        what: "an unsupported key type: ssh-ed25519, ecdsa-sha2-nistp256, -nistp384, -nistp521 and ssh-rsa are known",
        hint: FORMATS,
    };
    const KEY: Self = Self { what: "the key is damaged, or is not of the type before it", hint: FORMATS };
    const HOSTS: Self = Self { what: "the host names before the key cannot be read", hint: FORMATS };
    const FORMAT: Self = Self { what: "neither a host key nor a SHA256: fingerprint", hint: FORMATS };

    fn into_error(self, line: usize, kind: Kind) -> Error {
        let name = if kind == Kind::InvalidConfig { "BASTION_HOST_KEY" } else { "bastion_host_key" };
        Error::new(kind, format!("{name} line {line}: {}", self.what)).with_hint(self.hint)
    }
}

const FORMATS: &str = "each line is `[host]:port ssh-ed25519 AAAA…` (`host …` for port 22), `ssh-ed25519 AAAA…` or \
                       `SHA256:…`";

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use russh::keys::EcdsaCurve;

    use super::*;

    const HOST: &str = "bastion.example.com";

    #[test]
    fn a_line_a_bare_key_and_a_fingerprint_each_pin_the_key() {
        for pin in [
            format!("{HOST} {ED25519}"),
            format!("other,{HOST},10.0.0.1 {ED25519} a comment, with commas"),
            ED25519.to_owned(),
            format!("{ED25519} root@elsewhere"),
            ED25519_FINGERPRINT.to_owned(),
            format!("{ED25519_FINGERPRINT}="),
            format!("{ED25519_FINGERPRINT} root@bastion"),
            format!("256 {ED25519_FINGERPRINT} root@bastion (ED25519)"),
        ] {
            assert_eq!(verdict(&pin, HOST, 22, ED25519), Verdict::Accepted, "{pin}");
            assert_eq!(verdict(&pin, HOST, 22, RSA), Verdict::Changed, "{pin}");
        }
        for (key, fingerprint) in [(ECDSA, ECDSA_FINGERPRINT), (RSA, RSA_FINGERPRINT)] {
            assert_eq!(verdict(key, HOST, 22, key), Verdict::Accepted);
            assert_eq!(verdict(fingerprint, HOST, 22, key), Verdict::Accepted);
        }
    }

    #[test]
    fn the_comment_of_a_key_is_not_compared() {
        let keys = parsed(&format!("{HOST} {ED25519} one"));
        let mut presented = public(ED25519);
        presented.set_comment("another");
        assert_eq!(keys.verify(HOST, 22, &presented), Verdict::Accepted);
    }

    #[test]
    fn two_keys_of_one_type_can_be_pinned_while_they_are_rotated() {
        for pins in [
            format!("{HOST} {ED25519}\n{HOST} {ED25519_NEW}"),
            format!("{HOST} {ED25519_NEW}\n{HOST} {ED25519}"),
        ] {
            assert_eq!(verdict(&pins, HOST, 22, ED25519), Verdict::Accepted);
            assert_eq!(verdict(&pins, HOST, 22, ED25519_NEW), Verdict::Accepted);
            assert_eq!(verdict(&pins, HOST, 22, ECDSA), Verdict::Changed);
        }
    }

    #[test]
    fn white_space_case_comments_and_blank_lines_do_not_matter() {
        let tabbed = ED25519.replace(' ', "\t");
        for pins in [
            format!("{HOST}\t{tabbed}\tcomment"),
            format!("   {HOST}   {ED25519}   "),
            format!("BASTION.Example.COM {ED25519}"),
            format!("# {HOST} {RSA}\r\n\r\n  # SHA256:x, SHA256:y\r\n{HOST} {ED25519}\r\n"),
            format!("\u{feff}{HOST} {ED25519}"),
        ] {
            assert_eq!(verdict(&pins, HOST, 22, ED25519), Verdict::Accepted, "{pins}");
            assert_eq!(verdict(&pins, "Bastion.EXAMPLE.com", 22, ED25519), Verdict::Accepted, "{pins}");
        }
    }

    #[test]
    fn a_port_belongs_to_the_name_unless_it_is_22() {
        for (name, host, port, expected) in [
            ("[bastion.example.com]:22", HOST, 22, Verdict::Accepted),
            ("[bastion.example.com]", HOST, 22, Verdict::Accepted),
            ("[bastion.example.com]:2222", HOST, 2222, Verdict::Accepted),
            ("[bastion.example.com]:2222", HOST, 22, Verdict::Unknown),
            ("bastion.example.com", HOST, 2222, Verdict::Unknown),
            ("2001:db8::1", "2001:DB8::1", 22, Verdict::Accepted),
            ("2001:db8::1", "[2001:db8::1]", 22, Verdict::Accepted),
            ("[2001:db8::1]:2222", "2001:db8::1", 2222, Verdict::Accepted),
        ] {
            let pin = format!("{name} {ED25519}");
            assert_eq!(verdict(&pin, host, port, ED25519), expected, "{name} {host} {port}");
        }
    }

    #[test]
    fn wildcards_and_negations_are_those_of_openssh() {
        for (names, host, port, is_meant) in [
            ("*", HOST, 22, true),
            ("*", HOST, 2222, true),
            ("*.example.com", HOST, 22, true),
            ("*.example.com", HOST, 2222, false),
            ("[*.example.com]:2222", HOST, 2222, true),
            ("*.EXAMPLE.com", HOST, 22, true),
            ("bast??n.example.com", HOST, 22, true),
            ("bast?n.example.com", HOST, 22, false),
            ("b*n*com", HOST, 22, true),
            ("b*n*com*x", HOST, 22, false),
            ("example.com", HOST, 22, false),
            ("*.example.com,!bastion.example.com", HOST, 22, false),
            ("!bastion.example.com,*.example.com", HOST, 22, false),
            ("*.example.com,!other.example.com", HOST, 22, true),
            ("!other.example.com", HOST, 22, false),
        ] {
            let expected = if is_meant { Verdict::Accepted } else { Verdict::Unknown };
            assert_eq!(verdict(&format!("{names} {ED25519}"), host, port, ED25519), expected, "{names}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_matched_in_bounded_time() {
        let started = Instant::now();
        assert!(!matches_glob("*a".repeat(100).as_bytes(), "a".repeat(99).as_bytes()));
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn hashed_names_are_known() {
        // `ssh-keygen -H` of bastion.example.com and [bastion.example.com]:2222.
        let pins = format!("{HASHED} {ED25519}\n{HASHED_2222} {RSA}");
        assert_eq!(verdict(&pins, HOST, 22, ED25519), Verdict::Accepted);
        assert_eq!(verdict(&pins, "BASTION.example.com", 22, ED25519), Verdict::Accepted);
        assert_eq!(verdict(&pins, HOST, 2222, RSA), Verdict::Accepted);
        assert_eq!(verdict(&pins, HOST, 2222, ED25519), Verdict::Changed);
        assert_eq!(verdict(&pins, "other.example.com", 22, ED25519), Verdict::Unknown);
    }

    #[test]
    fn a_revoked_key_is_refused_whatever_else_is_pinned() {
        for revoked in [
            format!("@revoked {HOST} {ED25519}"),
            format!("@revoked\t*\t{ED25519}"),
            format!("@revoked other.example.com {ED25519}"),
            format!("  @revoked {ED25519}"),
            format!("@revoked {ED25519_FINGERPRINT}"),
        ] {
            for other in [ACCEPT_ANY, ED25519, ED25519_FINGERPRINT] {
                for pins in [format!("{revoked}\n{other}"), format!("{other}\n{revoked}")] {
                    assert_eq!(verdict(&pins, HOST, 22, ED25519), Verdict::Revoked, "{pins}");
                }
            }
            assert_eq!(verdict(&revoked, HOST, 22, RSA), Verdict::Unknown, "{revoked}");
        }
        let list = format!("@revoked {ED25519_FINGERPRINT},{RSA_FINGERPRINT}");
        assert_malformed(&list, "line 1: @revoked and commas");
    }

    #[test]
    fn any_key_is_accepted_only_where_that_is_said() {
        assert_eq!(verdict(ACCEPT_ANY, HOST, 22, ED25519), Verdict::AcceptedUnpinned);
        let both = format!("{HOST} {ED25519}\n accept-any ");
        assert_eq!(verdict(&both, HOST, 22, ED25519), Verdict::Accepted);
        assert_eq!(verdict(&both, HOST, 22, RSA), Verdict::Changed);
        assert!(parsed(&both).accepts_any());
        for empty in ["", " \n\n", "# accept-any"] {
            assert!(parsed(empty).entries.is_empty() && !parsed(empty).accepts_any());
            assert_eq!(verdict(empty, HOST, 22, ED25519), Verdict::Unknown);
        }
        assert_malformed("accept-anything", "line 1: neither");
    }

    #[test]
    fn literal_line_breaks_and_commas_separate_pins() {
        for pins in [
            format!("{HOST} {ED25519}\\n{HOST} {RSA}\\n"),
            format!("{HOST} {ED25519}\\r\\n{HOST} {RSA}"),
            format!("{ED25519_FINGERPRINT},{RSA_FINGERPRINT}"),
            format!("{ED25519_FINGERPRINT} , {RSA_FINGERPRINT},"),
            format!("{ED25519},{RSA_FINGERPRINT}"),
            format!("{ED25519_FINGERPRINT},{RSA}"),
            format!("{HOST},10.0.0.1 {ED25519} comment, {RSA}"),
        ] {
            assert_eq!(verdict(&pins, HOST, 22, ED25519), Verdict::Accepted, "{pins}");
            assert_eq!(verdict(&pins, HOST, 22, RSA), Verdict::Accepted, "{pins}");
            assert_eq!(verdict(&pins, HOST, 22, ECDSA), Verdict::Changed, "{pins}");
        }
        let accepts_any = format!("{ED25519_FINGERPRINT},accept-any");
        assert!(parsed(&accepts_any).accepts_any());
        let windows = format!("{HOST} {ED25519} CORP\\nancy@pc\n{HOST} {RSA}");
        assert_eq!(verdict(&windows, HOST, 22, RSA), Verdict::Accepted);
    }

    #[test]
    fn one_bad_line_is_an_error_that_names_it_and_never_quotes_it() {
        let blob = ED25519.split(' ').nth(1).expect("two words");
        for (line, what) in [
            ("hunter2secret".to_owned(), "neither a host key nor"),
            (blob.to_owned(), "neither a host key nor"),
            (format!("{HOST} {blob}"), "neither a host key nor"),
            (format!("{HOST} ssh-dss {blob}"), "an unsupported key type"),
            (format!("{HOST} hunter2secret {blob}"), "an unsupported key type"),
            (format!("{HOST} ssh-rsa {blob}"), "the key is damaged, or is not of the type"),
            (format!("{HOST} {}", &ED25519[..60]), "the key is damaged"),
            (format!("{HOST} {ED25519},10.0.0.1 hunter2secret"), "the key is damaged"),
            (format!(", {ED25519}x"), "the key is damaged"),
            (format!("|1|abcd|efgh {ED25519}"), "the host names"),
            (format!("|2|{} {ED25519}", &HASHED[3..]), "the host names"),
            (format!("!{HASHED} {ED25519}"), "the host names"),
            (format!("@trusted {HOST} {ED25519}"), "an unknown marker"),
            (format!("@cert-authority *.example.com {ED25519}"), "@cert-authority: host certificates"),
            (
                format!("@cert-authority * {ED25519},{ED25519_FINGERPRINT}"),
                "@cert-authority: host certificates",
            ),
            (CERTIFICATE.to_owned(), "a certificate"),
            (format!("{CERTIFICATE} root@bastion"), "a certificate"),
            (format!("{HOST} {CERTIFICATE}"), "a certificate"),
            ("SHA256:hunter2secret".to_owned(), "SHA256: is not followed"),
            ("SHA256:".to_owned(), "SHA256: is not followed"),
            ("MD5:16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48".to_owned(), "neither a host key nor"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(), "a PEM block"),
        ] {
            assert_malformed(&format!("# first\n\n{HOST} {ED25519}\n{line}\n"), &format!("line 4: {what}"));
        }
        assert_malformed(&format!("\n\n{HOST} {ED25519}\nhunter2secret"), "line 4: neither");
        assert_malformed(&format!("{HOST} {ED25519}\\nhunter2secret"), "line 2: neither");
    }

    #[test]
    fn a_certificate_under_the_name_of_a_plain_key_is_not_decoded() {
        let blob = CERTIFICATE.split(' ').nth(1).expect("two words");
        assert_malformed(&format!("ssh-ed25519 {blob}"), "the key is damaged");
    }

    #[test]
    fn an_error_tells_the_environment_from_the_secret() {
        let error = HostKeys::parse("x", Kind::InvalidConfig).expect_err("malformed");
        assert_eq!(error.kind(), Kind::InvalidConfig);
        assert!(error.to_string().starts_with("BASTION_HOST_KEY line 1: "), "{error}");
        let error = HostKeys::parse("x", Kind::SecretMalformed).expect_err("malformed");
        assert_eq!(error.kind(), Kind::SecretMalformed);
        assert!(error.to_string().starts_with("bastion_host_key line 1: "), "{error}");
    }

    #[test]
    fn merged_keys_count_together() {
        let mut keys = parsed(&format!("{HOST} {ED25519}"));
        keys.merge(parsed(RSA_FINGERPRINT));
        assert_eq!(keys.verify(HOST, 22, &public(ED25519)), Verdict::Accepted);
        assert_eq!(keys.verify(HOST, 22, &public(RSA)), Verdict::Accepted);
        keys.merge(parsed(&format!("@revoked * {RSA}\naccept-any")));
        assert_eq!(keys.verify(HOST, 22, &public(RSA)), Verdict::Revoked);
        assert!(keys.accepts_any());
    }

    #[test]
    fn a_refusal_shows_the_fingerprint_and_the_line_to_paste() {
        let mut presented = public(ED25519);
        presented.set_comment("forged words");
        let text = |verdict, port| {
            let error = refusal(verdict, "Bastion.example.com", port, &presented).expect("refused");
            assert_eq!(error.kind(), Kind::BastionHostKeyMismatch);
            error.to_string()
        };
        let unknown = text(Verdict::Unknown, 22);
        assert!(unknown.contains(&format!("ssh-ed25519 {ED25519_FINGERPRINT}, and")), "{unknown}");
        assert!(unknown.contains("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"), "{unknown}");
        assert!(unknown.ends_with(&format!("bastion_host_key: {HOST} {ED25519}")), "{unknown}");
        let changed = text(Verdict::Changed, 2222);
        assert!(changed.contains("may be an attack, or the bastion was rebuilt"), "{changed}");
        assert!(changed.ends_with(&format!("bastion_host_key: [{HOST}]:2222 {ED25519}")), "{changed}");
        let revoked = text(Verdict::Revoked, 22);
        assert!(revoked.contains(ED25519_FINGERPRINT) && !revoked.contains(ED25519), "{revoked}");
        assert!(!format!("{unknown}{changed}{revoked}").contains("forged"));
        for verdict in [Verdict::Accepted, Verdict::AcceptedUnpinned] {
            assert!(refusal(verdict, HOST, 22, &presented).is_none());
        }
    }

    #[test]
    fn the_line_to_paste_pins_the_key() {
        for key in [ED25519, ECDSA, RSA] {
            for (host, port) in [(HOST, 22), (HOST, 2222), ("2001:db8::1", 22), ("2001:db8::1", 2222)] {
                let error = refusal(Verdict::Unknown, host, port, &public(key)).expect("refused").to_string();
                let (_, line) = error.split_once("add this line to bastion_host_key: ").expect("a line");
                assert_eq!(verdict(line, host, port, key), Verdict::Accepted, "{line}");
            }
        }
    }

    #[test]
    fn the_types_of_the_pinned_keys_are_told_for_negotiation() {
        let pins = format!(
            "{HOST} {RSA}\n*.example.com {ED25519}\n{HOST} {ED25519_NEW}\nother {ECDSA}\n{ECDSA_FINGERPRINT}"
        );
        let rsa = [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) });
        let expected = [&rsa[..], &[Algorithm::Ed25519]].concat();
        assert_eq!(parsed(&pins).key_types(HOST, 22), expected);
        let ecdsa = Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 };
        assert_eq!(parsed(&pins).key_types("other", 22), [ecdsa]);
        for none in [ED25519_FINGERPRINT, ACCEPT_ANY, "", &format!("{ED25519}\n@revoked * {ED25519}")] {
            assert!(parsed(none).key_types(HOST, 22).is_empty());
        }
    }

    fn parsed(text: &str) -> HostKeys {
        HostKeys::parse(text, Kind::SecretMalformed).expect("well-formed")
    }

    fn public(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).expect("a public key")
    }

    fn verdict(pins: &str, host: &str, port: u16, presented: &str) -> Verdict {
        parsed(pins).verify(host, port, &public(presented))
    }

    fn assert_malformed(text: &str, what: &str) {
        let error = HostKeys::parse(text, Kind::SecretMalformed).expect_err("malformed");
        let text = format!("{error} {error:?}");
        assert!(text.contains(what), "`{what}` is not in: {text}");
        assert!(!text.contains("hunter2secret") && !text.contains("AAAAC3"), "{text}");
    }

    // Throwaway keys, made for these tests by ssh-keygen 9.2. No host has them.

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO8PPKeC1q+J8N8ofnzUYD/e9irzmSzj/iWuV1/eDFm2";
    const ED25519_NEW: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMHdKpZ976WXO8Ud7uO1Lfk/ZWDDBV9jf31az4zYed4U";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBOX/2UsSvcmZwHg3kU7bPOuACkm06H+o/CUxpsWVPsYX4be6l1OLPz2UXDLqmQDVTof3ntRB3ngE5KSHGExt51g=";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDrI0+q7Hi2VlLvccku+OVrPd/QfA0HeraS5CyqMzTzvjAL3Jm82cylRdKI37nMAxnNIflX10P72YCxKrb1jr6jiqHF8/JrXBefmJcu9/3JlM8JKm32cFyeAW0RgBea7ewSvaCIgPXWQ68uaifGCeAIpqxrzowrVQs34NTmDz+iTQ==";
    const ED25519_FINGERPRINT: &str = "SHA256:zRpd4cQFQZQjnEcD4IVeI/1yNZEt3slQbEMnOiKa0DE";
    const ECDSA_FINGERPRINT: &str = "SHA256:gkfl7gw+pZ/cm9sZwjafBtuiqTsOW/bg+rF7X6PFNts";
    const RSA_FINGERPRINT: &str = "SHA256:fXuukJhW8szVA1tsO4YiW8/NlBbr6u4JgFKO2B7JGsE";
    const CERTIFICATE: &str = "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAAAIIZDqQrU5QWJ557rw1yUehr3nsA97tr0R632QEUk/fcpAAAAIO8PPKeC1q+J8N8ofnzUYD/e9irzmSzj/iWuV1/eDFm2AAAAAAAAAAAAAAACAAAAAWgAAAAAAAAAAAAAAAD//////////wAAAAAAAAAAAAAAAAAAADMAAAALc3NoLWVkMjU1MTkAAAAgoM2X+C7V1H3noyP2D0o1RDyC3ELuCvxk/jwXGUtbAoMAAABTAAAAC3NzaC1lZDI1NTE5AAAAQKSdYUQjXdFcLF2KlyLc8t8A3ICEF4y5Hkx7r0YsfQZOGhpi6SPGSiu6KgyHB5SvIE0ObYEB1WdHX7UlJXSwZQY=";
    const HASHED: &str = "|1|X76uQmBK8BjPdcSbKHoFxmW4k7s=|ji460+78U17c2sOlTRfcDVqGY6Y=";
    const HASHED_2222: &str = "|1|15OHF1z7NCcxmY/8JT/37VNjHsU=|R3FVVlFHCglpugQF+wDEHcP4hGA=";
}
