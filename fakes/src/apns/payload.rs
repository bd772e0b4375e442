//! Push types, topics and payloads (Apple, "Sending notification requests to APNs", "Generating a remote notification").
//! **Invariant:** a push type has the topic, the priority and the payload that Apple's table gives it.

use super::rules::Complaint;
use crate::rules::Incoming;
use serde_json::{Map, Value};

/// Longest payload, in bytes.
const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest payload of a VoIP push, in bytes.
const VOIP_BYTES_MAX: usize = 5120;

/// Every push type, and what its topic has after the bundle id.
const TYPES: [(&str, &str); 11] = [
    ("alert", ""),
    ("background", ""),
    ("controls", ".push-type.controls"),
    ("location", ".location-query"),
    ("voip", ".voip"),
    ("complication", ".complication"),
    ("fileprovider", ".pushkit.fileprovider"),
    ("mdm", ""),
    ("liveactivity", ".push-type.liveactivity"),
    ("pushtotalk", ".voip-ptt"),
    ("widgets", ".push-type.widgets"),
];

/// The push type, checked against the list.
pub(super) fn push_type(request: &Incoming) -> Result<(&'static str, &'static str), Complaint> {
    let invalid = |why: String| Complaint::new(400, "InvalidPushType", why);
    let Some(name) = request.header("apns-push-type").map_err(invalid)? else {
        return Err(invalid("there is no apns-push-type".to_owned()));
    };
    let found = TYPES.into_iter().find(|(known, _)| *known == name);
    found.ok_or_else(|| invalid("apns-push-type is none of Apple's".to_owned()))
}

/// The topic: a bundle id that is known, with the ending of its push type.
pub(super) fn topic(request: &Incoming, topics: &[String], ending: &str) -> Result<(), Complaint> {
    let bad = |why: String| Complaint::new(400, "BadTopic", why);
    let Some(topic) = request.header("apns-topic").map_err(bad)? else {
        return Err(Complaint::new(400, "MissingTopic", "there is no apns-topic".to_owned()));
    };
    let fits = |bundle: &String| topic.strip_prefix(bundle.as_str()) == Some(ending);
    if topics.iter().any(fits) {
        return Ok(());
    }
    let endings = TYPES.iter().map(|(_, ending)| *ending);
    let known = endings.into_iter().any(|other| {
        topic.strip_suffix(other).is_some_and(|bundle| topics.iter().any(|known| known == bundle))
    });
    if known {
        return Err(bad(format!("the topic of this push type ends with \"{ending}\"")));
    }
    Err(Complaint::new(400, "TopicDisallowed", "the topic is none of this team's apps".to_owned()))
}

/// Priority, expiry and collapse id.
pub(super) fn delivery(request: &Incoming, push_type: &str) -> Result<(), Complaint> {
    let bad = |why: String| Complaint::new(400, "BadPriority", why);
    // Without the header it is 10.
    let priority = request.number("apns-priority").map_err(bad)?.unwrap_or(10);
    if ![1, 5, 10].contains(&priority) {
        return Err(bad(format!("apns-priority is 1, 5 or 10, not {priority}")));
    }
    if push_type == "background" && priority != 5 {
        return Err(bad(format!("a background push has priority 5, not {priority}")));
    }
    let bad = |why: String| Complaint::new(400, "BadExpirationDate", why);
    request.number("apns-expiration").map_err(bad)?;
    let bad = |why: String| Complaint::new(400, "BadCollapseId", why);
    let collapse = request.header("apns-collapse-id").map_err(bad)?.unwrap_or_default();
    if collapse.len() > 64 {
        return Err(bad(format!("apns-collapse-id has {} bytes, 64 are allowed", collapse.len())));
    }
    Ok(())
}

/// Size and content.
pub(super) fn payload(request: &Incoming, push_type: &str) -> Result<(), Complaint> {
    let most = if push_type == "voip" { VOIP_BYTES_MAX } else { PAYLOAD_BYTES_MAX };
    if request.too_long || request.body.len() > most {
        return Err(Complaint::new(413, "PayloadTooLarge", format!("{most} bytes are allowed")));
    }
    // Apple's list has no word for a payload that is no payload; this one is nearest.
    let empty = |why: &str| Complaint::new(400, "PayloadEmpty", why.to_owned());
    if request.body.is_empty() {
        return Err(empty("there is no payload"));
    }
    let Ok(Value::Object(payload)) = serde_json::from_slice::<Value>(&request.body) else {
        return Err(empty("the payload is no JSON object"));
    };
    if push_type == "mdm" {
        return Ok(());
    }
    let Some(Value::Object(aps)) = payload.get("aps") else {
        return Err(empty("the payload has no dictionary `aps`"));
    };
    content(aps, push_type)
}

/// What `aps` must and must not hold.
fn content(aps: &Map<String, Value>, push_type: &str) -> Result<(), Complaint> {
    let wrong = |why: &str| Err(Complaint::new(400, "InvalidPushType", why.to_owned()));
    let shows = ["alert", "badge", "sound"].iter().any(|key| aps.contains_key(*key));
    match push_type {
        "background" if aps.get("content-available") != Some(&Value::from(1)) => {
            wrong("a background push has content-available 1")
        }
        "background" if shows => wrong("a background push has no alert, badge or sound"),
        "alert" if !shows => wrong("an alert push has alert, badge or sound"),
        "alert" if aps.get("mutable-content") == Some(&Value::from(1)) && !aps.contains_key("alert") => {
            wrong("mutable-content takes effect with an alert only")
        }
        _ => Ok(()),
    }
}
