//! Push providers for tests: they check what they are sent as strictly as the real ones could, answer by a script, and
//! remember. **Invariant:** what a fake accepts, its provider's documents allow.
//!
//! Each fake listens on loopback, behind TLS whose authority it made itself ([`Host::certificate_pem`]); each can also be
//! reached without a socket ([`Host::pipe`]). See `README.md` for what is checked and where that is written.
//!
//! ```no_run
//! # async fn example() -> Result<(), chappe_fakes::FakeError> {
//! use chappe_fakes::{Apns, ApnsConfig, Step, TokenState};
//! let apns = Apns::start(ApnsConfig::default()).await?;
//! let token = apns.new_token();
//! apns.script().next(Step::answer(503, "ServiceUnavailable").retry_after_seconds(7).into());
//! apns.set_token(&token, TokenState::DeadSince(1_700_000_000_000));
//! // … the code under test: apns.url(), apns.certificate_pem(), apns.key(), token …
//! let seen = apns.record().wait_for(2).await?;
//! println!("{:?}", seen[1].verdict);
//! # Ok(()) }
//! ```

mod answer;
mod apns;
mod authority;
mod clock;
mod codec;
mod error;
mod fcm;
mod flow;
mod host;
mod http1;
mod http2;
mod jws;
mod kit;
mod record;
mod rules;
mod script;
mod tokens;
mod webpush;
mod wire;

pub use answer::{Answer, Body};
pub use apns::{Apns, ApnsConfig, ApnsKey};
pub use authority::Authority;
pub use clock::Clock;
pub use error::FakeError;
pub use fcm::{Fcm, FcmConfig};
pub use host::{Door, Host, HostConfig};
pub use kit::{Kit, KitConfig};
pub use record::{Carrier, Counts, Entry, Kind, Record, Verdict};
pub use script::{Script, Step};
pub use tokens::TokenState;
pub use webpush::{Subscription, WebPush, WebPushConfig};
