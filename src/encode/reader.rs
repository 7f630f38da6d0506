//! Owns the taking apart of PostgreSQL's binary framing. Every step checks what is left, so that no input panics.

use std::fmt;

use super::Unencodable;

pub(super) const WRONG_LENGTH: Unencodable =
    Unencodable { reason: "binary value has the wrong length for its type" };

const TRUNCATED: Unencodable = Unencodable { reason: "binary value ends too early" };

/// The whole of `value` as `N` bytes.
#[inline]
pub(super) fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], Unencodable> {
    value.try_into().map_err(|_| WRONG_LENGTH)
}

/// What is left to read of a value or of a tuple, in network byte order.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// Shows how many bytes are left, never which: they are row values.
impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("rest_bytes", &self.rest.len()).finish()
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Unencodable> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(super) fn int16(&mut self) -> Result<i16, Unencodable> {
        self.array().map(i16::from_be_bytes)
    }

    #[inline]
    pub(super) fn uint16(&mut self) -> Result<u16, Unencodable> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn int32(&mut self) -> Result<i32, Unencodable> {
        self.array().map(i32::from_be_bytes)
    }

    #[inline]
    pub(super) fn uint32(&mut self) -> Result<u32, Unencodable> {
        self.array().map(u32::from_be_bytes)
    }

    /// An int32 length and as many bytes; `None` is null, whose length is -1.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<&'a [u8]>, Unencodable> {
        let length = self.int32()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| WRONG_LENGTH)?;
        let (field, rest) = self.rest.split_at_checked(length).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(Some(field))
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// # Errors
    /// Bytes that nobody has read are left.
    #[inline]
    pub(super) fn finish(self) -> Result<(), Unencodable> {
        if self.rest.is_empty() { Ok(()) } else { Err(WRONG_LENGTH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_null_empty_or_as_long_as_announced() {
        let mut input = Reader::new(&[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 2, 7, 8]);
        assert_eq!(input.field(), Ok(None));
        assert_eq!(input.field(), Ok(Some(b"".as_slice())));
        assert_eq!(input.field(), Ok(Some(b"\x07\x08".as_slice())));
        assert_eq!(input.field(), Err(TRUNCATED));
        assert_eq!(input.finish(), Ok(()));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        assert_eq!(Reader::new(&[0, 0, 0]).field(), Err(TRUNCATED));
        assert_eq!(Reader::new(&[0, 0, 0, 1]).field(), Err(TRUNCATED));
        assert_eq!(Reader::new(&[255, 255, 255, 254]).field(), Err(WRONG_LENGTH));
        assert_eq!(Reader::new(&[127, 255, 255, 255]).field(), Err(TRUNCATED));
        assert_eq!(Reader::new(&[0]).finish(), Err(WRONG_LENGTH));
    }
}
