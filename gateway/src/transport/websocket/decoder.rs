//! Bytes from a client into messages (RFC 6455 §5, server side). **Invariant:** what comes out depends on the bytes
//! alone, never on how reads cut them; memory held is at most twice the payload bytes that came, and at most
//! `message_bytes_max`.

use super::CodecLimits;
use crate::transport::Violation;

/// What the peer did, borrowed for the time of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A whole text message; only with [`CodecLimits::text`].
    Text(&'a str),
    /// A ping; its pong is queued.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The goodbye, with its code if it has one; the answer is queued.
    Close(Option<u16>),
}

/// Why a decoder takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The peer's close was handed over.
    Closed,
    /// The peer broke the rules.
    Violation(Violation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The frame whose payload is being read.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    fin: bool,
    remaining: usize,
    /// Turned so that its first byte is the next one to apply.
    mask: [u8; 4],
}

/// How far one step came: bytes used up, and whether the header or frame is whole now.
struct Step {
    taken: usize,
    whole: bool,
}

/// The message that fragments add up to.
#[derive(Debug, Clone, Copy)]
struct Assembly {
    text: bool,
    fragments: u32,
    /// How many bytes of a text are known to be whole characters.
    characters: usize,
}

/// The reading half of the codec; a value without I/O.
#[derive(Debug)]
pub(super) struct Decoder {
    limits: CodecLimits,
    header: [u8; 14],
    header_len: u8,
    frame: Option<Frame>,
    assembly: Option<Assembly>,
    /// Payload of the incomplete message, unmasked.
    message: Vec<u8>,
    /// Payload of the incomplete control frame, unmasked.
    control: Vec<u8>,
    end: Option<End>,
}

impl Decoder {
    pub(super) const fn new(limits: CodecLimits) -> Self {
        Self {
            limits,
            header: [0; 14],
            header_len: 0,
            frame: None,
            assembly: None,
            message: Vec::new(),
            control: Vec::new(),
            end: None,
        }
    }

    /// Why it takes no more, once that is so.
    pub(super) const fn end(&self) -> Option<End> {
        self.end
    }

