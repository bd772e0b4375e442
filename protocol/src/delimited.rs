//! The length in front of a frame on a byte stream: a base-128 varint, protobuf's length-delimited form.
//! **Invariant:** a length is judged before anything is kept for it.

/// Bytes of a length; enough for 256 MiB.
pub const LENGTH_BYTES_MAX: usize = 4;

/// Why a stream holds no more frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LengthError {
    /// It takes more than [`LENGTH_BYTES_MAX`] bytes.
    #[error("a frame's length takes more than 4 bytes")]
    TooLong,
    /// It says more than the bound.
    #[error("a frame is beyond the limit")]
    TooLarge,
}

/// The length at the front of these bytes: how many of them it takes itself, and what it says, at most `frame_bytes_max`.
/// `None`: it is incomplete.
pub fn read_length(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<(usize, usize)>, LengthError> {
    let mut length = 0;
    for (place, byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return if length > frame_bytes_max {
                Err(LengthError::TooLarge)
            } else {
                Ok(Some((place + 1, length)))
            };
        }
    }
    if bytes.len() < LENGTH_BYTES_MAX { Ok(None) } else { Err(LengthError::TooLong) }
}

/// The bytes of a length in `head`, and how many of them count. A length of 256 MiB or more is cut: no frame is as large.
pub fn write_length(length: usize) -> ([u8; LENGTH_BYTES_MAX], usize) {
    let mut head = [0; LENGTH_BYTES_MAX];
    let mut rest = length;
    for (place, byte) in head.iter_mut().enumerate() {
        *byte = u8::try_from(rest & 0x7f).unwrap_or(0);
        rest >>= 7;
        if rest == 0 || place + 1 == LENGTH_BYTES_MAX {
            return (head, place + 1);
        }
        *byte |= 0x80;
    }
    (head, LENGTH_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_length_delimited_protobuf() {
        for (length, bytes) in [
            (0, &[0][..]),
            (1, &[1]),
            (127, &[127]),
            (128, &[0x80, 1]),
            (300, &[0xac, 2]),
            (16_384, &[0x80, 0x80, 1]),
            (1 << 20, &[0x80, 0x80, 0x40]),
            ((1 << 28) - 1, &[0xff, 0xff, 0xff, 0x7f]),
        ] {
            let (head, used) = write_length(length);
            assert_eq!(&head[..used], bytes);
            assert_eq!(read_length(bytes, 1 << 28), Ok(Some((bytes.len(), length))));
            for cut in 0..bytes.len() {
                assert_eq!(read_length(&bytes[..cut], 1 << 28), Ok(None));
            }
        }
    }

    #[test]
    fn what_is_too_long_or_too_large_is_refused() {
        assert_eq!(read_length(&[0x81, 0x80, 0x40], 1 << 20), Err(LengthError::TooLarge));
        assert_eq!(read_length(&[0x80, 0x80, 0x80, 0x80], 1 << 20), Err(LengthError::TooLong));
        assert_eq!(read_length(&[0xff, 0xff, 0xff, 0xff, 1], 1 << 20), Err(LengthError::TooLong));
        assert_eq!(
            read_length(&[0x83, 0x80, 0], 1 << 20),
            Ok(Some((3, 3))),
            "not the shortest form, and good"
        );
    }
}
