//! The tunnel: an SSH session to the bastion, in process, and channels through it. No local port is opened.
//!
//! The host's key is verified before anything of ours is sent; algorithms known to be weak are not offered.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use russh::client::{self, AuthResult, DisconnectReason, Handle};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelOpenFailure, Disconnect, Preferred, cipher, compression, kex, mac};
use tokio::time::timeout;

use super::access::Bastion;
use super::host_key::{HostKeys, Verdict, refusal};
use super::{Stream, tcp};
use crate::deadline::Deadline;
use crate::error::{Error, Kind};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A half-open connection is noticed after (3 + 1) × 7 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(7);

const INACTIVITY_TIMEOUT: Duration = Duration::from_secs(40);

/// What may be under way to us unread. russh asks for more when half of it has come, so the rate is window / (2 × round trip), and
/// 500 MB/s as far as the largest reaches. No more than that: what the network or we take more slowly piles up in sshd, which
/// copies the whole pile each time it grows.
const WINDOW_BYTES_PER_US: u64 = 1000;
const WINDOW_BYTES: RangeInclusive<u64> = (4 << 20)..=(24 << 20);

/// What a round trip is taken to be at least until a tunnel has shown it: a proxy may answer TCP in the bastion's place.
const UNKNOWN: Duration = Duration::from_millis(8);

/// Of data, in one packet. In a turn sshd reads 32 KiB from the database and sends one packet: what has piled up becomes less only
/// where those are larger. Servers send as much or less; Go's could not send 256 KiB.
const PACKET_BYTES: u32 = 128 << 10;

/// Packets that wait for whoever reads the channel.
const PACKETS_UNREAD: usize = 25;

/// An authenticated session with the bastion.
pub(crate) struct Tunnel {
    handle: Handle<Client>,
    end: End,
    /// Of this tunnel's round trips, and what the next one goes by.
    shortest_us: AtomicU64,
    round_trip_us: Arc<AtomicU64>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnel")
    }
}

/// Why the session ended: a dropped transport reads as a clean end of stream on its channels, so the cause reaches us
/// only here.
#[derive(Debug, Clone, Default)]
pub(crate) struct End(Arc<Mutex<Option<Cause>>>);

#[derive(Debug, Clone)]
struct Cause {
    text: String,
    /// The bastion has said that it ends the session.
    is_by_bastion: bool,
}

impl End {
    fn set(&self, text: String, is_by_bastion: bool) {
        let mut cause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert(Cause { text, is_by_bastion });
    }

    fn get(&self) -> Option<Cause> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn cause(&self) -> Option<String> {
        self.get().map(|cause| cause.text)
    }

    fn is_by_bastion(&self) -> bool {
        self.get().is_some_and(|cause| cause.is_by_bastion)
    }
}

impl Tunnel {
    /// Connects, verifies the host's key and authenticates. Connecting is tried twice; authentication once, because
    /// OpenSSH 9.8 and later penalise the address after failed logins.
    ///
    /// # Errors
    /// `BastionUnreachable`, `BastionPolicy`, `BastionHostKeyMismatch`, `BastionAuthFailed`.
    pub(crate) async fn open(bastion: &Bastion, deadline: Deadline) -> Result<Self, Error> {
        let mut tunnel = match Self::connect(bastion, deadline).await {
            Err(error) if error.kind() == Kind::BastionUnreachable => {
                tracing::warn!(error = %error, "bastion unreachable, trying once more");
                Self::connect(bastion, deadline).await?
            }
            outcome => outcome?,
        };
        match tunnel.authenticate(bastion, deadline).await {
            Ok(()) => Ok(tunnel),
            Err(error) => {
                tunnel.close().await;
                Err(error)
            }
        }
    }

    async fn connect(bastion: &Bastion, deadline: Deadline) -> Result<Self, Error> {
        let place = format!("bastion {}:{}", bastion.host, bastion.port);
        let began = Instant::now();
        let socket = tcp::connect(&bastion.host, bastion.port, deadline).await.map_err(|error| {
            Error::new(Kind::BastionUnreachable, place.clone()).with_source(error).with_hint(
                "check bastion_host and bastion_port, and that the bastion's firewall lets this function in",
            )
        })?;
        let round_trip_us = match bastion.round_trip_us.load(Ordering::Relaxed) {
            0 => microseconds(began.elapsed().max(UNKNOWN)),
            known => known,
        };
        let end = End::default();
        let client = Client {
            host: bastion.host.clone(),
            port: bastion.port,
            host_keys: bastion.host_keys.clone(),
            end: end.clone(),
            is_first_kex: true,
        };
        let limit = deadline.at_most(HANDSHAKE_TIMEOUT);
        let handshake = client::connect_stream(Arc::new(config(bastion, round_trip_us)), socket, client);
        let handle = timeout(limit, handshake).await.map_err(|_| {
            Error::new(
                Kind::BastionUnreachable,
                format!("ssh handshake with {place} timed out after {} ms", limit.as_millis()),
            )
            .with_hint("something listens there that is not an SSH server, or the bastion is overloaded")
        })??;
        let round_trip_us = Arc::clone(&bastion.round_trip_us);
        Ok(Self { handle, end, shortest_us: AtomicU64::new(u64::MAX), round_trip_us })
    }

