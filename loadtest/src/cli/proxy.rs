//! `loadtest proxy`. **Invariant:** it listens and connects where it was told to, nowhere by default.

use super::{EXIT_USAGE, duration};
use crate::proxy::{Carriers, Faults, Proxy, ProxyConfig};
use anyhow::{Context, Result};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

/// Between two lines of counters.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// What stands for "never" with a timer: years.
const NEVER: Duration = Duration::from_hours(24 * 365);

#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 ended as asked, 2 it could not run (its port is taken), 64 wrong use.

Examples:
  loadtest proxy --listen 127.0.0.1:7450 --target 127.0.0.1:7440 --latency 50ms --jitter 20ms --loss 2%
  loadtest proxy --listen 127.0.0.1:7450 --target 127.0.0.1:7440 --udp-only --black-hole-every 60s --black-hole-for 5s
  loadtest proxy --listen 127.0.0.1:7450 --target 127.0.0.1:7440 --rebind-every 10s --duration 5m
  loadtest proxy --listen 127.0.0.1:7450 --target gateway.staging:443 --bandwidth 1Mbit/s")]
pub(super) struct ProxyArgs {
    /// Where clients come to, in numbers
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where everything goes
    #[arg(long, value_name = "HOST:PORT", value_parser = target)]
    target: SocketAddr,
    /// Pass on UDP alone
    #[arg(long, conflicts_with = "tcp_only")]
    udp_only: bool,
    /// Pass on TCP alone
    #[arg(long)]
    tcp_only: bool,
    /// Added to each packet, each way
    #[arg(long, default_value = "0ms", value_parser = duration)]
    latency: Duration,
    /// The latency is even within ± this
    #[arg(long, default_value = "0ms", value_parser = duration)]
    jitter: Duration,
    /// Share of packets that vanish, such as 2% (TCP: that come 200 ms later, with all behind them)
    #[arg(long, default_value = "0%", value_parser = share)]
    loss: f64,
    /// Share of UDP packets that come twice
    #[arg(long, default_value = "0%", value_parser = share)]
    duplicate: f64,
    /// Share of UDP packets that come 30 ms later, so that others overtake them
    #[arg(long, default_value = "0%", value_parser = share)]
    reorder: f64,
    /// Of each flow or connection, each way, such as 1MB/s or 500kbit/s
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    bandwidth: Option<u64>,
    /// Decides everything that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let nothing pass, again and again: so long from one beginning to the next
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "black_hole_for")]
    black_hole_every: Option<Duration>,
    /// … and so long each time
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "black_hole_every")]
    black_hole_for: Option<Duration>,
    /// Give each UDP flow a new source port, so often
    #[arg(long, value_name = "TIME", value_parser = duration)]
    rebind_every: Option<Duration>,
    /// End by itself after this; else on Ctrl-C or SIGTERM
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
}

