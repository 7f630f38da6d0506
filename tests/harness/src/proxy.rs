//! A TCP proxy that makes the network's faults before real servers.
//!
//! Bytes can be delayed, stopped, or lost at a chosen moment: when the client sends a pattern. Patterns only match what
//! is readable on the wire (HTTP, PostgreSQL without TLS), and each fires once, on the first connection that sends it.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

const READ_BYTES: usize = 64 * 1024;
/// Bytes held for each direction of a connection. Few, so that a slow reader is felt by the sender as without a proxy.
const QUEUE_BYTES: usize = 256 * 1024;
/// With a delay, the queue is the network's pipe, and must hold bandwidth times delay: 640 MB/s at 100 ms.
const DELAYED_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// How much of what has passed is remembered, for patterns that straddle reads.
const PATTERN_BYTES: usize = 1024;
/// Longest wait for a pattern. A test that waits longer has failed.
const TRIGGER_LIMIT: Duration = Duration::from_secs(60);
const POISONED: &str = "nothing panics while holding it";

/// A proxy before one address. Dropping it cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accept: JoinHandle<()>,
}

/// A trigger that has been set. Dropping it leaves the trigger set.
#[derive(Debug)]
pub struct Trigger {
    pattern: String,
    fired: watch::Receiver<bool>,
}

/// Bytes that the proxy holds back, or will. Dropping it lets them go.
#[derive(Debug)]
pub struct Hold {
    trigger: Trigger,
    release: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    Refuse,
    Stall,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counts the calls of `cut`.
    cuts: watch::Sender<u64>,
    armed: Mutex<Vec<Armed>>,
    connection_count: AtomicUsize,
    open_connection_count: AtomicUsize,
    up: Direction,
    down: Direction,
    turns: Mutex<Turns>,
}

/// What clients said after each time that they had heard something.
#[derive(Debug, Default)]
struct Turns {
    starts: Vec<Vec<u8>>,
    is_open: bool,
}

/// Client to upstream, or back.
#[derive(Debug, Default)]
struct Direction {
    delay_us: AtomicU64,
    byte_count: AtomicU64,
}

#[derive(Debug)]
struct Armed {
    pattern: Vec<u8>,
    action: Action,
    fired: watch::Sender<bool>,
}

#[derive(Debug)]
enum Action {
    /// Until this is true, or its sender gone.
    Hold(watch::Receiver<bool>),
    DropReply,
    Cut,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("127.0.0.1 has a free port");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            upstream,
            mode: watch::Sender::new(Mode::Pass),
            cuts: watch::Sender::new(0),
            armed: Mutex::default(),
            connection_count: AtomicUsize::new(0),
            open_connection_count: AtomicUsize::new(0),
            up: Direction::default(),
            down: Direction::default(),
            turns: Mutex::default(),
        });
        let accept = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Proxy { addr, shared, accept }
    }

    /// Forwards again, also on connections that were stalled.
    pub fn pass(&self) {
        self.shared.mode.send_replace(Mode::Pass);
    }

    /// Closes new connections at once. Those that are open go on.
    pub fn refuse(&self) {
        self.shared.mode.send_replace(Mode::Refuse);
    }

    /// Accepts connections and keeps them open, but forwards nothing, not even their end: a lost network.
    pub fn stall(&self) {
        self.shared.mode.send_replace(Mode::Stall);
    }

    /// Closes all the connections now, losing what is under way.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Delays what arrives from now on: `up` from the client, `down` to it. Throughput stays.
    pub fn delay(&self, up: Duration, down: Duration) {
        self.shared.up.set_delay(up);
        self.shared.down.set_delay(down);
    }

    /// Holds back the bytes that contain the pattern, and all that follow them on their connection.
    pub fn hold_when_seen(&self, pattern: impl AsRef<[u8]>) -> Hold {
        let (release, released) = watch::channel(false);
        Hold { trigger: self.arm(pattern.as_ref(), Action::Hold(released)), release }
    }

    /// Forwards the request, and closes the connection instead of passing on the reply: the caller cannot know what
    /// became of it. Fires when the reply is dropped.
    pub fn drop_reply_when_seen(&self, pattern: impl AsRef<[u8]>) -> Trigger {
        self.arm(pattern.as_ref(), Action::DropReply)
    }

    /// Closes the connection instead of forwarding the bytes that contain the pattern.
    pub fn cut_when_seen(&self, pattern: impl AsRef<[u8]>) -> Trigger {
        self.arm(pattern.as_ref(), Action::Cut)
    }

    /// Connections accepted so far, refused ones included.
    pub fn connection_count(&self) -> usize {
        self.shared.connection_count.load(Relaxed)
    }

    pub fn open_connection_count(&self) -> usize {
        self.shared.open_connection_count.load(Relaxed)
    }

    /// Bytes forwarded from clients.
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.byte_count.load(Relaxed)
    }

    /// Bytes forwarded to clients.
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.byte_count.load(Relaxed)
    }

    /// How each turn of the clients began: what they sent before the next answer reached them. Each but the last is a round
    /// trip. Let the answers be delayed, or what a client sends in two pieces may count as two turns.
    pub fn turns(&self) -> Vec<Vec<u8>> {
        self.shared.turns.lock().expect(POISONED).starts.clone()
    }

    fn arm(&self, pattern: &[u8], action: Action) -> Trigger {
        assert!((1..=PATTERN_BYTES).contains(&pattern.len()), "a pattern has 1 to {PATTERN_BYTES} bytes");
        let (fire, fired) = watch::channel(false);
        let armed = Armed { pattern: pattern.to_vec(), action, fired: fire };
        self.shared.armed.lock().expect(POISONED).push(armed);
        Trigger { pattern: String::from_utf8_lossy(pattern).into_owned(), fired }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Trigger {
    /// Waits until it has fired.
    pub async fn fired(&self) {
        let mut fired = self.fired.clone();
        let result = timeout(TRIGGER_LIMIT, fired.wait_for(|fired| *fired)).await;
        let is_fired = matches!(result, Ok(Ok(_)));
        assert!(is_fired, "no client sent {:?} within {} s", self.pattern, TRIGGER_LIMIT.as_secs());
    }

    pub fn has_fired(&self) -> bool {
        *self.fired.borrow()
    }
}

impl Hold {
    /// Waits until the bytes are held.
    pub async fn seen(&self) {
        self.trigger.fired().await;
    }

    /// Forwards them.
    pub fn release(&self) {
        self.release.send_replace(true);
    }
}

impl Direction {
    fn set_delay(&self, delay: Duration) {
        let delay_us = u64::try_from(delay.as_micros()).expect("a delay of less than 500,000 years");
        self.delay_us.store(delay_us, Relaxed);
    }

    fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Relaxed))
    }
}

