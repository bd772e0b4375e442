//! The product itself, in a process of its own, as the measurements start it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::Running;

/// The store's cache of pages is no memory of sessions: it is made small.
pub(crate) const CACHE_MIB: usize = 16;

/// Where the server's data are.
pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// Heartbeats are rare, so that nothing moves while memory is read.
pub(crate) fn start_chappe(folder: &Path, is_tls: bool) -> (Running, SocketAddr) {
    let settings = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ndata = \"{}\"\n[tls]\noff = {}\n[log]\nlevel = \"warn\"\n\
         [limits]\nping_every_ms = 600000\nframes_burst_max = 100000\n[store]\ncache_mib = {CACHE_MIB}\n",
        data(folder).display(),
        !is_tls,
    );
    let file = folder.join("chappe.toml");
    std::fs::write(&file, settings).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_chappe"));
    server.args(["serve", "--config", file.to_str().unwrap()]).stderr(Stdio::piped());
    let mut server = Running(server.spawn().unwrap());
    let mut said = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let greeting = said.next().unwrap().unwrap();
    let address = greeting.split("://").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    // Its warnings go on; the thread ends with the server.
    std::thread::spawn(move || said.for_each(|line| eprintln!("{}", line.unwrap_or_default())));
    (server, address)
}
