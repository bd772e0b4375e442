//! The test vectors: one file per case, for whoever writes a client in another language.
//! **Invariant:** the files depend on the cases below alone; PROTOCOL.md describes their format.

use crate::{requests, samples};
use chappe_protocol::frame::{ClientFrame, FrameError, RequestError, ServerFrame};
use protox::prost_reflect::{DescriptorPool, DynamicMessage, Value};
use std::fmt::Write;
use std::path::PathBuf;

/// Who sends the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
}

impl From {
    fn message(self) -> &'static str {
        match self {
            Self::Client => "ClientFrame",
            Self::Server => "ServerFrame",
        }
    }
}

/// One vector.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: &'static str,
    pub about: &'static str,
    pub from: From,
    pub bytes: Vec<u8>,
    pub expect: Result<(), FrameError>,
    /// Encoding the decoded frame gives the same bytes.
    pub canonical: bool,
}

/// The folder of the vectors.
pub fn dir() -> PathBuf {
    crate::generate::crate_dir().join("vectors")
}

/// Every vector, in the order of their names.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (name, about, frame) in samples::client().into_iter().chain(requests::client()) {
        let bytes = frame.encode();
        cases.push(Case { name, about, from: From::Client, bytes, expect: Ok(()), canonical: true });
    }
    for (name, about, frame) in samples::server().into_iter().chain(requests::server()) {
        let bytes = frame.encode();
        cases.push(Case { name, about, from: From::Server, bytes, expect: Ok(()), canonical: true });
    }
    for (name, about, from, bytes, expect) in samples::unusual().into_iter().chain(requests::unusual()) {
        cases.push(Case { name, about, from, bytes, expect, canonical: false });
    }
    cases.sort_by_key(|case| case.name);
    cases
}

/// What decoding the bytes says; for a good frame also what encoding it again gives.
pub fn decode(from: From, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let bytes = bytes.to_vec().into();
    match from {
        From::Client => ClientFrame::decode(bytes).map(|frame| frame.encode()),
        From::Server => ServerFrame::decode(bytes).map(|frame| frame.encode()),
    }
}

/// The text of a vector's file.
pub fn text(case: &Case) -> String {
    let mut text = String::new();
    let expect = match &case.expect {
        Ok(()) => "ok".to_string(),
        Err(FrameError::Garbage) => "garbage".to_string(),
        Err(FrameError::UnknownFrame) => "unknown_frame".to_string(),
        Err(FrameError::Field(name)) => format!("field {name}"),
        Err(FrameError::Request { why: RequestError::Unknown, .. }) => "unknown_request".to_string(),
        Err(FrameError::Request { why: RequestError::Field(name), .. }) => format!("bad_request {name}"),
    };
    let canonical = if case.canonical { "yes" } else { "no" };
    let message = case.from.message();
    writeln!(text, "# {}\nmessage: {message}\nexpect: {expect}\ncanonical: {canonical}\nhex:", case.about)
        .unwrap();
    for line in case.bytes.chunks(32) {
        writeln!(text, "{}", hex(line)).unwrap();
    }
    if let Some(fields) = fields(message, &case.bytes) {
        write!(text, "fields:\n{fields}").unwrap();
    }
    text
}

/// The fields as a reader sees them who knows the schema only; `None` if the bytes are not protobuf.
fn fields(message: &str, bytes: &[u8]) -> Option<String> {
    let include = crate::generate::crate_dir().join("proto");
    let files = protox::compile(["chappe/v1/chappe.proto"], [include]).expect("the schema is valid");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("the schema is complete");
    let descriptor = pool.get_message_by_name(&format!("chappe.v1.{message}")).expect("the schema has it");
    let message = DynamicMessage::decode(descriptor, bytes).ok()?;
    let mut text = String::new();
    print_message(&message, 1, &mut text);
    Some(text)
}

fn print_message(message: &DynamicMessage, depth: usize, text: &mut String) {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());
    for (field, value) in fields {
        let values =
            if let Value::List(list) = value { list.as_slice() } else { std::slice::from_ref(value) };
        for value in values {
            write!(text, "{}{}", "  ".repeat(depth), field.name()).unwrap();
            print_value(&field, value, depth, text);
        }
    }
}

fn print_value(
    field: &protox::prost_reflect::FieldDescriptor,
    value: &Value,
    depth: usize,
    text: &mut String,
) {
    match value {
        Value::Message(inner) => {
            writeln!(text, " {{").unwrap();
            print_message(inner, depth + 1, text);
            writeln!(text, "{}}}", "  ".repeat(depth)).unwrap();
        }
        Value::Bytes(bytes) => {
            writeln!(text, ": 0x{}", hex(bytes)).unwrap();
        }
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let word = kind.as_enum().and_then(|kind| kind.get_value(*number));
            let word = word.map_or_else(|| number.to_string(), |word| word.name().to_string());
            writeln!(text, ": {word}").unwrap();
        }
        Value::String(string) => writeln!(text, ": {string:?}").unwrap(),
        Value::Bool(value) => writeln!(text, ": {value}").unwrap(),
        Value::U32(value) => writeln!(text, ": {value}").unwrap(),
        Value::U64(value) => writeln!(text, ": {value}").unwrap(),
        Value::I32(_) | Value::I64(_) | Value::F32(_) | Value::F64(_) | Value::List(_) | Value::Map(_) => {
            unreachable!("the schema has none of these")
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
