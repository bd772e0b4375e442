//! One connection from Welcome to its end. **Invariant:** everything that can happen is a [`Happening`]; what arrives is
//! taken only while the inbox has room; a cursor is durable before its ack is sent.

use crate::carrier::{Carrier, Incoming, Meter, Outbound, Wire};
use crate::driver::{Command, Driver, sleep_until};
use crate::error::ClientError;
use crate::establish::Established;
use crate::event::Event;
use crate::frames;
use crate::link::{Link, Urgent, sane};
use crate::reconnect::End;
use crate::state::State;
use crate::token::{TokenError, TokenReason};
use chappe_protocol::frame::{ClientFrame, Role, ServerFrame};
use chappe_protocol::time::{Time, UnixMillis};
use std::pin::Pin;
use tokio::sync::mpsc::Permit;

type Dialling = Pin<Box<dyn Future<Output = Result<Wire, End>> + Send>>;
type Renewal = Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>>;

/// What wakes the loop.
enum Happening<'a> {
    Stop,
    Command(Option<Command>),
    /// The writer has ended; `Ok` after a close.
    Written(Result<(), End>),
    /// The writer has room for one message.
    Room(Permit<'a, Outbound>),
    /// Acks, or room in the inbox.
    Inbox,
    Incoming(Option<Incoming>),
    Token(Result<String, TokenError>),
    /// A second connection, in another network.
    Dialled(Result<Wire, End>),
    /// Bytes arrived, or a timer.
    Tick,
}

