//! The machine-checkable part of the house rules. **Invariant:** a rule that no machine checks is fiction.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

use chappe_node::clock::SystemWorld;
use chappe_node::spans::{Origin, TracesConfig};
use chappe_protocol::world::World;
use chappe_pusher::provider::{Answer, ProviderKind, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file under the root with one of these endings, but generated and built ones, with its text.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped =
                    ["target", ".git", ".deps", "node_modules", "chappe-data"].contains(&name.as_str());
                if !skipped {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    assert!(found.len() > 3, "the walk found next to nothing: it is broken");
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let generated = Path::new("protocol/src/wire");
    files(&[".rs"]).into_iter().filter(|(path, _)| !path.starts_with(generated)).collect()
}

fn complain(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    complain("split these by meaning", &long);
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.lines().take(3).any(|line| line.starts_with("//!")))
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain("these begin without a sentence (//!)", &silent);
}

#[test]
fn nothing_is_left_to_do_later() {
    // Put together here, so that this file does not name them.
    let words = [["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"], ["#[ig", "nore"]]
        .map(|halves| halves.concat());
    let found: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| words.iter().any(|word| text.contains(word)))
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain("finish these", &found);
}

#[test]
fn select_is_biased() {
    let mut unbiased = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let next = lines.get(number + 1).map_or("", |next| next.trim());
            if line.contains("select! {")
                && !line.trim().starts_with("//")
                && !line.contains("biased")
                && next != "biased;"
            {
                unbiased.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    unbiased.retain(|place| !place.starts_with("standalone/tests/tidy.rs"));
    complain("an unbiased select! makes runs of one seed differ", &unbiased);
}

/// Which of our crates a manifest names in `[dependencies]`.
fn arrows(text: &str) -> BTreeSet<String> {
    let table: toml::Table = text.parse().unwrap();
    let dependencies =
        table.get("dependencies").and_then(|value| value.as_table()).cloned().unwrap_or_default();
    dependencies.keys().filter_map(|name| name.strip_prefix("chappe-")).map(str::to_owned).collect()
}

#[test]
fn the_arrows_between_crates_are_those_of_the_house() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("protocol", &[][..]),
        ("storage", &["protocol"]),
        ("router", &["protocol", "storage", "node"]),
        ("gateway", &["protocol", "storage", "router", "node"]),
        ("pusher", &["protocol", "storage", "router", "node"]),
        ("fakes", &[]),
        ("client", &["protocol"]),
        ("node", &["protocol"]),
        ("loadtest", &["protocol", "client", "node", "fakes"]),
        ("standalone", &["protocol", "storage", "router", "gateway", "pusher", "client", "node"]),
        ("dev/peers/client", &["protocol"]),
    ]);
    let mut seen = 0;
    for (path, text) in files(&["Cargo.toml"]) {
        let folder = path.parent().unwrap().to_string_lossy().into_owned();
        if folder.is_empty() {
            continue;
        }
        let allowed = allowed.get(folder.as_str()).expect(&folder);
        seen += 1;
        for arrow in arrows(&text) {
            assert!(allowed.contains(&arrow.as_str()), "{folder} may not depend on {arrow}");
        }
    }
    assert_eq!(seen, allowed.len(), "a crate is missing");
}

#[test]
fn the_protocol_crate_is_pure() {
    let manifest = std::fs::read_to_string(root().join("protocol/Cargo.toml")).unwrap();
    let table: toml::Table = manifest.parse().unwrap();
    let names: Vec<&String> = table["dependencies"].as_table().unwrap().keys().collect();
    assert_eq!(
        names,
        ["bytes", "prost", "sha2", "thiserror"],
        "these can do without a runtime, sockets and clocks"
    );
    let library = std::fs::read_to_string(root().join("protocol/src/lib.rs")).unwrap();
    assert!(library.contains("#![no_std]"), "no_std is what lets the compiler prove it");
}

#[test]
fn there_is_one_tls_stack_and_one_crypto_provider_for_it() {
    // What is really built, with every feature of this workspace: the lock file also names what nobody asks for.
    let tree = std::process::Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
            "--locked",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8_lossy(&tree.stdout).into_owned();
    let built: BTreeSet<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    let count = |name: &str| built.iter().filter(|(package, _)| *package == name).count();
    assert_eq!(count("rustls"), 1);
    for other in ["ring", "openssl", "native-tls", "openssl-sys"] {
        assert_eq!(count(other), 0, "{other} is a second stack or provider");
    }
}

