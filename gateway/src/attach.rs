//! From a Hello to a session. **Invariant:** who has no valid token learns nothing and costs the store nothing; a session
//! stands in the registry before its Welcome is written.

use crate::auth::{Identity, Proof};
use crate::core::Core;
use crate::handle::Handle;
use crate::pace::Turn;
use crate::registry::Inserted;
use crate::resume::Ticket;
use crate::shared::Gateway;
use crate::transport::Carrier;
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{Hello, Role, Welcome};
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, MailboxId, Seq, UserId};
use chappe_protocol::internode::{self, DeviceNews, Request};
use chappe_protocol::session::{Session, Start};
use chappe_protocol::time::Millis;
use chappe_router::presence::Lease;
use chappe_storage::{Attach, Attached, Device, StoreError};
use std::sync::Arc;

/// For a router to ring the gateways of older sockets; a Welcome waits no longer for it.
const ANNOUNCE_MAX: Millis = Millis::from_secs(1);

/// A session that begins.
pub(crate) struct Beginning {
    pub(crate) core: Core,
    pub(crate) welcome: Welcome,
}

/// Where the store says that a session stands.
struct Found {
    attached: Attached,
    /// The cursor as stored, or lower.
    stored: Seq,
    connection: ConnectionId,
    resumes: u32,
    resumed: bool,
}

/// Checks the token, attaches or resumes, takes the place in registry and presence.
pub(crate) async fn attach(
    gateway: &Arc<Gateway>,
    carrier: Carrier,
    hello: Hello,
) -> Result<Beginning, CloseCode> {
    let (age_max, wall) = (gateway.config.resume_max, gateway.world.wall());
    let ticket = gateway.resume.open(&hello.resume_token, &hello.device, wall, age_max);
    let proven = ticket.as_ref().map(|ticket| ticket.proof);
    let identity = gateway
        .verifier
        .check(&hello.token.0, &hello.device, proven, &*gateway.world)
        .await
        .map_err(crate::auth::TokenError::close_code)?;
    let turn = gateway.pace.turn(&*gateway.world).await.ok_or(CloseCode::Overloaded)?;
    placed(gateway, carrier, hello, ticket, identity, turn).await
}

/// Attaches or resumes whom the token names, and takes the place.
async fn placed(
    gateway: &Arc<Gateway>,
    carrier: Carrier,
    hello: Hello,
    ticket: Option<Ticket>,
    identity: Identity,
    mut turn: Turn<'_>,
) -> Result<Beginning, CloseCode> {
    let (now, wall) = (gateway.world.now(), gateway.world.wall());
    let (user, proof) = (identity.user, identity.proof);
    let valid_until = now + Millis(identity.valid_until.0.saturating_sub(wall.0));
    // Found when this very token was shown before; if the user was erased since, the mailbox says so.
    let known = ticket.as_ref().filter(|ticket| ticket.proof == proof).map(|ticket| ticket.mailbox);
    let mut mailbox = match known {
        Some(mailbox) => mailbox,
        None => mailbox_of(gateway, &user).await?,
    };
    let found = match find(gateway, mailbox, &hello, ticket.as_ref(), &mut turn).await {
        // Erased since we last looked: whoever shows a valid token returns, under a new mailbox.
        Err(StoreError::Erased) => {
            gateway.users.forget(&user);
            mailbox = mailbox_of(gateway, &user).await?;
            find(gateway, mailbox, &hello, ticket.as_ref(), &mut turn).await
        }
        other => other,
    };
    turn.over(found.as_ref().err());
    let found = found.map_err(|error| refusal(gateway, &error))?;
    let foreign_cursor = is_foreign(gateway, mailbox, &hello);
    let device = &found.attached.device;
    let order = (device.epoch, found.connection, found.resumes);
    let head = found.attached.head;
    let handle = Arc::new(Handle::new(mailbox, hello.device.clone(), (hello.role, carrier), order, head));
    let start = Start {
        role: hello.role,
        device: hello.device,
        since: device.since,
        from: found.attached.from,
        stored: found.stored,
        head,
        epoch: device.epoch,
        connection: found.connection,
        foreign_cursor,
    };
    let session = Session::new(now, Arc::clone(&gateway.config.session), start);
    let inserted = gateway.registry.insert(&handle);
    // From here on the drop of `core` takes the handle out again.
    let mut core = Core::new(Arc::clone(gateway), Arc::clone(&handle), user, session, valid_until);
    match inserted {
        Inserted::Fresh => {}
        Inserted::Over(older) => older.close(CloseCode::ConnectedElsewhere),
        Inserted::Superseded => return Err(CloseCode::ConnectedElsewhere),
    }
    if hello.role == Role::Main {
        core.read_head();
    }
    let counter =
        if found.resumed { &gateway.metrics.resumed_total } else { &gateway.metrics.attached_total };
    counter.inc();
    let welcome = welcome(gateway, &handle, &found, proof);
    Ok(Beginning { core, welcome })
}

