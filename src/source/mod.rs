//! The way to the rows: tunnel, session, catalog, COPY.

pub(crate) mod access;
pub(crate) mod catalog;
pub(crate) mod copy;
pub(crate) mod flight;
mod guard;
pub(crate) mod host_key;
pub(crate) mod private_key;
pub(crate) mod session;
mod ssh;
mod tcp;
mod tls;
pub(crate) mod watch;

use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream that PostgreSQL's protocol can run over: TCP, an SSH channel, TLS over either.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

type Stream = Box<dyn Duplex>;
