//! The handle that the application holds. **Invariant:** every call ends when the client ends.

use crate::builder::{Builder, Settings, Tuning};
use crate::driver::{self, Command, NewSubmit};
use crate::error::ClientError;
use crate::event::Event;
use crate::inbox::{Inbox, Queued};
use crate::outgoing::{Outgoing, Receipt, submit_bytes};
use crate::push::{NewPush, check as check_push};
use crate::state::State;
use chappe_protocol::frame::Limits;
use chappe_protocol::id::SubmitId;
use chappe_protocol::push::PushSettings;
use chappe_protocol::world::World;
use futures_core::Stream;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A device's connection to Chappe: reconnects, resumes, retries and de-duplicates by itself.
///
/// Clones are handles of the same client; when the last one is dropped it ends at once (without the last acks; for
/// these call [`Client::close`]).
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    commands: mpsc::Sender<Command>,
    events: Mutex<mpsc::Receiver<Queued>>,
    states: watch::Receiver<State>,
    limits: watch::Receiver<Limits>,
    items: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    outbox_bytes_max: usize,
    world: Arc<dyn World>,
    tracker: TaskTracker,
    _stop: DropGuard,
}

impl Client {
    /// Settings for a client of the gateway at `url`, port 443 by default:
    /// - `chappe://host[:port]`: QUIC or WebSocket, whichever is there first (same port number in UDP and TCP);
    /// - `wss://host[:port]`: WebSocket only, or `ws://`, without TLS, to this host;
    /// - `chappe+quic://host[:port]`: QUIC only;
    /// - `chappe+webtransport://host[:port]`: WebTransport only.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    pub(crate) fn start(
        settings: Result<Settings, ClientError>,
        world: &Arc<dyn World>,
        tuning: &Tuning,
    ) -> Self {
        let (commands, commands_in) = mpsc::channel(tuning.outbox_items_max.saturating_add(64));
        let inbox = Inbox::new(tuning);
        let (states_out, states) = watch::channel(State::Connecting { attempt: 1 });
        let (limits_out, limits) = watch::channel(Limits::default());
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let (inbox, events) = inbox;
        match settings {
            Ok(settings) => {
                let seams = driver::Seams {
                    commands: commands_in,
                    inbox,
                    states: states_out,
                    limits: limits_out,
                    stop: stop.clone(),
                };
                tracker.spawn(driver::run(settings, seams));
            }
            Err(error) => {
                states_out.send_replace(State::Failed(error));
            }
        }
        tracker.close();
        // More than a semaphore can hold is as good as no bound in bytes; the bound in items stays.
        let bytes_max = tuning.outbox_bytes_max.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                commands,
                events: Mutex::new(events),
                states,
                limits,
                items: Arc::new(Semaphore::new(tuning.outbox_items_max.min(Semaphore::MAX_PERMITS))),
                bytes: Arc::new(Semaphore::new(bytes_max)),
                outbox_bytes_max: bytes_max,
                world: world.clone(),
                tracker,
                _stop: stop.drop_guard(),
            }),
        }
    }

    /// Submits and waits until every target is decided: accepted, or finally refused. Meanwhile the SDK retries the
    /// same submit over as many connections as it takes, for at most 24 hours. Waits for room in the outbox first.
    /// Submits of one client to one recipient stand in the mailbox in the order of the calls. Dropping the future after
    /// its first poll does not take the submit back.
    pub async fn submit(&self, outgoing: Outgoing) -> Result<Receipt, ClientError> {
        self.submit_queued(outgoing).await?.receipt().await
    }

    /// As [`Client::submit`], but returns as soon as the outbox has it; with a state directory and once the receipt
    /// comes it was on disk. Await the [`Pending`] for the receipt.
    pub async fn submit_queued(&self, outgoing: Outgoing) -> Result<Pending, ClientError> {
        let submit = self.prepare(outgoing)?;
        let weight = self.weight(&submit)?;
        let room = async {
            let items = self.shared.items.clone().acquire_owned().await.ok()?;
            let bytes = self.shared.bytes.clone().acquire_many_owned(weight).await.ok()?;
            Some((items, bytes))
        };
        let mut states = self.shared.states.clone();
        let (items, bytes) = tokio::select! {
            biased;
            error = ended(&mut states) => return Err(error),
            room = room => room.ok_or(ClientError::Closed)?,
        };
        let (reply, pending) = self.pending();
        let command = Command::Submit(Box::new(NewSubmit { submit, reply, permits: [items, bytes] }));
        self.shared.commands.send(command).await.map_err(|_| self.end())?;
        Ok(pending)
    }

    /// As [`Client::submit_queued`], but fails with [`ClientError::Full`] instead of waiting for room.
    pub fn try_submit(&self, outgoing: Outgoing) -> Result<Pending, ClientError> {
        let submit = self.prepare(outgoing)?;
        let weight = self.weight(&submit)?;
        let items = taken(self.shared.items.clone().try_acquire_owned())?;
        let bytes = taken(self.shared.bytes.clone().try_acquire_many_owned(weight))?;
        let (reply, pending) = self.pending();
        self.send(Command::Submit(Box::new(NewSubmit { submit, reply, permits: [items, bytes] })))?;
        Ok(pending)
    }

    /// Sends something that is never stored to devices that are attached now. Best effort: `Ok` says only that it was
    /// queued while connected.
    pub fn submit_ephemeral(&self, outgoing: Outgoing) -> Result<(), ClientError> {
        let submit_id = SubmitId::random(&*self.shared.world);
        let submit = outgoing.into_submit(submit_id, &self.shared.limits.borrow(), true)?;
        match &*self.shared.states.borrow() {
            State::Connected { .. } => {}
            State::Connecting { .. } | State::Waiting { .. } | State::Superseded => {
                return Err(ClientError::NotConnected);
            }
            State::Failed(error) => return Err(error.clone()),
            State::Closed => return Err(ClientError::Closed),
        }
        self.send(Command::Ephemeral(submit))
    }

    /// Says where and when this device is woken while it is not connected; replaces all that it has said before. Without a
    /// target it is not woken any more. Resolves when the server has it durably; until then it is sent again on each new
    /// connection, and after a time where the server asks for one. A newer call takes the place of one that is still under way,
    /// which then ends with [`ClientError::Replaced`]. Nothing of it is kept on disk: call it after each start of the
    /// application, and whenever the provider gives another token. `PushTarget::registered_at` is stamped by the server.
    ///
    /// [`ClientError::Refused`] says by its code why the server does not take it: `push_unavailable` (it wakes nobody),
    /// `not_main` (this client is a peek), `bad_request`, `unknown_request` (an older server).
    ///
    /// ```no_run
    /// use chappe_client::{
    ///     AppName, Client, ClientError, Event, PushAddress, PushSettings, PushTarget, Quiet, UnixMillis,
    /// };
    ///
    /// # async fn started(client: &Client, token: String) -> Result<(), Box<dyn std::error::Error>> {
    /// let app = AppName::new("my-project")?;
    /// let address = PushAddress::Fcm { token };
    /// let target = PushTarget { app, address, registered_at: UnixMillis(0) };
    /// client.set_push(PushSettings { targets: vec![target], quiet: Quiet::default() }).await?;
    /// # Ok(())
    /// # }
    /// // What the application does when a wake starts it:
    /// # async fn woken(token: String) -> Result<(), ClientError> {
    /// let client = Client::builder("wss://chat.example").device("phone").token(token).start();
    /// while let Some(event) = client.next_event().await {
    ///     match event {
    ///         Event::Envelope(envelope) => envelope.ack(), // after it was stored and shown
    ///         Event::BacklogEnd => break,
    ///         _ => {}
    ///     }
    /// }
    /// client.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_push(&self, settings: PushSettings) -> Result<(), ClientError> {
        check_push(&settings)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::SetPush(Box::new(NewPush { settings, reply }));
        self.shared.commands.send(command).await.map_err(|_| self.end())?;
        answer.await.map_err(|_| self.end())?
    }

    /// The next event; `None` when the client has ended and everything was handed out. Several callers share the events.
    pub async fn next_event(&self) -> Option<Event> {
        let queued = self.shared.events.lock().await.recv().await?;
        Some(queued.take())
    }

    /// The events as a stream; it shares them with [`Client::next_event`] and keeps the client alive.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + use<> {
        let client = self.clone();
        futures_util::stream::unfold(client, async |client| {
            let event = client.next_event().await?;
            Some((event, client))
        })
    }

    /// What the client is doing now.
    pub fn state(&self) -> State {
        self.shared.states.borrow().clone()
    }

    /// The present state and every newer one; ends after the final state.
    pub fn states(&self) -> impl Stream<Item = State> + Send + use<> {
        tokio_stream::wrappers::WatchStream::new(self.shared.states.clone())
    }

    /// What the server allows, as last told; before the first Welcome its usual defaults.
    pub fn limits(&self) -> Limits {
        *self.shared.limits.borrow()
    }

    /// Waits until the client is connected, or until it has ended.
    pub async fn connected(&self) -> Result<(), ClientError> {
        let mut states = self.shared.states.clone();
        loop {
            match &*states.borrow_and_update() {
                State::Connected { .. } => return Ok(()),
                State::Failed(error) => return Err(error.clone()),
                State::Closed => return Err(ClientError::Closed),
                State::Connecting { .. } | State::Waiting { .. } | State::Superseded => {}
            }
            if states.changed().await.is_err() {
                return Err(self.end());
            }
        }
    }

    /// Drops the socket as a network loss would; the client resumes by itself.
    pub fn disconnect_now(&self) {
        // A full queue of commands means that the driver is busy anyway; an ended client has no socket.
        let _ = self.shared.commands.try_send(Command::Disconnect);
    }

    /// Connects now instead of waiting, and takes the session back after [`State::Superseded`].
    pub fn reconnect(&self) {
        let _ = self.shared.commands.try_send(Command::Reconnect);
    }

    /// The device has another network or address. A session over QUIC goes along, and where it cannot a new connection
    /// resumes it; WebSocket connects again at once. Calling it without a change costs a ping or a reconnect.
    pub fn network_changed(&self) {
        let _ = self.shared.commands.try_send(Command::NetworkChanged);
    }

    /// Sends the last acks, says goodbye and ends. What is undecided in the outbox is sent by the next client with the
    /// same state directory, and otherwise lost; await the receipts first.
    pub async fn close(&self) {
        let _ = self.shared.commands.send(Command::Close).await;
        self.shared.tracker.wait().await;
    }

    fn prepare(&self, outgoing: Outgoing) -> Result<chappe_protocol::frame::Submit, ClientError> {
        if self.shared.commands.is_closed() {
            return Err(self.end());
        }
        outgoing.into_submit(SubmitId::random(&*self.shared.world), &self.shared.limits.borrow(), false)
    }

    fn weight(&self, submit: &chappe_protocol::frame::Submit) -> Result<u32, ClientError> {
        let bytes = submit_bytes(submit);
        let max = self.shared.outbox_bytes_max;
        let weight = u32::try_from(bytes).ok().filter(|_| bytes <= max);
        weight.ok_or(ClientError::TooLarge { limit_name: "outbox_bytes_max", max: max as u64 })
    }

    fn pending(&self) -> (oneshot::Sender<Result<Receipt, ClientError>>, Pending) {
        let (reply, receipt) = oneshot::channel();
        (reply, Pending { receipt, states: self.shared.states.clone() })
    }

    fn send(&self, command: Command) -> Result<(), ClientError> {
        self.shared.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ClientError::Full,
            mpsc::error::TrySendError::Closed(_) => self.end(),
        })
    }

    /// Why the driver is gone.
    fn end(&self) -> ClientError {
        end_of(&self.shared.states.borrow())
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A submit on its way.
#[derive(Debug)]
pub struct Pending {
    receipt: oneshot::Receiver<Result<Receipt, ClientError>>,
    states: watch::Receiver<State>,
}

impl Pending {
    /// Waits until every target is decided.
    pub async fn receipt(self) -> Result<Receipt, ClientError> {
        match self.receipt.await {
            Ok(result) => result,
            Err(_) => Err(end_of(&self.states.borrow())),
        }
    }
}

fn end_of(state: &State) -> ClientError {
    match state {
        State::Failed(error) => error.clone(),
        State::Connecting { .. }
        | State::Connected { .. }
        | State::Waiting { .. }
        | State::Superseded
        | State::Closed => ClientError::Closed,
    }
}

async fn ended(states: &mut watch::Receiver<State>) -> ClientError {
    loop {
        if states.borrow_and_update().is_final() || states.changed().await.is_err() {
            return end_of(&states.borrow());
        }
    }
}

fn taken(permit: Result<OwnedSemaphorePermit, TryAcquireError>) -> Result<OwnedSemaphorePermit, ClientError> {
    permit.map_err(|error| match error {
        TryAcquireError::NoPermits => ClientError::Full,
        TryAcquireError::Closed => ClientError::Closed,
    })
}
