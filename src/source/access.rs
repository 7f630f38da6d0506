//! What opens the way to the database: where the hops are, and who we are there. Read from the secrets by `credentials`.
//! No `Debug` shows a secret.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::host_key::HostKeys;
use super::private_key::PrivateKey;

/// Everything that opens the way to the database.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// `None`: straight TCP, inside the VPC.
    pub(crate) bastion: Option<Bastion>,
    pub(crate) database: Database,
}

pub(crate) struct Bastion {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) host_keys: HostKeys,
    /// How long a round trip through the last tunnel took, in microseconds, which the next one's window goes by; 0: unknown.
    pub(crate) round_trip_us: Arc<AtomicU64>,
}

impl fmt::Debug for Bastion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bastion({}:{})", self.host, self.port)
    }
}

pub(crate) struct Database {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) name: String,
    pub(crate) sslmode: SslMode,
    /// PEM certificates to trust instead of the system's.
    pub(crate) ca_certificate: Option<String>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({}:{})", self.host, self.port)
    }
}

/// libpq's sslmode; `allow` is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}
