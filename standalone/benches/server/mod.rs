//! The product itself, in a process of its own, as the measurements start it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::Running;

/// The store's cache of pages is no memory of sessions: where memory is measured it is made small.
#[allow(dead_code, reason = "not every measurement is of memory")]
pub(crate) const CACHE_MIB: usize = 16;

/// Where the server's data are.
pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// On a port of its choice.
#[allow(dead_code, reason = "not every measurement looks at the admin port")]
pub(crate) fn start_chappe(folder: &Path, is_tls: bool) -> (Running, SocketAddr) {
    let store = format!("[store]\ncache_mib = {CACHE_MIB}\n");
    start_chappe_with(folder, is_tls, (Ipv4Addr::LOCALHOST, 0).into(), &store)
}

/// Heartbeats are rare, so that nothing moves while memory is read; clients may be as quick as they can.
pub(crate) fn start_chappe_with(
    folder: &Path,
    is_tls: bool,
    admin: SocketAddr,
    more: &str,
) -> (Running, SocketAddr) {
    let settings = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"{admin}\"\ndata = \"{}\"\n[tls]\noff = {}\n[log]\nlevel = \"warn\"\n\
         [limits]\nping_every_ms = 600000\nhandshakes_per_second = 1000000\nframes_per_second_max = 1000000\n\
         frames_burst_max = 1000000\n[quota]\nslots_max = 1000000\n{more}",
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
    // Its warnings go on, its greeting does not; the thread ends with the server.
    let warnings =
        said.map(Result::unwrap_or_default).filter(|line| line.contains("WARN") || line.contains("ERROR"));
    std::thread::spawn(move || warnings.for_each(|line| eprintln!("{line}")));
    (server, address)
}
