//! Frames of WebSocket as a client writes and reads them (RFC 6455, section 5.2). **Invariant:** pure; a frame larger than the
//! bound is refused by its head alone, before memory is taken for it.

/// A part of a message that has begun.
pub(super) const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
/// What chappe.v1 consists of.
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// RFC 6455, section 5.5.
const CONTROL_BYTES_MAX: usize = 125;

/// The head of a frame from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The last of its message.
    pub(super) fin: bool,
    pub(super) opcode: u8,
    /// Bytes of the head itself.
    pub(super) own: usize,
    /// Bytes behind it.
    pub(super) length: usize,
}

/// Reads a head; `None`: it is not whole yet. Errors, for people: no server may send that, or it is larger than `max`.
pub(super) fn head(bytes: &[u8], max: usize) -> Result<Option<Head>, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (fin, opcode) = (first & FIN != 0, first & 0x0f);
    if first & 0x70 != 0 {
        return Err("the server uses an extension that was not asked for");
    }
    if second & MASKED != 0 {
        return Err("the server masks its frames");
    }
    let (own, length) = match (second & 0x7f, rest) {
        (126, [high, low, ..]) => (4, u64::from(u16::from_be_bytes([*high, *low]))),
        (127, long) if let Some(long) = long.first_chunk() => (10, u64::from_be_bytes(*long)),
        (126 | 127, _) => return Ok(None),
        (short, _) => (2, u64::from(short)),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match opcode {
        CLOSE | PING | PONG if !fin || length > CONTROL_BYTES_MAX => {
            Err("the server sent a control frame that is none")
        }
        TEXT => Err("the server sent text, chappe.v1 is binary"),
        CONTINUATION | BINARY | CLOSE | PING | PONG if length <= max => {
            Ok(Some(Head { fin, opcode, own, length }))
        }
        CONTINUATION | BINARY | CLOSE | PING | PONG => Err("the server sent a message larger than the limit"),
        _ => Err("the server sent a frame of no known kind"),
    }
}

/// Appends a whole masked frame, whose body `write` appends.
pub(super) fn frame(out: &mut Vec<u8>, opcode: u8, mask: [u8; 4], write: impl FnOnce(&mut Vec<u8>)) {
    // Room for the usual head: two bytes of length and the mask. It is moved if the body turns out short or very long.
    let start = out.len();
    out.extend_from_slice(&[FIN | opcode, MASKED | 0x7e, 0, 0]);
    out.extend_from_slice(&mask);
    let body = out.len();
    write(out);
    let length = out.len() - body;
    let (words, rest) = out[body..].as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => {
            out[start + 1] = MASKED | short;
            out.drain(start + 2..start + 4);
        }
        (_, Ok(length)) => out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes()),
        _ => {
            out[start + 1] = MASKED | 0x7f;
            out.splice(start + 2..start + 4, (length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    #[test]
    fn a_frame_of_any_length_has_the_head_of_its_length_and_its_body_under_the_mask() {
        for (length, head) in [(0, 6), (125, 6), (126, 8), (300, 8), (65_535, 8), (65_536, 14), (70_001, 14)]
        {
            let body: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
            let mut out = vec![9, 9];
            frame(&mut out, BINARY, MASK, |out| out.extend_from_slice(&body));
            assert_eq!((out.len(), &out[..3]), (2 + head + body.len(), &[9, 9, 0x82][..]), "{length}");
            assert_eq!(out[3] & 0x80, 0x80, "masked");
            assert_eq!(out[2 + head - 4..2 + head], MASK);
            let back: Vec<u8> =
                out[2 + head..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(back, body);
            // What a server would send: the same without the mask.
            let mut plain = out[2..2 + head - 4].to_vec();
            plain[1] &= 0x7f;
            let read = super::head(&plain, 100_000).unwrap().unwrap();
            assert_eq!(read, Head { fin: true, opcode: BINARY, own: head - 4, length: body.len() });
            for cut in 0..plain.len() {
                assert_eq!(super::head(&plain[..cut], 100_000), Ok(None), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        for bad in [
            [0xc2, 1],    // an extension's bit
            [0x82, 0x81], // masked
            [0x81, 1],    // text
            [0x83, 1],    // no kind
            [0x09, 1],    // a ping in parts
            [0x88, 126],  // a close too long, with its length cut off below
        ] {
            let bytes = [bad[0], bad[1], 0, 200];
            assert!(head(&bytes, 1000).is_err(), "{bad:?}");
        }
        assert!(head(&[0x82, 126, 4, 0], 1023).is_err(), "1024 bytes");
        assert!(head(&[0x82, 126, 4, 0], 1024).unwrap().is_some());
        assert!(head(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0], 1 << 20).is_err());
        assert!(!head(&[0x02, 5], 10).unwrap().unwrap().fin);
    }
}