    async fn authenticate(&mut self, bastion: &Bastion, deadline: Deadline) -> Result<(), Error> {
        let place = format!("bastion {}:{}", bastion.host, bastion.port);
        let limit = deadline.at_most(AUTH_TIMEOUT);
        let outcome = timeout(limit, async {
            let hash = self.rsa_hash(bastion).await?;
            let key = PrivateKeyWithHashAlg::new(Arc::clone(&bastion.key), hash);
            Ok::<_, Error>(self.handle.authenticate_publickey(bastion.user.as_str(), key).await?)
        })
        .await
        .map_err(|_| {
            let context = format!("authentication at {place} timed out after {} ms", limit.as_millis());
            Error::new(Kind::BastionUnreachable, context)
        })?;
        let hint = "check bastion_user, and that the public half of bastion_private_key stands in that user's \
                    authorized_keys";
        match outcome {
            Ok(AuthResult::Success) => Ok(()),
            Ok(AuthResult::Failure { partial_success: true, .. }) => Err(Error::new(
                Kind::BastionAuthFailed,
                format!("{place} asks for a second factor after the key"),
            )
            .with_hint("allow the user to log in by key alone (AuthenticationMethods publickey)")),
            Ok(AuthResult::Failure { .. }) => {
                Err(Error::new(Kind::BastionAuthFailed, format!("{place} refused the key")).with_hint(hint))
            }
            // A server that has had enough of failed logins hangs up, and says so, instead of answering.
            Err(error) if self.end.is_by_bastion() => {
                Err(Error::new(Kind::BastionAuthFailed, format!("{place} hung up during authentication"))
                    .with_source(error)
                    .with_hint(hint))
            }
            Err(error) => Err(error),
        }
    }

    /// RSA keys sign with SHA-512 or SHA-256, as the server announces; never with SHA-1.
    async fn rsa_hash(&self, bastion: &Bastion) -> Result<Option<HashAlg>, Error> {
        if !bastion.key.algorithm().is_rsa() {
            return Ok(None);
        }
        match self.handle.best_supported_rsa_hash().await? {
            Some(Some(hash)) => Ok(Some(hash)),
            // No announcement (RFC 8308): try the strongest.
            None => Ok(Some(HashAlg::Sha512)),
            Some(None) => {
                Err(Error::new(Kind::BastionPolicy, "the bastion takes RSA keys with SHA-1 signatures only")
                    .with_hint("update its OpenSSH (7.2 of 2016 or later), or use an Ed25519 key"))
            }
        }
    }

    /// Opens a channel to `host:port` as seen from the bastion.
    ///
    /// # Errors
    /// `BastionPolicy` where forwarding is prohibited, `DatabaseUnreachable`.
    pub(crate) async fn channel(&self, host: &str, port: u16, deadline: Deadline) -> Result<Stream, Error> {
        let limit = deadline.at_most(CHANNEL_TIMEOUT);
        let place = format!("database {host}:{port} through the bastion");
        let open = self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        match timeout(limit, open).await {
            Ok(Ok(channel)) => Ok(Box::new(channel.into_stream())),
            Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited))) => {
                Err(Error::new(Kind::BastionPolicy, format!("the bastion prohibits forwarding to {host}:{port}"))
                    .with_hint(format!(
                        "in its sshd_config: AllowTcpForwarding yes (or local), and PermitOpen {host}:{port} where \
                         PermitOpen is used"
                    )))
            }
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                Err(Error::new(Kind::DatabaseUnreachable, format!("{place}: {reason:?}")).with_hint(
                    "check private_host and private_port, and that the database's firewall lets the bastion in",
                ))
            }
            Ok(Err(error)) => {
                let cause = self.end.cause().unwrap_or_else(|| error.to_string());
                Err(Error::new(Kind::TunnelLost, format!("{place}: {cause}")))
            }
            Err(_) => {
                let context = format!("{place}: no answer within {} ms", limit.as_millis());
                Err(Error::new(Kind::DatabaseUnreachable, context).with_hint(
                    "a firewall between bastion and database drops packets, or private_host is wrong",
                ))
            }
        }
    }

    /// Remembers how long a round trip took, for the next tunnel through this bastion: the shortest of this one's is the
    /// network's alone.
    pub(crate) fn has_taken(&self, round_trip: Duration) {
        let round_trip_us = microseconds(round_trip);
        let shortest_us = self.shortest_us.fetch_min(round_trip_us, Ordering::Relaxed).min(round_trip_us);
        self.round_trip_us.store(shortest_us, Ordering::Relaxed);
    }

    /// What will tell why the session ended.
    pub(crate) fn end(&self) -> End {
        self.end.clone()
    }

    /// Says goodbye and waits for it to be sent, at most two seconds.
    pub(crate) async fn close(self) {
        let goodbye = async {
            self.handle.disconnect(Disconnect::ByApplication, "", "").await?;
            self.handle.await
        };
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes.
fn window(round_trip_us: u64) -> u32 {
    let bytes = round_trip_us.saturating_mul(WINDOW_BYTES_PER_US);
    u32::try_from(bytes.clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end())).expect("it is in the range")
}

