//! The decoder against hostile input and against every way to cut honest input.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

/// What came out, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Binary(Vec<u8>),
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Event::Close(code) => Self::Close(code),
        }
    }
}

const LIMITS: CodecLimits =
    CodecLimits { message_bytes_max: 70_000, fragments_max: 64, pongs_max: 1, text: false };
const TEXT: CodecLimits = CodecLimits { text: true, ..LIMITS };

/// A masked frame, written without the code under test.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).expect("short")),
        length @ 126..=65_535 => {
            bytes.push(0xfe);
            bytes.extend(u16::try_from(length).expect("middle").to_be_bytes());
        }
        length => {
            bytes.push(0xff);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [0x5a, 0x00, 0xff, 0x13];
    bytes.extend(mask);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    decoder.feed(&mut bytes.to_vec(), &mut |event| seen.push(event.into()));
    seen
}

fn run(limits: CodecLimits, bytes: &[u8]) -> (Vec<Seen>, Option<End>) {
    let mut decoder = Decoder::new(limits);
    let seen = feed(&mut decoder, bytes);
    let mut bytewise = Decoder::new(limits);
    let mut seen_bytewise = Vec::new();
    for byte in bytes {
        seen_bytewise.extend(feed(&mut bytewise, &[*byte]));
    }
    assert_eq!(seen, seen_bytewise, "whole and bytewise feeding differ");
    assert_eq!(decoder.end(), bytewise.end());
    (seen, decoder.end())
}

/// The code that the input must be answered with, found the same in one piece and byte by byte.
fn refused(limits: CodecLimits, bytes: &[u8]) -> u16 {
    match run(limits, bytes) {
        (_, Some(End::Violation(violation))) => violation.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn honest_frames_of_every_header_size_pass() {
    for length in [0, 1, 3, 4, 31, 32, 33, 125, 126, 127, 65_535, 65_536, 70_000] {
        let payload: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).expect("small")).collect();
        assert_eq!(run(LIMITS, &frame(0x82, &payload)), (vec![Seen::Binary(payload)], None), "{length}");
    }
}

#[test]
fn a_frame_without_a_mask_is_refused() {
    assert_eq!(refused(LIMITS, &[0x82, 3, 1, 2, 3]), 1002);
    assert_eq!(refused(LIMITS, &[0x89, 0]), 1002);
}

#[test]
fn reserved_bits_and_opcodes_are_refused() {
    for bit in [0x40, 0x20, 0x10] {
        assert_eq!(refused(LIMITS, &frame(0x82 | bit, b"x")), 1002);
        assert_eq!(refused(LIMITS, &frame(0x89 | bit, b"x")), 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(refused(LIMITS, &frame(0x80 | opcode, b"")), 1002, "opcode {opcode}");
    }
}

#[test]
fn control_frames_are_short_and_whole() {
    for opcode in [8, 9, 10] {
        assert_eq!(refused(LIMITS, &frame(opcode, b"")), 1002, "fragmented {opcode}");
        assert_eq!(refused(LIMITS, &frame(0x80 | opcode, &[b'x'; 126])), 1002, "126 bytes of {opcode}");
    }
    assert_eq!(run(LIMITS, &frame(0x89, &[7; 125])), (vec![Seen::Ping(vec![7; 125])], None));
    assert_eq!(run(LIMITS, &frame(0x8a, b"hm")), (vec![Seen::Pong(b"hm".to_vec())], None));
}

#[test]
fn text_is_refused_unless_it_is_allowed_and_then_checked() {
    assert_eq!(refused(LIMITS, &frame(0x81, b"hello")), 1003);
    assert_eq!(run(TEXT, &frame(0x81, "κόσμε".as_bytes())), (vec![Seen::Text("κόσμε".to_owned())], None));
    assert_eq!(refused(TEXT, &frame(0x81, b"\xed\xa0\x80")), 1007);
    assert_eq!(refused(TEXT, &frame(0x81, "κ".as_bytes().split_at(1).0)), 1007, "ends inside a character");
}

#[test]
fn text_in_fragments_may_cut_characters_and_fails_at_its_first_bad_byte() {
    let euro = "€".as_bytes();
    let bytes = [frame(0x01, &euro[..1]), frame(0x00, &euro[1..2]), frame(0x80, &euro[2..])].concat();
    assert_eq!(run(TEXT, &bytes), (vec![Seen::Text("€".to_owned())], None));
    let endless = [frame(0x01, b"fine"), frame(0x00, b"\xff")].concat();
    assert_eq!(refused(TEXT, &endless), 1007, "before the last fragment came");
}

#[test]
fn fragments_add_up_around_control_frames() {
    let bytes = [
        frame(0x02, b"ab"),
        frame(0x89, b"p"),
        frame(0x00, b""),
        frame(0x8a, b""),
        frame(0x80, b"cd"),
        frame(0x82, b"next"),
    ]
    .concat();
    let seen = vec![
        Seen::Ping(b"p".to_vec()),
        Seen::Pong(Vec::new()),
        Seen::Binary(b"abcd".to_vec()),
        Seen::Binary(b"next".to_vec()),
    ];
    assert_eq!(run(LIMITS, &bytes), (seen, None));
}

#[test]
fn fragments_out_of_place_are_refused() {
    assert_eq!(refused(LIMITS, &frame(0x80, b"of nothing")), 1002);
    assert_eq!(refused(LIMITS, &frame(0x00, b"of nothing")), 1002);
    assert_eq!(refused(LIMITS, &[frame(0x02, b"a"), frame(0x82, b"b")].concat()), 1002);
    assert_eq!(refused(TEXT, &[frame(0x02, b"a"), frame(0x81, b"b")].concat()), 1002);
    assert_eq!(refused(LIMITS, &[frame(0x82, b"a"), frame(0x80, b"b")].concat()), 1002);
}

#[test]
fn lengths_are_judged_before_anything_is_reserved() {
    let huge = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    assert_eq!(refused(LIMITS, &huge), 1002);
    let most = [0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4];
    assert_eq!(refused(LIMITS, &most), 1009);
    assert_eq!(refused(LIMITS, &[0x82, 0xfe, 0, 125, 1, 2, 3, 4]), 1002, "not the shortest form");
    assert_eq!(
        refused(LIMITS, &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 4]),
        1002,
        "not the shortest form"
    );
}

