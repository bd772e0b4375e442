//! Configuration from files, reloaded while wakes go on. **Invariant:** a bad configuration changes nothing and says where it
//! is bad; no error, no `Debug` and no log holds a secret.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod support;

use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushTarget};
use chappe_pusher::config::{Parts, Providers, ProvidersConfig, Reloaded};
use chappe_pusher::provider::{Verdict, Waking as _};
use chappe_pusher::transport::PoolLimits;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use support::{Server, TestWorld, ok, target, verdict, wake};
use tokio_util::task::TaskTracker;

struct Files(tempfile::TempDir);

impl Files {
    fn new(server: &Server) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("a.p8", &support::p256().0);
        files.write("b.p8", &support::p256().0);
        files.write("account.json", &support::service_account("https://token.example/").0);
        files.write("vapid", "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
        files.write("roots.pem", &server.root_pem);
        files
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }
    /// Two teams at Apple, one project at Google, push services, and the log for the rest.
    fn config(&self) -> serde_json::Value {
        let apns = |key: &str, team: &str, topic: &str| {
            json!({"key_file": self.path(key), "key_id": "KEYKEY1234", "team_id": team, "topic": topic,
                   "base_url": "https://provider.example", "roots_file": self.path("roots.pem")})
        };
        json!({
            "apns": {"one": apns("a.p8", "TEAMTEAM12", "org.one"), "one.beta": apns("a.p8", "TEAMTEAM12", "org.one.beta"),
                     "two": apns("b.p8", "TEAMTEAM34", "org.two")},
            "fcm": {"one": {"service_account_file": self.path("account.json"), "base_url": "https://provider.example",
                            "roots_file": self.path("roots.pem")}},
            "webpush": {"one": {"vapid_key_file": self.path("vapid"), "subject": "mailto:ops@example.org",
                                "allowed_hosts": [".example"], "roots_file": self.path("roots.pem")}},
            "log": ["quiet"],
        })
    }
}

fn read(config: &serde_json::Value) -> ProvidersConfig {
    serde_json::from_value(config.clone()).unwrap()
}

fn parts(server: &Arc<Server>) -> Parts {
    let world = TestWorld::new();
    let limits = PoolLimits::default();
    Parts { world, tasks: TaskTracker::new(), limits, named: server.clone(), stranger: server.clone() }
}

fn device(app: &str) -> PushTarget {
    let address = PushAddress::Apns { token: vec![1; 32], kind: ApnsKind::Alert };
    PushTarget { app: AppName::new(app).unwrap(), ..target(address) }
}

async fn ring(providers: &Providers, app: &str) -> (Verdict, &'static str) {
    verdict(&providers.wake(&device(app), &wake(Urgency::Message)).await)
}

