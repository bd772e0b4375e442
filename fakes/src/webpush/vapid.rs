//! Voluntary application server identification (RFC 8292). **Invariant:** a token is for this origin, holds at most a day,
//! and was signed by the key that travels with it.

use crate::codec::base64url_bytes;
use crate::jws::{self, Algorithm, Jws};

/// A token holds at most this long from now, in seconds (RFC 8292 §2).
const SECONDS_MAX: u64 = 24 * 3600;

/// The public key of a header `Authorization: vapid t=…, k=…`, if all of it holds.
pub(super) fn check<'a>(header: &'a str, origin: &str, now: u64) -> Result<&'a str, String> {
    let Some((scheme, parameters)) = header.split_once(' ') else {
        return Err("authorization is: vapid t=…, k=…".to_owned());
    };
    if !scheme.eq_ignore_ascii_case("vapid") {
        return Err("the scheme of authorization is vapid".to_owned());
    }
    let (mut token, mut key) = (None, None);
    for parameter in parameters.split(',').map(str::trim) {
        let (name, value) = parameter.split_once('=').ok_or("a parameter of vapid has no value")?;
        let slot = match name {
            "t" => &mut token,
            "k" => &mut key,
            // RFC 8292 §3: unknown parameters are ignored.
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    let (token, key) = (token.ok_or("t is missing")?, key.ok_or("k is missing")?);
    let point = base64url_bytes(key).ok_or("k is not base64url without padding")?;
    if point.len() != 65 || point[0] != 4 {
        return Err("k is an uncompressed point of P-256".to_owned());
    }
    let claims = Jws::read(token, Algorithm::Es256)?.verify(&point)?;
    let audience = jws::text(&claims, "aud")?;
    if audience != origin {
        return Err(format!("aud is the endpoint's origin, {origin}"));
    }
    let expires = jws::seconds(&claims, "exp")?;
    if expires <= now {
        return Err(format!("exp was {} s ago", now - expires));
    }
    if expires - now > SECONDS_MAX {
        return Err("exp is more than 24 hours ahead".to_owned());
    }
    let subject = jws::text(&claims, "sub")?;
    if !["mailto:", "https:"].iter().any(|start| subject.starts_with(start) && subject.len() > start.len()) {
        return Err("sub is a mailto: or https: URI".to_owned());
    }
    Ok(key)
}