async fn mailbox_of(gateway: &Gateway, user: &UserId) -> Result<MailboxId, CloseCode> {
    let found = gateway.users.find_or_create(&*gateway.store, gateway.world.now(), user).await;
    found.map_err(|error| refusal(gateway, &error))
}

/// The cursor is of another mailbox or of another incarnation of the store.
fn is_foreign(gateway: &Gateway, mailbox: MailboxId, hello: &Hello) -> bool {
    hello.cursor.is_some_and(|cursor| cursor.tag != gateway.store.cursor_tag(mailbox))
}

async fn find(
    gateway: &Gateway,
    mailbox: MailboxId,
    hello: &Hello,
    ticket: Option<&Ticket>,
    turn: &mut Turn<'_>,
) -> Result<Found, StoreError> {
    let foreign = is_foreign(gateway, mailbox, hello);
    let cursor = hello.cursor.filter(|_| !foreign).map(|cursor| cursor.seq);
    if hello.role == Role::Peek {
        return peek(gateway, mailbox, &hello.device, cursor).await;
    }
    if let Some(ticket) = ticket.filter(|ticket| ticket.mailbox == mailbox)
        && let Some(found) = resume(gateway, ticket, cursor, turn).await?
    {
        return Ok(found);
    }
    let connection = ConnectionId::mint(&*gateway.world);
    let attached = gateway.store.attach(mailbox, &hello.device, Attach { connection, cursor }).await?;
    let stored = attached.from;
    let found = Found { attached, stored, connection, resumes: 0, resumed: false };
    // Routers and presence have times of their own.
    turn.over(None);
    // Lost to a newer session in a race: that one's news will end this one.
    let _kept = lease(gateway, mailbox, &found).await;
    Ok(found)
}

/// By the resume token: one look at the store, no write. `None`: a full attach is needed.
async fn resume(
    gateway: &Gateway,
    ticket: &Ticket,
    cursor: Option<Seq>,
    turn: &mut Turn<'_>,
) -> Result<Option<Found>, StoreError> {
    let (mailbox, wall) = (ticket.mailbox, gateway.world.wall());
    let minted = ConnectionId::mint(&*gateway.world);
    let Some(connection) = ticket.next_connection(wall, minted) else { return Ok(None) };
    let Some(attached) = gateway.store.glance(mailbox, &ticket.device, cursor).await? else {
        return Ok(None);
    };
    let device = &attached.device;
    if device.revoked {
        return Err(StoreError::Revoked);
    }
    let newest = device.epoch == ticket.epoch && device.connection <= ticket.connection;
    if !newest {
        return Ok(None);
    }
    // Nothing was written: what is stored is known only if it is where reading starts.
    let stored = if cursor.is_some() { device.since.min(attached.from) } else { attached.from };
    let resumes = ticket.resumes.saturating_add(1);
    let found = Found { attached, stored, connection, resumes, resumed: true };
    turn.over(None);
    // A newer socket holds the lease: settle it by a new epoch.
    Ok(lease(gateway, mailbox, &found).await.then_some(found))
}

