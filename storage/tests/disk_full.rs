//! A full disk: a write is refused as a whole, nothing that was accepted suffers, and the store goes on when space returns.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a child process is told its part by the environment")]
#![allow(clippy::print_stdout, reason = "how a child process reports")]

mod support;

use chappe_storage::StoreError;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::rows::{Applied, Rows};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::disk::SimDisk;
use support::{Clock, append, dense, entry, partition};

/// The disk fills up at every single change in turn, and space returns later.
#[tokio::test]
async fn full_at_every_write_point() {
    let mut refused_writes = 0;
    let mut config = EmbeddedConfig::default();
    config.journal_bytes_max = 20_000;
    for point in 0..160 {
        let (disk, clock) = (SimDisk::empty(point), Clock::new(point));
        let rows = EmbeddedRows::open_layer(disk.layer(), clock.clone(), config).unwrap();
        let of = partition(1, 0);
        disk.full_after(usize::try_from(point).unwrap());
        let mut top = 0;
        let (mut refusals, mut unknown) = (0, false);
        while refusals < 3 && !unknown && top < 60 {
            match append(&rows, of, top, &[entry(1, top + 1, 1500)]).await {
                Ok(applied) => {
                    assert_eq!(applied, Applied::Yes, "point {point}: a refused write was written after all");
                    top += 1;
                }
                Err(StoreError::Unavailable(_)) => refusals += 1,
                Err(StoreError::Unknown(_)) => {
                    // Honest, but only if it is found out as soon as there is space.
                    unknown = true;
                }
                Err(other) => panic!("point {point}: {other}"),
            }
        }
        let refused = disk.space_returns();
        refused_writes += refused;
        clock.advance(60_000);
        // If the file had to be closed, the next write opens it. Pages that were being written may yet fail, which is noticed within
        // 10 ms, and until the file is open again nothing can be done.
        for seq in 1..=2 {
            soon(async || append(&rows, partition(2, 0), seq - 1, &[entry(2, seq, 10)]).await).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = rows.head(of).await.unwrap().map_or(0, |head| head.seq.0);
        assert!(
            before == top || (before == top + 1 && unknown),
            "point {point}: {top} accepted, {before} there"
        );
        append(&rows, of, before, &[entry(1, before + 1, 1500)]).await.unwrap();
        assert_eq!(dense(&rows, 1).await, before + 1);
        drop(rows);
        let again = SimDisk::new(disk.image(), point);
        let rows = EmbeddedRows::open_layer(again.layer(), clock, EmbeddedConfig::default()).unwrap();
        assert_eq!(dense(&rows, 1).await, before + 1);
    }
    assert!(refused_writes > 100, "the disk was hardly ever full");
}

/// Tries again for as long as a store may need to open its files, at most a second.
async fn soon<T>(mut what: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    for _ in 0..200 {
        match what().await {
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other.unwrap(),
        }
    }
    panic!("a second later the store is still away");
}

/// The same with a real limit of the operating system, that a parent lifts while the store runs.
#[tokio::test]
async fn a_real_limit_and_its_end() {
    if let Some(path) = std::env::var_os("CHAPPE_TEST_DISK_FULL") {
        fill(std::path::Path::new(&path)).await;
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new("bash")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -S -f 6000; exec \"$0\" --exact a_real_limit_and_its_end --nocapture",
        ])
        .arg(this)
        .env("CHAPPE_TEST_DISK_FULL", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let full = lines.find(|line| line.starts_with("FULL") || line.starts_with("WRONG")).unwrap();
    assert!(full.starts_with("FULL"), "{full}");
    let lifted = Command::new("prlimit")
        .args(["--fsize=unlimited", "--pid", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(lifted.success(), "prlimit(1) could not lift the limit");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let done = lines.find(|line| line.starts_with("DONE") || line.starts_with("WRONG")).unwrap();
    assert!(done.starts_with("DONE"), "{done}");
    assert!(child.wait().unwrap().success());
    let accepted: u64 = done[5..].parse().unwrap();
    let rows = EmbeddedRows::open(directory.path(), Clock::new(1), EmbeddedConfig::default()).unwrap();
    assert_eq!(dense(&rows, 1).await, accepted);
}

/// The child's part: appends until the disk is full, waits for a line, appends on.
async fn fill(path: &std::path::Path) {
    let clock = Clock::new(1);
    let rows = EmbeddedRows::open(path, clock.clone(), EmbeddedConfig::default()).unwrap();
    let of = partition(1, 0);
    let mut top = 0;
    let mut refused = 0;
    while refused < 5 {
        match append(&rows, of, top, &[entry(1, top + 1, 30_000)]).await {
            Ok(Applied::Yes) => top += 1,
            Err(StoreError::Unavailable(_)) => refused += 1,
            other => return println!("\nWRONG {other:?}"),
        }
        if top > 2000 {
            return println!("\nWRONG never full");
        }
    }
    match soon(async || rows.head(of).await).await {
        Some(head) if head.seq.0 == top => {}
        other => return println!("\nWRONG reads on a full disk: {other:?}, accepted {top}"),
    }
    println!("\nFULL {top}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    clock.advance(60_000);
    for _ in 0..50 {
        let applied = soon(async || append(&rows, of, top, &[entry(1, top + 1, 30_000)]).await).await;
        assert_eq!(applied, Applied::Yes);
        top += 1;
    }
    drop(rows);
    println!("\nDONE {top}");
}