#[test]
fn an_announced_length_reserves_nothing() {
    let generous = CodecLimits { message_bytes_max: 64 * 1024 * 1024, ..LIMITS };
    let mut decoder = Decoder::new(generous);
    let mut header = vec![0x82, 0xff];
    header.extend(60_000_000_u64.to_be_bytes());
    header.extend([1, 2, 3, 4]);
    assert_eq!(feed(&mut decoder, &header), []);
    assert_eq!(decoder.held_bytes(), 0);
    feed(&mut decoder, &[0; 1_000]);
    assert!((1_000..=2_000).contains(&decoder.held_bytes()), "{}", decoder.held_bytes());
    for _ in 0..100 {
        feed(&mut decoder, &[0; 1_000]);
    }
    assert!(decoder.held_bytes() <= 2 * 101_000, "{}", decoder.held_bytes());
}

#[test]
fn a_message_may_reach_its_limit_and_no_byte_more() {
    let max = usize::try_from(LIMITS.message_bytes_max).expect("small");
    assert_eq!(run(LIMITS, &frame(0x82, &vec![1; max])).1, None);
    assert_eq!(refused(LIMITS, &frame(0x82, &vec![1; max + 1])), 1009);
    let exact = [frame(0x02, &vec![1; max - 10]), frame(0x80, &[1; 10])].concat();
    assert_eq!(run(LIMITS, &exact), (vec![Seen::Binary(vec![1; max])], None));
    let beyond = [frame(0x02, &vec![1; max - 10]), frame(0x80, &[1; 11])].concat();
    assert_eq!(refused(LIMITS, &beyond), 1009);
}

#[test]
fn fragments_are_counted() {
    let fragments = |count: usize| {
        let mut bytes = frame(0x02, b"x");
        for _ in 2..count {
            bytes.extend(frame(0x00, b"x"));
        }
        bytes.extend(frame(0x80, b"x"));
        bytes
    };
    assert_eq!(run(LIMITS, &fragments(64)), (vec![Seen::Binary(vec![b'x'; 64])], None));
    assert_eq!(refused(LIMITS, &fragments(65)), 1009);
    assert_eq!(refused(LIMITS, &fragments(10_000)), 1009);
    let mut decoder = Decoder::new(LIMITS);
    feed(&mut decoder, &frame(0x02, b""));
    while decoder.end().is_none() {
        feed(&mut decoder, &frame(0x00, b""));
    }
    assert_eq!(decoder.held_bytes(), 0, "empty fragments for ever");
}

#[test]
fn close_codes_follow_the_registry() {
    assert_eq!(run(LIMITS, &frame(0x88, b"")), (vec![Seen::Close(None)], Some(End::Closed)));
    let close = |code: u16, reason: &[u8]| frame(0x88, &[&code.to_be_bytes(), reason].concat());
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4409, 4999] {
        let expected = (vec![Seen::Close(Some(code))], Some(End::Closed));
        assert_eq!(run(LIMITS, &close(code, "bye, κόσμε".as_bytes())), expected);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(refused(LIMITS, &close(code, b"")), 1002, "{code}");
    }
    assert_eq!(refused(LIMITS, &frame(0x88, b"\x03")), 1002, "half a code");
    assert_eq!(refused(LIMITS, &close(1000, b"\xce\xba\xff")), 1007);
}