fn config(bastion: &Bastion, round_trip_us: u64) -> client::Config {
    client::Config {
        window_size: window(round_trip_us),
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: PACKETS_UNREAD,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: 3,
        // Before the login there are no keepalives; replies to those reset this clock.
        inactivity_timeout: Some(INACTIVITY_TIMEOUT),
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Owned(host_key_algorithms(bastion)),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        ..client::Config::default()
    }
}

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G18_SHA512,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// The fast ones first: AES-128-GCM decrypts at 1 GB/s a core.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_CTR,
    cipher::AES_256_CTR,
];

const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

/// Those of the pinned keys first, as OpenSSH's client does, so that a bastion with several keys shows the pinned one.
fn host_key_algorithms(bastion: &Bastion) -> Vec<Algorithm> {
    let all = [
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let pinned = bastion.host_keys.key_types(&bastion.host, bastion.port);
    let (first, then): (Vec<_>, Vec<_>) = all.into_iter().partition(|algorithm| pinned.contains(algorithm));
    [first, then].concat()
}

/// Our side of the session's events.
struct Client {
    host: String,
    port: u16,
    host_keys: HostKeys,
    end: End,
    is_first_kex: bool,
}

impl client::Handler for Client {
    type Error = Error;

    async fn check_server_key(&mut self, presented: &PublicKeyOrCertificate) -> Result<bool, Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = presented else {
            // No certificate algorithm is offered, so no honest server sends one.
            return Err(Error::new(Kind::BastionHostKeyMismatch, "the bastion presented a host certificate"));
        };
        let verdict = self.host_keys.verify(&self.host, self.port, key);
        if verdict == Verdict::AcceptedUnpinned {
            let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
            tracing::warn!(
                fingerprint,
                "the bastion's host key is not verified: bastion_host_key is accept-any"
            );
        }
        match refusal(verdict, &self.host, self.port, key) {
            None => Ok(true),
            Some(error) => Err(error),
        }
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        names: &russh::Names,
        _session: &mut client::Session,
    ) -> Result<(), Error> {
        // Strict key exchange is negotiated in the first exchange only. Without it, ciphers other than AES-GCM let an
        // attacker drop the first packets (Terrapin, CVE-2023-48795).
        let is_gcm = [cipher::AES_128_GCM, cipher::AES_256_GCM].contains(&names.cipher);
        if std::mem::take(&mut self.is_first_kex) && !names.strict_kex() && !is_gcm {
            return Err(Error::new(
                Kind::BastionPolicy,
                "the bastion offers neither strict key exchange nor AES-GCM, and is open to the Terrapin attack",
            )
            .with_hint("update its OpenSSH (9.6 or later, or a patched build), or enable aes256-gcm@openssh.com"));
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Error>) -> Result<(), Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.end.set(format!("the bastion disconnected ({:?})", info.reason_code), true);
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.end.set(error.to_string(), false);
                Err(error)
            }
        }
    }
}

impl From<russh::Error> for Error {
    fn from(error: russh::Error) -> Self {
        match &error {
            russh::Error::NoCommonAlgo { kind, ours, theirs } => Self::new(
                Kind::BastionPolicy,
                format!(
                    "no common {kind:?} algorithm; ours: {}; the bastion's: {}",
                    ours.join(","),
                    theirs.join(",")
                ),
            )
            .with_hint("enable one of ours in the bastion's sshd_config"),
            russh::Error::KeepaliveTimeout => {
                Self::new(Kind::TunnelLost, "the bastion has not answered keepalives for 28 s")
            }
            _ => Self::new(Kind::BastionUnreachable, format!("ssh: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_with_the_round_trip_between_its_bounds() {
        for (round_trip_us, bytes) in
            [(0, 4 << 20), (1000, 4 << 20), (12_000, 12_000_000), (50_000, 24 << 20), (u64::MAX, 24 << 20)]
        {
            assert_eq!(window(round_trip_us), bytes, "{round_trip_us} us");
        }
    }
}
