//! The fakes as a program. **Invariant:** standard output is JSON lines; no line has an authorization in it.

use chappe_fakes::{
    ApnsConfig, Carrier, Entry, FcmConfig, Host, HostConfig, Kind, Kit, KitConfig, Verdict, WebPushConfig,
};
use clap::Parser;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Fakes of APNs, FCM and a Web Push service, on loopback, over TLS.
///
/// Each checks what it is sent as its provider's documents say. Standard output has one JSON line when all listen, and
/// one per request. Ends on SIGTERM, SIGINT, or after --for.
#[derive(Debug, Parser)]
#[command(name = "push-fakes", version)]
struct Arguments {
    /// Where certificate, keys and tokens to try are written; fakes.json names them all.
    #[arg(long, value_name = "FOLDER", default_value = "push-fakes")]
    files: PathBuf,
    /// Ends after this long: 500ms, 60s, 5m, 1h.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    how_long: Option<Duration>,
    /// Where APNs listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    apns: SocketAddr,
    /// Where FCM listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    fcm: SocketAddr,
    /// Where the Web Push service listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    webpush: SocketAddr,
    /// Bundle id of an app at APNs; may be given several times.
    #[arg(long = "topic", value_name = "BUNDLE", default_value = "org.example.chappe")]
    topics: Vec<String>,
    /// Team at Apple.
    #[arg(long, value_name = "TEAM", default_value = "CHAPPETEAM")]
    team: String,
    /// Firebase project.
    #[arg(long, value_name = "PROJECT", default_value = "chappe-example")]
    project: String,
    /// Streams that a client may have open at once.
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    streams: u32,
}

fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|letter: char| !letter.is_ascii_digit()).ok_or("a unit is missing: ms, s, m or h")?;
    let number: u64 = text[..at].parse().map_err(|_| "a number comes first".to_owned())?;
    let unit_ms = match &text[at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("no unit of time: {other}")),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("push-fakes: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything listens: a signal that comes early is not lost.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let host = |address| HostConfig { address, streams_max: arguments.streams, ..HostConfig::default() };
    let kit = Kit::start(KitConfig {
        apns: ApnsConfig { host: host(arguments.apns), team_id: arguments.team, topics: arguments.topics },
        fcm: FcmConfig { host: host(arguments.fcm), project: arguments.project, ..FcmConfig::default() },
        webpush: WebPushConfig { host: host(arguments.webpush), ..WebPushConfig::default() },
    })
    .await?;
    let mut ready = kit.write(&arguments.files)?;
    ready["event"] = "ready".into();
    line(&ready);
    let end = async {
        match arguments.how_long {
            Some(how_long) => tokio::time::sleep(how_long).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
        () = end => (),
        () = tell("apns", &kit.apns) => (),
        () = tell("fcm", &kit.fcm) => (),
        () = tell("webpush", &kit.webpush) => (),
    }
    kit.close().await;
    let hosts: [(&str, &Host); 3] = [("apns", &kit.apns), ("fcm", &kit.fcm), ("webpush", &kit.webpush)];
    for (provider, host) in hosts {
        let counts = host.record().counts();
        eprintln!(
            "{provider}: {} accepted, {} refused, of {} wakes",
            counts.accepted, counts.refused, counts.wakes
        );
    }
    Ok(())
}

/// Prints every request as it is recorded.
async fn tell(provider: &'static str, host: &Host) {
    let (mut follow, mut last) = (host.record().follow(), 0);
    loop {
        for entry in host.record().after(last) {
            last = entry.number;
            line(&describe(provider, &entry));
        }
        if follow.changed().await.is_err() {
            return;
        }
    }
}

fn describe(provider: &str, entry: &Entry) -> Value {
    let headers: Map<String, Value> = entry
        .headers
        .iter()
        .filter(|(name, _)| name != "authorization")
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let verdict = match &entry.verdict {
        Verdict::Accepted { id } => json!({ "accepted": true, "id": id }),
        Verdict::Refused { status, reason, why } => {
            json!({ "accepted": false, "status": status, "reason": reason, "why": why })
        }
        Verdict::Scripted { step, status } => json!({ "accepted": false, "step": step, "status": status }),
        Verdict::Unprocessed => json!({ "accepted": false, "why": "not processed" }),
    };
    let mut told = json!({
        "event": match entry.kind { Kind::Wake => "wake", Kind::Login => "login" },
        "provider": provider,
        "number": entry.number,
        "connection": entry.connection,
        "stream": entry.stream,
        "http": match entry.carrier { Carrier::Http2 => "2", Carrier::Http1 => "1.1" },
        "at_ms": entry.at_ms,
        "path": entry.path,
        "headers": headers,
        "bytes": entry.body.len(),
        "verdict": verdict,
    });
    // The body of a login is an assertion: as good as a password for an hour.
    if entry.kind == Kind::Wake {
        let shown = entry.plain.as_ref().unwrap_or(&entry.body);
        told["payload"] = String::from_utf8_lossy(shown).into();
    }
    told
}

/// One line; a reader that went away is no reason to end.
fn line(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
