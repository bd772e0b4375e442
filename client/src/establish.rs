//! From nothing to Welcome. **Invariant:** one deadline over all of it but the token; nothing of the driver is borrowed.

use crate::builder::Settings;
use crate::carrier::{self, Incoming, Meter, Outbound, QUEUE};
use crate::reconnect::End;
use crate::socket;
use crate::token::{TokenError, TokenReason, expiry};
use bytes::Bytes;
use chappe_protocol::close::ErrorScope;
use chappe_protocol::frame::{ClientFrame, Cursor, FrameError, Hello, Secret, ServerFrame, Welcome};
use chappe_protocol::time::{Millis, UnixMillis};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A token source may ask a person's keychain or a server.
const TOKEN_TIMEOUT: Millis = Millis::from_secs(60);

pub(crate) type ReaderRun = Pin<Box<dyn Future<Output = ()> + Send>>;
pub(crate) type WriterRun = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A connection that was welcomed.
pub(crate) struct Established {
    pub(crate) reader: ReaderRun,
    pub(crate) writer: WriterRun,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) out: mpsc::Sender<Outbound>,
    pub(crate) meter: Arc<Meter>,
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

/// Asks for a token, dials, shakes hands, says Hello and waits for Welcome.
pub(crate) async fn establish(settings: Arc<Settings>, greeting: Greeting) -> Result<Established, Failed> {
    let token = ask(&settings, greeting.why).await?;
    let rest = connect(&settings, greeting, token);
    match tokio::time::timeout(settings.tuning.connect_timeout.to_std(), rest).await {
        Ok(result) => result,
        Err(_) => Err(End::Lost("no Welcome in time".to_owned()).into()),
    }
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

async fn connect(settings: &Arc<Settings>, greeting: Greeting, token: String) -> Result<Established, Failed> {
    let endpoint = &settings.endpoint;
    let io = settings.connector.connect(&endpoint.host, endpoint.port).await;
    let io = io.map_err(|error| End::Lost(format!("connect: {error}")))?;
    let upgraded = socket::open(io, endpoint, &settings.security, &*settings.world).await?;
    let bytes_max = settings.tuning.message_bytes_max;
    let (reader, writer, meter) = carrier::split(upgraded, bytes_max, settings.world.clone());
    let (incoming_in, mut incoming) = mpsc::channel(QUEUE);
    let (out, out_rest) = mpsc::channel(QUEUE);
    let mut reader: ReaderRun = Box::pin(reader.run(incoming_in));
    let mut writer: WriterRun = Box::pin(writer.run(out_rest));
    let token_expires = expiry(&token);
    let hello = ClientFrame::Hello(Hello {
        token: Secret(token),
        device: settings.device.clone(),
        resume_token: greeting.resume_token,
        cursor: greeting.cursor,
        role: settings.role,
    });
    if out.try_send(Outbound::Message(hello.encode())).is_err() {
        return Err(End::Lost("the connection broke".to_owned()).into());
    }
    let mut retry_after = Millis(0);
    loop {
        let message = tokio::select! {
            biased;
            message = incoming.recv() => message,
            () = &mut reader => None,
            ended = &mut writer => {
                return Err(End::Lost(ended.err().unwrap_or_default()).into());
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
        match ServerFrame::decode(message) {
            Ok(ServerFrame::Welcome(welcome)) => {
                return Ok(Established { reader, writer, incoming, out, meter, welcome, token_expires });
            }
            Ok(ServerFrame::Error(error)) if error.scope == ErrorScope::Connection => {
                retry_after = Millis(error.retry_after_ms.into());
            }
            Ok(
                ServerFrame::Deliver(_)
                | ServerFrame::BacklogEnd { .. }
                | ServerFrame::Truncated { .. }
                | ServerFrame::SubmitResult(_)
                | ServerFrame::Ephemeral { .. }
                | ServerFrame::GoAway(_)
                | ServerFrame::Error(_)
                | ServerFrame::Pong { .. },
            )
            | Err(FrameError::UnknownFrame) => {}
            Err(error @ (FrameError::Garbage | FrameError::Field(_))) => {
                return Err(End::Lost(error.to_string()).into());
            }
        }
    }
}
