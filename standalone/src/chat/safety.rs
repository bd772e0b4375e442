//! The number that two people compare over another channel. **Invariant:** it is the same on both sides, and changes when
//! a name or a key changes.

use sha2::{Digest as _, Sha512};

const GROUPS: usize = 12;

/// 60 digits in groups of five: from SHA-512 over both names and keys, the smaller name first.
pub(super) fn safety_number(one: (&str, &[u8]), other: (&str, &[u8])) -> String {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    let mut hash = Sha512::new_with_prefix(b"chappe safety number 1");
    for (name, key) in [first, second] {
        for part in [name.as_bytes(), key] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    let digest = hash.finalize();
    let digits = digest.chunks_exact(5).take(GROUPS).map(|five| {
        let number = five.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("{:05}", number % 100_000)
    });
    digits.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_and_any_change_shows() {
        let here = safety_number(("anna", b"a"), ("ben", b"b"));
        assert_eq!(here, safety_number(("ben", b"b"), ("anna", b"a")));
        assert_eq!(here.len(), 60 + 11);
        for (one, other) in
            [(("anna", b"x"), ("ben", b"b")), (("anna", b"b"), ("ben", b"a")), (("ann", b"a"), ("ben", b"b"))]
        {
            assert_ne!(here, safety_number((one.0, one.1), (other.0, other.1)));
        }
    }
}
