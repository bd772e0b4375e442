//! Identifiers, one newtype per word of the protocol. **Invariant:** names of users and devices never print themselves.

use alloc::sync::Arc;
use core::fmt;
use sha2::{Digest, Sha256};

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads 16 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Reads 32 hexadecimal digits, as it is printed; `None` for anything else.
            pub fn from_hex(digits: &str) -> Option<Self> {
                let hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                let value = hex.then(|| u128::from_str_radix(digits, 16).ok())??;
                Some(Self(value.to_be_bytes()))
            }

            /// A fresh random id.
            pub fn random(world: &dyn crate::world::World) -> Self {
                let mut bytes = [0; 16];
                world.fill_random(&mut bytes);
                Self(bytes)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id128! {
    /// Names a mailbox: minted with the user, hides the user's name, never re-used.
    MailboxId
}
id128! {
    /// 128 random bits chosen by the sender, one per submit, the same on every retry; never shown to others.
    SubmitId
}
id128! {
    /// Key of idempotence in the store and of de-duplication in the SDK.
    EnvelopeId
}
id128! {
    /// Names a payload that several slots refer to; its own per attempt.
    PayloadId
}
id128! {
    /// Names one socket; the greater one wins between equal epochs. Made by [`ConnectionId::mint`].
    ConnectionId
}
id128! {
    /// Names one gateway process (an incarnation, not a host).
    GatewayId
}
id128! {
    /// Names the mailbox and the incarnation of its store, so that a restored backup is noticed.
    CursorTag
}

id128! {
    /// Names a cluster: everything that shares one store. Two clusters on one bus by mistake tell each other apart by it.
    ClusterId
}
id128! {
    /// Follows one request through the logs of gateways and routers; names nobody.
    TraceId
}

impl ClusterId {
    /// The id of everything that shares this store under this name: the first 128 bits of SHA-256("chappe cluster" ‖ 0 ‖ name ‖ 0
    /// ‖ incarnation). A store that was restored from a backup makes another cluster: its processes start anew together.
    pub fn of_store(name: &str, incarnation: [u8; 16]) -> Self {
        let digest = Sha256::new()
            .chain_update("chappe cluster\0")
            .chain_update(name)
            .chain_update("\0")
            .chain_update(incarnation)
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl MailboxId {
    /// Mailboxes are spread over so many shards, where work on all of them is divided.
    pub const SHARDS: u8 = 16;

    /// The shard of this one.
    pub fn shard(self) -> u8 {
        self.0.iter().fold(0, |folded, byte| folded ^ byte ^ (byte >> 4)) % Self::SHARDS
    }
}

impl ConnectionId {
    /// A fresh id that grows with time: 48 bits of wall clock in milliseconds (RFC 9562 §5.7 has the same layout), then 80
    /// random bits. Of two attaches that came to the same epoch the later socket wins, as far as the gateways' clocks agree.
    pub fn mint(world: &dyn crate::world::World) -> Self {
        let mut id = [0; 16];
        world.fill_random(&mut id[6..]);
        id[..6].copy_from_slice(&world.wall().0.to_be_bytes()[2..]);
        Self(id)
    }
}

impl EnvelopeId {
    /// The first 128 bits of SHA-256(`submit_id` ‖ mailbox ‖ entry number as 4 bytes big-endian).
    pub fn derive(submit: SubmitId, mailbox: MailboxId, number: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(submit.0)
            .chain_update(mailbox.0)
            .chain_update(number.to_be_bytes())
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

/// A name was empty, too long, or held a character that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Users: 1 to 128 bytes, no control characters.
    #[error("a user name has 1 to 128 bytes and no control characters")]
    User,
    /// Devices: 1 to 64 bytes of `[A-Za-z0-9._:-]`.
    #[error("a device id has 1 to 64 bytes of letters, digits and . _ : -")]
    Device,
}

/// The name of a user: 1 to 128 bytes of UTF-8 without control characters. Stands in the `user` table and nowhere else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let good = !name.is_empty() && name.len() <= Self::BYTES_MAX && !name.chars().any(char::is_control);
        if good { Ok(Self(name.into())) } else { Err(NameError::User) }
    }

    /// The name itself; never log it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserId(…)")
    }
}

/// A device of a user: 1 to 64 bytes of `[A-Za-z0-9._:-]`, never re-used for another device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// The longest id, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks and takes an id.
    pub fn new(id: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        let good = !id.is_empty() && id.len() <= Self::BYTES_MAX && id.bytes().all(allowed);
        if good { Ok(Self(id.into())) } else { Err(NameError::Device) }
    }

    /// The id itself; never log it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceId(…)")
    }
}