async fn peek(
    gateway: &Gateway,
    mailbox: MailboxId,
    device: &DeviceId,
    cursor: Option<Seq>,
) -> Result<Found, StoreError> {
    let connection = ConnectionId::mint(&*gateway.world);
    let attached = match gateway.store.glance(mailbox, device, cursor).await? {
        Some(attached) if attached.device.revoked => return Err(StoreError::Revoked),
        Some(attached) => attached,
        // A device that never attached has nothing to read, and may submit.
        None => {
            let head = gateway.store.head(mailbox, true).await?;
            let device = device.clone();
            let device = Device { device, since: head, revoked: false, epoch: Epoch::default(), connection };
            Attached { device, from: head, head }
        }
    };
    let stored = attached.from;
    Ok(Found { attached, stored, connection, resumes: 0, resumed: false })
}

async fn lease(gateway: &Gateway, mailbox: MailboxId, found: &Found) -> bool {
    announce(gateway, mailbox, found).await;
    let device = &found.attached.device;
    let lease = Lease {
        mailbox,
        device: device.device.clone(),
        gateway: gateway.config.id,
        epoch: device.epoch,
        resumes: found.resumes,
        connection: found.connection,
    };
    gateway.presence.lease(&[lease]).await.first().copied().unwrap_or(true)
}

/// Has the routers tell the gateways of older sockets of the device, which are found by their leases: before ours takes
/// their place. Whatever becomes of it, the probe makes it good.
async fn announce(gateway: &Gateway, mailbox: MailboxId, found: &Found) {
    let device = &found.attached.device;
    let news = DeviceNews {
        device: device.device.clone(),
        epoch: device.epoch,
        connection: found.connection,
        revoked: false,
    };
    let request = Request::Attached(internode::Attached { mailbox, news });
    if gateway.links.request(mailbox, request, ANNOUNCE_MAX).await.is_err() {
        tracing::debug!("no router could announce an attach");
    }
}

fn welcome(gateway: &Gateway, handle: &Handle, found: &Found, proof: Proof) -> Welcome {
    let now = gateway.world.wall();
    let ticket = Ticket {
        mailbox: handle.mailbox,
        device: handle.device.clone(),
        epoch: handle.epoch,
        connection: handle.connection,
        resumes: handle.resumes,
        issued_at: now,
        proof,
    };
    let is_main = handle.role == Role::Main;
    Welcome {
        session: handle.connection,
        epoch: handle.epoch,
        from: found.attached.from,
        tag: gateway.store.cursor_tag(handle.mailbox),
        resume_token: if is_main { gateway.resume.seal(&ticket) } else { bytes::Bytes::new() },
        limits: gateway.config.session.limits,
        resumed: found.resumed,
        server_time: now,
    }
}

/// What the store's refusal means to the device.
fn refusal(gateway: &Gateway, error: &StoreError) -> CloseCode {
    match error {
        StoreError::Unavailable(_) | StoreError::Unknown(_) => CloseCode::StoreUnavailable,
        StoreError::Invalid(what) => {
            tracing::error!(what, "the store refused an attach as invalid");
            CloseCode::StoreUnavailable
        }
        // The user has as many devices as the store takes.
        StoreError::Quota => CloseCode::TokenInvalid,
        StoreError::Erased => CloseCode::UserErased,
        StoreError::Revoked => CloseCode::DeviceRevoked,
        StoreError::CursorAhead { cursor, head } => {
            gateway.metrics.cursor_ahead_total.inc();
            tracing::error!(
                cursor = cursor.0,
                head = head.0,
                "ALARM: a client's cursor lies beyond the head"
            );
            CloseCode::CursorAhead
        }
    }
}
