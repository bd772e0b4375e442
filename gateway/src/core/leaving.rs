//! The end of a connection. **Invariant:** whatever ends it, its places in registry and timers are free.

use super::Core;
use crate::connection::End;
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::Role;
use chappe_protocol::session::Action;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;

impl Core {
    /// Out of the registry and the timers: a newer session need not wait for this one's last bytes.
    pub(crate) fn leave(&mut self) {
        self.gateway.registry.remove(&self.handle);
        self.gateway.timers.disarm(&mut self.armed);
    }

    /// Gives the lease up, if it is still this one.
    pub(crate) fn release(&self) -> BoxFuture<'static, ()> {
        if self.handle.role == Role::Peek {
            return std::future::ready(()).boxed();
        }
        let presence = Arc::clone(&self.gateway.presence);
        let lease = self.handle.lease(self.gateway.config.id);
        async move { presence.release(&lease).await }.boxed()
    }

    /// Notes the mailbox for whoever sweeps, if the device has not acked all that is known to be there: the note that its
    /// last envelope made may be old by now. Not where another session of the device has taken over, nor where there is no
    /// device any more.
    pub(crate) fn note(&self, end: &End) -> BoxFuture<'static, ()> {
        let gone = match end {
            End::Close(CloseCode::ConnectedElsewhere | CloseCode::DeviceRevoked | CloseCode::UserErased) => {
                true
            }
            End::Close(_) | End::Parted | End::Gone => false,
        };
        let behind = self.session.cursor() < self.session.known_head();
        if gone || !behind || self.handle.role == Role::Peek {
            return std::future::ready(()).boxed();
        }
        let (gateway, mailbox) = (Arc::clone(&self.gateway), self.handle.mailbox);
        async move {
            gateway.metrics.left_unacked_total.inc();
            if let Err(error) = gateway.store.add_pending(mailbox).await {
                tracing::debug!(%error, "a mailbox could not be noted");
            }
        }
        .boxed()
    }

    /// Writes the cursor where it is ahead of the store.
    pub(crate) async fn write_cursor(mut self) {
        self.session.flush();
        loop {
            let now = self.gateway.world.now();
            if let Some(advance) = self.advance.take() {
                match advance.await {
                    Ok(()) => self.session.on_advanced(now),
                    Err(_) => return,
                }
                self.session.flush();
            }
            match self.session.poll_action(now) {
                Some(action @ Action::Advance { .. }) => self.act(&action, 0),
                Some(Action::Read { .. } | Action::Close(_)) => {}
                None => return,
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.leave();
        self.gateway.metrics.sessions.dec();
    }
}