#[test]
fn every_frame_is_documented() {
    let schema = std::fs::read_to_string(root().join("protocol/proto/chappe/v1/chappe.proto")).unwrap();
    let prose = std::fs::read_to_string(root().join("protocol/PROTOCOL.md")).unwrap();
    // The members of both `oneof frame`: `    Hello hello = 1;`.
    let frames = schema.split("oneof frame {").skip(1).filter_map(|rest| rest.split('}').next());
    let messages: Vec<&str> =
        frames.flat_map(str::lines).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(messages.len(), 16);
    let missing: Vec<String> =
        messages.iter().filter(|name| !prose.contains(**name)).map(ToString::to_string).collect();
    complain("PROTOCOL.md does not name these messages", &missing);
}

/// Names of metrics: those of a fresh registry, and those that only appear with their first label.
fn registered() -> BTreeSet<String> {
    let registry = prometheus::Registry::new();
    chappe_router::RouterMetrics::new(&registry).unwrap();
    chappe_router::nats::BusMetrics::new(&registry).unwrap();
    chappe_router::nats::WakeMetrics::new(&registry).unwrap();
    chappe_router::nats::WakeJobMetrics::new(&registry).unwrap();
    let logged = Answer { verdict: Verdict::Done, reason: "logged" };
    chappe_pusher::metrics::PusherMetrics::new(&registry).unwrap().answered(ProviderKind::Log, &logged);
    chappe_gateway::GatewayMetrics::new(&registry).unwrap();
    chappe_router::PresenceMetrics::new(&registry).unwrap().calls.with_label_values(&["lease", "ok"]).inc();
    chappe_router::store_metrics::StoreMetrics::new(&registry).unwrap().observe(
        &chappe_storage::scylla::ScyllaStats::default(),
        &chappe_storage::slotlog::LogStats::default(),
        true,
    );
    chappe_node::vitals::register(&registry, "test", tokio::sync::watch::channel(true).1).unwrap();
    let traces = TracesConfig { otlp: "http://127.0.0.1:4318".into(), ..TracesConfig::default() };
    let (world, at) = (Arc::new(SystemWorld::new()) as Arc<dyn World>, ([127, 0, 0, 1], 1).into());
    traces.open(&Origin { role: "test", cluster: "", at }, &world, &registry).unwrap();
    let (folder, pair) = (tempfile::tempdir().unwrap(), chappe_node::tls::development_certificate().unwrap());
    let (certificate, key) = (folder.path().join("certificate"), folder.path().join("key"));
    std::fs::write(&certificate, pair.0).unwrap();
    std::fs::write(&key, pair.1).unwrap();
    chappe_node::tls::ReloadingTls::load(&certificate, &key).unwrap().tell(&registry).unwrap();
    // The two kinds of stores share the log's metrics, and never a registry.
    let embedded = prometheus::Registry::new();
    chappe_standalone::store_metrics::EmbeddedMetrics::new(&embedded).unwrap();
    let mut names: BTreeSet<String> = [registry, embedded]
        .iter()
        .flat_map(prometheus::Registry::gather)
        .map(|family| family.name().to_owned())
        .collect();
    let source = std::fs::read_to_string(root().join("gateway/src/metrics.rs")).unwrap();
    names.extend(source.split('"').filter(|word| word.starts_with("chappe_gateway_")).map(str::to_owned));
    names
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let document = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let documented: BTreeSet<String> = document
        .split('`')
        .filter(|word| word.starts_with("chappe_") || word.starts_with("process_"))
        .map(|word| word.split('{').next().unwrap_or(word).to_owned())
        .collect();
    let registered = registered();
    let missing: Vec<String> = registered.difference(&documented).cloned().collect();
    complain("docs/metrics.md does not name these", &missing);
    let invented: Vec<String> = documented.difference(&registered).cloned().collect();
    complain("docs/metrics.md names these, and nobody has them", &invented);
}

#[test]
fn the_documents_name_files_that_exist() {
    let mut broken = Vec::new();
    for (path, text) in files(&[".md"]) {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !outside && !root().join(path.parent().unwrap()).join(target).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    complain("links to nowhere", &broken);
}