/// A slot's place in its mailbox: dense from 1, never re-issued. 0 means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first slot.
    pub const ZERO: Self = Self(0);
    /// The head of an erased mailbox: nothing can be appended behind it.
    pub const MAX: Self = Self(u64::MAX);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Number of a bucket: one partition of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bucket(pub u64);

/// How many slots a bucket holds: `1 << shift`. 8 in production; tests and the simulation use less to cross edges often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketShape {
    /// `bucket = seq >> shift`.
    pub shift: u8,
}

impl BucketShape {
    /// 256 slots.
    pub const PRODUCTION: Self = Self { shift: 8 };

    /// The bucket of a slot.
    pub const fn bucket_of(self, seq: Seq) -> Bucket {
        Bucket(seq.0 >> self.shift)
    }

    /// The first slot of a bucket (1 for bucket 0, since slot 0 does not exist).
    pub const fn first(self, bucket: Bucket) -> Seq {
        if bucket.0 == 0 { Seq(1) } else { Seq(bucket.0 << self.shift) }
    }

    /// The last slot of a bucket; a bucket whose head is here is sealed.
    pub const fn last(self, bucket: Bucket) -> Seq {
        Seq(((bucket.0 + 1) << self.shift) - 1)
    }
}

/// The number of a device's session; the newer epoch wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

#[cfg(test)]
mod tests {
    use super::{ConnectionId, SubmitId};
    use crate::testing::TestWorld;
    use crate::time::{Millis, UnixMillis};

    #[test]
    fn what_is_printed_can_be_read_again() {
        let id = SubmitId(core::array::from_fn(|n| u8::try_from(n * 17).unwrap_or_default()));
        assert_eq!(SubmitId::from_hex(&alloc::format!("{id}")), Some(id));
        for bad in ["", "00", "+0000000000000000000000000000000", "0000000000000000000000000000000g"] {
            assert_eq!(SubmitId::from_hex(bad), None, "{bad}");
        }
        assert_eq!(SubmitId::from_hex(&"0".repeat(33)), None);
    }

    #[test]
    fn the_connection_minted_later_is_the_greater() {
        for seed in 0..100 {
            let world = TestWorld::new(seed);
            let mut last = ConnectionId::mint(&world);
            for by in [1, 1, 254, 255, 65_536, 1 << 32] {
                world.advance(Millis(by));
                let next = ConnectionId::mint(&world);
                assert!(last < next, "seed {seed}: {last} is not less than {next}");
                last = next;
            }
        }
    }

    #[test]
    fn a_connection_tells_its_millisecond_and_is_random_behind_it() {
        let world = TestWorld::new(1);
        world.set_wall(UnixMillis(0x0123_4567_89ab));
        let (one, other) = (ConnectionId::mint(&world), ConnectionId::mint(&world));
        assert_eq!(one.0[..6], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab]);
        assert_eq!(other.0[..6], one.0[..6]);
        assert_ne!(other.0[6..], one.0[6..]);
        // Not one of the 80 bits stands still.
        let (mut ever_set, mut ever_clear) = ([0_u8; 10], [0_u8; 10]);
        for _ in 0..200 {
            for (place, byte) in ConnectionId::mint(&world).0[6..].iter().enumerate() {
                ever_set[place] |= byte;
                ever_clear[place] |= !byte;
            }
        }
        assert_eq!((ever_set, ever_clear), ([0xff; 10], [0xff; 10]));
    }
}
