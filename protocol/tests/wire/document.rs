//! PROTOCOL.md names what the code has. **Invariant:** a frame, code, outcome or limit that nobody documented turns this red.

use crate::{generate, requests, samples};
use chappe_protocol::close::{CloseCode, ErrorCode};
use chappe_protocol::frame::{ClientFrame, Limits, ServerFrame};
use protox::prost_reflect::DescriptorPool;
use std::collections::BTreeSet;
use std::fs;

fn document() -> String {
    fs::read_to_string(generate::crate_dir().join("PROTOCOL.md")).unwrap()
}

fn schema() -> DescriptorPool {
    let files = protox::compile(["chappe/v1/chappe.proto"], [generate::crate_dir().join("proto")]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

/// The names of the frames in the schema, as messages.
fn frames(message: &str) -> BTreeSet<String> {
    let message = schema().get_message_by_name(&format!("chappe.v1.{message}")).unwrap();
    message.fields().map(|field| field.kind().as_message().unwrap().name().to_string()).collect()
}

#[test]
fn every_frame_is_documented() {
    let document = document();
    for name in frames("ClientFrame").into_iter().chain(frames("ServerFrame")) {
        assert!(document.contains(&format!("`{name}`")), "PROTOCOL.md does not name {name}");
    }
}

#[test]
fn every_frame_has_a_vector() {
    let client: BTreeSet<String> = samples::client()
        .iter()
        .chain(&requests::client())
        .map(|(_, _, frame)| match frame {
            ClientFrame::Hello(_) => "Hello",
            ClientFrame::Submit(_) => "Submit",
            ClientFrame::Ack { .. } => "Ack",
            ClientFrame::Ping { .. } => "Ping",
            ClientFrame::Refresh { .. } => "Refresh",
            ClientFrame::Request { .. } => "Request",
        })
        .map(String::from)
        .collect();
    assert_eq!(client, frames("ClientFrame"));
    let server: BTreeSet<String> = samples::server()
        .iter()
        .chain(&requests::server())
        .map(|(_, _, frame)| match frame {
            ServerFrame::Welcome(_) => "Welcome",
            ServerFrame::Deliver(_) => "Deliver",
            ServerFrame::BacklogEnd { .. } => "BacklogEnd",
            ServerFrame::Truncated { .. } => "Truncated",
            ServerFrame::SubmitResult(_) => "SubmitResult",
            ServerFrame::Ephemeral { .. } => "Ephemeral",
            ServerFrame::GoAway(_) => "GoAway",
            ServerFrame::Error(_) => "Error",
            ServerFrame::Pong { .. } => "Pong",
            ServerFrame::Reply { .. } => "Reply",
        })
        .map(String::from)
        .collect();
    assert_eq!(server, frames("ServerFrame"));
}

#[test]
fn every_request_and_its_answer_is_documented() {
    let document = document();
    for (message, body) in [("Request", "SetPush"), ("Reply", "PushSet"), ("PushTarget", "WebPush")] {
        let message = schema().get_message_by_name(&format!("chappe.v1.{message}")).unwrap();
        let oneof = message.oneofs().next().unwrap();
        let names: Vec<String> =
            oneof.fields().map(|field| field.kind().as_message().unwrap().name().to_string()).collect();
        assert!(names.contains(&body.to_string()), "{names:?}");
        for name in names {
            assert!(document.contains(&format!("`{name}`")), "PROTOCOL.md does not name {name}");
        }
    }
}

#[test]
fn every_close_code_has_its_row() {
    let document = document();
    for code in CloseCode::ALL {
        let reconnect = match (*code == CloseCode::ConnectedElsewhere, code.reconnect()) {
            (true, _) => "**no**",
            (false, true) => "yes",
            (false, false) => "no",
        };
        let row = format!("| {} | `{}` | {reconnect} |", code.code(), code.reason());
        assert!(document.contains(&row), "PROTOCOL.md lacks the row: {row}");
    }
    let rows = document.lines().filter(|line| line.starts_with("| 3") || line.starts_with("| 4")).count();
    assert_eq!(rows, CloseCode::ALL.len(), "a row of a code that does not exist");
}

#[test]
fn every_error_code_has_its_row() {
    let document = document();
    for code in ErrorCode::ALL {
        assert!(document.contains(&format!("| `{}` |", code.as_str())), "{code:?}");
    }
}

#[test]
fn every_word_of_the_schema_that_a_client_meets_is_documented() {
    let document = document();
    for name in ["Outcome", "TruncatedReason", "GoAwayClass", "ErrorScope", "ApnsKind"] {
        let words = schema().get_enum_by_name(&format!("chappe.v1.{name}")).unwrap();
        for word in words.values().filter(|word| word.number() != 0) {
            assert!(
                document.contains(&format!("`{}`", word.name())),
                "PROTOCOL.md does not name {}",
                word.name()
            );
        }
    }
}

#[test]
fn the_limits_and_their_defaults_are_documented() {
    let document = document();
    let default = Limits::default();
    let values: [(&str, u64); 11] = [
        ("envelope_bytes_max", default.envelope_bytes_max.into()),
        ("frame_bytes_max", default.frame_bytes_max.into()),
        ("targets_max", default.targets_max.into()),
        ("ttl_ms_max", default.ttl_max.0),
        ("window_envelopes_max", default.window_envelopes_max.into()),
        ("window_bytes_max", default.window_bytes_max.into()),
        ("frames_per_second_max", default.frames_per_second_max.into()),
        ("frames_burst_max", default.frames_burst_max.into()),
        ("ping_every_ms", default.ping_every.0),
        ("submits_in_flight_max", default.submits_in_flight_max.into()),
        ("ephemeral_bytes_max", default.ephemeral_bytes_max.into()),
    ];
    let names: BTreeSet<String> = values.iter().map(|(name, _)| (*name).to_string()).collect();
    let message = schema().get_message_by_name("chappe.v1.Limits").unwrap();
    assert_eq!(message.fields().map(|field| field.name().to_string()).collect::<BTreeSet<_>>(), names);
    for (name, value) in values {
        let row = document.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).expect(name);
        let told: String = row.split('|').nth(2).unwrap().split('(').next().unwrap().replace(',', "");
        assert_eq!(told.trim(), value.to_string(), "{name}");
    }
}

#[test]
fn the_range_of_a_close_code_says_whether_to_reconnect() {
    for code in CloseCode::ALL {
        let number = code.code();
        let by_range = match number {
            3000..=3499 | 4000..=4499 => true,
            3500..=3999 | 4500..=4999 => false,
            _ => panic!("{number} lies in no range"),
        };
        let exception = *code == CloseCode::ConnectedElsewhere;
        assert_eq!(code.reconnect(), by_range && !exception, "{number}");
        assert_eq!(CloseCode::code_reconnects(number), code.reconnect(), "{number}");
        assert_eq!(CloseCode::from_code(number), Some(*code));
    }
    for (number, reconnects) in
        [(1000, true), (1006, true), (3499, true), (3999, false), (4000, true), (4999, false)]
    {
        assert_eq!(CloseCode::from_code(number), None);
        assert_eq!(CloseCode::code_reconnects(number), reconnects, "{number}");
    }
}
