//! The machine: limits, files, ports, the disk. **Invariant:** no content of a file is ever told.

use super::Findings;
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Files that a process opens beside its sessions: listeners, parts, the store.
const OTHER_FILES: u64 = 320;
/// A certificate that ends sooner should be renewed by now.
const RENEW_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 24 * 3600;
/// How often the disk is asked to sync, and how slow it may be, in milliseconds.
const SYNCS: u64 = 16;
const SYNC_SLOW_MS: u64 = 20;

/// Whether so many sessions may have a socket each.
pub(super) fn open_files(found: &mut Findings, sessions_max: u32) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let Some(limit) = soft_limit(&limits) else {
        return found.warn("open files", "the limit is not known here; `ulimit -n` tells it");
    };
    let needed = u64::from(sessions_max) + OTHER_FILES;
    if limit >= needed {
        found.good("open files", format!("{limit} allowed, {needed} needed at most"));
    } else {
        found.warn(
            "open files",
            format!(
                "{limit} allowed, but limits.sessions_max = {sessions_max} needs {needed} on WebSocket: raise the limit (ulimit -n, LimitNOFILE), or lower limits.sessions_max to {}",
                limit.saturating_sub(OTHER_FILES)
            ),
        );
    }
}

/// Of the text of `/proc/self/limits` (proc(5)).
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Until when the server's certificate is good; nothing if none is named.
pub(super) fn certificate(found: &mut Findings, path: &Path, now: UnixMillis) {
    const WHAT: &str = "tls.certificate";
    if path.as_os_str().is_empty() {
        return;
    }
    let (from, to) = match chappe_node::tls::validity(path) {
        Ok(times) => times,
        Err(error) => return found.bad(WHAT, error.to_string()),
    };
    let now = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
    let days = (to - now).div_euclid(DAY_SECONDS);
    if now < from {
        found.bad(WHAT, format!("{} is not yet good; look at the clock", path.display()));
    } else if now >= to {
        found.bad(WHAT, format!("{} ended {} days ago: renew it, then send SIGHUP", path.display(), -days));
    } else if days < RENEW_DAYS {
        found.warn(WHAT, format!("{} ends in {days} days: renew it, then send SIGHUP", path.display()));
    } else {
        found.good(WHAT, format!("good for {days} days more"));
    }
}

/// Whether the files are there, and only for those who need them; those that are not named are passed over.
pub(super) fn secrets(found: &mut Findings, files: &[(&str, &std::path::PathBuf)]) {
    for (key, path) in files.iter().filter(|(_, path)| !path.as_os_str().is_empty()) {
        let mode = File::open(path).and_then(|file| file.metadata()).map(|meta| meta.permissions().mode());
        match mode {
            Err(error) => {
                found.bad(key, format!("{}: {error}; check the path and its permissions", path.display()));
            }
            Ok(mode) if mode & 0o007 != 0 => found.warn(
                key,
                format!(
                    "{} is open to everybody on this machine (mode {:o}): chmod o= it",
                    path.display(),
                    mode & 0o777
                ),
            ),
            Ok(_) => found.good(key, "readable"),
        }
    }
}

/// Whether the port is free.
pub(super) fn port(found: &mut Findings, key: &str, address: SocketAddr) {
    match TcpListener::bind(address) {
        Ok(_) => found.good(key, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            found.warn(key, format!("{address} is taken: by the process itself, if it runs already"));
        }
        Err(error) => found.bad(key, format!("{address}: {error}")),
    }
}

/// Whether the data directory can be written, and how long a sync takes there.
pub(super) fn directory(found: &mut Findings, data: &Path, world: &dyn World) {
    const WHAT: &str = "data";
    // Before the first start it is not there: its place is looked at.
    let place = data.ancestors().find(|place| place.is_dir()).unwrap_or_else(|| Path::new("."));
    let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
    match sync_millis(place, world) {
        Err(error) => found.bad(WHAT, format!("{} cannot be written: {error}", place.display())),
        Ok(millis) if millis > SYNC_SLOW_MS => found.warn(
            WHAT,
            format!(
                "a sync in {} takes {millis} ms: every accepted envelope waits for one; use a faster disk",
                place.display()
            ),
        ),
        Ok(millis) => {
            found.good(WHAT, format!("{} can be written, a sync takes {millis} ms", place.display()));
        }
    }
}

