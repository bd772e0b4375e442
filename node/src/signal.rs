//! Signals of the operating system as tokens. **Invariant:** the second SIGTERM or SIGINT ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the signals have asked for.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Cancelled by the first SIGTERM or SIGINT: drain and end.
    pub stop: CancellationToken,
    /// Counts SIGHUPs: reload certificates and keys.
    pub reload: tokio::sync::watch::Receiver<u64>,
}

/// Exit code of a process that was told twice to stop (128 + SIGINT).
pub const EXIT_IMPATIENT: i32 = 130;

/// Installs the handlers. They live as long as the runtime, since the second signal comes during the drain.
#[expect(
    clippy::disallowed_methods,
    reason = "a task that no drain may wait for: it hears the signal that cuts the drain short"
)]
pub fn install() -> std::io::Result<Signals> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let (reloads, reload) = tokio::sync::watch::channel(0);
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    tracing::info!("reloading certificates and keys");
                    reloads.send_modify(|count| *count += 1);
                    continue;
                }
            }
            if token.is_cancelled() {
                tracing::warn!("told twice to stop, ending without a drain");
                std::process::exit(EXIT_IMPATIENT);
            }
            tracing::info!("stopping: draining first, a second signal ends at once");
            token.cancel();
        }
    });
    Ok(Signals { stop, reload })
}
