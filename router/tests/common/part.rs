//! What a test needs to start a part of its own: where `dev/deps` installed it, and a free port.

use std::path::{Path, PathBuf};

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The newest installed file of this name, such as `nats-server` or `bin/redis-server`.
#[allow(clippy::disallowed_methods, reason = "tests are told where the parts are")]
pub fn installed(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deps = std::env::var("CHAPPE_TEST_DEPS_DIR").map_or_else(|_| root.join(".deps"), PathBuf::from);
    let installed = deps.join("installed");
    let folders = std::fs::read_dir(&installed).into_iter().flatten().map(|folder| folder.unwrap().path());
    let mut found: Vec<PathBuf> =
        folders.map(|folder| folder.join(name)).filter(|file| file.is_file()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {name} in {}: dev/deps install", installed.display()))
}
