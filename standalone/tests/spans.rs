//! The spans of an envelope, as a collector of traces gets them from `chappe serve`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod children;

use children::{Place, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;

use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A collector of its own: what it was sent, and by whom.
fn collector(spans: &Arc<Mutex<Vec<(String, Span)>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let spans = Arc::clone(spans);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let request = body(stream);
            for resource in request.resource_spans {
                let who = format!("{:?}", resource.resource.unwrap());
                let told = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.lock().unwrap().extend(told.map(|span| (who.clone(), span)));
            }
        }
    });
    format!("http://{address}")
}

/// Takes a request's message, and says yes.
fn body(mut stream: TcpStream) -> ExportTraceServiceRequest {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    for line in reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
        if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = bytes.trim().parse().unwrap();
        }
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    ExportTraceServiceRequest::decode(&bytes[..]).unwrap()
}

#[test]
fn an_envelope_is_one_trace_under_its_own_id_and_nobody_is_named_in_it() {
    let spans: Arc<Mutex<Vec<(String, Span)>>> = Arc::default();
    let settings = format!("[traces]\notlp = \"{}\"\none_in = 1\n", collector(&spans));
    let place = Place::start_with(false, &settings);
    let ben = place.client("ben", place.command("listen", &["--as", "ben"]));
    ben.line();
    let sent = place.run("send", &["--as", "anna", "--to", "ben", "--json"], b"canary-kvqz");
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let receipt: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
    let id = receipt["envelope_id"].as_str().unwrap().to_owned();
    let own = || -> Vec<(String, Span)> {
        let spans = spans.lock().unwrap();
        spans.iter().filter(|(_, span)| hex(&span.trace_id) == id).cloned().collect()
    };
    wait_for("four spans", || own().len() == 4);

    let own = own();
    let mut names: Vec<&str> = own.iter().map(|(_, span)| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["append", "deliver", "doorbell", "submit"]);
    let (who, root) = own.iter().find(|(_, span)| span.name == "submit").unwrap();
    assert!(root.parent_span_id.is_empty() && who.contains("chappe-standalone"), "{root:?}");
    for (_, span) in own.iter().filter(|(_, span)| span.name != "submit") {
        assert_eq!(span.parent_span_id, root.span_id, "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    let all = format!("{own:?}");
    assert!(!all.contains("anna") && !all.contains("ben") && !all.contains("canary"), "{all}");
}

fn hex(bytes: &[u8]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes.try_into().unwrap()))
}