impl ProxyArgs {
    /// Runs the proxy to its end.
    pub(super) fn run(self) -> Result<ExitCode> {
        if let Err(message) = self.check() {
            eprintln!("loadtest: --{message}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.serve())?;
        Ok(ExitCode::SUCCESS)
    }

    fn config(&self) -> ProxyConfig {
        ProxyConfig {
            carriers: match (self.udp_only, self.tcp_only) {
                (true, _) => Carriers::Udp,
                (false, true) => Carriers::Tcp,
                (false, false) => Carriers::Both,
            },
            faults: Faults {
                latency: self.latency,
                jitter: self.jitter,
                loss: self.loss,
                duplicate: self.duplicate,
                reorder: self.reorder,
                bandwidth_bytes_per_second: self.bandwidth,
                black_hole: false,
            },
            seed: self.seed,
            ..ProxyConfig::new(self.listen, self.target)
        }
    }

    /// The message begins with the option's name.
    fn check(&self) -> Result<(), String> {
        self.config().check().map_err(|error| error.to_string())?;
        for (name, time) in [
            ("black-hole-every", self.black_hole_every),
            ("black-hole-for", self.black_hole_for),
            ("rebind-every", self.rebind_every),
            ("duration", self.duration),
        ] {
            if time.is_some_and(|time| time.is_zero() || time > NEVER) {
                return Err(format!("{name}: more than nothing, and at most a year"));
            }
        }
        if self.black_hole_for >= self.black_hole_every && self.black_hole_every.is_some() {
            return Err("black-hole-for: shorter than --black-hole-every, or nothing ever passes".into());
        }
        Ok(())
    }

    async fn serve(self) -> Result<()> {
        let stop = chappe_node::signal::install().context("cannot listen to signals")?.stop;
        let config = self.config();
        let carriers = match config.carriers {
            Carriers::Both => "TCP and UDP",
            Carriers::Tcp => "TCP",
            Carriers::Udp => "UDP",
        };
        let proxy = Proxy::start(config).await?;
        println!("listening on {} ({carriers}), target {}", proxy.local_addr(), self.target);
        let start = now();
        let timer = |every: Option<Duration>, first: Duration| {
            let every = every.unwrap_or(NEVER);
            let mut timer = interval_at(start + every + first, every);
            // After a stall the holes still begin and end where they should.
            timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
            timer
        };
        let mut line = timer(Some(LINE_EVERY), Duration::ZERO);
        let mut rebind = timer(self.rebind_every, Duration::ZERO);
        let mut hole = timer(self.black_hole_every, Duration::ZERO);
        let mut heal = timer(self.black_hole_every, self.black_hole_for.unwrap_or_default());
        let end = start + self.duration.unwrap_or(NEVER);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(end) => break,
                _ = heal.tick() => proxy.black_hole(Carriers::Both, false),
                _ = hole.tick() => proxy.black_hole(Carriers::Both, true),
                _ = rebind.tick() => proxy.rebind(),
                _ = line.tick() => eprintln!("{}", proxy.stats()),
            }
        }
        eprintln!("{}", proxy.stop().await);
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the proxy's timers are those of the runtime")]
fn now() -> Instant {
    Instant::now()
}

/// An address, or a name that is looked up once.
fn target(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("{error}; write host:port"))?;
    found.next().ok_or_else(|| "the name has no address".into())
}

/// `2%`, or a fraction such as 0.02.
fn share(text: &str) -> Result<f64, String> {
    let (number, of) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    match number.trim().parse::<f64>() {
        Ok(number) if (0.0..=of).contains(&number) => Ok(number / of),
        Ok(_) | Err(_) => Err(format!("\"{text}\" is no share; try 2% or 0.02")),
    }
}

/// Bytes per second, of a rate in bytes or bits.
fn bandwidth(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no rate; try 1MB/s or 500kbit/s");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?);
    let bits: u64 = match unit {
        "B/s" => 8,
        "kB/s" => 8_000,
        "MB/s" => 8_000_000,
        "GB/s" => 8_000_000_000,
        "bit/s" => 1,
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    match number.checked_mul(bits).map(|bits| bits / 8) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) | None => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn parse(more: &str) -> Result<ProxyArgs, String> {
        let line = format!("loadtest proxy {more}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Proxy(args) = cli.command else { return Err("another".into()) };
        args.check().map(|()| *args)
    }

    const NAMED: &str = "--listen 127.0.0.1:7450 --target 127.0.0.1:7440";

    #[test]
    fn all_that_can_be_said_is_heard() {
        let config = parse(&format!(
            "{NAMED} --latency 50ms --jitter 20ms --loss 2% --duplicate 1% --reorder 0.03 --bandwidth 1MB/s --seed 9"
        ))
        .unwrap()
        .config();
        let faults = Faults {
            latency: Duration::from_millis(50),
            jitter: Duration::from_millis(20),
            loss: 0.02,
            duplicate: 0.01,
            reorder: 0.03,
            bandwidth_bytes_per_second: Some(1_000_000),
            black_hole: false,
        };
        assert_eq!((config.faults, config.seed, config.carriers), (faults, 9, Carriers::Both));
        let plain = parse(NAMED).unwrap().config();
        assert_eq!(plain.faults, Faults::default());
        assert_eq!((plain.listen.port(), plain.target.port()), (7450, 7440));
        assert_eq!(parse(&format!("{NAMED} --udp-only")).unwrap().config().carriers, Carriers::Udp);
        assert_eq!(parse(&format!("{NAMED} --tcp-only")).unwrap().config().carriers, Carriers::Tcp);
    }

    #[test]
    fn both_ends_must_be_named() {
        assert!(parse("--listen 127.0.0.1:7450").unwrap_err().contains("--target"));
        assert!(parse("--target 127.0.0.1:7440").unwrap_err().contains("--listen"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (more, word) in [
            ("--loss 2", "try 2% or 0.02"),
            ("--loss 101%", "try 2% or 0.02"),
            ("--loss NaN", "try 2% or 0.02"),
            ("--bandwidth 1", "try 1MB/s"),
            ("--bandwidth 0B/s", "try 1MB/s"),
            ("--bandwidth 7bit/s", "try 1MB/s"),
            ("--latency 2m", "latency"),
            ("--udp-only --tcp-only", "cannot be used with"),
            ("--black-hole-every 60s", "--black-hole-for"),
            ("--black-hole-for 60s", "--black-hole-every"),
            ("--black-hole-every 5s --black-hole-for 5s", "black-hole-for"),
            ("--rebind-every 0s", "rebind-every"),
            ("--duration 0s", "duration"),
        ] {
            let message = parse(&format!("{NAMED} {more}")).unwrap_err();
            assert!(message.contains(word), "{more}: {message}");
        }
        let itself = parse("--listen 127.0.0.1:7440 --target 127.0.0.1:7440").unwrap_err();
        assert!(itself.contains("the proxy itself"), "{itself}");
    }

    #[test]
    fn rates_are_in_bytes_or_bits() {
        assert_eq!(bandwidth("64kB/s"), Ok(64_000));
        assert_eq!(bandwidth("8Mbit/s"), Ok(1_000_000));
        assert_eq!(bandwidth("10 GB/s"), Ok(10_000_000_000));
    }
}
