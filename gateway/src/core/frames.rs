//! What a client says. **Invariant:** every frame counts, whichever way it came; what may not be lost is served from the
//! stream only.

use super::Core;
use crate::auth::TokenError;
use crate::connection::End;
use crate::limits::{EPHEMERALS, FRAMES, Hit, Verdict, check_submit, limit_error, refresh_refused};
use crate::requests::{Done, Requests, push_unavailable, refused};
use crate::submits::Submits;
use crate::transport::Inbound;
use bytes::Bytes;
use chappe_protocol::close::{CloseCode, ErrorCode};
use chappe_protocol::envelope::Sender;
use chappe_protocol::frame::{
    ClientFrame, FrameError, Limits, Request, RequestError, Role, Secret, ServerFrame, Submit,
};
use chappe_protocol::id::SubmitId;
use chappe_protocol::time::Millis;
use std::sync::Arc;

impl Core {
    /// One thing from the socket.
    pub(crate) fn on_inbound(&mut self, inbound: Inbound<'_>) {
        if self.ending.is_some() {
            return;
        }
        match inbound {
            Inbound::Message(message) => self.on_message(message),
            Inbound::Datagram(message) => self.on_datagram(message),
            Inbound::Control => {
                self.session.handle_frame(self.now);
                let _within = self.check_rate();
            }
            Inbound::Close(_) => self.ending = Some(End::Parted),
        }
    }

    /// One frame of the client.
    pub(crate) fn on_message(&mut self, message: &[u8]) {
        let now = self.now;
        self.session.handle_frame(now);
        let too_fast = self.check_rate();
        if let Some(peek) = &mut self.peek {
            peek.idle_since = now;
        }
        match ClientFrame::decode(Bytes::copy_from_slice(message)) {
            Ok(ClientFrame::Submit(submit)) => self.on_submit(submit, too_fast),
            Ok(ClientFrame::Ack { upto }) => self.session.handle_ack(now, upto),
            Ok(ClientFrame::Ping { nonce }) => self.session.handle_ping(now, nonce),
            Ok(ClientFrame::Refresh { token }) if too_fast.is_none() => self.on_refresh(&token),
            Ok(ClientFrame::Refresh { .. }) => self.answers.push(ServerFrame::Error(refresh_refused())),
            Ok(ClientFrame::Hello(_)) => self.end(CloseCode::HelloExpected),
            Ok(ClientFrame::Request { id, request }) => self.on_request(id, Ok(request), too_fast),
            Err(FrameError::Request { id, why }) => self.on_request(id, Err(why), too_fast),
            // From a newer client: ignored.
            Err(FrameError::UnknownFrame) => {}
            Err(FrameError::Garbage | FrameError::Field(_)) => self.end(CloseCode::BadFrame),
        }
    }

    /// One frame in a datagram: an ephemeral submit, or nothing that is served there.
    fn on_datagram(&mut self, message: &[u8]) {
        self.session.handle_frame(self.now);
        let too_fast = self.check_rate();
        match ClientFrame::decode(Bytes::copy_from_slice(message)) {
            Ok(ClientFrame::Submit(submit)) if submit.ephemeral => self.on_submit(submit, too_fast),
            Ok(
                ClientFrame::Submit(_)
                | ClientFrame::Ack { .. }
                | ClientFrame::Ping { .. }
                | ClientFrame::Refresh { .. }
                | ClientFrame::Request { .. }
                | ClientFrame::Hello(_),
            )
            | Err(
                FrameError::UnknownFrame
                | FrameError::Garbage
                | FrameError::Field(_)
                | FrameError::Request { .. },
            ) => {
                self.gateway.metrics.datagrams_ignored_total.inc();
            }
        }
    }

    /// Counts a frame. `Some`: it came too fast; the first of an excess is told so at once. Signs of life, acks and pings
    /// still count, since they cost nothing.
    fn check_rate(&mut self) -> Option<Hit> {
        let hit = |retry_after_ms| Hit { name: FRAMES, retry_after_ms };
        match self.frames.on_frame(self.now, &self.gateway.config.session.limits) {
            Verdict::Within => None,
            Verdict::Warn { retry_after_ms } => {
                self.refuse(hit(retry_after_ms), None);
                Some(hit(retry_after_ms))
            }
            Verdict::Beyond { retry_after_ms } => Some(hit(retry_after_ms)),
            Verdict::Close => {
                self.end(CloseCode::RateLimited);
                Some(hit(1000))
            }
        }
    }

