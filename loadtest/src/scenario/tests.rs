//! Scenarios: what is read, what is refused, and who writes to whom when.

use super::*;

fn five() -> Scenario {
    let traffic = Traffic { fan_out_percent: 50, fan_out: 9, ..Traffic::default() };
    Scenario { users: 5, traffic, ..Scenario::default() }
}

#[test]
fn one_seed_one_plan_and_nobody_writes_to_himself() {
    let scenario = five();
    let sends: Vec<Send> = scenario.sends().collect();
    assert_eq!(sends, scenario.sends().collect::<Vec<_>>());
    assert_eq!(sends.len(), 2000);
    assert!(sends.iter().all(|send| !send.targets.contains(&send.sender) && !send.targets.is_empty()));
    assert!(sends.iter().any(|send| send.targets.len() == 4));
    assert!(
        sends
            .iter()
            .all(|send| (1..send.targets.len()).all(|i| !send.targets[i..].contains(&send.targets[i - 1])))
    );
    assert!(sends.is_sorted_by_key(|send| send.at));
    assert_ne!(sends, Scenario { seed: 2, ..scenario }.sends().collect::<Vec<_>>());
}

#[test]
fn senders_and_receivers_are_those_that_were_named() {
    let traffic = Traffic { senders: 3, receivers: 2, ..Traffic::default() };
    let scenario = Scenario { users: 10, traffic, ..Scenario::default() };
    for send in scenario.sends() {
        assert!(send.sender < 3 && send.targets.len() == 1 && send.targets[0] >= 8, "{send:?}");
    }
    let traffic = Traffic { receivers: 4, group: true, ..Traffic::default() };
    let group = Scenario { users: 5, traffic, ..Scenario::default() };
    for send in group.sends() {
        let mut targets = send.targets.clone();
        targets.sort_unstable();
        let wanted: Vec<u32> = (1..5).filter(|user| *user != send.sender).collect();
        assert_eq!(targets, wanted);
    }
    // One mailbox, and its owner writes to nobody.
    let traffic = Traffic { receivers: 1, ..Traffic::default() };
    let hot = Scenario { users: 3, traffic, ..Scenario::default() };
    assert!(hot.sends().all(|send| send.targets.len() == usize::from(send.sender != 2)));
}

#[test]
fn in_turn_everybody_writes_once_and_receives_once_before_anybody_does_again() {
    let traffic = Traffic { in_turn: true, fan_out_percent: 100, ..Traffic::default() };
    let scenario = Scenario { users: 7, rate: 7, duration: Duration::from_secs(3), traffic, ..five() };
    let sends: Vec<Send> = scenario.sends().collect();
    assert_eq!(sends.len(), 21);
    for round in sends.chunks(7) {
        for all in [
            round.iter().map(|send| send.sender).collect::<Vec<_>>(),
            round.iter().flat_map(|send| send.targets.clone()).collect(),
        ] {
            let distinct: std::collections::BTreeSet<u32> = all.iter().copied().collect();
            assert_eq!((all.len(), distinct.len()), (7, 7), "{all:?}");
        }
        assert!(round.iter().all(|send| !send.targets.contains(&send.sender)));
    }
    let alone = Scenario { users: 1, ..scenario };
    assert!(alone.sends().all(|send| send.targets.is_empty()));
}

#[test]
fn a_rate_that_grows_does_so_evenly() {
    let ramp = Scenario { rate: 100, rate_end: Some(300), ..Scenario::default() };
    assert_eq!(ramp.sends_total(), 2000);
    let of_second = |second: u64| ramp.sends().filter(|send| send.at.as_secs() == second).count();
    assert!((105..=115).contains(&of_second(0)), "{}", of_second(0));
    assert!((285..=295).contains(&of_second(9)), "{}", of_second(9));
    let falling = Scenario { rate: 300, rate_end: Some(100), ..Scenario::default() };
    assert!(falling.sends().collect::<Vec<_>>().is_sorted_by_key(|send| send.at));
    assert!(falling.sends().all(|send| send.at <= falling.duration));
}

#[test]
fn a_file_is_read_and_what_nobody_reads_is_refused_with_its_line() {
    let text = r#"
        about = "ours"
        users = 300
        duration = "2m"
        carrier = "mix"
        thresholds = ["lost==0", "deliver.p99<250ms"]
        [traffic]
        fan-out-percent = 5
        [[events]]
        at = "1m"
        do = "storm"
    "#;
    let scenario = Scenario::read(text).unwrap();
    assert_eq!((scenario.users, scenario.duration), (300, Duration::from_mins(2)));
    assert_eq!(scenario.events[0].what, Happening::Storm);
    let back = toml::to_string(&scenario).unwrap();
    assert_eq!(Scenario::read(&back).unwrap(), scenario);
    for (wrong, told) in [
        ("user = 300", "unknown field `user`"),
        ("users = 1", "at least 2"),
        ("rate = 0", "rate"),
        ("duration = \"soon\"", "no duration"),
        ("duration = \"5s\"\nwarm-up = \"5s\"", "warm-up"),
        ("thresholds = [\"p98<3\"]", "p98"),
        ("[traffic]\nsenders = 101", "traffic.senders"),
        ("[traffic]\ngroup = true", "receivers"),
        ("[sessions]\nslow-percent = 101.0", "sessions.slow-percent"),
        ("[[events]]\nat = \"10s\"\ndo = \"storm\"", "the load is over"),
        ("[[events]]\nat = \"1s\"\ndo = \"dance\"", "dance"),
        ("[wake]\nbound = \"0s\"", "wake.bound"),
    ] {
        let error = Scenario::read(wrong).unwrap_err();
        assert!(error.contains(told), "{wrong}: {error}");
    }
    let error = Scenario::find("strom").unwrap_err();
    assert!(error.contains("storm") && error.contains(".toml"), "{error}");
    assert!(Scenario::find("nowhere.toml").unwrap_err().contains("nowhere.toml"));
}

#[test]
fn every_scenario_of_the_library_can_be_run_and_says_what_it_is() {
    for ready in library::ALL {
        let scenario = Scenario::find(ready.name).unwrap();
        assert!(scenario.about.len() > 20, "{}", ready.name);
        assert!(scenario.thresholds.contains(&"lost==0".to_owned()), "{}", ready.name);
    }
    let names = "chat idle storm ramp drain slow-reader half-open fan-out group hot-mailbox cold-backlog roam wake mix soak";
    assert_eq!(library::ALL.iter().map(|ready| ready.name).collect::<Vec<_>>().join(" "), names);
}

#[test]
fn every_key_and_figure_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/loadtest.md");
    let page = std::fs::read_to_string(page).unwrap();
    let whole = Scenario {
        rate_end: Some(1),
        carrier: Some(Choice::Mix),
        faults: Some(Parts::One),
        path: Some(BadPath::default()),
        events: vec![Event { at: Duration::ZERO, what: Happening::Storm }],
        wake: Some(Sleep::default()),
        ..Scenario::default()
    };
    let table = toml::Table::try_from(&whole).unwrap();
    for (key, value) in &table {
        let inner = value.as_array().and_then(|all| all.first()).unwrap_or(value);
        let names = match inner.as_table() {
            Some(inner) => inner.keys().map(|name| format!("{key}.{name}")).collect(),
            None => vec![key.clone()],
        };
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
    for (name, ..) in crate::thresholds::NAMES {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    for ready in library::ALL {
        assert!(page.contains(&format!("| `{}` |", ready.name)), "{}", ready.name);
    }
}
