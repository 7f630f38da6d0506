//! Names and ports that no other run uses.

use std::{fs::File, io::Read, net::TcpListener};

pub(crate) fn hex(byte_count: usize) -> String {
    let mut bytes = vec![0; byte_count];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .expect("/dev/urandom is readable");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn uuid() -> String {
    let hex = hex(16);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Random numbers that a seed brings back (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A seed that no other run has.
    pub fn new_seed() -> u64 {
        u64::from_str_radix(&hex(6), 16).expect("hexadecimal digits")
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// An index into a list of this length.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("less than a usize")
    }

    /// Another sequence, from this one.
    pub fn fork(&mut self) -> Random {
        Random(self.draw())
    }
}

/// A free TCP port of 127.0.0.1. It lies below the ports that Linux (32768) and macOS (49152) give to outgoing
/// connections, so that none of those takes it before its owner listens.
pub(crate) fn port() -> u16 {
    loop {
        let number = u16::from_str_radix(&hex(2), 16).expect("four hexadecimal digits");
        let port = 20_000 + number % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
