//! Hints of routers in the same process. **Invariant:** no router waits for them; what does not fit is dropped, and swept.

use super::Hinted;
use chappe_protocol::internode::WakeHint;
use chappe_router::wakes::Wakes;
use futures_util::Stream;
use tokio::sync::mpsc;

/// Where routers put them.
pub struct LocalHints(mpsc::Sender<WakeHint>);

/// At most so many hints wait.
pub fn local_hints(max: usize) -> (LocalHints, impl Stream<Item = Hinted> + Send) {
    let (hints, mut receiver) = mpsc::channel(max.max(1));
    let stream =
        futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|hint| hint.map(Hinted::from)));
    (LocalHints(hints), stream)
}

impl Wakes for LocalHints {
    fn hint(&self, hint: WakeHint) {
        // Full: the sweep comes by.
        let _ = self.0.try_send(hint);
    }
}
