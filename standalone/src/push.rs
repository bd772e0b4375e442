//! `chappe push`: registers a device to be woken, tries its wake out, shows what will never pass. **Invariant:** a push token is read
//! from a file or the standard input, and is never printed.

use crate::connect::ConnectArgs;
use crate::development::DataDir;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_client::State;
use chappe_node::clock::SystemWorld;
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet, QuietHours};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World as _;
use chappe_pusher::operations::{Step, TestCall, ask_parked, ask_test};
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use serde::Deserialize;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The token of a target that nobody but the log can wake.
const DEMO_TOKEN: &str = "chappe-demo";
/// A target's file is no longer than this.
const TARGET_BYTES_MAX: u64 = 64 * 1024;

/// `chappe push …`
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  chappe push register --as ben                 let the server's log tell when ben's device would be woken
  chappe push test --user ben --device cli      walk the way of a wake, step by step
  chappe push parked                            wakes that will never pass, and why")]
pub enum PushCommand {
    /// Register where a device is woken, in place of what it had registered
    Register(RegisterArgs),
    /// Wake a device and explain each step
    Test(TestArgs),
    /// Show wakes that will never pass
    Parked(AdminArgs),
}

/// Arguments of `chappe push register`.
#[derive(Debug, Args)]
#[command(after_help = "\
The device attaches for a moment; a chat or listen of the same device is superseded. A target is JSON:
  {\"provider\": \"apns\", \"token\": HEX, \"kind\": \"alert\" or \"voip\"}
  {\"provider\": \"fcm\", \"token\": TEXT}
  {\"provider\": \"webpush\", \"endpoint\": URL, \"keys\": {\"p256dh\": …, \"auth\": …}}   as a browser's PushSubscription has it
Quiet hours are of the UTC day.

Examples:
  chappe push register --as ben
  chappe push register --as ben --device phone --app chat --target subscription.json --quiet 22:00-06:30 --calls-pass
  chappe push register --as ben --device phone --none")]
pub struct RegisterArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The app, as the pusher's configuration names it
    #[arg(long, default_value = "demo")]
    app: String,
    /// File with the target, - for the standard input; give it once per target. Without it, one that only the log wakes
    #[arg(long, value_name = "FILE")]
    target: Vec<PathBuf>,
    /// Wake this device no more
    #[arg(long, conflicts_with = "target")]
    none: bool,
    /// Do not wake from HH:MM to HH:MM (UTC); give it once per window
    #[arg(long, value_name = "HH:MM-HH:MM")]
    quiet: Vec<String>,
    /// Let calls pass in quiet hours
    #[arg(long)]
    calls_pass: bool,
}

/// Where a pusher's admin port is, and what opens it.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The admin port of the server, or of a pusher
    #[arg(long, default_value = "127.0.0.1:7441")]
    admin: SocketAddr,
    /// File with the admin token [default: admin.token in the data directory]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The server's data directory
    #[arg(long, value_name = "DIRECTORY", default_value = "chappe-data")]
    data: PathBuf,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `chappe push test`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 0 if the provider took the wake (or would have been asked, with --dry-run), with 1 if not; the last line says why.

Examples:
  chappe push test --user ben --device phone
  chappe push test --user ben --device phone --urgency call --admin 10.0.0.9:7443 --token-file admin.token")]
pub struct TestArgs {
    /// Whose device
    #[arg(long)]
    user: String,
    /// Which device
    #[arg(long)]
    device: String,
    /// call, message or background
    #[arg(long, default_value = "message")]
    urgency: String,
    /// Explain, and wake nobody
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Does what was asked.
pub async fn run(command: PushCommand) -> Result<ExitCode> {
    match command {
        PushCommand::Register(args) => register(args).await,
        PushCommand::Test(args) => test(args).await,
        PushCommand::Parked(args) => parked(args).await,
    }
}

async fn register(args: RegisterArgs) -> Result<ExitCode> {
    let settings = settings(&args)?;
    let count = settings.targets.len();
    let client = args.connect.builder()?.state_dir(args.connect.state_dir()).start();
    let mut states = Box::pin(client.states());
    let mut registering = std::pin::pin!(client.set_push(settings));
    loop {
        tokio::select! {
            biased;
            registered = &mut registering => {
                registered?;
                break;
            }
            Some(state) = states.next() => match state {
                State::Failed(error) => return Err(error.into()),
                State::Superseded => bail!("superseded: another client of this device has connected"),
                State::Waiting { why, .. } => eprintln!("chappe: {why}; trying again"),
                State::Connecting { .. } | State::Connected { .. } | State::Closed => {}
            },
        }
    }
    client.close().await;
    println!(
        "{}",
        if count == 0 {
            "this device is woken no more".into()
        } else {
            format!("registered, targets: {count}")
        }
    );
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &RegisterArgs) -> Result<PushSettings> {
    let app = AppName::new(&args.app).map_err(|error| anyhow::anyhow!("--app: {error}"))?;
    let windows = args.quiet.iter().map(|text| window(text)).collect::<Result<Vec<_>>>()?;
    let quiet =
        Quiet::new(windows, None, args.calls_pass).map_err(|error| anyhow::anyhow!("--quiet: {error}"))?;
    let addresses = if args.none {
        Vec::new()
    } else if args.target.is_empty() {
        vec![PushAddress::Fcm { token: DEMO_TOKEN.into() }]
    } else {
        args.target.iter().map(|path| address(path)).collect::<Result<Vec<_>>>()?
    };
    // The gateway says when it was.
    let target = |address| PushTarget { app: app.clone(), address, registered_at: UnixMillis(0) };
    Ok(PushSettings { targets: addresses.into_iter().map(target).collect(), quiet })
}

fn window(text: &str) -> Result<QuietHours> {
    let minute = |text: &str| {
        let (hours, minutes) = text.split_once(':')?;
        let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
        (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
    };
    let both = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    let Some((from, to)) = both else { bail!("--quiet: {text} is not HH:MM-HH:MM") };
    QuietHours::new(from, to).map_err(|error| anyhow::anyhow!("--quiet: {error}"))
}

/// A target as its file has it.
#[derive(Deserialize)]
#[serde(tag = "provider", rename_all = "lowercase")]
enum TargetFile {
    Apns {
        token: String,
        #[serde(default)]
        kind: KindFile,
    },
    Fcm {
        token: String,
    },
    WebPush {
        endpoint: String,
        keys: KeysFile,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    #[default]
    Alert,
    Voip,
}

#[derive(Deserialize)]
struct KeysFile {
    p256dh: String,
    auth: String,
}

fn address(path: &Path) -> Result<PushAddress> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(TARGET_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(TARGET_BYTES_MAX).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("--target {}", path.display()))
}

fn parse(text: &str) -> Result<PushAddress> {
    // The parser's message could repeat what it read: a token.
    let Ok(file) = serde_json::from_str::<TargetFile>(text) else {
        bail!("no target; see `chappe push register --help` for its forms")
    };
    let address = match file {
        TargetFile::Apns { token, kind } => PushAddress::Apns {
            token: unhex(&token).context("an APNs token is hexadecimal")?,
            kind: match kind {
                KindFile::Alert => ApnsKind::Alert,
                KindFile::Voip => ApnsKind::Voip,
            },
        },
        TargetFile::Fcm { token } => PushAddress::Fcm { token },
        TargetFile::WebPush { endpoint, keys } => {
            PushAddress::WebPush { endpoint, p256dh: key(&keys.p256dh)?, auth: key(&keys.auth)? }
        }
    };
    address.check()?;
    Ok(address)
}

fn key<const N: usize>(text: &str) -> Result<[u8; N]> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("a key is {N} bytes in base64url"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

impl AdminArgs {
    fn token(&self) -> Result<String> {
        let path = self.token_file.clone().unwrap_or_else(|| DataDir::new(&self.data).admin_token());
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; name the admin token's file with --token-file, or the data directory with --data",
                path.display()
            )
        })
    }
}

async fn test(args: TestArgs) -> Result<ExitCode> {
    let TestArgs { user, device, urgency, dry_run, admin } = args;
    let report = ask_test(admin.admin, &admin.token()?, &TestCall { user, device, urgency, dry_run }).await?;
    if admin.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        for Step { good, step, found } in &report.steps {
            println!("{} {step:<9} {found}", if *good { "ok  " } else { "FAIL" });
        }
    }
    Ok(if report.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn parked(args: AdminArgs) -> Result<ExitCode> {
    let parked = ask_parked(args.admin, &args.token()?).await?;
    if args.json {
        println!("{}", serde_json::to_string(&parked)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemWorld::new().wall();
    for wake in &parked {
        let ago = now.0.saturating_sub(wake.at_ms) / 1000;
        println!(
            "{ago} s ago: {} {} {}: mailbox {} device {}",
            wake.provider, wake.app, wake.reason, wake.mailbox, wake.device
        );
    }
    if parked.is_empty() {
        println!("nothing is parked");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_apps_have_them_and_bad_ones_are_not_repeated() {
        let p256dh = URL_SAFE_NO_PAD.encode([&[4_u8][..], &[7; 64]].concat());
        let subscription = format!(
            r#"{{"provider":"webpush","endpoint":"https://push.example/abc","keys":{{"p256dh":"{p256dh}","auth":"{}"}}}}"#,
            URL_SAFE_NO_PAD.encode([9; 16])
        );
        assert!(matches!(parse(&subscription), Ok(PushAddress::WebPush { .. })));
        let voip = parse(r#"{"provider":"apns","token":"00ff10","kind":"voip"}"#).unwrap();
        assert_eq!(voip, PushAddress::Apns { token: vec![0, 255, 16], kind: ApnsKind::Voip });
        for bad in
            [r#"{"provider":"fcm","token":7,"x":"kvqz"}"#, r#"{"provider":"apns","token":"kvqz"}"#, "kvqz"]
        {
            let told = format!("{:#}", parse(bad).unwrap_err());
            assert!(!told.contains("kvqz"), "{told}");
        }
    }

    #[test]
    fn windows_are_read_by_the_clock() {
        assert_eq!(window("22:00-06:30").unwrap(), QuietHours::new(1320, 390).unwrap());
        for bad in ["22:00", "24:00-06:00", "06:00-06:00", "6-7", "06:61-07:00"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }
}
