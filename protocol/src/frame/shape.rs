//! Counts repeated fields in raw bytes before anything is allocated for them.
//! **Invariant:** an element of two bytes cannot become a hundred bytes of memory without a bound on how many there are.

use super::{DEVICES_MAX, ENDPOINTS_MAX, FrameError, RESULTS_MAX, TARGETS_HARD_MAX};

/// A length-delimited field that is counted.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Its number in the message.
    pub(crate) field: u64,
    /// Its name in errors.
    pub(crate) name: &'static str,
    /// How often it may stand in one message.
    pub(crate) max: usize,
    /// What is counted inside of it.
    pub(crate) inner: &'static [Self],
}

/// The most fields that one message has counted.
const COUNTED_MAX: usize = 4;

const DEVICES: &[Shape] = &[Shape { field: 1, name: "devices", max: DEVICES_MAX, inner: &[] }];

/// What is counted in a `ClientFrame`.
pub(super) const CLIENT: &[Shape] = &[SUBMIT, REQUEST];

/// Beyond what a request may hold, so that a request with a few too many is answered and not a reason to close.
const REQUEST_LISTS_MAX: usize = 64;

const REQUEST: Shape = Shape {
    field: 6,
    name: "request",
    max: 1,
    inner: &[Shape {
        field: 2,
        name: "set_push",
        max: 1,
        inner: &[
            Shape { field: 1, name: "targets", max: REQUEST_LISTS_MAX, inner: &[] },
            Shape {
                field: 2,
                name: "quiet",
                max: 1,
                inner: &[Shape { field: 1, name: "windows", max: REQUEST_LISTS_MAX, inner: &[] }],
            },
        ],
    }],
};

const SUBMIT: Shape = Shape {
    field: 2,
    name: "submit",
    max: 1,
    inner: &[
        Shape { field: 3, name: "payloads", max: TARGETS_HARD_MAX, inner: &[] },
        Shape {
            field: 4,
            name: "targets",
            max: TARGETS_HARD_MAX,
            inner: &[
                Shape { field: 3, name: "only", max: 1, inner: DEVICES },
                Shape { field: 4, name: "all_but", max: 1, inner: DEVICES },
            ],
        },
    ],
};

/// What is counted in a `ServerFrame`.
pub(super) const SERVER: &[Shape] = &[
    Shape {
        field: 5,
        name: "submit_result",
        max: 1,
        inner: &[Shape {
            field: 3,
            name: "results",
            max: RESULTS_MAX,
            inner: &[Shape { field: 5, name: "devices", max: DEVICES_MAX, inner: &[] }],
        }],
    },
    Shape {
        field: 7,
        name: "go_away",
        max: 1,
        inner: &[Shape { field: 4, name: "endpoints", max: ENDPOINTS_MAX, inner: &[] }],
    },
];

/// Walks one message. `Garbage` where the bytes are no message; `Field` where a count is exceeded.
pub(crate) fn check(mut bytes: &[u8], shapes: &[Shape]) -> Result<(), FrameError> {
    debug_assert!(shapes.len() <= COUNTED_MAX, "raise COUNTED_MAX");
    let mut counts = [0_usize; COUNTED_MAX];
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => {
                split(&mut bytes, 8)?;
            }
            2 => {
                let length = varint(&mut bytes)?;
                let part = split(&mut bytes, length)?;
                let counted = shapes.iter().zip(&mut counts).find(|(shape, _)| shape.field == key >> 3);
                if let Some((shape, count)) = counted {
                    *count += 1;
                    if *count > shape.max {
                        return Err(FrameError::Field(shape.name));
                    }
                    if !shape.inner.is_empty() {
                        check(part, shape.inner)?;
                    }
                }
            }
            5 => {
                split(&mut bytes, 4)?;
            }
            // Groups (3 and 4) are not of proto3; 6 and 7 do not exist.
            _ => return Err(FrameError::Garbage),
        }
    }
    Ok(())
}

/// Takes a base-128 varint of at most 64 bits off the front.
fn varint(bytes: &mut &[u8]) -> Result<u64, FrameError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(FrameError::Garbage)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(FrameError::Garbage)
}

/// Takes so many bytes off the front.
fn split<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], FrameError> {
    let length = usize::try_from(length).map_err(|_| FrameError::Garbage)?;
    let (part, rest) = bytes.split_at_checked(length).ok_or(FrameError::Garbage)?;
    *bytes = rest;
    Ok(part)
}
