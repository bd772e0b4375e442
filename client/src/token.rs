//! Where tokens come from. **Invariant:** a token is never logged, stored or put into an error.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_protocol::time::UnixMillis;

/// Why the SDK asks for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenReason {
    /// The first connection of this client, or one after the last token was still good: a kept token will do.
    Connect,
    /// The last token has expired or is about to: it must be a new one.
    Expired,
}

/// No token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The person is not signed in any more: the client fails and does not ask again.
    #[error("the token source refuses: {0}")]
    Refused(String),
    /// No token now, for instance for want of a network: the client asks again with its usual backoff.
    #[error("the token source is unavailable: {0}")]
    Unavailable(String),
}

impl TokenError {
    /// Whether the source may have a token later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Unavailable(_) => true,
        }
    }
}

/// Gives JSON Web Tokens (claims `sub`, `device`, `exp`). Implemented for `String` and `&'static str` (one token for
/// ever) and for closures `Fn(TokenReason) -> impl Future<Output = Result<String, TokenError>>`.
#[async_trait]
pub trait TokenSource: Send + Sync + 'static {
    /// A token for this user and device. Called once per connection, and before the expiry of the last one.
    async fn token(&self, why: TokenReason) -> Result<String, TokenError>;
}

#[async_trait]
impl TokenSource for String {
    async fn token(&self, why: TokenReason) -> Result<String, TokenError> {
        fixed(self, why)
    }
}

#[async_trait]
impl TokenSource for &'static str {
    async fn token(&self, why: TokenReason) -> Result<String, TokenError> {
        fixed(self, why)
    }
}

#[async_trait]
impl<F, R> TokenSource for F
where
    F: Fn(TokenReason) -> R + Send + Sync + 'static,
    R: Future<Output = Result<String, TokenError>> + Send + 'static,
{
    async fn token(&self, why: TokenReason) -> Result<String, TokenError> {
        self(why).await
    }
}

/// A fixed token cannot be renewed.
fn fixed(token: &str, why: TokenReason) -> Result<String, TokenError> {
    match why {
        TokenReason::Connect => Ok(token.to_owned()),
        TokenReason::Expired => Err(TokenError::Refused("the fixed token has expired".to_owned())),
    }
}

/// The claim `exp` of a JSON Web Token (RFC 7519 §4.1.4), unverified: it only says when to ask for the next token.
pub fn expiry(token: &str) -> Option<UnixMillis> {
    let payload = token.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&json).ok()?;
    let seconds = claims.get("exp")?.as_f64()?;
    // Whole seconds of a sane date; anything else is as good as no expiry.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded by the line above it"
    )]
    (0.0..1e12).contains(&seconds).then(|| UnixMillis(seconds as u64 * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn expiry_is_read_from_the_claims_alone() {
        assert_eq!(expiry(&token(r#"{"sub":"a","exp":1700000000}"#)), Some(UnixMillis(1_700_000_000_000)));
        assert_eq!(expiry(&token(r#"{"exp":1700000000.9}"#)), Some(UnixMillis(1_700_000_000_000)));
        for bad in [
            "",
            "a",
            "a.b.c",
            &token("[]"),
            &token("{}"),
            &token(r#"{"exp":-1}"#),
            &token(r#"{"exp":1e300}"#),
        ] {
            assert_eq!(expiry(bad), None, "{bad}");
        }
    }
}
