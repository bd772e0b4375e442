//! The WebSocket handshake of a client (RFC 6455 §4.1) over any byte stream. **Invariant:** nothing is taken for granted:
//! status, upgrade, accept key and subprotocol are checked, and a head larger than 8 KiB is refused.

use crate::connector::Io;
use crate::endpoint::{Endpoint, Security};
use crate::reconnect::End;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// The subprotocol: the version of the wire.
pub(crate) const SUBPROTOCOL: &str = "chappe.v1";
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// RFC 6455 §1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Millis = Millis::from_secs(600);

/// A stream behind the handshake, and what came with the server's head.
pub struct Upgraded {
    /// Below WebSocket.
    pub io: Box<dyn Io>,
    /// To be read first.
    pub rest: BytesMut,
}

/// TLS, if any, then the handshake.
pub async fn open(
    io: Box<dyn Io>,
    endpoint: &Endpoint,
    security: &Security,
    world: &dyn World,
) -> Result<Upgraded, End> {
    let mut io: Box<dyn Io> = match security {
        Security::Plaintext => io,
        Security::Tls { config, name } => {
            let connector = TlsConnector::from(config.clone());
            let stream = connector.connect(name.clone(), io).await.map_err(|error| lost("TLS", &error))?;
            Box::new(stream)
        }
    };
    let mut nonce = [0; 16];
    world.fill_random(&mut nonce);
    let key = STANDARD.encode(nonce);
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        endpoint.path, endpoint.authority,
    );
    io.write_all(request.as_bytes()).await.map_err(|error| lost("handshake", &error))?;
    io.flush().await.map_err(|error| lost("handshake", &error))?;
    let mut head = BytesMut::with_capacity(1024);
    loop {
        let count = io.read_buf(&mut head).await.map_err(|error| lost("handshake", &error))?;
        if count == 0 {
            return Err(End::Lost("the server closed during the handshake".to_owned()));
        }
        if let Some(length) = check_head(&head, &key)? {
            let rest = head.split_off(length);
            return Ok(Upgraded { io, rest });
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(bad("a response head larger than 8 KiB"));
        }
    }
}

/// The length of the head once it is whole and good.
fn check_head(bytes: &[u8], key: &str) -> Result<Option<usize>, End> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(bad("no HTTP response")),
    };
    if length > HEAD_BYTES_MAX {
        return Err(bad("a response head larger than 8 KiB"));
    }
    let one = |name: &str| {
        let mut values = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let value = values.next().map(|header| header.value);
        value.filter(|_| values.next().is_none())
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        let seconds =
            one("retry-after").and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok());
        let retry_after = Millis(seconds.unwrap_or(0).saturating_mul(1000).min(RETRY_AFTER_MAX.0));
        return Err(End::Http { status, retry_after });
    }
    let upgrade = one("upgrade").is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"websocket"));
    let connection = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let connection = connection
        .flat_map(|header| header.value.split(|byte| *byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    if !upgrade || !connection {
        return Err(bad("no upgrade to WebSocket"));
    }
    if one("sec-websocket-accept").map(<[u8]>::trim_ascii) != Some(accept_key(key).as_bytes()) {
        return Err(bad("a wrong Sec-WebSocket-Accept"));
    }
    if one("sec-websocket-protocol").map(<[u8]>::trim_ascii) != Some(SUBPROTOCOL.as_bytes()) {
        return Err(bad("another subprotocol than chappe.v1"));
    }
    if response.headers.iter().any(|header| header.name.eq_ignore_ascii_case("sec-websocket-extensions")) {
        return Err(bad("an extension that was not asked for"));
    }
    Ok(Some(length))
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
fn accept_key(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(ACCEPT_GUID.as_bytes());
    STANDARD.encode(context.finish())
}

fn bad(what: &str) -> End {
    End::Lost(format!("the server's handshake has {what}"))
}

fn lost(phase: &str, error: &std::io::Error) -> End {
    End::Lost(format!("{phase}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n";

    #[test]
    fn a_good_head_is_taken_whole_and_only_whole() {
        assert_eq!(check_head(GOOD.as_bytes(), KEY), Ok(Some(GOOD.len())));
        for cut in 0..GOOD.len() {
            assert_eq!(check_head(&GOOD.as_bytes()[..cut], KEY), Ok(None), "cut at {cut}");
        }
        let more = format!("{GOOD}tail");
        assert_eq!(check_head(more.as_bytes(), KEY), Ok(Some(GOOD.len())));
    }

    #[test]
    fn each_check_refuses() {
        let other = |from: &str, to: &str| GOOD.replace(from, to);
        for head in [
            other("Upgrade: WebSocket", "Upgrade: h2c"),
            other("keep-alive, Upgrade", "keep-alive"),
            other("s3pP", "s3pQ"),
            other("Protocol: chappe.v1", "Protocol: chappe.v2"),
            other("Sec-WebSocket-Protocol: chappe.v1\r\n", ""),
            other("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", ""),
            other("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
            other("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n"),
            "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        ] {
            assert!(matches!(check_head(head.as_bytes(), KEY), Err(End::Lost(_))), "{head}");
        }
    }

    #[test]
    fn another_status_ends_the_attempt_with_its_hint() {
        let head = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n";
        let end = End::Http { status: 503, retry_after: Millis(7000) };
        assert_eq!(check_head(head.as_bytes(), KEY), Err(end));
        let head = "HTTP/1.1 503 Busy\r\nRetry-After: 99999999999999999\r\n\r\n";
        assert!(matches!(
            check_head(head.as_bytes(), KEY),
            Err(End::Http { retry_after: RETRY_AFTER_MAX, .. })
        ));
    }
}