/// The mean of a few small synced writes, into a file that has no name left.
fn sync_millis(place: &Path, world: &dyn World) -> std::io::Result<u64> {
    let mut nonce = [0; 8];
    world.fill_random(&mut nonce);
    let path = place.join(format!(".chappe-doctor-{:016x}", u64::from_be_bytes(nonce)));
    let mut file = File::options().write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let begun = world.now();
    for _ in 0..SYNCS {
        file.write_all(&[0; 512])?;
        file.sync_data()?;
    }
    Ok((world.now() - begun).0 / SYNCS)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::path::PathBuf;

    fn verdicts(look: impl FnOnce(&mut Findings)) -> Vec<(String, Verdict)> {
        let mut found = Findings::default();
        look(&mut found);
        found.findings.into_iter().map(|finding| (finding.what, finding.verdict)).collect()
    }

    fn one(look: impl FnOnce(&mut Findings)) -> Verdict {
        let all = verdicts(look);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].1
    }

    #[test]
    fn the_soft_limit_counts() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(soft_limit("Max open files   unlimited  unlimited files"), Some(u64::MAX));
        assert_eq!(soft_limit(""), None);
        assert_eq!(one(|found| open_files(found, 1)), Verdict::Good);
        assert_eq!(one(|found| open_files(found, u32::MAX)), Verdict::Warn);
    }

    #[test]
    fn a_certificate_is_judged_by_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cert.pem");
        let day = |days: i64| UnixMillis(u64::try_from(1_699_920_000 + days * DAY_SECONDS).unwrap() * 1000);
        let mut params = rcgen::CertificateParams::new(vec!["chat.example".to_owned()]).unwrap();
        // 90 days.
        params.not_before = rcgen::date_time_ymd(2023, 11, 14);
        params.not_after = rcgen::date_time_ymd(2024, 2, 12);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        for (days, verdict) in [
            (-1, Verdict::Bad),
            (1, Verdict::Good),
            (80, Verdict::Warn),
            (89, Verdict::Warn),
            (91, Verdict::Bad),
        ] {
            assert_eq!(one(|found| certificate(found, &path, day(days))), verdict, "day {days}");
        }
        std::fs::write(&path, "nothing").unwrap();
        assert_eq!(one(|found| certificate(found, &path, day(1))), Verdict::Bad);
        assert_eq!(one(|found| certificate(found, &folder.path().join("none"), day(1))), Verdict::Bad);
        assert!(verdicts(|found| certificate(found, Path::new(""), day(1))).is_empty());
    }

    #[test]
    fn secrets_are_to_be_there_and_to_be_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "secret").unwrap();
        let with = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            one(|found| secrets(found, &[("key", &path)]))
        };
        assert_eq!(with(0o600), Verdict::Good);
        assert_eq!(with(0o640), Verdict::Good);
        assert_eq!(with(0o644), Verdict::Warn);
        assert_eq!(one(|found| secrets(found, &[("key", &folder.path().join("none"))])), Verdict::Bad);
        assert!(verdicts(|found| secrets(found, &[("key", &PathBuf::new())])).is_empty());
    }

    #[test]
    fn ports_and_directories_are_tried_and_left_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let world = chappe_node::clock::SystemWorld::new();
        let data = folder.path().join("not/yet/there");
        assert_ne!(one(|found| directory(found, &data, &world)), Verdict::Bad);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(one(|found| port(found, "listen", address)), Verdict::Warn);
        drop(taken);
        assert_eq!(one(|found| port(found, "listen", address)), Verdict::Good);
    }
}
