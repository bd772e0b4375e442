//! Kills and damage: a store that is killed at any moment keeps what it accepted; a damaged one says so or proves itself intact.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a child process is told its part by the environment")]
#![allow(clippy::print_stdout, reason = "how a child process reports")]

mod support;

use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows, OpenError};
use chappe_storage::rows::{Applied, Rows};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::disk::SimDisk;
use support::{Clock, append, dense, entry, partition};

const ROLE: &str = "CHAPPE_TEST_RECOVERY";
const MAILBOXES: u8 = 8;
const KILLS: u64 = 50;
const SIGABRT: i32 = 6;

fn child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn open(path: &Path) -> EmbeddedRows {
    EmbeddedRows::open(path, Clock::new(1), EmbeddedConfig::default()).unwrap()
}

#[tokio::test]
async fn killed_at_any_moment_nothing_accepted_is_lost() {
    if let Some(path) = std::env::var_os(ROLE) {
        append_for_ever(Arc::new(open(Path::new(&path)))).await;
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut accepted = [0_u64; MAILBOXES as usize];
    for _ in 0..KILLS {
        let mut child = child("killed_at_any_moment_nothing_accepted_is_lost", directory.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after so many answers, wherever the committer is by then.
        let mut left = rng.random_range(1..300);
        for line in lines {
            let line = line.unwrap();
            let Some((mailbox, seq)) = line.strip_prefix("A ").and_then(|line| line.split_once(' ')) else {
                continue;
            };
            let (mailbox, seq): (usize, u64) = (mailbox.parse().unwrap(), seq.parse().unwrap());
            accepted[mailbox] = accepted[mailbox].max(seq);
            // What it said before it died counts too.
            left -= 1;
            if left == 0 {
                child.kill().unwrap();
            }
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it ended by itself");
        let rows = open(directory.path());
        for (mailbox, accepted) in (0_u8..).zip(accepted) {
            let there = dense(&rows, mailbox).await;
            assert!(there >= accepted, "mailbox {mailbox}: {accepted} accepted, {there} there");
        }
    }
    assert!(accepted.iter().sum::<u64>() > KILLS * 8, "the children hardly wrote");
}

/// One writer per mailbox; a line per answer.
async fn append_for_ever(rows: Arc<EmbeddedRows>) {
    let mut writers = tokio::task::JoinSet::new();
    for mailbox in 0..MAILBOXES {
        let rows = Arc::clone(&rows);
        writers.spawn(async move {
            let of = partition(mailbox, 0);
            let mut top = rows.head(of).await.unwrap().map_or(0, |head| head.seq.0);
            loop {
                let applied = append(&*rows, of, top, &[entry(mailbox, top + 1, 300)]).await.unwrap();
                assert_eq!(applied, Applied::Yes);
                top += 1;
                let mut out = io::stdout().lock();
                if writeln!(out, "A {mailbox} {top}").and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

/// A file whose sync fails once, for good.
#[derive(Debug)]
struct FailingSync {
    file: Arc<dyn StorageBackend>,
    left: AtomicU64,
}

impl StorageBackend for FailingSync {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
    fn sync_data(&self) -> io::Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            0 | u64::MAX => {
                println!("SYNC FAILS");
                Err(io::Error::other("the disk is gone"))
            }
            _ => self.file.sync_data(),
        }
    }
}

#[tokio::test]
async fn a_failed_sync_ends_the_process_and_is_not_retried() {
    if std::env::var_os(ROLE).is_some() {
        let mut layer = SimDisk::empty(1).layer();
        let [first, second] = layer.journals;
        layer.journals = [Arc::new(FailingSync { file: first, left: AtomicU64::new(40) }), second];
        let rows = EmbeddedRows::open_layer(layer, Clock::new(1), EmbeddedConfig::default()).unwrap();
        append_for_ever(Arc::new(rows)).await;
        println!("STILL HERE");
        return;
    }
    let child = child("a_failed_sync_ends_the_process_and_is_not_retried", Path::new("."));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
    assert_eq!(said.matches("SYNC FAILS").count(), 1, "a failed sync was tried again");
    let behind = said.split("SYNC FAILS").nth(1).unwrap();
    assert!(
        !behind.contains("A ") && !behind.contains("STILL HERE"),
        "something was answered after the failed sync"
    );
}

/// Damages a data directory in many ways.
#[tokio::test]
async fn damage_is_told_or_without_effect() {
    let original = tempfile::tempdir().unwrap();
    let rows = open(original.path());
    for seq in 1..=120 {
        append(&rows, partition(1, 0), seq - 1, &[entry(1, seq, 400)]).await.unwrap();
    }
    drop(rows);
    let files: Vec<_> =
        fs::read_dir(original.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    let mut rng = SmallRng::seed_from_u64(3);
    let mut told = 0;
    for case in 0..120 {
        let copy = tempfile::tempdir().unwrap();
        for file in &files {
            fs::copy(original.path().join(file), copy.path().join(file)).unwrap();
        }
        let target = copy.path().join("rows.redb");
        let mut bytes = fs::read(&target).unwrap();
        if case % 4 == 0 {
            bytes.truncate(rng.random_range(0..bytes.len()));
        } else {
            for _ in 0..rng.random_range(1..=4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= rng.random_range(1..=255_u8);
            }
        }
        fs::write(&target, bytes).unwrap();
        match EmbeddedRows::open(copy.path(), Clock::new(2), EmbeddedConfig::default()) {
            Ok(rows) => assert_eq!(dense(&rows, 1).await, 120, "case {case}: silent loss"),
            Err(error) => {
                told += 1;
                assert!(
                    matches!(error, OpenError::Corrupt(_) | OpenError::Format(_)),
                    "case {case}: {error}"
                );
            }
        }
    }
    assert!(told > 20, "the damage was hardly ever noticed: {told}");
}

/// Damages the journal under a process that was killed: whatever opens holds all that was answered, but for the very last
/// batch, whose damage looks like a write that the kill tore.
#[tokio::test]
async fn damage_of_the_journal_is_told() {
    let disk = SimDisk::empty(1);
    let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(1), EmbeddedConfig::default()).unwrap();
    for seq in 1..=60 {
        append(&rows, partition(1, 0), seq - 1, &[entry(1, seq, 400)]).await.unwrap();
    }
    let killed = disk.contents();
    drop(rows);
    let mut rng = SmallRng::seed_from_u64(4);
    let mut told = 0;
    for case in 0..120 {
        let mut image = killed.clone();
        let at = rng.random_range(0..image.journals[0].len());
        if case % 4 == 0 {
            image.journals[0].truncate(at);
        } else {
            image.journals[0][at] ^= rng.random_range(1..=255_u8);
        }
        // What was cut off may have been answered: the pages are far behind, and only the batch's number tells.
        let cut = if case % 4 == 0 { at / 4096 } else { 59 };
        let disk = SimDisk::new(image, case);
        match EmbeddedRows::open_layer(disk.layer(), Clock::new(2), EmbeddedConfig::default()) {
            Ok(rows) => assert!(dense(&rows, 1).await >= cut as u64, "case {case}: silent loss"),
            Err(error) => {
                told += 1;
                assert!(matches!(error, OpenError::Corrupt(_)), "case {case}: {error}");
            }
        }
    }
    assert!(told > 10, "the damage was hardly ever noticed: {told}");
}

/// A directory of the format with one journal, killed: it is taken over, and from then on no older build opens it.
#[tokio::test]
async fn a_directory_with_one_journal_is_taken_over() {
    let (directory, disk) = (tempfile::tempdir().unwrap(), SimDisk::empty(1));
    drop(open(directory.path()));
    let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(1), EmbeddedConfig::default()).unwrap();
    for seq in 1..=5 {
        append(&rows, partition(1, 0), seq - 1, &[entry(1, seq, 400)]).await.unwrap();
    }
    let killed = disk.contents();
    let at = |name| directory.path().join(name);
    fs::write(at("rows.redb"), killed.rows).unwrap();
    fs::write(at("journal"), &killed.journals[0]).unwrap();
    fs::write(at("format"), b"chappe-embedded-2\n").unwrap();
    for file in ["journal-2", "closed"] {
        fs::remove_file(at(file)).unwrap();
    }
    assert_eq!(dense(&open(directory.path()), 1).await, 5);
    assert_eq!(fs::read(at("format")).unwrap(), b"chappe-embedded-3\n");
    assert!(at("journal-2").exists());
}

#[tokio::test]
async fn missing_and_foreign_files_are_told() {
    let error = |path: &Path| {
        EmbeddedRows::open(path, Clock::new(2), EmbeddedConfig::default()).err().unwrap().code()
    };
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let rows = directory.path().join("rows.redb");
    let kept = fs::read(&rows).unwrap();

    fs::remove_file(&rows).unwrap();
    assert_eq!(error(directory.path()), "data_dir_corrupt");
    fs::write(&rows, b"not a database").unwrap();
    assert_eq!(error(directory.path()), "data_dir_corrupt");
    fs::write(&rows, &kept).unwrap();
    fs::write(directory.path().join("format"), b"chappe-embedded-9\n").unwrap();
    assert_eq!(error(directory.path()), "data_dir_format");
    fs::remove_file(directory.path().join("format")).unwrap();
    assert_eq!(error(directory.path()), "data_dir_format");
    // An interrupted creation was never answered: it begins anew.
    fs::write(directory.path().join("format"), b"creating\n").unwrap();
    drop(open(directory.path()));
    // An older file in place of the one that was closed is a loss, unless its own journal makes it good.
    let kept = fs::read(&rows).unwrap();
    let rows_of = open(directory.path());
    append(&rows_of, partition(1, 0), 0, &[entry(1, 1, 10)]).await.unwrap();
    drop(rows_of);
    fs::write(&rows, &kept).unwrap();
    assert_eq!(dense(&open(directory.path()), 1).await, 1);
    fs::write(&rows, &kept).unwrap();
    let journal = directory.path().join("journal");
    fs::write(&journal, b"").unwrap();
    assert_eq!(error(directory.path()), "data_dir_corrupt");
    for missing in ["journal", "journal-2"] {
        let missing = directory.path().join(missing);
        let kept = fs::read(&missing).unwrap();
        fs::remove_file(&missing).unwrap();
        assert_eq!(error(directory.path()), "data_dir_corrupt");
        fs::write(&missing, kept).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(error(file.path()), "data_dir_io");
}
