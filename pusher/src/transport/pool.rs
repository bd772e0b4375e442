//! Sends requests to one origin. **Invariant:** only what the peer is known not to have looked at is sent a second time
//! (RFC 9113 §8.7: a stream refused by REFUSED_STREAM, or beyond the last stream that GOAWAY names).

use super::slots::{LaneId, Opening, Place, Slots, Taken};
use super::{Dialer, Origin, PoolLimits, Post, Reply, SendError, connection, retry_after};
use bytes::{Bytes, BytesMut};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, Version, header};
use std::pin::{Pin, pin};
use std::sync::Arc;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that took no request at all (they were going away) before one call gives up.
const UNSENT_MAX: u32 = 4;

/// What a provider's connections are made of.
#[derive(Clone)]
pub struct Wires {
    /// Whom to trust.
    pub tls: Arc<rustls::ClientConfig>,
    /// How to get there.
    pub dialer: Arc<dyn Dialer>,
    /// Per origin.
    pub limits: PoolLimits,
    /// Time and randomness.
    pub world: Arc<dyn World>,
    /// Connections run on it.
    pub tasks: TaskTracker,
}

impl Wires {
    /// A pool to this origin.
    pub(crate) fn pool(&self, origin: Origin, connections_max: usize) -> Pool {
        let limits = PoolLimits { connections_max, ..self.limits };
        Pool::new(
            origin,
            self.tls.clone(),
            self.dialer.clone(),
            limits,
            self.world.clone(),
            self.tasks.clone(),
        )
    }
}

/// A few HTTP/2 connections to one origin, opened when they are needed. Dropping it ends them.
pub struct Pool {
    origin: Origin,
    tls: Arc<rustls::ClientConfig>,
    dialer: Arc<dyn Dialer>,
    limits: PoolLimits,
    world: Arc<dyn World>,
    tasks: TaskTracker,
    slots: Arc<Slots>,
    end: CancellationToken,
}

