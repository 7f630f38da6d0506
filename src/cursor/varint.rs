//! Whole numbers in few bytes, as text: LEB128 in base64, for the long lists of a state.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

pub(super) fn encode(numbers: impl IntoIterator<Item = u64>) -> String {
    let mut bytes = Vec::new();
    for mut number in numbers {
        while number >= 0x80 {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    }
    BASE64.encode(bytes)
}

/// `None` for anything but what [`encode`] makes.
pub(super) fn decode(text: &str) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    let (mut number, mut shift) = (0_u64, 0);
    for byte in BASE64.decode(text).ok()? {
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || (shift == 63 && bits > 1) {
            return None;
        }
        number |= bits << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            numbers.push(number);
            (number, shift) = (0, 0);
        }
    }
    (shift == 0).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        let numbers = vec![0, 1, 127, 128, 300, 1 << 32, u64::MAX];
        assert_eq!(decode(&encode(numbers.clone())), Some(numbers));
        assert_eq!(encode([]), "");
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        for broken in ["?".to_owned(), text(&[0x80]), text(&[0xff; 10]), text(&[0xff; 11])] {
            assert_eq!(decode(&broken), None, "{broken}");
        }
    }
}
