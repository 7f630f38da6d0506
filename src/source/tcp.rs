//! TCP connections, set up for many small round trips.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::deadline::Deadline;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads longer than this are part of a stream of rows, where acknowledgements flow by themselves.
const SHORT_READ_BYTES: usize = 16 << 10;

/// A connection whose acknowledgements are not delayed. The bastion's sshd has Nagle's algorithm on, and waits with its
/// next small packet for our acknowledgement of the last, which Linux delays by 40 ms: each round trip would cost that.
#[derive(Debug)]
pub(super) struct Tcp(TcpStream);

/// Connects with `TCP_NODELAY`: with Nagle's algorithm on our side each small query costs 40 ms, too.
pub(super) async fn connect(host: &str, port: u16, deadline: Deadline) -> io::Result<Tcp> {
    let limit = deadline.at_most(CONNECT_TIMEOUT);
    let socket = timeout(limit, TcpStream::connect((host, port))).await.map_err(|_| {
        let text = format!("no connection within {} ms", limit.as_millis());
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
    socket.set_nodelay(true)?;
    Ok(Tcp(socket))
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        #[cfg(target_os = "linux")]
        if buf.filled().len() - before < SHORT_READ_BYTES {
            // The kernel falls back to delaying by itself, so it is told again. Only a hint: failure does no harm.
            let _ = self.0.set_quickack(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