#[test]
fn nothing_is_read_behind_a_close_or_a_violation() {
    let bytes = [frame(0x88, b""), frame(0x82, b"late"), vec![0xff; 40]].concat();
    assert_eq!(run(LIMITS, &bytes), (vec![Seen::Close(None)], Some(End::Closed)));
    let bytes = [frame(0x82, b"fine"), frame(0x83, b"bad"), frame(0x82, b"late")].concat();
    let (seen, end) = run(LIMITS, &bytes);
    assert_eq!(seen, [Seen::Binary(b"fine".to_vec())]);
    assert!(matches!(end, Some(End::Violation(_))));
}

#[test]
fn a_whole_message_is_handed_over_without_a_copy() {
    let mut decoder = Decoder::new(LIMITS);
    let mut bytes = frame(0x82, &vec![9; 50_000]);
    let range = bytes.as_ptr_range();
    let mut inside = false;
    decoder.feed(&mut bytes, &mut |event| {
        let Event::Binary(message) = event else { panic!("{event:?}") };
        inside = range.contains(&message.as_ptr());
    });
    assert!(inside, "the message lies where it was read");
    assert_eq!(decoder.held_bytes(), 0);
}

/// A conversation of honest frames, some of them in fragments with control frames between.
fn conversation(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.random_range(1..8) {
        let length = match rng.random_range(0..4) {
            0 => rng.random_range(0..8),
            1 => rng.random_range(120..140),
            2 => rng.random_range(0..3_000),
            _ => rng.random_range(65_530..65_545),
        };
        let mut payload = vec![0; length];
        rng.fill_bytes(&mut payload);
        let mut first = 0x02;
        while rng.random_bool(0.4) {
            let part = payload.split_off(rng.random_range(0..=payload.len()));
            bytes.extend(frame(first, &payload));
            payload = part;
            first = 0x00;
            if rng.random_bool(0.5) {
                bytes.extend(frame(rng.random_range(0x89..=0x8a), b"between"));
            }
        }
        bytes.extend(frame(0x80 | first, &payload));
    }
    bytes
}

#[test]
fn any_cut_of_an_honest_stream_gives_the_same_messages() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let bytes = conversation(&mut rng);
        let (whole, end) = run(LIMITS, &bytes);
        assert_eq!(end, None, "seed {seed}");
        for _ in 0..10 {
            let mut decoder = Decoder::new(LIMITS);
            let mut seen = Vec::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let most = if rng.random_bool(0.5) { 20 } else { 40_000 };
                let (chunk, tail) = rest.split_at(rng.random_range(0..=most.min(rest.len())));
                seen.extend(feed(&mut decoder, chunk));
                rest = tail;
            }
            assert!(seen == whole, "seed {seed}: a cut changed the messages");
            assert_eq!(decoder.held_bytes(), 0, "seed {seed}: memory is kept after whole messages");
        }
    }
}

#[test]
fn a_short_stream_may_be_cut_at_every_position() {
    let bytes = [frame(0x02, b"ab"), frame(0x89, b"pp"), frame(0x80, &[3; 130]), frame(0x82, b"c")].concat();
    let whole = run(LIMITS, &bytes).0;
    for cut in 0..=bytes.len() {
        let mut decoder = Decoder::new(LIMITS);
        let mut seen = feed(&mut decoder, &bytes[..cut]);
        seen.extend(feed(&mut decoder, &bytes[cut..]));
        assert_eq!(seen, whole, "cut at {cut}");
    }
}

#[test]
fn noise_never_panics_and_never_makes_it_hold_more_than_came() {
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bytes =
            if rng.random_bool(0.5) { conversation(&mut rng) } else { vec![0; rng.random_range(0..200)] };
        bytes.truncate(4_000);
        if rng.random_bool(0.7) {
            for _ in 0..rng.random_range(1..6) {
                if let Some(byte) = (!bytes.is_empty()).then(|| rng.random_range(0..bytes.len())) {
                    bytes[byte] = rng.random();
                }
            }
        } else {
            rng.fill_bytes(&mut bytes);
        }
        let limits = if rng.random_bool(0.5) { LIMITS } else { TEXT };
        let mut decoder = Decoder::new(limits);
        for chunk in bytes.chunks(rng.random_range(1..300)) {
            feed(&mut decoder, chunk);
            assert!(decoder.held_bytes() <= 2 * bytes.len() + 256, "seed {seed}");
        }
    }
}
