//! The opening handshake (RFC 6455 §4.2) as a function of the request's bytes. **Invariant:** a head that two parsers
//! could read in two ways is refused, never interpreted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::HandshakeLimits;

/// Header lines of one request.
const HEADERS_MAX: usize = 32;
/// Appended to the key before hashing (RFC 6455 §1.3).
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is not served, as the answer to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn malformed(message: &str) -> Self {
        Self::new(400, "malformed_request", message)
    }

    /// The whole HTTP answer. No part of it comes from the request.
    pub(super) fn answer(&self) -> Vec<u8> {
        let (phrase, extra) = match self.status {
            403 => ("Forbidden", ""),
            404 => ("Not Found", ""),
            405 => ("Method Not Allowed", "Allow: GET\r\n"),
            426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            431 => ("Request Header Fields Too Large", ""),
            _ => ("Bad Request", ""),
        };
        let connection = if self.status == 426 { "Upgrade, close" } else { "close" };
        let body = format!(r#"{{"code":"{}","message":"{}"}}"#, self.code, self.message);
        format!(
            "HTTP/1.1 {} {phrase}\r\n{extra}Connection: {connection}\r\nContent-Type: application/json\r\n\
             Cache-Control: no-store\r\nContent-Length: {}\r\n\r\n{body}",
            self.status,
            body.len(),
        )
        .into_bytes()
    }
}

/// Finds the end of the head in what has come so far; `seen` bytes of it were searched before.
pub(super) fn head_end(bytes: &[u8], seen: usize, bytes_max: usize) -> Result<Option<usize>, Refusal> {
    let searched = &bytes[..bytes.len().min(bytes_max)];
    for (at, byte) in searched.iter().enumerate().skip(seen) {
        match byte {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return Err(Refusal::malformed("a line ends with a bare line feed"));
            }
            b'\n' if bytes[..=at].ends_with(b"\r\n\r\n") => return Ok(Some(at + 1)),
            0 => return Err(Refusal::malformed("a zero byte in the head")),
            _ => {}
        }
    }
    if bytes.len() >= bytes_max {
        let message = format!("the request head is beyond {bytes_max} bytes");
        return Err(Refusal::new(431, "head_too_large", message));
    }
    Ok(None)
}

/// Judges a whole head; the 101 answer if it may pass.
pub(super) fn answer(head: &[u8], limits: &HandshakeLimits) -> Result<Vec<u8>, Refusal> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::malformed("an incomplete request head")),
        Err(httparse::Error::TooManyHeaders) => {
            let message = format!("more than {HEADERS_MAX} header lines");
            return Err(Refusal::new(431, "head_too_large", message));
        }
        Err(_) => return Err(Refusal::malformed("not an HTTP/1.1 request head")),
    }
    check_target(&request, limits)?;
    let headers = Headers(request.headers);
    check_framing(&headers)?;
    let key = check_upgrade(&headers)?;
    let subprotocol = choose_subprotocol(&headers, limits)?;
    check_origin(&headers, limits)?;
    let chosen = subprotocol.map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{chosen}\r\n",
        accept_value(key)
    )
    .into_bytes())
}

fn check_target(request: &httparse::Request<'_, '_>, limits: &HandshakeLimits) -> Result<(), Refusal> {
    if request.version != Some(1) {
        return Err(Refusal::malformed("HTTP/1.1 is needed"));
    }
    if request.method != Some("GET") {
        return Err(Refusal::new(405, "method_not_allowed", "only GET is served here"));
    }
    let Some(path) = &limits.path else { return Ok(()) };
    let target = request.path.unwrap_or_default();
    if target == path {
        Ok(())
    } else if target.split('?').next() == Some(path) {
        let message = "no query is taken: addresses end up in logs, and the token goes into the Hello frame";
        Err(Refusal::new(400, "query_refused", message))
    } else {
        Err(Refusal::new(404, "not_found", format!("nothing is served here but {path}")))
    }
}

