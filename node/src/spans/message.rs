//! The messages of OTLP 1 (`opentelemetry/proto/trace/v1/trace.proto` and what it names) that we send: their fields' numbers and types.
//! **Invariant:** what we do not say is left out, and nothing is read.

use super::{Named, Origin, Place, Value, root};
use prost::{Message, Oneof};

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

/// Who tells.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "AnyValueOf", tags = "1, 2, 3")]
    value: Option<AnyValueOf>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AnyValueOf {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(int64, tag = "3")]
    Count(i64),
}

fn said(key: &str, value: AnyValueOf) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

fn of(value: Value) -> AnyValueOf {
    match value {
        Value::Count(count) => AnyValueOf::Count(i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Word(word) => AnyValueOf::Text(word.into()),
        Value::Flag(flag) => AnyValueOf::Flag(flag),
    }
}

/// Names as OpenTelemetry's semantic conventions have them for a service.
pub(super) fn resource(from: &Origin<'_>) -> Resource {
    let text = |key, text: String| said(key, AnyValueOf::Text(text));
    let mut attributes = vec![
        text("service.name", format!("chappe-{}", from.role)),
        text("service.instance.id", from.at.to_string()),
        text("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    if !from.cluster.is_empty() {
        attributes.push(text("service.namespace", from.cluster.to_owned()));
    }
    Resource { attributes }
}

/// A request with these spans.
pub(super) fn request(resource: &Resource, spans: impl Iterator<Item = Named>) -> Request {
    let scope = Scope { name: "chappe".into(), version: env!("CARGO_PKG_VERSION").into() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.map(span).collect() }];
    Request { resource_spans: vec![ResourceSpans { resource: Some(resource.clone()), scope_spans }] }
}

fn span(Named { span, id }: Named) -> Span {
    let parent = match span.place {
        Place::Root => Vec::new(),
        Place::Child => root(span.trace).to_vec(),
    };
    let nanos = |millis: u64| millis.saturating_mul(1_000_000);
    Span {
        trace_id: span.trace.to_vec(),
        id: id.to_vec(),
        parent_span_id: parent,
        name: span.name.into(),
        kind: span.kind as i32,
        start_time_unix_nano: nanos(span.began.0),
        end_time_unix_nano: nanos(span.ended.0.max(span.began.0)),
        attributes: span.attributes.into_iter().map(|(key, value)| said(key, of(value))).collect(),
    }
}
