//! A watch over what the server sends, beneath the protocol library, which has none of these limits: a frame's size, before it is
//! buffered; how many large rows are buffered; and the requests for a password that would hand it to a false server.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::Stream;
use super::copy::LARGE_ROW_BYTES;
use super::tls::Secured;

/// A stream whose incoming frames are bounded.
pub(super) struct Guard {
    inner: Stream,
    /// Handed out when the library asks, which it does once, while authenticating.
    binding: Mutex<Option<ChannelBinding>>,
    frames: Frames,
    refused: Option<Refused>,
    place: Arc<LargeRowPlace>,
}

/// The memory's one place for a large row: the library would buffer four, and half of the next. One that is there with its first read, as
/// it can be without a tunnel, takes none.
#[derive(Debug, Default)]
pub(super) struct LargeRowPlace {
    is_taken: AtomicBool,
    waiting: AtomicWaker,
}

impl LargeRowPlace {
    fn poll_take(&self, cx: &Context<'_>) -> Poll<()> {
        self.waiting.register(cx.waker());
        if self.is_taken.swap(true, Ordering::AcqRel) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// The row that had it is gone.
    pub(super) fn free(&self) {
        self.is_taken.store(false, Ordering::Release);
        self.waiting.wake();
    }
}

/// The framing of PostgreSQL's messages: one type byte, then a length that counts itself, then the body.
#[derive(Debug)]
struct Frames {
    max_frame_bytes: usize,
    allows_plain_passwords: bool,
    /// Up to nine bytes: type, length, and the first word of the body, where an `R` says what it asks for.
    head: Vec<u8>,
    body_left: usize,
    /// Of a large row, which has no place yet.
    is_body_large: bool,
}

/// What the guard stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A frame of so many bytes.
    TooLarge(usize),
    /// A request for the password in clear text or as MD5.
    PlainPassword,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(bytes) => write!(f, "a message of {bytes} bytes"),
            Self::PlainPassword => f.write_str("the server asked for the password in clear text or as MD5"),
        }
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Finds the guard's word among the causes of an error.
    pub(super) fn among(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(*refused);
            }
            cause = error.source();
        }
        None
    }
}

impl Guard {
    /// `max_frame_bytes` counts a frame's length word, not its type byte.
    pub(super) fn new(
        secured: Secured,
        max_frame_bytes: usize,
        allows_plain_passwords: bool,
        place: Arc<LargeRowPlace>,
    ) -> Self {
        Self {
            inner: secured.stream,
            binding: Mutex::new(Some(secured.binding)),
            frames: Frames::new(max_frame_bytes, allows_plain_passwords),
            refused: None,
            place,
        }
    }
}

impl Frames {
    fn new(max_frame_bytes: usize, allows_plain_passwords: bool) -> Self {
        let head = Vec::with_capacity(9);
        Self { max_frame_bytes, allows_plain_passwords, head, body_left: 0, is_body_large: false }
    }

    /// Whether a large row has begun, and not ended, that has no place.
    fn wants_place(&self) -> bool {
        self.is_body_large && self.body_left > 0
    }

    /// Follows the frames in `bytes`. What is refused begins after so many bytes: 0 where it began in an earlier read.
    fn watch(&mut self, read: &[u8]) -> Result<(), (usize, Refused)> {
        let mut bytes = read;
        let mut frame_start = 0;
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let skipped = self.body_left.min(bytes.len());
                self.body_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            if self.head.is_empty() {
                frame_start = read.len() - bytes.len();
            }
            let wanted = if self.head.first() == Some(&b'R') { 9 } else { 5 };
            let taken = (wanted - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            // The type byte decides how long the head is, so look again once it is there.
            let wanted = if self.head[0] == b'R' { 9 } else { 5 };
            if self.head.len() == wanted {
                self.begin_body().map_err(|refused| (frame_start, refused))?;
            }
        }
        Ok(())
    }