    /// Bytes of heap it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.message.capacity() + self.control.capacity()
    }

    /// Takes bytes, unmasks them in place and gives what they complete to the sink. After an [`end`](Self::end) bytes
    /// are ignored.
    pub(super) fn feed(&mut self, input: &mut [u8], sink: &mut dyn FnMut(Event<'_>)) {
        let mut rest = input;
        while self.end.is_none() {
            let step = match self.frame {
                None => self.take_header(rest),
                Some(frame) => self.take_payload(frame, rest, sink),
            };
            match step {
                Ok(Step { taken, whole }) => {
                    rest = &mut rest[taken..];
                    if !whole {
                        return;
                    }
                }
                Err(violation) => self.fail(violation),
            }
        }
    }

    fn fail(&mut self, violation: Violation) {
        self.end = Some(End::Violation(violation));
        self.message = Vec::new();
        self.control = Vec::new();
    }

    /// Keeps header bytes, each judged as soon as it is there.
    fn take_header(&mut self, rest: &[u8]) -> Result<Step, Violation> {
        let mut taken = 0;
        loop {
            let need = if self.header_len < 2 { 2 } else { header_len(self.header[1]) };
            if self.header_len == need {
                break;
            }
            let Some(&byte) = rest.get(taken) else { return Ok(Step { taken, whole: false }) };
            taken += 1;
            self.header[usize::from(self.header_len)] = byte;
            self.header_len += 1;
            match self.header_len {
                1 => drop(self.judge_first(byte)?),
                2 => self.judge_second(byte)?,
                _ => {}
            }
        }
        let opcode = self.judge_first(self.header[0])?;
        let remaining = self.payload_len(opcode)?;
        let mask_at = usize::from(self.header_len) - 4;
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.header[mask_at..mask_at + 4]);
        if !opcode.is_control() {
            let assembly = self.assembly.get_or_insert(Assembly {
                text: opcode == Opcode::Text,
                fragments: 0,
                characters: 0,
            });
            assembly.fragments += 1;
        }
        self.frame = Some(Frame { opcode, fin: self.header[0] & 0x80 != 0, remaining, mask });
        self.header_len = 0;
        Ok(Step { taken, whole: true })
    }

    fn judge_first(&self, byte: u8) -> Result<Opcode, Violation> {
        if byte & 0x70 != 0 {
            return Err(protocol("a reserved bit is set, though no extension was agreed on"));
        }
        let fin = byte & 0x80 != 0;
        let opcode = match byte & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(protocol("an opcode that is not defined")),
        };
        match (opcode, &self.assembly) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if !fin => {
                Err(protocol("a control frame in fragments"))
            }
            (Opcode::Text, None) if !self.limits.text => {
                Err(Violation { code: 1003, reason: "text: this endpoint takes binary messages only" })
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                Err(protocol("a new message inside the fragments of another"))
            }
            (Opcode::Continuation, None) => Err(protocol("a continuation of nothing")),
            (Opcode::Continuation, Some(assembly)) if assembly.fragments >= self.limits.fragments_max => {
                Err(Violation { code: 1009, reason: "too many fragments" })
            }
            _ => Ok(opcode),
        }
    }

    fn judge_second(&self, byte: u8) -> Result<(), Violation> {
        if byte & 0x80 == 0 {
            return Err(protocol("a frame without a mask"));
        }
        if self.header[0] & 0x08 != 0 && byte & 0x7f > 125 {
            return Err(protocol("a control frame beyond 125 bytes"));
        }
        Ok(())
    }

    /// The announced length, once it is known to be allowed; nothing is reserved for it.
    fn payload_len(&self, opcode: Opcode) -> Result<usize, Violation> {
        let h = &self.header;
        let length = match h[1] & 0x7f {
            126 => {
                let length = u64::from(u16::from_be_bytes([h[2], h[3]]));
                if length < 126 {
                    return Err(protocol("a length that is not in its shortest form"));
                }
                length
            }
            127 => {
                let length = u64::from_be_bytes([h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9]]);
                if length >> 63 != 0 {
                    return Err(protocol("a length with its highest bit set"));
                }
                if u16::try_from(length).is_ok() {
                    return Err(protocol("a length that is not in its shortest form"));
                }
                length
            }
            short => u64::from(short),
        };
        let too_big = Violation { code: 1009, reason: "a message beyond the limit" };
        let length = usize::try_from(length).map_err(|_| too_big)?;
        let max = usize::try_from(self.limits.message_bytes_max).unwrap_or(usize::MAX);
        if !opcode.is_control() && length > max.saturating_sub(self.message.len()) {
            return Err(too_big);
        }
        Ok(length)
    }

    /// Takes what is there of the payload.
    fn take_payload(
        &mut self,
        mut frame: Frame,
        rest: &mut [u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<Step, Violation> {
        let taken = frame.remaining.min(rest.len());
        let chunk = &mut rest[..taken];
        unmask(chunk, frame.mask);
        frame.mask.rotate_left(taken % 4);
        frame.remaining -= taken;
        let whole = frame.remaining == 0;
        self.frame = if whole { None } else { Some(frame) };
        if frame.opcode.is_control() {
            self.take_control(frame.opcode, chunk, whole, sink)?;
        } else {
            self.take_data(chunk, whole && frame.fin, sink)?;
        }
        Ok(Step { taken, whole })
    }

    fn take_control(
        &mut self,
        opcode: Opcode,
        chunk: &[u8],
        whole: bool,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Violation> {
        if !whole {
            self.control.extend_from_slice(chunk);
            return Ok(());
        }
        let mut kept = std::mem::take(&mut self.control);
        let payload = if kept.is_empty() {
            chunk
        } else {
            kept.extend_from_slice(chunk);
            &kept
        };
        match opcode {
            Opcode::Ping => sink(Event::Ping(payload)),
            Opcode::Pong => sink(Event::Pong(payload)),
            Opcode::Close | Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                let code = close_code(payload)?;
                self.end = Some(End::Closed);
                self.message = Vec::new();
                sink(Event::Close(code));
            }
        }
        Ok(())
    }

    fn take_data(
        &mut self,
        chunk: &[u8],
        last: bool,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Violation> {
        let text = self.assembly.is_some_and(|assembly| assembly.text);
        let kept = if last && self.message.is_empty() {
            None
        } else {
            self.keep(chunk);
            if text {
                self.check_characters()?;
            }
            Some(&self.message)
        };
        if !last {
            return Ok(());
        }
        let payload = kept.map_or(chunk, Vec::as_slice);
        if text {
            sink(Event::Text(std::str::from_utf8(payload).map_err(|_| BAD_UTF8)?));
        } else {
            sink(Event::Binary(payload));
        }
        self.message = Vec::new();
        self.assembly = None;
        Ok(())
    }

    /// Appends to the incomplete message; its capacity doubles with what came, not with what was announced.
    fn keep(&mut self, chunk: &[u8]) {
        let need = self.message.len() + chunk.len();
        if need > self.message.capacity() {
            let max = usize::try_from(self.limits.message_bytes_max).unwrap_or(usize::MAX);
            let target = need.max((2 * self.message.len()).min(max));
            self.message.reserve_exact(target - self.message.len());
        }
        self.message.extend_from_slice(chunk);
    }

    /// Fails on the first byte that cannot be UTF-8, before the text is whole (RFC 6455 §8.1).
    fn check_characters(&mut self) -> Result<(), Violation> {
        let Some(assembly) = &mut self.assembly else { return Ok(()) };
        match std::str::from_utf8(&self.message[assembly.characters..]) {
            Ok(_) => assembly.characters = self.message.len(),
            Err(error) if error.error_len().is_none() => assembly.characters += error.valid_up_to(),
            Err(_) => return Err(BAD_UTF8),
        }
        Ok(())
    }
}

const BAD_UTF8: Violation = Violation { code: 1007, reason: "text that is not UTF-8" };

const fn protocol(reason: &'static str) -> Violation {
    Violation { code: 1002, reason }
}

/// Bytes of a masked header, by its second byte.
const fn header_len(second: u8) -> u8 {
    match second & 0x7f {
        126 => 8,
        127 => 14,
        _ => 6,
    }
}

/// The code of a close frame (RFC 6455 §7.4 and the IANA registry: 1012–1014 are registered).
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(protocol("a close with half a code")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a close code that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation { code: 1007, reason: "a close reason that is not UTF-8" });
    }
    Ok(Some(code))
}

/// Undoes the mask, in steps that the compiler turns into vector instructions.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let mut wide = [0; 32];
    for (at, byte) in wide.iter_mut().enumerate() {
        *byte = mask[at % 4];
    }
    let mut blocks = bytes.chunks_exact_mut(wide.len());
    for block in &mut blocks {
        for (byte, key) in block.iter_mut().zip(wide) {
            *byte ^= key;
        }
    }
    for (byte, key) in blocks.into_remainder().iter_mut().zip(wide) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests;
