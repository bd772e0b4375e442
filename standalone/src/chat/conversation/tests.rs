//! Two conversations in one process, with a queue between them.

use super::*;

struct Side {
    folder: tempfile::TempDir,
    me: &'static str,
    peer: &'static str,
    conversation: Conversation,
}

impl Side {
    fn new(me: &'static str, peer: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let conversation = Conversation::open(&folder.path().join("chat"), me, peer).unwrap();
        Self { folder, me, peer, conversation }
    }

    /// As after a crash: only what was saved is there.
    fn restart(&mut self) {
        self.conversation = Conversation::open(&self.folder.path().join("chat"), self.me, self.peer).unwrap();
    }

    fn lose_state(&mut self) {
        std::fs::remove_file(self.folder.path().join("chat")).unwrap();
        self.restart();
    }

    fn say(&mut self, text: &str) {
        self.conversation.say(text).unwrap();
        self.conversation.save().unwrap();
    }

    fn receive(&mut self, payload: &Bytes) -> News {
        let news = self.conversation.receive(payload).unwrap();
        self.conversation.save().unwrap();
        news
    }

    fn outgoing(&mut self) -> Vec<Bytes> {
        let mut all = Vec::new();
        while let Some(payload) = self.conversation.next_unsent() {
            self.conversation.sent();
            all.push(payload);
        }
        self.conversation.save().unwrap();
        all
    }
}

/// Carries everything, each envelope `copies` times, until nothing is on its way.
fn carry(one: &mut Side, other: &mut Side, copies: usize) -> Vec<News> {
    let mut news = Vec::new();
    loop {
        let (there, back) = (one.outgoing(), other.outgoing());
        if there.is_empty() && back.is_empty() {
            news.retain(|news| *news != News::Nothing);
            return news;
        }
        for payload in there {
            news.extend((0..copies).map(|_| other.receive(&payload)));
        }
        for payload in back {
            news.extend((0..copies).map(|_| one.receive(&payload)));
        }
    }
}

fn texts(news: &[News]) -> Vec<&str> {
    let texts = news.iter().filter_map(|news| match news {
        News::Text(text) => Some(text.as_str()),
        News::Nothing | News::Established | News::StartsAnew | News::KeyChanged | News::Unreadable => None,
    });
    texts.collect()
}

#[test]
fn lines_typed_before_the_other_comes_arrive_once_in_order_over_restarts_and_repetitions() {
    let (mut anna, mut ben) = (Side::new("anna", "ben"), Side::new("ben", "anna"));
    anna.say("one");
    anna.say("two");
    ben.say("three");
    let news = carry(&mut anna, &mut ben, 2);
    let mut heard = texts(&news);
    heard.sort_unstable();
    assert_eq!(heard, ["one", "three", "two"]);
    assert!(heard.len() == 3 && !news.contains(&News::Unreadable), "{news:?}");
    for round in 0..3 {
        anna.restart();
        ben.restart();
        anna.say(&format!("a{round}"));
        ben.say(&format!("b{round}"));
        anna.restart();
        let news = carry(&mut anna, &mut ben, 2);
        assert_eq!(texts(&news), [format!("a{round}"), format!("b{round}")]);
        assert_eq!(news.len(), 2, "{news:?}");
    }
    assert!(anna.conversation.safety_number().is_some());
    assert_eq!(anna.conversation.safety_number(), ben.conversation.safety_number());
}

#[test]
fn nothing_typed_is_readable_in_a_payload_and_lengths_are_padded() {
    let (mut anna, mut ben) = (Side::new("anna", "ben"), Side::new("ben", "anna"));
    anna.say("the canary sings");
    let mut sizes = std::collections::BTreeSet::new();
    for _ in 0..4 {
        for payload in anna.outgoing() {
            assert!(!payload.windows(10).any(|window| window == b"the canary"));
            ben.receive(&payload);
        }
        for payload in ben.outgoing() {
            anna.receive(&payload);
        }
    }
    for text in ["x", "a longer line, but not by much"] {
        anna.say(text);
        sizes.extend(anna.outgoing().iter().map(Bytes::len));
    }
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}

#[test]
fn a_changed_key_is_refused_until_it_is_accepted() {
    for loser_creates in [true, false] {
        let (mut anna, mut ben) = (Side::new("anna", "ben"), Side::new("ben", "anna"));
        carry(&mut anna, &mut ben, 1);
        let before = anna.conversation.safety_number();
        let (loser, keeper) = if loser_creates { (&mut anna, &mut ben) } else { (&mut ben, &mut anna) };
        loser.lose_state();
        loser.say("is it me?");
        let news = carry(loser, keeper, 1);
        assert!(news.contains(&News::KeyChanged) && texts(&news).is_empty(), "{news:?}");
        assert_eq!(keeper.conversation.safety_number(), before);
        keeper.restart();
        assert_eq!(keeper.conversation.accept_new_key().unwrap(), News::StartsAnew);
        keeper.conversation.save().unwrap();
        assert_eq!(keeper.conversation.accept_new_key().unwrap(), News::Nothing);
        let news = carry(loser, keeper, 1);
        assert_eq!(texts(&news), ["is it me?"]);
        assert_ne!(keeper.conversation.safety_number(), before);
        assert_eq!(keeper.conversation.safety_number(), loser.conversation.safety_number());
    }
}

#[test]
fn garbage_and_strangers_change_nothing() {
    let (mut anna, mut ben) = (Side::new("anna", "ben"), Side::new("ben", "anna"));
    let mut carol = Side::new("carol", "ben");
    let offers = carol.outgoing();
    assert_eq!(anna.receive(&offers[0]), News::Unreadable, "carol is not ben");
    for garbage in ["", "hello", "\u{1}\u{3}xxxx", "\u{1}\u{1}0123456789abcdefxxxxx"] {
        assert_eq!(anna.receive(&Bytes::from_static(garbage.as_bytes())), News::Unreadable);
    }
    anna.say("still here");
    assert_eq!(texts(&carry(&mut anna, &mut ben, 1)), ["still here"]);
}