impl Turns {
    fn said(&mut self, chunk: &[u8]) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.starts.push(chunk[..chunk.len().min(PATTERN_BYTES)].to_vec());
        }
    }
}

impl Shared {
    async fn until_not_stalled(&self) {
        // An error is impossible: the sender is ours.
        let _ = self.mode.subscribe().wait_for(|mode| *mode != Mode::Stall).await;
    }

    /// Removes the triggers that these bytes set off.
    fn set_off(&self, tail: &Tail, chunk: &[u8]) -> Vec<Armed> {
        let mut armed = self.armed.lock().expect(POISONED);
        armed.extract_if(.., |armed| tail.completes(chunk, &armed.pattern)).collect()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("connections can be accepted");
        while connections.try_join_next().is_some() {}
        shared.connection_count.fetch_add(1, Relaxed);
        if *shared.mode.borrow() == Mode::Refuse {
            continue;
        }
        connections.spawn(connect(client, Arc::clone(&shared)));
    }
}

async fn connect(client: TcpStream, shared: Arc<Shared>) {
    /// Counts the connection for as long as it is open, however it ends.
    struct Open<'a>(&'a Shared);
    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.open_connection_count.fetch_sub(1, Relaxed);
        }
    }
    shared.open_connection_count.fetch_add(1, Relaxed);
    let _open = Open(&shared);

    let mut cuts = shared.cuts.subscribe();
    tokio::select! {
        // What was held back when it was cut is not let go by what comes after.
        biased;
        _ = cuts.changed() => {}
        // However it ends, both sides are closed.
        _ = relay(client, &shared) => {}
    }
}

async fn relay(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut upstream = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (client_read, client_write) = client.split();
    let (upstream_read, upstream_write) = upstream.split();
    let (up, down) = (Queue::default(), Queue::default());
    let reply_to_drop = Mutex::new(None);
    tokio::try_join!(
        read_up(client_read, &up, shared, &reply_to_drop),
        write(upstream_write, &up, shared, &shared.up),
        read_down(upstream_read, &down, shared, &reply_to_drop),
        write(client_write, &down, shared, &shared.down),
    )?;
    Ok(())
}

/// The trigger that closes the connection at its next reply.
type ReplyToDrop = Mutex<Option<watch::Sender<bool>>>;

async fn read_up(
    mut client: ReadHalf<'_>,
    queue: &Queue,
    shared: &Shared,
    reply_to_drop: &ReplyToDrop,
) -> io::Result<()> {
    let mut tail = Tail::default();
    while let Some(chunk) = read(&mut client, queue, shared, &shared.up).await? {
        for Armed { action, fired, .. } in shared.set_off(&tail, &chunk) {
            match action {
                Action::Hold(mut released) => {
                    fired.send_replace(true);
                    // An error means that the `Hold` was dropped, which releases as well.
                    let _ = released.wait_for(|released| *released).await;
                }
                Action::DropReply => *reply_to_drop.lock().expect(POISONED) = Some(fired),
                Action::Cut => {
                    fired.send_replace(true);
                    return Err(io::Error::other("cut at a pattern"));
                }
            }
        }
        tail.push(&chunk);
        shared.turns.lock().expect(POISONED).said(&chunk);
        queue.push(chunk, shared.up.delay());
    }
    Ok(())
}

