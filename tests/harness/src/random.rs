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