    fn begin_body(&mut self) -> Result<(), Refused> {
        let word = |at: usize| {
            u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]])
        };
        let length = word(1) as usize;
        if self.head[0] == b'R' && matches!(word(5), 3 | 5) && !self.allows_plain_passwords {
            return Err(Refused::PlainPassword);
        }
        if length > self.max_frame_bytes {
            return Err(Refused::TooLarge(length));
        }
        self.body_left = (length + 1).saturating_sub(self.head.len());
        self.is_body_large = self.head[0] == b'd' && length > LARGE_ROW_BYTES + 4;
        self.head.clear();
        Ok(())
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(refused) = self.refused {
            return Poll::Ready(Err(io::Error::other(refused)));
        }
        if self.frames.wants_place() {
            ready!(self.place.poll_take(cx));
            self.frames.is_body_large = false;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        match self.frames.watch(&buf.filled()[before..]) {
            Ok(()) => Poll::Ready(Ok(())),
            Err((0, refused)) => Poll::Ready(Err(io::Error::other(refused))),
            // The frames before it are good: they are handed on, and the next read fails.
            Err((good_bytes, refused)) => {
                self.refused = Some(refused);
                buf.set_filled(before + good_bytes);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl TlsStream for Guard {
    fn channel_binding(&self) -> ChannelBinding {
        let mut binding = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        binding.take().unwrap_or_else(ChannelBinding::none)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frames(allows_plain_passwords: bool) -> Frames {
        Frames::new(100, allows_plain_passwords)
    }

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short");
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_large_row_is_seen_once_while_it_comes() {
        let large = frame(b'd', &vec![7; LARGE_ROW_BYTES + 1]);
        let mut frames = Frames::new(usize::MAX, false);
        let mut seen = |bytes: &[u8]| {
            frames.watch(bytes).expect("nothing is refused");
            let wants_place = frames.wants_place();
            frames.is_body_large = false;
            wants_place
        };
        assert!(!seen(&frame(b'd', &vec![7; LARGE_ROW_BYTES])), "it is not large");
        assert!(!seen(&large), "it is there already");
        assert!(!seen(&large[..4]), "who knows");
        assert!(seen(&large[4..100]));
        assert!(!seen(&large[100..200]), "it is known");
        assert!(seen(&[&large[200..], &large[..100]].concat()), "another");
        assert!(
            !seen(&[&large[100..], &frame(b'T', &vec![7; LARGE_ROW_BYTES + 1])[..100]].concat()),
            "no row"
        );
    }

    #[tokio::test]
    async fn a_large_row_has_to_wait_until_the_last_one_is_gone() {
        let place = Arc::new(LargeRowPlace::default());
        let (mut server, stream) = tokio::io::duplex(64 << 20);
        let secured =
            Secured { stream: Box::new(stream), binding: ChannelBinding::none(), is_encrypted: false };
        let mut guard = Guard::new(secured, usize::MAX, false, Arc::clone(&place));
        let large = frame(b'd', &vec![7; LARGE_ROW_BYTES + 1]);
        let small = frame(b'd', &[7; 10]);
        server.write_all(&[&small[..], &large, &small, &large].concat()).await.expect("there is room");
        // In pieces, as the library reads: three rows and the head of the fourth pass.
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        while let Some(length) = guard.read(&mut buffer).now_or_never() {
            read += length.expect("it reads");
        }
        let passed = 2 * small.len() + large.len();
        assert!((passed..passed + buffer.len()).contains(&read), "{read}");
        let mut rest = vec![0; passed + large.len() - read];
        let reading = tokio::spawn(async move { guard.read_exact(&mut rest).await.map(drop) });
        tokio::task::yield_now().await;
        assert!(!reading.is_finished(), "it waits");
        place.free();
        reading.await.expect("no panic").expect("the rest passes");
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let bytes = [
            frame(b'R', &10_u32.to_be_bytes()),
            frame(b'Z', b"I"),
            frame(b'd', &[7; 90]),
            frame(b'c', b""),
            frame(b'd', &[7; 200]),
        ]
        .concat();
        for step in 1..bytes.len() {
            let mut frames = frames(false);
            let outcome = bytes.chunks(step).try_for_each(|chunk| frames.watch(chunk));
            let (_, refused) = outcome.expect_err("the last frame is too large");
            assert_eq!(refused, Refused::TooLarge(204), "in steps of {step}");
        }
    }

    #[test]
    fn what_comes_before_a_frame_that_is_too_large_is_good() {
        let bytes = [frame(b'd', &[7; 90]), frame(b'd', &[7; 200])].concat();
        assert_eq!(frames(false).watch(&bytes), Err((95, Refused::TooLarge(204))));
    }

    #[test]
    fn a_request_for_a_plain_password_is_stopped_unless_allowed() {
        for code in [3_u32, 5] {
            let request = frame(b'R', &[&code.to_be_bytes()[..], b"salt"].concat());
            assert_eq!(frames(false).watch(&request), Err((0, Refused::PlainPassword)));
            assert_eq!(frames(true).watch(&request), Ok(()));
        }
    }
}
