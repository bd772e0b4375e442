//! The console's question to all processes of the cluster, and its answers. **Invariant:** nobody is asked unless somebody looks, and
//! what comes is bounded in number, bytes and time.

use super::{BusError, NatsBus, Shared};
use async_nats::{Message, Subscriber};
use chappe_node::console::{Console, MEMBERS_MAX, Member, Neighbours};
use chappe_protocol::time::Millis;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Who has not answered by then is told of as silent.
const PATIENCE: Millis = Millis(400);
/// With nobody missing, so long is waited for those who are new.
const NEWCOMERS: Millis = Millis(100);
/// Bytes of an answer at most; some 10 KiB are usual.
const ANSWER_BYTES_MAX: usize = 128 * 1024;

impl NatsBus {
    /// Shows the cluster on this console, and answers the others' consoles with what it says of itself.
    pub async fn meet(&self, console: &Arc<Console>) -> Result<(), BusError> {
        let shared = &self.shared;
        let questions = shared.subscribe(shared.subjects.members()).await?;
        let me = shared.world.random_below(u64::MAX);
        let place = shared.subjects.member(me);
        let answers = shared.subscribe(format!("{place}.*")).await?;
        shared.start(answer(Arc::clone(shared), questions, Arc::clone(console)));
        let answers = Mutex::new(Answers { place, heard: answers, asked: 0, known: 0 });
        console.meet(Arc::new(BusNeighbours { shared: Arc::clone(shared), answers }));
        Ok(())
    }
}

/// Tells whoever asks.
async fn answer(shared: Arc<Shared>, mut questions: Subscriber, console: Arc<Console>) {
    while let Some(question) = questions.next().await {
        let Some(reply) = question.reply else { continue };
        if let Ok(own) = serde_json::to_vec(&console.own()) {
            // A lost answer is a member that looks silent for five seconds.
            let _ = shared.client.publish(reply, own.into()).await;
        }
    }
}

struct BusNeighbours {
    shared: Arc<Shared>,
    answers: Mutex<Answers>,
}

/// Where answers arrive.
struct Answers {
    place: String,
    heard: Subscriber,
    /// Questions so far.
    asked: u64,
    /// How many answered the last one.
    known: usize,
}

impl Neighbours for BusNeighbours {
    fn ask(&self) -> BoxFuture<'_, Vec<Member>> {
        async {
            let mut answers = self.answers.lock().await;
            let Answers { place, heard, asked, known } = &mut *answers;
            *asked += 1;
            let here = format!("{place}.{asked}");
            let question = self.shared.client.publish_with_reply(
                self.shared.subjects.members(),
                here.clone(),
                "".into(),
            );
            if !matches!(tokio::time::timeout(PATIENCE.to_std(), question).await, Ok(Ok(()))) {
                return Vec::new();
            }
            let mut members = BTreeMap::new();
            let begun = self.shared.world.now();
            while members.len() < MEMBERS_MAX {
                let patience = if members.len() < *known { PATIENCE } else { NEWCOMERS };
                let left = begun + patience - self.shared.world.now();
                let Ok(Some(message)) = tokio::time::timeout(left.to_std(), heard.next()).await else {
                    break;
                };
                if let Some(member) = read(&message, &here) {
                    members.insert(member.instance.clone(), member);
                }
            }
            *known = members.len();
            members.into_values().collect()
        }
        .boxed()
    }
}

/// An answer to this question; late ones to another are left out.
fn read(message: &Message, here: &str) -> Option<Member> {
    let fits = message.subject.as_str() == here && message.payload.len() <= ANSWER_BYTES_MAX;
    fits.then(|| serde_json::from_slice(&message.payload).ok()).flatten()
}
