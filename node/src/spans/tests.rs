//! A collector that takes, that is busy, and that is not there. **Invariant:** it reads what OpenTelemetry's own messages say.

use super::*;
use crate::clock::SystemWorld;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Told;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// A collector, with what it was told and how many times it refuses first.
struct Collector {
    url: String,
    told: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    asked: Arc<Mutex<Vec<(String, String)>>>,
    busy: Arc<AtomicU16>,
    tasks: TaskTracker,
}

impl Collector {
    async fn start(busy_for: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (told, asked) = (Arc::default(), Arc::default());
        let (busy, tasks) = (Arc::new(AtomicU16::new(busy_for)), TaskTracker::new());
        let collector = Self { url, told, asked, busy, tasks: tasks.clone() };
        let (told, asked, busy) =
            (Arc::clone(&collector.told), Arc::clone(&collector.asked), Arc::clone(&collector.busy));
        tasks.spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let service = service_fn(|request: Request<hyper::body::Incoming>| async {
                    let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
                    asked.lock().unwrap().push((request.uri().path().to_owned(), kind));
                    let body = request.into_body().collect().await?.to_bytes();
                    let refuses = busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                    let status = if refuses.is_ok() {
                        StatusCode::SERVICE_UNAVAILABLE
                    } else {
                        told.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
                        StatusCode::OK
                    };
                    let mut answer = Response::new(Full::new(Bytes::new()));
                    *answer.status_mut() = status;
                    Ok::<_, hyper::Error>(answer)
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(io), service)
                    .await;
            }
        });
        collector
    }
}

fn config(url: &str, one_in: u32) -> TracesConfig {
    TracesConfig { otlp: url.into(), one_in, ..TracesConfig::default() }
}

fn open(config: &TracesConfig) -> (Spans, Exporter, Registry) {
    let (registry, world) = (Registry::new(), Arc::new(SystemWorld::new()) as Arc<dyn World>);
    let at = "127.0.0.1:7441".parse().unwrap();
    let origin = Origin { role: "gateway", cluster: "blue", at };
    let (spans, exporter) = config.open(&origin, &world, &registry).unwrap();
    (spans, exporter.unwrap(), registry)
}

fn span(trace: [u8; 16], place: Place) -> Span {
    Span {
        trace,
        place,
        name: "append",
        kind: SpanKind::Internal,
        began: UnixMillis(1_000),
        ended: UnixMillis(1_003),
        attributes: vec![("chappe.batch.entries", 7_usize.into()), ("chappe.duplicate", Value::Flag(true))],
    }
}

fn counted(registry: &Registry, result: &str) -> u64 {
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let of = format!("chappe_spans_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&of)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_collector_that_was_busy_once_reads_every_field_and_the_last_spans_come_at_the_end() {
    let collector = Collector::start(1).await;
    let (spans, exporter, registry) = open(&config(&collector.url, 1));
    let ended = CancellationToken::new();
    let running = collector.tasks.spawn(exporter.run(ended.clone()));
    let trace = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6];
    assert!(spans.samples(trace));
    spans.tell(span(trace, Place::Root));
    spans.tell(span(trace, Place::Child));
    while counted(&registry, "sent") < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    spans.tell(span([3; 16], Place::Root));
    ended.cancel();
    running.await.unwrap();
    assert_eq!((counted(&registry, "sent"), counted(&registry, "refused")), (3, 0));
    let asked = collector.asked.lock().unwrap().clone();
    assert_eq!(asked, vec![("/v1/traces".to_owned(), "application/x-protobuf".to_owned()); 3]);

    let told = collector.told.lock().unwrap();
    let resource = &told[0].resource_spans[0];
    let text = |attribute: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        let value = attribute.value.clone().and_then(|value| value.value);
        (attribute.key.clone(), value)
    };
    let who: Vec<_> = resource.resource.as_ref().unwrap().attributes.iter().map(text).collect();
    assert!(who.contains(&("service.name".into(), Some(Told::StringValue("chappe-gateway".into())))));
    assert!(who.contains(&("service.namespace".into(), Some(Told::StringValue("blue".into())))));
    let [root, child] = &resource.scope_spans[0].spans[..] else { panic!("two spans") };
    assert_eq!((&root.trace_id[..], &root.span_id[..]), (&trace[..], &trace[..8]));
    assert!(root.parent_span_id.is_empty() && child.parent_span_id == root.span_id);
    assert!(child.span_id.len() == 8 && child.span_id != root.span_id);
    assert_eq!((root.name.as_str(), root.kind), ("append", 1));
    assert_eq!((root.start_time_unix_nano, root.end_time_unix_nano), (1_000_000_000, 1_003_000_000));
    let said: Vec<_> = root.attributes.iter().map(text).collect();
    assert_eq!(said[0], ("chappe.batch.entries".into(), Some(Told::IntValue(7))));
    assert_eq!(said[1], ("chappe.duplicate".into(), Some(Told::BoolValue(true))));
    assert_eq!(told[1].resource_spans[0].scope_spans[0].spans[0].trace_id, [3; 16]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_collector_that_is_not_there() {
    // A port that was just given back.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (spans, exporter, registry) = open(&config(&format!("http://{nobody}/"), 1));
    for n in 0..QUEUE_MAX + 5 {
        spans.tell(span([u8::try_from(n % 256).unwrap(); 16], Place::Child));
    }
    assert_eq!(counted(&registry, "dropped"), 5);
    let ended = CancellationToken::new();
    let tasks = TaskTracker::new();
    let running = tasks.spawn(exporter.run(ended.clone()));
    while counted(&registry, "refused") < 512 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ended.cancel();
    tokio::time::timeout(FLUSH_MAX * 2, running).await.unwrap().unwrap();
    assert_eq!(counted(&registry, "sent"), 0);
}

#[test]
fn the_same_envelopes_are_sampled_everywhere_and_as_many_as_asked() {
    let (some, _exporter, _) = open(&config("http://127.0.0.1:1", 16));
    let (others, _exporter_of_others, _) = open(&config("https://collector.example:4318/v1/traces", 16));
    let mut sampled = 0;
    for n in 0..16_000_u64 {
        let mut id = [0; 16];
        SystemWorld::new().fill_random(&mut id);
        id[..8].copy_from_slice(&n.to_be_bytes());
        assert_eq!(some.samples(id), others.samples(id));
        sampled += u32::from(some.samples(id));
    }
    assert!((800..1_200).contains(&sampled), "{sampled} of 16,000");
    assert!(!Spans::default().samples([0; 16]), "off by default");
}

#[test]
fn what_cannot_work_is_refused_with_a_hint() {
    assert!(TracesConfig::default().check().is_ok());
    assert!(config("http://collector.observability:4318", 1).check().is_ok());
    for url in ["collector:4318", "grpc://collector:4317", "http://a:b@collector"] {
        let refused = config(url, 1).check().unwrap_err().to_string();
        assert!(refused.contains("traces.otlp") && refused.contains("http://host:port"), "{refused}");
    }
    assert!(config("", 0).check().is_err());
    let secret = |url: &str| TracesConfig { authorization: "file".into(), ..config(url, 1) };
    assert!(secret("https://collector.example").check().is_ok());
    let refused = secret("http://collector.example").check().unwrap_err().to_string();
    assert!(refused.contains("traces.authorization"), "{refused}");
}