/// Why one attempt came to nothing.
enum Failed {
    /// The connection took it not; nothing was sent.
    Unsent,
    /// The peer says that it did not look at it.
    Refused,
    /// Final.
    Final(SendError),
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Pool {
    /// Nothing is opened yet. Connections run on `tasks`.
    pub fn new(
        origin: Origin,
        tls: Arc<rustls::ClientConfig>,
        dialer: Arc<dyn Dialer>,
        limits: PoolLimits,
        world: Arc<dyn World>,
        tasks: TaskTracker,
    ) -> Self {
        let slots = Slots::new(limits.connections_max);
        Self { origin, tls, dialer, limits, world, tasks, slots, end: CancellationToken::new() }
    }

    /// One exchange. Ends by [`PoolLimits::exchange`]; cancelling it resets its stream.
    pub async fn send(&self, post: &Post) -> Result<Reply, SendError> {
        self.send_within(post, self.limits.exchange).await
    }

    /// The same for what is a part of a longer exchange: ends by `left`, if that is sooner.
    pub async fn send_within(&self, post: &Post, left: Millis) -> Result<Reply, SendError> {
        let mut deadline = pin!(tokio::time::sleep(left.min(self.limits.exchange).to_std()));
        let (mut avoid, mut unsent) = (None, 0);
        loop {
            let place = tokio::select! {
                biased;
                place = self.place(avoid) => place?,
                () = &mut deadline => return Err(SendError::Timeout),
            };
            let lane = place.lane;
            match self.attempt(place, post, deadline.as_mut()).await {
                Ok(reply) => return Ok(reply),
                Err(Failed::Unsent) if unsent < UNSENT_MAX => unsent += 1,
                Err(Failed::Refused) if avoid.is_none() => avoid = Some(lane),
                Err(Failed::Unsent | Failed::Refused) => return Err(SendError::Refused),
                Err(Failed::Final(error)) => return Err(error),
            }
        }
    }

    /// Waits for a place, opening a connection where there is a slot for one.
    async fn place(&self, avoid: Option<LaneId>) -> Result<Place, SendError> {
        let mut line = None;
        loop {
            let mut room = pin!(self.slots.room.notified());
            room.as_mut().enable(); // before the look, so that no change between the two is missed
            match self.slots.take(avoid) {
                Taken::Place(place) => return Ok(place),
                Taken::Open(opening) => self.open(opening).await?,
                Taken::Full => {
                    if line.is_none() {
                        line = Some(self.slots.wait(self.limits.waiting_max).ok_or(SendError::Busy)?);
                    }
                    room.await;
                }
            }
        }
    }

    async fn open(&self, opening: Opening) -> Result<(), SendError> {
        let opened = connection::open(&*self.dialer, &self.tls, &self.origin);
        let (sender, driver) = tokio::time::timeout(self.limits.dial.to_std(), opened)
            .await
            .map_err(|_| SendError::Unreachable)??;
        let id = opening.opened(sender);
        let drive = connection::drive(driver, self.slots.clone(), id, self.limits, self.world.clone());
        let end = self.end.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = drive => {}
            }
        });
        Ok(())
    }

    async fn attempt(
        &self,
        place: Place,
        post: &Post,
        mut deadline: Pin<&mut Sleep>,
    ) -> Result<Reply, Failed> {
        let lane = place.lane;
        let request = self.request(post)?;
        let ready = tokio::select! {
            biased;
            ready = place.sender.clone().ready() => ready,
            () = &mut deadline => {
                self.slots.retire(lane);
                return Err(Failed::Final(SendError::Timeout));
            }
        };
        let sent = ready.and_then(|mut sender| sender.send_request(request, post.body.is_empty()));
        let Ok((response, mut stream)) = sent else {
            self.slots.retire(lane);
            return Err(Failed::Unsent);
        };
        if !post.body.is_empty() {
            // What can fail here is told by the response as well, and better.
            let _ = stream.send_data(post.body.clone(), true);
        }
        let response = tokio::select! {
            biased;
            response = response => response.map_err(|error| self.failed(lane, &error))?,
            () = &mut deadline => {
                self.slots.retire(lane);
                return Err(Failed::Final(SendError::Timeout));
            }
        };
        self.slots.note(lane, true);
        Ok(self.read(lane, response, deadline).await)
    }

    fn request(&self, post: &Post) -> Result<Request<()>, Failed> {
        let mut request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("{}{}", self.origin.serialized(), post.path))
            .body(())
            .map_err(|_| Failed::Final(SendError::Unreachable))?;
        *request.headers_mut() = post.headers.clone();
        request.headers_mut().insert(header::CONTENT_LENGTH, post.body.len().into());
        Ok(request)
    }

    fn failed(&self, lane: LaneId, error: &h2::Error) -> Failed {
        // A stream hears of the peer's GOAWAY only if it lies beyond the last one that the peer looked at.
        if error.is_go_away() && error.is_remote() {
            self.slots.retire(lane);
            return Failed::Refused;
        }
        if error.is_reset() && error.is_remote() {
            self.slots.note(lane, false);
            return match error.reason() {
                Some(Reason::REFUSED_STREAM) => Failed::Refused,
                _ => Failed::Final(SendError::Lost),
            };
        }
        self.slots.retire(lane);
        Failed::Final(SendError::Lost)
    }

    /// The status is here and stands; the body is read as far as time and bound allow.
    async fn read(
        &self,
        lane: LaneId,
        response: Response<RecvStream>,
        mut deadline: Pin<&mut Sleep>,
    ) -> Reply {
        let (parts, mut stream) = response.into_parts();
        let after = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let mut reply = Reply {
            status: parts.status.as_u16(),
            retry_after: after.and_then(|value| retry_after(value, self.world.wall())),
            body: Bytes::new(),
            complete: false,
        };
        let mut body = BytesMut::new();
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = stream.data() => chunk,
                () = &mut deadline => {
                    self.slots.retire(lane);
                    break;
                }
            };
            match chunk {
                None => {
                    reply.complete = true;
                    break;
                }
                Some(Ok(chunk)) if body.len() + chunk.len() <= self.limits.body_bytes_max => {
                    body.extend_from_slice(&chunk);
                    if stream.flow_control().release_capacity(chunk.len()).is_err() {
                        break;
                    }
                }
                Some(Ok(_) | Err(_)) => break,
            }
        }
        reply.body = body.freeze();
        reply
    }
}
