//! gzip on several cores: one member (RFC 1952) of pieces that are deflated beside each other.
//!
//! A piece looks back at none before it and ends at a whole byte (a sync flush, as `pigz` does it), so that the pieces make one
//! stream when they are put together in order. A member for each would be simpler; but readers that stop after the first
//! member, in silence, are not rare.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZero;
use std::thread::available_parallelism;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};
use tokio::task::{JoinHandle, spawn_blocking};

use super::buffers::Buffer;

/// Deflate, no name, no time, from an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Smaller ones are gathered: each begins without a history.
const MIN_PIECE_BYTES: usize = 32 << 10;

/// Of pieces, at most: two take what one thread encodes, and what all may give at once fits a part's slack.
const MAX_UNDER_WAY: usize = 3;

/// A last block, with nothing in it: the pieces' blocks all say that others follow.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// A stream under way.
pub(super) struct Gzip {
    output: Buffer,
    /// Of what was put into the output; the length modulo 2³².
    crc: Crc,
    length: u32,
    gathered: Vec<u8>,
    under_way: VecDeque<JoinHandle<io::Result<Deflater>>>,
    max_under_way: usize,
    idle: Vec<Deflater>,
}

/// What deflates pieces, one after the other; and the last of them.
struct Deflater {
    compress: Compress,
    crc: Crc,
    deflated: Vec<u8>,
}

impl Gzip {
    pub(super) fn new(mut output: Buffer) -> io::Result<Self> {
        output.write_all(&HEADER)?;
        let max_under_way = available_parallelism().map_or(1, NonZero::get).min(MAX_UNDER_WAY);
        Ok(Self {
            output,
            crc: Crc::new(),
            length: 0,
            gathered: Vec::new(),
            under_way: VecDeque::new(),
            max_under_way,
            idle: Vec::new(),
        })
    }

    /// Takes a piece, or gathers it; waits for one before it if too many are under way.
    pub(super) async fn write(&mut self, piece: Bytes) -> io::Result<()> {
        if self.gathered.is_empty() && piece.len() >= MIN_PIECE_BYTES {
            return self.begin(piece).await;
        }
        self.gathered.extend_from_slice(&piece);
        if self.gathered.len() < MIN_PIECE_BYTES { Ok(()) } else { self.begin_gathered().await }
    }

    async fn begin_gathered(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.begin(gathered.into()).await
    }

    async fn begin(&mut self, piece: Bytes) -> io::Result<()> {
        if self.under_way.len() >= self.max_under_way {
            self.put_first().await?;
        }
        let mut deflater = self.idle.pop().unwrap_or_else(Deflater::new);
        self.under_way.push_back(spawn_blocking(move || deflater.deflate(&piece).map(|()| deflater)));
        Ok(())
    }

    pub(super) fn output(&mut self) -> &mut Buffer {
        &mut self.output
    }

    /// Ends the stream and gives what was not taken yet.
    pub(super) async fn finish(mut self) -> io::Result<Buffer> {
        if !self.gathered.is_empty() {
            self.begin_gathered().await?;
        }
        while !self.under_way.is_empty() {
            self.put_first().await?;
        }
        self.output.write_all(&LAST_BLOCK)?;
        self.output.write_all(&self.crc.sum().to_le_bytes())?;
        self.output.write_all(&self.length.to_le_bytes())?;
        Ok(self.output)
    }

    async fn put_first(&mut self) -> io::Result<()> {
        let Some(first) = self.under_way.pop_front() else { return Ok(()) };
        let deflater = first.await??;
        self.output.write_all(&deflater.deflated)?;
        self.crc.combine(&deflater.crc);
        self.length = self.length.wrapping_add(deflater.crc.amount());
        self.idle.push(deflater);
        Ok(())
    }
}

impl Deflater {
    fn new() -> Self {
        // Level 1: the next levels cost twice the time for a third of the size.
        Self { compress: Compress::new(Compression::new(1), false), crc: Crc::new(), deflated: Vec::new() }
    }

    fn deflate(&mut self, piece: &[u8]) -> io::Result<()> {
        self.compress.reset();
        self.crc.reset();
        self.crc.update(piece);
        self.deflated.clear();
        loop {
            // Nine bits for a byte are the most, and a few for the block.
            self.deflated.reserve(piece.len() / 8 + piece.len() + 64);
            let taken = usize::try_from(self.compress.total_in()).map_err(io::Error::other)?;
            self.compress.compress_vec(&piece[taken..], &mut self.deflated, FlushCompress::Sync)?;
            // zlib.h: a flush is complete when it leaves room.
            if self.deflated.len() < self.deflated.capacity() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::bufread::GzDecoder;

    use super::*;
    use crate::sink::buffers::Buffers;

    async fn gzip(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut gzip = Gzip::new(Buffers::new().take().await).expect("there is room");
        for piece in pieces {
            gzip.write(Bytes::from(piece.clone())).await.expect("it deflates");
        }
        gzip.finish().await.expect("it ends").as_ref().to_vec()
    }

    /// Reads one member only, and checks its CRC and length.
    fn first_member(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let mut decoder = GzDecoder::new(bytes);
        decoder.read_to_end(&mut text).expect("gzip");
        assert!(decoder.into_inner().is_empty(), "nothing follows the member");
        text
    }

    #[tokio::test]
    async fn pieces_of_all_sizes_make_one_member_in_order() {
        let noise = |length: u32| (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let rows = |count: u32| (0..count).flat_map(|i| format!("{{\"id\":{i}}}\n").into_bytes()).collect();
        let pieces: Vec<Vec<u8>> =
            vec![rows(1), rows(20_000), noise(300_000), vec![0; 1 << 20], noise(1), rows(3), noise(70_001)];
        let written = gzip(&pieces).await;
        assert_eq!(first_member(&written), pieces.concat());
    }

    #[tokio::test]
    async fn rows_that_come_one_by_one_are_compressed_together() {
        let rows: Vec<Vec<u8>> = (0..5000)
            .map(|i| {
                format!("{{\"id\":{i},\"name\":\"Name {}\",\"city\":\"Springfield\"}}\n", i % 100)
                    .into_bytes()
            })
            .collect();
        // Each piece begins anew, which costs a tenth here, and would cost ten times as much row by row.
        let (many, one) = (gzip(&rows).await, gzip(&[rows.concat()]).await);
        assert_eq!(first_member(&many), rows.concat());
        assert!(many.len() < one.len() + one.len() / 4, "{} and {} bytes", many.len(), one.len());
    }

    #[tokio::test]
    async fn nothing_is_an_empty_member() {
        assert_eq!(first_member(&gzip(&[]).await), b"");
    }
}
