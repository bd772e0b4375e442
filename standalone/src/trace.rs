//! `chappe trace`: where an envelope is. **Invariant:** it changes nothing, and shows no content and nobody's name.

use crate::development::DataDir;
use anyhow::{Context, Result, bail};
use chappe_node::clock::SystemWorld;
use chappe_protocol::id::EnvelopeId;
use chappe_protocol::world::World;
use chappe_router::operations::ask_trace;
use chappe_router::operations::trace::{TraceCall, TraceReport, TraceState};
use clap::Args;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `chappe trace`.
#[derive(Debug, Args)]
#[command(after_help = "\
The sender gets the id with the result of its submit (`chappe send --json` prints it). In a cluster, name the admin ports of
all routers and gateways: each knows its own share. A process remembers its last 65,536 envelopes; behind that, and after
a restart, --to finds an envelope in the store for 2 days.
Ends with 0 if the envelope is known, with 1 if not.

Examples:
  chappe trace 4f1c…
  chappe trace 4f1c… --admin 10.0.0.4:7441 --admin 10.0.0.5:7441 --token-file admin.token
  chappe trace 4f1c… --to ben --json")]
pub struct TraceArgs {
    /// The envelope's id, 32 hexadecimal digits
    envelope_id: String,
    /// The user that it was sent to, when no process remembers the envelope
    #[arg(long, value_name = "USER")]
    to: Option<String>,
    /// An admin port; give it once per process
    #[arg(long, default_value = "127.0.0.1:7441")]
    admin: Vec<SocketAddr>,
    /// File with the admin token [default: admin.token in the data directory]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The server's data directory
    #[arg(long, value_name = "DIRECTORY", default_value = "chappe-data")]
    data: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Asks all processes and shows what they know together.
pub async fn trace(args: TraceArgs) -> Result<ExitCode> {
    if EnvelopeId::from_hex(&args.envelope_id).is_none() {
        bail!("an envelope id is 32 hexadecimal digits; `chappe send --json` prints it as envelope_id");
    }
    let path = args.token_file.unwrap_or_else(|| DataDir::new(&args.data).admin_token());
    let token = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; name the admin token's file with --token-file, or the data directory with --data", path.display())
    })?;
    let call = TraceCall { envelope_id: args.envelope_id, user: args.to };
    let (mut known, mut silent) = (None::<TraceReport>, Vec::new());
    for admin in &args.admin {
        match ask_trace(*admin, &token, &call).await {
            Ok(Some(report)) => {
                known = Some(match known {
                    Some(known) => known.with(&report),
                    None => report,
                });
            }
            Ok(None) => {}
            Err(error) => silent.push(error),
        }
    }
    for error in &silent {
        eprintln!("chappe: {error:#}");
    }
    let Some(report) = known else {
        let whole = if silent.is_empty() { "" } else { " that answered" };
        let hint = if call.user.is_some() { "ids are kept for 2 days" } else { "try --to USER" };
        bail!("no process{whole} knows this envelope; {hint}");
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", for_people(&report, SystemWorld::new().wall().0));
    }
    Ok(ExitCode::SUCCESS)
}

fn for_people(report: &TraceReport, now: u64) -> String {
    let state = match report.state {
        TraceState::Committed => "committed: in the mailbox, not seen on its way to a device",
        TraceState::Delivered => "delivered: written to a device's connection, not yet acked",
        TraceState::Expired => "expired: its time was over before every device took it",
        TraceState::Lost => "lost: the store lost it before its time; an alarm was raised",
        TraceState::Acked => "acked: every device has taken it",
        TraceState::Trimmed => {
            "trimmed: every device has taken it or its time was over, and its slot was deleted"
        }
        TraceState::Erased => "erased: its user is gone",
    };
    let ago = |at: u64| format!("{:.1} s ago", seconds(now.saturating_sub(at)));
    let mut text = format!("{state}\n");
    if let Some(at) = report.committed_at {
        let _ = writeln!(text, "  committed  {}", ago(at));
    }
    if let (Some(at), Some(gateways)) = (report.doorbell_at, report.gateways) {
        let what = if gateways == 1 { "gateway" } else { "gateways" };
        let _ = writeln!(text, "  doorbell   {}, rung at {gateways} {what}", ago(at));
    }
    if let Some(at) = report.delivered_at {
        let times = match report.deliveries {
            1 => "once,".to_owned(),
            times => format!("{times} times, last"),
        };
        let _ = writeln!(text, "  delivered  {times} {}", ago(at));
    }
    if report.devices > 0 {
        let _ = writeln!(text, "  acked      by {} of {} devices", report.devices_acked, report.devices);
    }
    match report.expires_at {
        Some(at) if at > now => {
            let _ = writeln!(text, "  expires    in {:.0} s", seconds(at - now));
        }
        Some(at) => {
            let _ = writeln!(text, "  expired    {}", ago(at));
        }
        None => {}
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> TraceReport {
        TraceReport {
            state: TraceState::Delivered,
            committed_at: Some(1_000),
            doorbell_at: Some(1_100),
            gateways: Some(1),
            delivered_at: Some(2_000),
            deliveries: 2,
            devices: 2,
            devices_acked: 1,
            expires_at: Some(60_000),
        }
    }

    #[test]
    fn the_steps_are_told_with_their_times() {
        let text = for_people(&report(), 3_500);
        assert_eq!(
            text,
            "delivered: written to a device's connection, not yet acked\n  committed  2.5 s ago\n  doorbell   2.4 s ago, \
             rung at 1 gateway\n  delivered  2 times, last 1.5 s ago\n  acked      by 1 of 2 devices\n  expires    in 56 s\n"
        );
    }

    #[test]
    fn what_two_processes_know_adds_up() {
        let router =
            TraceReport { state: TraceState::Committed, delivered_at: None, deliveries: 0, ..report() };
        let gateway = TraceReport { committed_at: None, doorbell_at: None, gateways: None, ..report() };
        assert_eq!(router.with(&gateway), report());
    }
}