    fn on_submit(&mut self, submit: Submit, too_fast: Option<Hit>) {
        let config = &self.gateway.config;
        let in_flight = self.submits.as_ref().map_or(0, |submits| submits.in_flight());
        let limits: &Limits = &config.session.limits;
        let mut hit = too_fast.or_else(|| check_submit(&submit, limits, in_flight).err());
        if hit.is_none() && submit.ephemeral {
            let (rate, burst) = (config.ephemerals_per_second, config.ephemerals_burst);
            let taken = self.ephemerals.take(self.now, rate, burst);
            hit = taken.err().map(|retry_after_ms| Hit { name: EPHEMERALS, retry_after_ms });
        }
        let now = self.now;
        if let Some(hit) = hit {
            self.refuse(hit, Some(submit.submit_id));
            // It will come again: nothing that was sent behind it may overtake it.
            if hit.retry_after_ms > 0 && !submit.ephemeral {
                self.submits().owe(now, &submit);
            }
            return;
        }
        if !submit.ephemeral {
            self.submits().admit(now, submit);
            return;
        }
        let id = submit.submit_id;
        if !self.submits().admit_ephemeral(submit) {
            self.gateway.metrics.ephemerals_dropped_total.inc();
            self.refuse(Hit { name: EPHEMERALS, retry_after_ms: 1000 }, Some(id));
        }
    }

    fn submits(&mut self) -> &mut Submits {
        self.submits.get_or_insert_with(|| {
            let sender = Sender { user: self.user.clone(), device: self.handle.device.clone() };
            Box::new(Submits::new(Arc::clone(&self.gateway), sender))
        })
    }

    fn refuse(&mut self, hit: Hit, submit: Option<SubmitId>) {
        self.gateway.metrics.limited_total.with_label_values(&[hit.name]).inc();
        self.answers.push(ServerFrame::Error(limit_error(hit, submit)));
    }

    /// Asks for something; every request is answered.
    fn on_request(&mut self, id: u64, request: Result<Request, RequestError>, too_fast: Option<Hit>) {
        if self.ending.is_some() {
            return;
        }
        let settings = match request {
            Ok(Request::SetPush(settings)) => settings,
            Err(RequestError::Unknown) => {
                let hint = "this server does not know such a request";
                return self.on_done(id, refused(ErrorCode::UnknownRequest, 0, hint));
            }
            Err(why @ RequestError::Field(_)) => {
                return self.on_done(id, refused(ErrorCode::BadRequest, 0, &why.to_string()));
            }
        };
        if self.handle.role == Role::Peek {
            let hint = "a peek may not ask for that; ask on a main session";
            return self.on_done(id, refused(ErrorCode::NotMain, 0, hint));
        }
        if self.gateway.config.push_keys.is_none() {
            return self.on_done(id, push_unavailable());
        }
        if let Err(wait) = self.may_request(too_fast) {
            return self.on_done(id, refused(ErrorCode::Rate, wait, "too many requests; send it again then"));
        }
        self.requests().admit(id, settings);
    }

    /// Otherwise in how many milliseconds.
    fn may_request(&mut self, too_fast: Option<Hit>) -> Result<(), u32> {
        if let Some(hit) = too_fast {
            return Err(hit.retry_after_ms.max(1));
        }
        if !self.requests.as_ref().is_none_or(|requests| requests.has_room()) {
            return Err(1000);
        }
        let rate = self.gateway.config.requests_per_minute;
        self.requests_rate.take_by_minute(self.now, rate, rate)
    }

    fn requests(&mut self) -> &mut Requests {
        let (gateway, handle) = (&self.gateway, &self.handle);
        self.requests.get_or_insert_with(|| Box::new(Requests::new(Arc::clone(gateway), Arc::clone(handle))))
    }

    /// A request is decided.
    pub(super) fn on_done(&mut self, id: u64, done: Done) {
        let word = match done {
            Done::Reply(reply, word) => {
                self.answers.push(ServerFrame::Reply { id, reply });
                word
            }
            Done::Revoked => {
                self.end(CloseCode::DeviceRevoked);
                CloseCode::DeviceRevoked.reason()
            }
        };
        self.gateway.metrics.requests_total.with_label_values(&[word]).inc();
        self.requests.take_if(|requests| requests.is_idle());
    }

    fn on_refresh(&mut self, token: &Secret) {
        let wall = self.gateway.world.wall();
        match self.gateway.verifier.verify(&token.0, &self.handle.device, None, wall) {
            Ok(identity) if identity.user == self.user => {
                self.valid_until = self.now + Millis(identity.valid_until.0.saturating_sub(wall.0));
            }
            Ok(_) | Err(TokenError::OtherDevice) => self.end(CloseCode::TokenInvalid),
            Err(TokenError::Invalid | TokenError::Expired | TokenError::UnknownKey) => {
                self.answers.push(ServerFrame::Error(refresh_refused()));
            }
        }
    }
}
