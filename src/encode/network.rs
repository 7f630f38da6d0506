//! Owns network addresses: inet, cidr, macaddr, macaddr8.

use super::Unencodable;
use super::number::write_integer;
use super::reader::{Reader, exact};
use super::string::HEX;

/// PostgreSQL's numbers for the families (`PGSQL_AF_INET`, `PGSQL_AF_INET6`), the same on every platform.
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 3;

/// Writes an inet or a cidr: family, mask length, whether it is a cidr, address length, address. A cidr
/// always shows its mask, an inet only one that is not the whole address.
pub(super) fn write_network(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let mut input = Reader::new(value);
    let [family, mask, is_cidr, _length] = input.array::<4>()?;
    out.push(b'"');
    let full_mask = match family {
        FAMILY_IPV4 => {
            write_ipv4(exact(input.rest())?, out);
            32
        }
        FAMILY_IPV6 => {
            write_ipv6(exact(input.rest())?, out);
            128
        }
        _ => {
            return Err(Unencodable { reason: "network address has an unknown family" });
        }
    };
    if is_cidr != 0 || mask != full_mask {
        out.push(b'/');
        write_integer(mask, out);
    }
    out.push(b'"');
    Ok(())
}

/// Writes a macaddr (6 bytes) or a macaddr8 (8 bytes).
pub(super) fn write_mac<const N: usize>(value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let bytes: [u8; N] = exact(value)?;
    let mut separator = b'"';
    for byte in bytes {
        let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
        out.extend_from_slice(&[separator, high, low]);
        separator = b':';
    }
    out.push(b'"');
    Ok(())
}

fn write_ipv4(bytes: [u8; 4], out: &mut Vec<u8>) {
    for (index, byte) in bytes.into_iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        write_integer(byte, out);
    }
}

/// Writes an IPv6 address as PostgreSQL's `inet_net_ntop_ipv6`: the first of the longest runs of two or more
/// zero words is `::`, and `::a.b.c.d` and `::ffff:a.b.c.d` show the IPv4 address that they hold.
fn write_ipv6(bytes: [u8; 16], out: &mut Vec<u8>) {
    let words: [u16; 8] = std::array::from_fn(|at| u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]));
    let (run_start, run_length) = longest_zero_run(&words);
    let run_end = run_start + run_length;
    let holds_ipv4 = run_start == 0 && (run_length == 6 || (run_length == 5 && words[5] == 0xffff));
    let shown_words = if holds_ipv4 { 6 } else { 8 };
    for (at, word) in words.into_iter().enumerate().take(shown_words) {
        if (run_start..run_end).contains(&at) {
            if at == run_start {
                out.push(b':');
            }
            continue;
        }
        if at > 0 {
            out.push(b':');
        }
        write_hex(word, out);
    }
    if holds_ipv4 {
        out.push(b':');
        write_ipv4([bytes[12], bytes[13], bytes[14], bytes[15]], out);
    } else if run_length > 0 && run_end == 8 {
        out.push(b':');
    }
}

/// Where the first of the longest runs of zero words begins, and how many they are: two or more, or 0.
fn longest_zero_run(words: &[u16; 8]) -> (usize, usize) {
    let mut longest = (0, 0);
    let mut start = 0;
    for (at, word) in words.iter().enumerate() {
        if *word != 0 {
            start = at + 1;
        } else if at + 1 - start > longest.1 {
            longest = (start, at + 1 - start);
        }
    }
    if longest.1 >= 2 { longest } else { (0, 0) }
}

/// Writes a word in hexadecimal without leading zeros.
fn write_hex(word: u16, out: &mut Vec<u8>) {
    for shift in [12, 8, 4, 0] {
        if shift == 0 || word >> shift != 0 {
            out.push(HEX[usize::from((word >> shift) & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::super::tests::encoded;

    #[track_caller]
    fn check(encoding: &Encoding, hex: &str, text: &str) {
        assert_eq!(encoded(encoding, hex), Ok(["\"", text, "\""].concat()));
    }

    #[test]
    fn ipv4_shows_a_mask_that_is_not_full_and_any_of_a_cidr() {
        check(&Encoding::Network, "02180004c0a80001", "192.168.0.1/24");
        check(&Encoding::Network, "02200004ffffffff", "255.255.255.255");
        check(&Encoding::Network, "0200000400000000", "0.0.0.0/0");
        check(&Encoding::Network, "0220010401020304", "1.2.3.4/32");
        check(&Encoding::Network, "020801040a000000", "10.0.0.0/8");
    }

    #[test]
    fn ipv6_is_compressed_as_postgres_does() {
        for (address, text) in [
            ("00000000000000000000000000000000", "::"),
            ("00000000000000000000000000000001", "::1"),
            ("00000000000000000000000000000002", "::2"),
            ("00000000000000000000000000010000", "::0.1.0.0"),
            ("00000000000000000000000001020304", "::1.2.3.4"),
            ("00000000000000000000ffff01020304", "::ffff:1.2.3.4"),
            ("00000000000000000000ffff00000000", "::ffff:0.0.0.0"),
            ("0000000000000000ffff000001020304", "::ffff:0:102:304"),
            ("0000000000000000abcdffff01020304", "::abcd:ffff:102:304"),
            ("20010000000000010000000000000001", "2001:0:0:1::1"),
            ("20010000000000010000000000010001", "2001::1:0:0:1:1"),
            ("00010000000100010001000100010001", "1:0:1:1:1:1:1:1"),
            ("00010000000000000000000000000000", "1::"),
            ("fe8000000000000000000000000000ff", "fe80::ff"),
            ("ffffffffffffffffffffffffffffffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            check(&Encoding::Network, &["03800010", address].concat(), text);
        }
    }

    #[test]
    fn ipv6_shows_a_mask_that_is_not_full_and_any_of_a_cidr() {
        check(&Encoding::Network, "0340001020010db8000000000000000000000001", "2001:db8::1/64");
        check(&Encoding::Network, "0300011000000000000000000000000000000000", "::/0");
        check(&Encoding::Network, "0380011000000000000000000000000000000001", "::1/128");
    }

    #[test]
    fn hardware_addresses_have_colons() {
        check(&Encoding::MacAddr, "08002b010203", "08:00:2b:01:02:03");
        check(&Encoding::MacAddr8, "08002b0102030405", "08:00:2b:01:02:03:04:05");
        assert!(encoded(&Encoding::MacAddr, "08002b0102030405").is_err());
    }

    #[test]
    fn addresses_of_the_wrong_length_or_family_are_refused() {
        for hex in ["", "0220", "02200004", "02200004010203", "0220000401020304ff", "0420000401020304"] {
            assert!(encoded(&Encoding::Network, hex).is_err(), "{hex}");
        }
    }
}