/// Refuses what could hide a second request.
fn check_framing(headers: &Headers<'_>) -> Result<(), Refusal> {
    if headers.once("Host")?.is_none_or(<[u8]>::is_empty) {
        return Err(Refusal::malformed("exactly one Host is needed"));
    }
    let length = headers.once("Content-Length")?;
    if headers.once("Transfer-Encoding")?.is_some() || length.is_some_and(|value| value != b"0") {
        return Err(Refusal::malformed("a handshake has no body"));
    }
    Ok(())
}

/// The key, once all that RFC 6455 §4.2.1 asks for is there.
fn check_upgrade<'h>(headers: &Headers<'h>) -> Result<&'h [u8], Refusal> {
    if !headers.tokens("Upgrade").any(|token| token.eq_ignore_ascii_case(b"websocket"))
        || !headers.tokens("Connection").any(|token| token.eq_ignore_ascii_case(b"upgrade"))
    {
        let message = "this is a WebSocket endpoint: send Upgrade: websocket and Connection: Upgrade";
        return Err(Refusal::new(426, "upgrade_required", message));
    }
    if headers.once("Sec-WebSocket-Version")? != Some(b"13") {
        return Err(Refusal::new(426, "version_not_supported", "Sec-WebSocket-Version must be 13"));
    }
    let key = headers.once("Sec-WebSocket-Key")?.unwrap_or_default();
    let mut decoded = [0; 18];
    match BASE64.decode_slice(key, &mut decoded) {
        Ok(16) => Ok(key),
        _ => Err(Refusal::malformed("Sec-WebSocket-Key must be 16 bytes in base64")),
    }
}

fn choose_subprotocol<'l>(
    headers: &Headers<'_>,
    limits: &'l HandshakeLimits,
) -> Result<Option<&'l str>, Refusal> {
    let Some(name) = &limits.subprotocol else { return Ok(None) };
    if headers.tokens("Sec-WebSocket-Protocol").any(|token| token == name.as_bytes()) {
        return Ok(Some(name));
    }
    let message = format!("offer the subprotocol: send Sec-WebSocket-Protocol: {name}");
    Err(Refusal::new(400, "subprotocol_missing", message))
}

/// A browser sends its page's origin, and only listed ones may act for their user (RFC 6455 §10.2).
fn check_origin(headers: &Headers<'_>, limits: &HandshakeLimits) -> Result<(), Refusal> {
    match headers.once("Origin")? {
        Some(origin) if !limits.origins.iter().any(|allowed| allowed.as_bytes() == origin) => {
            let message = "this origin is not on the list of the server";
            Err(Refusal::new(403, "origin_refused", message))
        }
        _ => Ok(()),
    }
}

struct Headers<'h>(&'h [httparse::Header<'h>]);

impl<'h> Headers<'h> {
    fn lines(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.0.iter().filter(move |line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value)
    }

    /// The value of a header that may stand there once at most.
    fn once(&self, name: &'static str) -> Result<Option<&'h [u8]>, Refusal> {
        let mut lines = self.lines(name);
        let first = lines.next();
        if lines.next().is_some() {
            return Err(Refusal::malformed(&format!("more than one {name}")));
        }
        Ok(first.map(<[u8]>::trim_ascii))
    }

    /// The entries of a list header, over all its lines (RFC 9110 §5.6.1).
    fn tokens(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.lines(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }
}

/// RFC 6455 §4.2.2 (5.4). SHA-1 is what it asks for; nothing secret depends on it.
fn accept_value(key: &[u8]) -> String {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(ACCEPT_GUID.as_bytes());
    BASE64.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_the_one_of_the_rfc() {
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_cut_it() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() {
            let first = head_end(&head[..cut], 0, 100).expect("no refusal");
            let expected = (cut >= 27).then_some(27);
            assert_eq!(first, expected, "cut at {cut}");
            if first.is_none() {
                assert_eq!(head_end(head, cut, 100), Ok(Some(27)), "cut at {cut}");
            }
        }
    }
}
