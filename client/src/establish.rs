//! From nothing to Welcome. **Invariant:** one deadline over all of it but the token; nothing of the driver is borrowed.

use crate::builder::Settings;
use crate::carrier::{Carrier, Incoming, Outbound, Wire};
use crate::dial::Dialer;
use crate::frames::{self, Greeted};
use crate::reconnect::End;
use crate::token::{TokenError, TokenReason, expiry};
use bytes::Bytes;
use chappe_protocol::frame::{ClientFrame, Cursor, Hello, Secret, Welcome};
use chappe_protocol::time::{Millis, UnixMillis};
use std::sync::Arc;

/// A token source may ask a person's keychain or a server.
const TOKEN_TIMEOUT: Millis = Millis::from_secs(60);

/// A connection that was welcomed.
pub(crate) struct Established {
    pub(crate) wire: Wire,
    pub(crate) welcome: Welcome,
    pub(crate) token_expires: Option<UnixMillis>,
}

/// What to say in Hello.
pub(crate) struct Greeting {
    pub(crate) why: TokenReason,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) resume_token: Bytes,
}

/// Why there is no connection, and the server's hint when to come again.
pub(crate) struct Failed {
    pub(crate) end: End,
    pub(crate) retry_after: Millis,
}

impl From<End> for Failed {
    fn from(end: End) -> Self {
        Self { end, retry_after: Millis(0) }
    }
}

/// Asks for a token, dials unless a wire is `ready`, says Hello and waits for Welcome.
pub(crate) async fn establish(
    settings: Arc<Settings>,
    dialer: Arc<Dialer>,
    ready: Option<Wire>,
    greeting: Greeting,
) -> Result<Established, Failed> {
    let token = ask(&settings, greeting.why).await?;
    let mut carrier = None;
    let rest = async {
        let wire = match ready {
            Some(wire) => wire,
            None => dialer.dial(&settings).await?,
        };
        carrier = Some(wire.carrier);
        greet(&settings, wire, greeting, token).await
    };
    let late = |_| Err(End::Lost("no Welcome in time".to_owned()).into());
    let result = tokio::time::timeout(settings.tuning.connect_timeout.to_std(), rest).await;
    let result = result.unwrap_or_else(late);
    // It let a handshake through, and then nothing.
    if carrier == Some(Carrier::Quic)
        && let Err(Failed { end: End::Lost(_) | End::BlackHole, .. }) = &result
    {
        dialer.on_bad_quic(settings.world.now());
    }
    result
}

/// A token, within [`TOKEN_TIMEOUT`].
async fn ask(settings: &Settings, why: TokenReason) -> Result<String, End> {
    match tokio::time::timeout(TOKEN_TIMEOUT.to_std(), settings.token.token(why)).await {
        Ok(Ok(token)) => Ok(token),
        Ok(Err(error @ TokenError::Refused(_))) => Err(End::Fatal(error.into())),
        Ok(Err(error @ TokenError::Unavailable(_))) => Err(End::NoToken(error.to_string())),
        Err(_) => Err(End::NoToken("the token source took too long".to_owned())),
    }
}

async fn greet(
    settings: &Settings,
    mut wire: Wire,
    greeting: Greeting,
    token: String,
) -> Result<Established, Failed> {
    let token_expires = expiry(&token);
    let hello = ClientFrame::Hello(Hello {
        token: Secret(token),
        device: settings.device.clone(),
        resume_token: greeting.resume_token,
        cursor: greeting.cursor,
        role: settings.role,
    });
    if wire.out.try_send(Outbound::Message(hello.encode())).is_err() {
        return Err(End::Lost("the connection broke".to_owned()).into());
    }
    let mut retry_after = Millis(0);
    loop {
        let message = tokio::select! {
            biased;
            message = wire.incoming.recv() => message,
            () = &mut wire.reader => None,
            ended = &mut wire.writer => {
                let broke = || End::Lost("the connection broke".to_owned());
                return Err(ended.err().unwrap_or_else(broke).into());
            }
        };
        let message = match message {
            Some(Incoming::Message(message)) => message,
            Some(Incoming::Ping(_) | Incoming::Pong) => continue,
            Some(Incoming::Close { code, reason }) => {
                return Err(Failed { end: End::Close { code, reason }, retry_after });
            }
            Some(Incoming::Failed(why)) => return Err(Failed { end: End::Lost(why), retry_after }),
            None => return Err(End::Lost("the connection broke".to_owned()).into()),
        };
        match frames::greeted(message)? {
            Greeted::Welcome(welcome) => return Ok(Established { wire, welcome, token_expires }),
            Greeted::Hint(hint) => retry_after = hint,
            Greeted::Nothing => {}
        }
    }
}