impl Driver {
    /// Talks until the end.
    pub(crate) async fn converse(&mut self, established: Established) -> End {
        let Established { wire, welcome, token_expires } = established;
        let Wire { carrier, mut reader, mut writer, mut incoming, out, meter, line: _line } = wire;
        let mut link = self.welcome(&welcome, token_expires, carrier);
        let mut renewal: Option<Renewal> = None;
        let mut crossing: Option<Dialling> = None;
        let mut writing = true;
        loop {
            let now = self.now();
            if let Err(end) = self.on_time(&mut link, &meter, &mut renewal, now) {
                return end;
            }
            self.cross(&mut link, &mut crossing, now);
            let wants_room = writing && self.wants_room(&mut link, now);
            let takes = link.close_by.is_some() || self.inbox.has_room();
            let sleep = sleep_until(now, self.next_time(&mut link, &meter, now));
            let happening = tokio::select! {
                biased;
                () = self.stop.cancelled() => Happening::Stop,
                written = &mut writer, if writing => Happening::Written(written),
                command = self.commands.recv(), if link.close_by.is_none() => Happening::Command(command),
                () = self.inbox.changed() => Happening::Inbox,
                room = out.reserve(), if wants_room => room.map_or(Happening::Tick, Happening::Room),
                token = poll_some(&mut renewal) => Happening::Token(token),
                dialled = poll_some(&mut crossing) => Happening::Dialled(dialled),
                message = incoming.recv(), if takes => Happening::Incoming(message),
                () = &mut reader => Happening::Incoming(None),
                () = meter.changed() => Happening::Tick,
                () = sleep => Happening::Tick,
            };
            let done = match happening {
                Happening::Stop => {
                    self.ending = true;
                    Err(End::Lost(String::new()))
                }
                Happening::Command(command) => self.on_command(&mut link, carrier, command),
                Happening::Written(Ok(())) => {
                    writing = false;
                    Ok(())
                }
                Happening::Written(Err(end)) => {
                    if end == End::BlackHole {
                        self.dialer.on_bad_quic(self.now());
                    }
                    Err(end)
                }
                Happening::Room(room) => {
                    if let Some(outbound) = self.next_outbound(&mut link) {
                        room.send(outbound);
                    }
                    Ok(())
                }
                Happening::Inbox => {
                    let delay = self.settings.tuning.ack_delay;
                    link.ack_at.get_or_insert(self.now() + delay);
                    Ok(())
                }
                Happening::Incoming(message) => self.on_incoming(&mut link, message),
                Happening::Token(result) => {
                    renewal = None;
                    self.on_token(&mut link, result);
                    Ok(())
                }
                Happening::Dialled(Ok(wire)) => {
                    // The old one is closed before the new one says Hello: what it would be told is meant for nobody.
                    self.ready = Some(wire);
                    Err(End::Roamed)
                }
                Happening::Dialled(Err(_)) => {
                    crossing = None;
                    Ok(())
                }
                Happening::Tick => Ok(()),
            };
            self.tell_finished();
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn welcome(
        &mut self,
        welcome: &chappe_protocol::frame::Welcome,
        token_expires: Option<UnixMillis>,
        carrier: Carrier,
    ) -> Link {
        let now = self.now();
        let settings = self.settings.clone();
        self.welcomed_at = Some(now);
        self.resume_token = welcome.resume_token.clone();
        self.inbox.begin(welcome);
        let limits = sane(welcome.limits);
        self.tell_limits(limits);
        self.enter(State::Connected { resumed: welcome.resumed, epoch: welcome.epoch, carrier });
        let mut link = Link::new(now, limits, &*settings.world);
        let margin = settings.tuning.token_margin;
        link.plan_refresh(now, settings.world.wall(), token_expires, margin, &*settings.world);
        link
    }

    /// In another network: dials beside a connection that does not answer there, until it does.
    fn cross(&self, link: &mut Link, crossing: &mut Option<Dialling>, now: Time) {
        match &mut link.roam {
            None => *crossing = None,
            Some(roam) if roam.dial_at.is_some_and(|at| at <= now) => {
                roam.dial_at = None;
                let (settings, dialer) = (self.settings.clone(), self.dialer.clone());
                *crossing = Some(Box::pin(async move {
                    let late = |_| Err(End::Lost("no second connection in time".to_owned()));
                    let patience = settings.tuning.connect_timeout.to_std();
                    tokio::time::timeout(patience, dialer.dial(&settings)).await.unwrap_or_else(late)
                }));
            }
            Some(_) => {}
        }
    }

    /// Does what is due.
    fn on_time(
        &mut self,
        link: &mut Link,
        meter: &Meter,
        renewal: &mut Option<Renewal>,
        now: Time,
    ) -> Result<(), End> {
        self.outbox.on_time(now);
        self.tell_finished();
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        let reading = self.inbox.has_room();
        link.check(now, reading, self.oldest_flight())?;
        if due(link.ack_at) {
            link.ack_at = None;
            self.collect_ack(link).map_err(End::Fatal)?;
        }
        if due(link.refresh_at) {
            link.refresh_at = None;
            let settings = self.settings.clone();
            *renewal = Some(Box::pin(async move { settings.token.token(TokenReason::Expired).await }));
        }
        if link.ping_at(self.is_busy(meter)) <= now {
            link.on_ping_due(now, meter.bytes(), reading, &*self.settings.world)?;
        }
        Ok(())
    }

    /// Persists, and only then lets the ack go.
    fn collect_ack(&mut self, link: &mut Link) -> Result<(), ClientError> {
        let progress = self.persist()?;
        if self.settings.role == Role::Main && progress.ack.is_some() {
            link.ack = progress.ack;
        }
        Ok(())
    }

    /// What was sent first of all that is not answered.
    fn oldest_flight(&self) -> Option<Time> {
        [self.outbox.oldest_flight(), self.push.oldest_flight()].into_iter().flatten().min()
    }

    fn is_busy(&self, meter: &Meter) -> bool {
        meter.is_arriving() || self.inbox.is_owing()
    }

    /// When the loop must look again if nothing happens.
    fn next_time(&self, link: &mut Link, meter: &Meter, now: Time) -> Option<Time> {
        let submits =
            self.outbox.wants(now, link.limits.submits_in_flight_max as usize) || link.has_ephemeral();
        let paced = if submits { link.paced_until() } else { None };
        let times = [
            Some(link.ping_at(self.is_busy(meter))),
            link.ack_at,
            link.refresh_at,
            link.move_at,
            link.close_by,
            link.roam.as_ref().and_then(|roam| roam.dial_at),
            self.outbox.next_time(),
            link.answer_by(self.oldest_flight()),
            self.push.next_time(now),
            paced,
        ];
        times.into_iter().flatten().min()
    }

    fn wants_room(&self, link: &mut Link, now: Time) -> bool {
        if link.close_sent {
            return false;
        }
        let submits = link.close_by.is_none()
            && (self.outbox.wants(now, link.limits.submits_in_flight_max as usize) || link.has_ephemeral());
        let push = link.close_by.is_none() && self.push.wants(now);
        link.has_urgent() || link.close_by.is_some() || push || (submits && link.may_send(now))
    }

    /// The most urgent thing to send.
    fn next_outbound(&mut self, link: &mut Link) -> Option<Outbound> {
        let now = self.now();
        let frame = if let Some(urgent) = link.poll_urgent() {
            match urgent {
                Urgent::Pong(bytes) => return Some(Outbound::Pong(bytes)),
                Urgent::Frame(frame) => frame,
            }
        } else if link.close_by.is_some() {
            link.close_sent = true;
            return Some(Outbound::Close(1000));
        } else if let Some(request) = self.push.poll_send(now) {
            request
        } else if let Some(submit) = self.outbox.poll_send(now, link.limits.submits_in_flight_max as usize) {
            tracing::debug!(submit = %submit.submit_id, attempt = submit.attempt, "submit sent");
            ClientFrame::Submit(submit)
        } else {
            let frame = ClientFrame::Submit(link.pop_ephemeral()?);
            link.on_sent(now);
            return Some(Outbound::Lossy(frame.encode()));
        };
        link.on_sent(now);
        Some(Outbound::Message(frame.encode()))
    }

    fn on_command(&mut self, link: &mut Link, carrier: Carrier, command: Option<Command>) -> Result<(), End> {
        let asked = self.intake(command).map_err(End::Fatal)?;
        for submit in asked.ephemeral {
            link.push_ephemeral(submit);
        }
        if asked.close {
            self.collect_ack(link).map_err(End::Fatal)?;
            link.close_by = Some(self.now() + self.settings.tuning.close_timeout);
        } else if asked.disconnect {
            return Err(End::Lost("disconnected by the application".to_owned()));
        } else if asked.network_changed {
            if !self.rebind() || carrier == Carrier::WebSocket {
                return Err(End::Roamed);
            }
            link.on_roamed(self.now());
        }
        Ok(())
    }

    fn on_token(&self, link: &mut Link, result: Result<String, TokenError>) {
        link.on_token(self.now(), result, self.settings.tuning.token_margin, &*self.settings.world);
    }

    fn on_incoming(&mut self, link: &mut Link, message: Option<Incoming>) -> Result<(), End> {
        match message {
            Some(Incoming::Message(bytes)) => match frames::decoded(bytes)? {
                Some(frame) => self.on_frame(link, frame),
                None => Ok(()),
            },
            Some(Incoming::Ping(bytes)) => {
                link.pong = Some(bytes);
                Ok(())
            }
            Some(Incoming::Pong) => Ok(()),
            Some(Incoming::Close { code, reason }) => Err(End::Close { code, reason }),
            Some(Incoming::Failed(why)) => Err(End::Lost(why)),
            None => Err(End::Lost("the connection broke".to_owned())),
        }
    }

    fn on_frame(&mut self, link: &mut Link, frame: ServerFrame) -> Result<(), End> {
        let now = self.now();
        let settings = self.settings.clone();
        if link.close_by.is_some() {
            // Only the close is waited for; what is delivered now is delivered again to the next client.
            return Ok(());
        }
        let broken = |error: crate::inbox::ChainBroken| End::Lost(error.to_string());
        match frame {
            ServerFrame::Deliver(deliver) => self.inbox.on_deliver(deliver).map_err(broken)?,
            ServerFrame::Truncated { from, to, why } => {
                self.inbox.on_truncated(from, to, why).map_err(broken)?;
            }
            ServerFrame::BacklogEnd { upto } => {
                self.inbox.on_upto(upto);
                self.inbox.put(Event::BacklogEnd);
            }
            ServerFrame::Pong { nonce, upto } => {
                link.on_pong(nonce);
                self.inbox.on_upto(upto);
            }
            ServerFrame::SubmitResult(result) => {
                tracing::debug!(submit = %result.submit_id, attempt = result.attempt, "submit answered");
                self.outbox.on_result(now, result, &*settings.world);
            }
            ServerFrame::Ephemeral { sender, payload, urgency } => {
                self.inbox.put(Event::Ephemeral { sender, payload, urgency });
            }
            ServerFrame::GoAway(go_away) => {
                link.move_at = Some(self.reconnect.on_go_away(now, &go_away, &*settings.world));
            }
            ServerFrame::Error(error) => {
                frames::on_error(now, &error, &mut self.reconnect, &mut self.outbox, &*settings.world);
            }
            ServerFrame::Reply { id, reply } => self.push.on_reply(now, id, reply, &*settings.world),
            ServerFrame::Welcome(_) => return Err(End::Lost("the server said Welcome twice".to_owned())),
        }
        Ok(())
    }
}

async fn poll_some<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
