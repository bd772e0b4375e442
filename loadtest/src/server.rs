//! A server that the harness starts itself, so that it may kill it. **Invariant:** only a process that was started here is
//! ever killed, and none is left behind.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long a server may take until it accepts connections.
const START_MAX: Duration = Duration::from_mins(1);

/// A drain of our own servers takes 30 s at most.
const END_MAX: Duration = Duration::from_mins(1);

/// A server process under our hand.
#[derive(Debug)]
pub struct Spawned {
    command: Vec<String>,
    address: SocketAddr,
    child: Child,
    pid: Arc<AtomicU32>,
}

impl Spawned {
    /// Starts `command` and waits until `address` accepts a connection. Its output goes to our standard error.
    pub async fn start(command: Vec<String>, address: SocketAddr) -> Result<Self> {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            bail!(
                "something serves {address} already; end it, or choose another address for the server under test"
            );
        }
        let child = spawn(&command)?;
        let mut spawned = Self { command, address, child, pid: Arc::default() };
        spawned.note_pid();
        spawned.serving().await?;
        Ok(spawned)
    }

    /// Kills the process with SIGKILL, at once.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill the server")
    }

    /// Asks the process to end (SIGTERM) and waits until it has. Errors: it still runs after a minute.
    pub async fn terminate(&mut self) -> Result<()> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.context("the server has ended by itself")?;
        kill_process(pid, Signal::TERM).context("cannot ask the server to end")?;
        let ended = tokio::time::timeout(END_MAX, self.child.wait()).await;
        ended.context("the server did not end within a minute of being asked to")??;
        Ok(())
    }

    /// The number of the process that runs now.
    pub fn pid(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.pid)
    }

    fn note_pid(&self) {
        self.pid.store(self.child.id().unwrap_or_default(), Ordering::Relaxed);
    }

    /// Starts it again after a [`Spawned::kill`] or a [`Spawned::terminate`] and waits until it serves.
    pub async fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.command)?;
        self.note_pid();
        self.serving().await
    }

    async fn serving(&mut self) -> Result<()> {
        let tries = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    bail!("the server ended by itself with {status}; its own message stands above");
                }
                if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START_MAX, tries)
            .await
            .with_context(|| {
                format!(
                    "server_unreachable: nothing accepts connections on {}; if the command listens elsewhere, name it with --server",
                    self.address
                )
            })?
    }
}

fn spawn(command: &[String]) -> Result<Child> {
    let (program, arguments) = command.split_first().context("the command of the server is empty")?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}
