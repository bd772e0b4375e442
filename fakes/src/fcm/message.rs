//! The shape of a message (Firebase, "REST Resource: projects.messages"). **Invariant:** a field that Google's schema does
//! not have is refused, as Google does.

use serde_json::{Map, Value};

/// Bytes of `data`, names and values.
const DATA_BYTES_MAX: usize = 4096;
/// Four weeks, in seconds.
const TTL_SECONDS_MAX: u64 = 28 * 24 * 3600;
/// Longest registration token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

const REQUEST: [&str; 2] = ["message", "validateOnly"];
const MESSAGE: [&str; 10] = [
    "name",
    "data",
    "notification",
    "android",
    "webpush",
    "apns",
    "fcmOptions",
    "token",
    "topic",
    "condition",
];
const ANDROID: [&str; 10] = [
    "collapseKey",
    "priority",
    "ttl",
    "restrictedPackageName",
    "data",
    "notification",
    "fcmOptions",
    "directBootOk",
    "bandwidthConstrainedOk",
    "restrictedSatelliteOk",
];

/// What is wrong, and with which field.
#[derive(Debug)]
pub(super) struct Wrong {
    /// None: the request is well made, the token is no token.
    pub(super) field: Option<String>,
    pub(super) why: String,
}

type Checked<T> = Result<T, Wrong>;

fn wrong<T>(field: &str, why: &str) -> Checked<T> {
    Err(Wrong { field: Some(field.to_owned()), why: why.to_owned() })
}

/// The token of a message that is right.
pub(super) fn check(body: &Value) -> Checked<String> {
    let Value::Object(request) = body else { return wrong("", "the body is no JSON object") };
    known(request, &REQUEST, "")?;
    let Some(Value::Object(message)) = request.get("message") else {
        return wrong("message", "there is no message");
    };
    known(message, &MESSAGE, "message.")?;
    let targets = ["token", "topic", "condition"];
    if targets.iter().filter(|name| message.contains_key(**name)).count() != 1 {
        return wrong("message", "exactly one of token, topic, condition is demanded");
    }
    let Some(Value::String(token)) = message.get("token") else {
        return wrong("message.token", "this fake knows messages to a token only");
    };
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte);
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(letters) {
        let why = "The registration token is not a valid FCM registration token".to_owned();
        return Err(Wrong { field: None, why });
    }
    if let Some(data) = message.get("data") {
        check_data(data, "message.data")?;
    }
    if let Some(android) = message.get("android") {
        check_android(android)?;
    }
    Ok(token.clone())
}

/// Fields by either of their names: protobuf's JSON takes `collapse_key` and `collapseKey`.
fn known(object: &Map<String, Value>, names: &[&str], at: &str) -> Checked<()> {
    for name in object.keys() {
        if !names.iter().any(|known| known == name || snake(known) == *name) {
            return wrong(&format!("{at}{name}"), "Unknown name: Cannot find field.");
        }
    }
    Ok(())
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

fn check_data(data: &Value, at: &str) -> Checked<()> {
    let Value::Object(data) = data else { return wrong(at, "data is a map of strings") };
    let mut bytes = 0;
    for (name, value) in data {
        let Value::String(value) = value else { return wrong(at, "every value of data is a string") };
        let reserved = ["from", "message_type", "gcm"].contains(&name.as_str())
            || ["google", "gcm.notification."].iter().any(|start| name.starts_with(start));
        if reserved {
            return wrong(at, "a name of data is reserved");
        }
        bytes += name.len() + value.len();
    }
    if bytes > DATA_BYTES_MAX { wrong(at, "Message too big: data has more than 4096 bytes") } else { Ok(()) }
}

fn check_android(android: &Value) -> Checked<()> {
    let Value::Object(android) = android else { return wrong("message.android", "it is no object") };
    known(android, &ANDROID, "message.android.")?;
    if let Some(priority) = android.get("priority") {
        let priority = priority.as_str().unwrap_or_default().to_ascii_uppercase();
        if !["NORMAL", "HIGH"].contains(&priority.as_str()) {
            return wrong("message.android.priority", "it is NORMAL or HIGH");
        }
    }
    if let Some(ttl) = android.get("ttl")
        && !ttl.as_str().is_some_and(is_ttl)
    {
        return wrong("message.android.ttl", "it is seconds with \"s\" after them, four weeks at most");
    }
    for name in ["collapse_key", "collapseKey"] {
        if android.get(name).is_some_and(|key| !key.is_string()) {
            return wrong("message.android.collapse_key", "it is a string");
        }
    }
    android.get("data").map_or(Ok(()), |data| check_data(data, "message.android.data"))
}

/// A duration in protobuf's JSON: `60s`, `3.5s`; up to nine digits after the point, none below zero.
fn is_ttl(text: &str) -> bool {
    let Some(number) = text.strip_suffix('s') else { return false };
    let (whole, part) = number.split_once('.').map_or((number, "0"), |(whole, part)| (whole, part));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return false;
    }
    let whole: u64 = whole.parse().unwrap_or(u64::MAX);
    whole < TTL_SECONDS_MAX || whole == TTL_SECONDS_MAX && part.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use super::is_ttl;

    #[test]
    fn a_ttl_is_a_duration_of_protobuf() {
        for right in ["0s", "60s", "3.5s", "0.000000001s", "2419200s", "2419200.0s"] {
            assert!(is_ttl(right), "{right}");
        }
        for wrong in ["60", "s", "-1s", "1.s", ".5s", "2419201s", "2419200.1s", "1.0000000001s", "1m", "60 s"]
        {
            assert!(!is_ttl(wrong), "{wrong}");
        }
    }
}