async fn read_down(
    mut upstream: ReadHalf<'_>,
    queue: &Queue,
    shared: &Shared,
    reply_to_drop: &ReplyToDrop,
) -> io::Result<()> {
    while let Some(chunk) = read(&mut upstream, queue, shared, &shared.down).await? {
        // "100 Continue" asks for the rest of the request; it is not the reply.
        if !chunk.starts_with(b"HTTP/1.1 100")
            && let Some(fired) = reply_to_drop.lock().expect(POISONED).take()
        {
            fired.send_replace(true);
            return Err(io::Error::other("reply dropped"));
        }
        queue.push(chunk, shared.down.delay());
    }
    Ok(())
}

/// Reads what there is. `None` at the end, which is then queued.
async fn read(
    from: &mut ReadHalf<'_>,
    queue: &Queue,
    shared: &Shared,
    direction: &Direction,
) -> io::Result<Option<Vec<u8>>> {
    let limit = if direction.delay().is_zero() { QUEUE_BYTES } else { DELAYED_QUEUE_BYTES };
    queue.until_below(limit).await;
    let mut chunk = Vec::with_capacity(READ_BYTES);
    match from.read_buf(&mut chunk).await {
        Ok(0) => {
            queue.push(Vec::new(), direction.delay());
            Ok(None)
        }
        Ok(_) => {
            // A delayed queue may hold very many small ones.
            chunk.shrink_to_fit();
            Ok(Some(chunk))
        }
        Err(error) => {
            // A peer that resets the connection is not heard of through a lost network either.
            shared.until_not_stalled().await;
            Err(error)
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    queue: &Queue,
    shared: &Shared,
    direction: &Direction,
) -> io::Result<()> {
    loop {
        let (due, chunk) = queue.pop().await;
        if due > Instant::now() {
            sleep_until(due).await;
        }
        shared.until_not_stalled().await;
        if chunk.is_empty() {
            // The peer may have closed its side already.
            let _ = to.shutdown().await;
            return Ok(());
        }
        if std::ptr::eq(direction, &shared.down) {
            shared.turns.lock().expect(POISONED).is_open = false;
        }
        to.write_all(&chunk).await?;
        direction.byte_count.fetch_add(chunk.len() as u64, Relaxed);
        queue.forwarded(chunk.len());
    }
}

/// Chunks between a reader and a writer, each with the time to forward it. An empty one is the end.
#[derive(Debug, Default)]
struct Queue {
    chunks: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    byte_count: AtomicUsize,
    pushed: Notify,
    popped: Notify,
}

impl Queue {
    fn push(&self, chunk: Vec<u8>, delay: Duration) {
        self.byte_count.fetch_add(chunk.len(), Relaxed);
        self.chunks.lock().expect(POISONED).push_back((Instant::now() + delay, chunk));
        self.pushed.notify_one();
    }

    async fn pop(&self) -> (Instant, Vec<u8>) {
        loop {
            let first = self.chunks.lock().expect(POISONED).pop_front();
            match first {
                Some(first) => return first,
                None => self.pushed.notified().await,
            }
        }
    }

    fn forwarded(&self, byte_count: usize) {
        self.byte_count.fetch_sub(byte_count, Relaxed);
        self.popped.notify_one();
    }

    async fn until_below(&self, limit: usize) {
        while self.byte_count.load(Relaxed) >= limit {
            self.popped.notified().await;
        }
    }
}

/// The last bytes of what has passed.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Whether the pattern ends in the chunk, wherever it begins.
    fn completes(&self, chunk: &[u8], pattern: &[u8]) -> bool {
        let overlap = pattern.len() - 1;
        let before = &self.0[self.0.len().saturating_sub(overlap)..];
        let boundary = [before, &chunk[..overlap.min(chunk.len())]].concat();
        contains(chunk, pattern) || contains(&boundary, pattern)
    }

    fn push(&mut self, chunk: &[u8]) {
        let kept = chunk.len().min(PATTERN_BYTES);
        self.0.extend_from_slice(&chunk[chunk.len() - kept..]);
        self.0.drain(..self.0.len().saturating_sub(PATTERN_BYTES));
    }
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Sends back every byte, until the client ends.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn read_exactly(stream: &mut TcpStream, byte_count: usize) -> Vec<u8> {
        let mut bytes = vec![0; byte_count];
        let result = timeout(LIMIT, stream.read_exact(&mut bytes)).await;
        result.expect("the bytes come in time").expect("the bytes come");
        bytes
    }

    /// What comes until the end, and whether the end was a clean one.
    async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let result = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
        let is_clean = result.expect("the connection ends in time").is_ok();
        (bytes, is_clean)
    }

    async fn is_silent(stream: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(100), stream.read_u8()).await.is_err()
    }

    #[test]
    fn patterns_are_found_wherever_reads_split_them() {
        let text = b"xxPUT /checkpoint HTTP/1.1yy";
        let pattern = b"PUT /checkpoint";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut tail = Tail::default();
                let mut found = 0;
                for chunk in [&text[..first], &text[first..second], &text[second..]] {
                    found += usize::from(tail.completes(chunk, pattern));
                    tail.push(chunk);
                }
                assert_eq!(found, 1, "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn patterns_that_have_passed_are_not_found_again() {
        let mut tail = Tail::default();
        tail.push(b"commit");
        assert!(!tail.completes(b" and more", b"commit"));
        assert!(!tail.completes(b"", b"commit"));
        assert!(tail.completes(b"commit", b"commit"));
    }

    #[test]
    fn tails_stay_short() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'x'; 700]);
        }
        assert_eq!(tail.0.len(), PATTERN_BYTES);
    }

    #[tokio::test]
    async fn held_bytes_go_on_when_released() {
        let proxy = Proxy::start(echo().await).await;
        let hold = proxy.hold_when_seen("secret");
        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        client.write_all(b"one sec").await.expect("writes");
        assert_eq!(read_exactly(&mut client, 7).await, b"one sec");
        client.write_all(b"ret two").await.expect("writes");
        hold.seen().await;
        assert!(is_silent(&mut client).await);
        hold.release();
        assert_eq!(read_exactly(&mut client, 7).await, b"ret two");
        assert_eq!((proxy.connection_count(), proxy.bytes_up(), proxy.bytes_down()), (1, 14, 14));
    }

    #[tokio::test]
    async fn dropped_replies_and_cuts_end_one_connection_and_fire_once() {
        let proxy = Proxy::start(echo().await).await;
        let reply = proxy.drop_reply_when_seen("commit");
        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        client.write_all(b"commit").await.expect("writes");
        reply.fired().await;
        assert_eq!(read_to_end(&mut client).await.0, b"");
        assert_eq!(proxy.bytes_up(), 6);

        let cut = proxy.cut_when_seen("commit");
        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        client.write_all(b"commit").await.expect("writes");
        cut.fired().await;
        assert_eq!(read_to_end(&mut client).await.0, b"");
        assert_eq!(proxy.bytes_up(), 6);

        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        client.write_all(b"commit").await.expect("writes");
        assert_eq!(read_exactly(&mut client, 6).await, b"commit");
    }

    #[tokio::test]
    async fn stalled_connections_stay_open_and_pass_again() {
        let proxy = Proxy::start(echo().await).await;
        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        client.write_all(b"one").await.expect("writes");
        assert_eq!(read_exactly(&mut client, 3).await, b"one");
        proxy.stall();
        client.write_all(b"two").await.expect("writes");
        assert!(is_silent(&mut client).await);
        let mut late = TcpStream::connect(proxy.addr).await.expect("connects");
        late.write_all(b"three").await.expect("writes");
        assert!(is_silent(&mut late).await);
        proxy.pass();
        assert_eq!(read_exactly(&mut client, 3).await, b"two");
        assert_eq!(read_exactly(&mut late, 5).await, b"three");

        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.addr).await.expect("connects");
        assert_eq!(read_to_end(&mut refused).await, (Vec::new(), true));
        client.write_all(b"four").await.expect("writes");
        assert_eq!(read_exactly(&mut client, 4).await, b"four");
        proxy.cut();
        assert_eq!(read_to_end(&mut client).await.0, b"");
        assert_eq!(read_to_end(&mut late).await.0, b"");
    }

    #[tokio::test]
    async fn delays_cost_time_once_and_no_throughput() {
        let proxy = Proxy::start(echo().await).await;
        proxy.delay(Duration::from_millis(30), Duration::from_millis(70));
        let mut client = TcpStream::connect(proxy.addr).await.expect("connects");
        let (mut read, mut write) = client.split();
        let bytes = vec![7u8; 16 * 1024 * 1024];
        let mut received = vec![0u8; bytes.len()];
        let started = Instant::now();
        let both = async { tokio::try_join!(write.write_all(&bytes), read.read_exact(&mut received)) };
        timeout(LIMIT, both).await.expect("the bytes come in time").expect("the bytes come");
        assert_eq!(bytes, received);
        // Sleeping for each of the 256 reads would take 25 s.
        let elapsed = started.elapsed();
        assert!((Duration::from_millis(100)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");
    }
}
