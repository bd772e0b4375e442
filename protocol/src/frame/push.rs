//! The bodies of a Request, both ways. **Invariant:** each bound that the schema states is checked here, and a bad body names
//! its field: the request is refused, not the connection.

use super::{Request, RequestError};
use crate::push::{
    ApnsKind, AppName, BadQuiet, PUSH_TARGETS_MAX, PushAddress, PushSettings, PushTarget, PushTargetError,
    Quiet, QuietHours,
};
use crate::time::UnixMillis;
use crate::wire;
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;

type Result<T> = core::result::Result<T, RequestError>;

/// The body with checked fields.
pub(super) fn request(request: wire::Request) -> Result<Request> {
    match request.body.ok_or(RequestError::Unknown)? {
        wire::request::Body::SetPush(set) => Ok(Request::SetPush(set_push(set)?)),
    }
}

/// The request as the generated type.
pub(super) fn request_to_wire(id: u64, request: &Request) -> wire::Request {
    let body = match request {
        Request::SetPush(PushSettings { targets, quiet }) => wire::request::Body::SetPush(wire::SetPush {
            targets: targets.iter().map(target_to_wire).collect(),
            quiet: (*quiet != Quiet::default()).then(|| quiet_to_wire(quiet)),
        }),
    };
    wire::Request { id, body: Some(body) }
}

fn set_push(set: wire::SetPush) -> Result<PushSettings> {
    if set.targets.len() > PUSH_TARGETS_MAX {
        return Err(RequestError::Field("targets"));
    }
    let targets = set.targets.into_iter().map(target).collect::<Result<_>>()?;
    Ok(PushSettings { targets, quiet: quiet(set.quiet.unwrap_or_default())? })
}

fn target(target: wire::PushTarget) -> Result<PushTarget> {
    use wire::push_target::Address;
    let app = AppName::new(&target.app).map_err(field)?;
    let address = match target.address.ok_or(RequestError::Field("address"))? {
        Address::Apns(apns) => PushAddress::Apns {
            kind: match apns.kind() {
                wire::ApnsKind::Unspecified | wire::ApnsKind::Alert => ApnsKind::Alert,
                wire::ApnsKind::Voip => ApnsKind::Voip,
            },
            token: apns.token.to_vec(),
        },
        Address::Fcm(fcm) => PushAddress::Fcm { token: fcm.token },
        Address::WebPush(push) => PushAddress::WebPush {
            endpoint: push.endpoint,
            p256dh: (*push.p256dh).try_into().map_err(|_| RequestError::Field("p256dh"))?,
            auth: (*push.auth).try_into().map_err(|_| RequestError::Field("auth"))?,
        },
    };
    address.check().map_err(field)?;
    Ok(PushTarget { app, address, registered_at: UnixMillis(0) })
}

fn field(error: PushTargetError) -> RequestError {
    RequestError::Field(match error {
        PushTargetError::App => "app",
        PushTargetError::Token => "token",
        PushTargetError::Endpoint => "endpoint",
        PushTargetError::Keys => "p256dh",
    })
}

fn quiet(quiet: wire::Quiet) -> Result<Quiet> {
    let windows = |_: BadQuiet| RequestError::Field("windows");
    let minute = |minute| u16::try_from(minute).map_err(|_| RequestError::Field("windows"));
    let window = |window: wire::QuietWindow| {
        QuietHours::new(minute(window.from_min)?, minute(window.to_min)?).map_err(windows)
    };
    let hours = quiet.windows.into_iter().map(window).collect::<Result<Vec<_>>>()?;
    let muted_until = (quiet.muted_until_ms != 0).then_some(UnixMillis(quiet.muted_until_ms));
    Quiet::new(hours, muted_until, quiet.calls_pass).map_err(windows)
}

fn target_to_wire(target: &PushTarget) -> wire::PushTarget {
    use wire::push_target::Address;
    let address = match &target.address {
        PushAddress::Apns { token, kind } => {
            let kind = match kind {
                ApnsKind::Alert => wire::ApnsKind::Alert,
                ApnsKind::Voip => wire::ApnsKind::Voip,
            };
            Address::Apns(wire::Apns { token: Bytes::copy_from_slice(token), kind: kind.into() })
        }
        PushAddress::Fcm { token } => Address::Fcm(wire::Fcm { token: token.clone() }),
        PushAddress::WebPush { endpoint, p256dh, auth } => Address::WebPush(wire::WebPush {
            endpoint: endpoint.clone(),
            p256dh: Bytes::copy_from_slice(p256dh),
            auth: Bytes::copy_from_slice(auth),
        }),
    };
    wire::PushTarget { app: target.app.as_str().to_string(), address: Some(address) }
}

fn quiet_to_wire(quiet: &Quiet) -> wire::Quiet {
    let window = |hours: &QuietHours| wire::QuietWindow {
        from_min: hours.from_min().into(),
        to_min: hours.to_min().into(),
    };
    wire::Quiet {
        windows: quiet.hours().iter().map(window).collect(),
        muted_until_ms: quiet.muted_until().map_or(0, |until| until.0),
        calls_pass: quiet.calls_pass(),
    }
}