#[tokio::test(start_paused = true)]
async fn each_app_has_its_own_topic_key_and_connections() {
    let server = Server::scripted(vec![ok()]);
    let files = Files::new(&server);
    let providers = Providers::open(&read(&files.config()), parts(&server)).unwrap();
    for app in ["one", "one.beta", "two"] {
        assert_eq!(ring(&providers, app).await, (Verdict::Done, "ok"));
    }
    let seen = server.seen();
    let topics: Vec<&str> = seen.iter().map(|seen| seen.header("apns-topic")).collect();
    assert_eq!(topics, ["org.one", "org.one.beta", "org.two"]);
    assert_eq!(seen.iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(seen[0].header("authorization"), seen[1].header("authorization"), "one key, one token");
    assert_ne!(seen[0].header("authorization"), seen[2].header("authorization"));
    assert_eq!(ring(&providers, "nobody").await, (Verdict::Park, "unknown_app"));
    assert!(providers.app_of(&device("two")).is_some() && providers.app_of(&device("nobody")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reload_opens_what_changed_and_keeps_the_rest() {
    let server = Server::scripted(vec![ok()]);
    let files = Files::new(&server);
    let mut config = files.config();
    let providers = Providers::open(&read(&config), parts(&server)).unwrap();
    for app in ["one", "two"] {
        ring(&providers, app).await;
    }
    assert_eq!(providers.reload(&read(&config)).unwrap(), Reloaded { kept: 5, opened: 0, closed: 0 });
    files.write("b.p8", &support::p256().0);
    config["apns"].as_object_mut().unwrap().remove("one.beta");
    assert_eq!(providers.reload(&read(&config)).unwrap(), Reloaded { kept: 3, opened: 1, closed: 1 });
    for app in ["one", "two"] {
        assert_eq!(ring(&providers, app).await.0, Verdict::Done);
    }
    let seen = server.seen();
    assert_eq!(seen.iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 1, 0, 2]);
    assert_ne!(seen[1].header("authorization"), seen[3].header("authorization"), "the new key signs");
    assert_eq!(ring(&providers, "one.beta").await.1, "unknown_app");
    config["apns"]["one"]["message"] = json!("background");
    assert_eq!(providers.reload(&read(&config)).unwrap().opened, 1);
    ring(&providers, "one").await;
    let seen = server.seen();
    assert_eq!(seen[4].header("apns-push-type"), "background");
    assert_eq!(
        seen[4].header("authorization"),
        seen[2].header("authorization"),
        "the same key keeps its token"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_configuration_changes_nothing_and_says_where_it_is_bad() {
    let server = Server::scripted(vec![ok()]);
    let files = Files::new(&server);
    let good = files.config();
    let providers = Providers::open(&read(&good), parts(&server)).unwrap();
    files.write("bad", "kvqzkvqz");
    let bad = files.path("bad");
    for (path, value, code, place) in [
        ("/apns/one/key_file", json!(bad), "push_key_invalid", "apns.\"one\".key_file"),
        ("/apns/one/key_file", json!(files.path("none")), "push_file_unreadable", "apns.\"one\".key_file"),
        ("/apns/two/key_id", json!("short"), "push_id_invalid", "apns.\"two\".key_id"),
        ("/apns/two/topic", json!("a\nb"), "push_id_invalid", "apns.\"two\".topic"),
        ("/apns/two/base_url", json!("http://provider.example"), "push_url_invalid", "apns.\"two\".base_url"),
        ("/apns/two/roots_file", json!(bad), "push_roots_invalid", "apns.\"two\".roots_file"),
        (
            "/fcm/one/service_account_file",
            json!(bad),
            "push_service_account_invalid",
            "fcm.\"one\".service_account_file",
        ),
        ("/fcm/one/token_url", json!("http://token"), "push_url_invalid", "fcm.\"one\".token_url"),
        ("/fcm/one/project", json!("A project"), "push_id_invalid", "fcm.\"one\".project"),
        ("/webpush/one/vapid_key_file", json!(bad), "push_key_invalid", "webpush.\"one\".vapid_key_file"),
        ("/webpush/one/subject", json!("ops"), "push_subject_invalid", "webpush.\"one\".subject"),
        ("/webpush/one/allowed_hosts", json!([]), "push_hosts_invalid", "webpush.\"one\".allowed_hosts"),
        ("/log/0", json!("Upper"), "push_app_name", "log.\"Upper\""),
    ] {
        let mut config = good.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap();
        if parent.is_object() {
            parent[field] = value;
        } else {
            parent[0] = value;
        }
        let error = providers.reload(&read(&config)).unwrap_err();
        assert_eq!((error.code, error.place.as_str()), (code, place), "{error}");
        assert!(!error.hint.is_empty() && !format!("{error} {error:?}").contains("kvqz"), "{error:?}");
        for app in ["one", "two"] {
            assert_eq!(ring(&providers, app).await.0, Verdict::Done);
        }
    }
    assert_eq!(server.dialled(), 2, "the connections of before");
}

#[test]
fn an_unknown_setting_is_refused() {
    for config in [
        json!({"apn": {}}),
        json!({"apns": {"a": {"key_file": "k", "key_id": "k", "team_id": "t", "topic": "x", "priority": 1}}}),
        json!({"fcm": {"a": {"service_account_file": "k", "key": "secret"}}}),
        json!({"webpush": {"a": {"vapid_key_file": "k", "subject": "s", "hosts": []}}}),
    ] {
        assert!(serde_json::from_value::<ProvidersConfig>(config).is_err());
    }
    assert_eq!(serde_json::from_value::<ProvidersConfig>(json!({})).unwrap(), ProvidersConfig::default());
}

/// Writes down every event that the crate, and the libraries below it, tell.
#[derive(Default)]
struct Ear(Arc<Mutex<String>>);

impl tracing::Subscriber for Ear {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Words(&self.0));
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Words(&self.0));
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().target().starts_with("chappe") {
            event.record(&mut Words(&self.0));
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

struct Words<'a>(&'a Mutex<String>);
impl tracing::field::Visit for Words<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_how_urgent_and_how_many_and_not_whom() {
    let heard = Arc::new(Mutex::new(String::new()));
    let _listening = tracing::subscriber::set_default(Ear(heard.clone()));
    let server = Server::scripted(vec![ok()]);
    let files = Files::new(&server);
    let mut config = files.config();
    config["log"] = json!(["*"]);
    let providers = Providers::open(&read(&config), parts(&server)).unwrap();
    let kvqz = target(PushAddress::Fcm { token: "kvqz-token".into() });
    let kvqz = PushTarget { app: AppName::new("kvqz").unwrap(), ..kvqz };
    let secret = chappe_pusher::provider::Wake { collapse: "kvqz-collapse".into(), ..wake(Urgency::Call) };
    for _ in 0..2 {
        assert_eq!(verdict(&providers.wake(&kvqz, &secret).await), (Verdict::Done, "logged"));
    }
    // And a real provider's way, from a good answer to none.
    providers.wake(&PushTarget { app: AppName::new("one").unwrap(), ..kvqz.clone() }, &secret).await;
    let heard = heard.lock().unwrap().clone();
    assert!(
        heard.contains("a device would be woken") && heard.contains("urgency=\"call\" count=2"),
        "{heard}"
    );
    assert!(!heard.contains("kvqz"), "{heard}");
    assert_eq!((providers.log().count(Urgency::Call), providers.log().count(Urgency::Message)), (2, 0));
    assert_eq!(ring(&providers, "one").await.1, "ok", "who is configured is not logged");
}
