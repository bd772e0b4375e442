//! Requests and their answers with fixed values, good and bad. **Invariant:** a bad body is refused with its id and its field.

use crate::samples::{Sample, Unusual};
use crate::vectors::From;
use chappe_protocol::close::{ErrorCode, ErrorFrame};
use chappe_protocol::frame::{ClientFrame, FrameError, Reply, Request, RequestError, ServerFrame};
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet, QuietHours};
use chappe_protocol::time::UnixMillis;

const APNS: [u8; 32] = *b"a-token-of-apple-is-of-32-bytes.";

fn target(app: &str, address: PushAddress) -> PushTarget {
    PushTarget { app: AppName::new(app).unwrap(), address, registered_at: UnixMillis(0) }
}

fn apns(kind: ApnsKind) -> PushTarget {
    target("org.example.chat", PushAddress::Apns { token: APNS.to_vec(), kind })
}

fn fcm(token: &str) -> PushTarget {
    target("project-7", PushAddress::Fcm { token: token.into() })
}

fn web(endpoint: &str) -> PushTarget {
    let mut p256dh = [7; 65];
    p256dh[0] = 4;
    target("web", PushAddress::WebPush { endpoint: endpoint.into(), p256dh, auth: *b"auth-of-16-bytes" })
}

fn windows(windows: &[(u16, u16)]) -> Vec<QuietHours> {
    windows.iter().map(|(from, to)| QuietHours::new(*from, *to).unwrap()).collect()
}

fn set(targets: Vec<PushTarget>, quiet: Quiet) -> ClientFrame {
    ClientFrame::Request { id: 1, request: Request::SetPush(PushSettings { targets, quiet }) }
}

/// What a client asks for.
pub fn client() -> Vec<Sample<ClientFrame>> {
    let night = Quiet::new(windows(&[(1320, 390), (720, 780)]), Some(UnixMillis(1_800_000_000_000)), true);
    let all = vec![
        apns(ApnsKind::Alert),
        apns(ApnsKind::Voip),
        fcm("cX:APA91b_-"),
        web("https://push.example/send/1?x=y"),
    ];
    vec![
        (
            "client-set-push",
            "One target, to be woken at any time.",
            set(vec![fcm("cX:APA91b_-")], Quiet::default()),
        ),
        (
            "client-set-push-all",
            "A target of each kind; quiet over midnight and at noon; muted until then; calls pass.",
            set(all, night.unwrap()),
        ),
        ("client-set-push-none", "This device is not woken any more.", set(Vec::new(), Quiet::default())),
    ]
}

/// What a server answers.
pub fn server() -> Vec<Sample<ServerFrame>> {
    let refused = |code, retry_after_ms, message| {
        let reply = Reply::Error(ErrorFrame::request(code, retry_after_ms, message));
        ServerFrame::Reply { id: 1, reply }
    };
    vec![
        (
            "server-push-set",
            "What SetPush said is durable.",
            ServerFrame::Reply { id: u64::MAX, reply: Reply::PushSet },
        ),
        (
            "server-reply-bad-request",
            "A field is out of bounds.",
            refused(ErrorCode::BadRequest, 0, "field token is missing or out of bounds"),
        ),
        (
            "server-reply-unavailable",
            "The store is away.",
            refused(ErrorCode::Unavailable, 2000, "the store did not answer; send it again"),
        ),
    ]
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    let length = if length < 0x80 { vec![length] } else { vec![length, 1] };
    [&[number << 3 | 2][..], &length, content].concat()
}

/// A SetPush with this content, as request 7.
fn raw(content: &[u8]) -> Vec<u8> {
    field(6, &[vec![0x08, 7], field(2, content)].concat())
}

/// A SetPush with one target: its app, and the field of its address.
fn one(app: &str, address: &[u8]) -> Vec<u8> {
    raw(&field(1, &[field(1, app.as_bytes()), address.to_vec()].concat()))
}

fn window(from: &[u8], to: &[u8]) -> Vec<u8> {
    let minutes = [&[0x08], from, &[0x10], to].concat();
    raw(&field(2, &field(1, &minutes)))
}

/// Requests that are refused and do not end the connection, and answers of a newer server.
pub fn unusual() -> Vec<Unusual> {
    let bad = |name| Err(FrameError::Request { id: 7, why: RequestError::Field(name) });
    let fcm = |token: &[u8]| field(3, &field(1, token));
    let web = |endpoint: &str, first: u8, point: usize, auth: usize| {
        let point = [&[first][..], &vec![7; point - 1]].concat();
        let keys = [field(2, &point), field(3, &vec![9; auth])].concat();
        field(4, &[field(1, endpoint.as_bytes()), keys].concat())
    };
    let unknown = Err(FrameError::Request { id: 7, why: RequestError::Unknown });
    let five = raw(&field(1, &[field(1, b"a"), fcm(b"t")].concat()).repeat(5));
    let five_windows = raw(&field(2, &field(1, &[0x10, 1]).repeat(5)));
    let client = |name, about, bytes, expect| (name, about, From::Client, bytes, expect);
    vec![
        client("refused-empty", "A request without a body.", field(6, &[0x08, 7]), unknown.clone()),
        client(
            "refused-unknown",
            "Field 100: a request of a newer client.",
            field(6, &[0x08, 7, 0xa2, 0x06, 0x00]),
            unknown,
        ),
        client("refused-five-targets", "More than four targets.", five, bad("targets")),
        client("refused-app", "An app in capitals.", one("A", &fcm(b"t")), bad("app")),
        client("refused-no-address", "A target without an address.", one("a", &[]), bad("address")),
        client("refused-apns-token", "An Apple token of no bytes.", one("a", &field(2, &[])), bad("token")),
        client("refused-fcm-token", "A Google token with a space.", one("a", &fcm(b"a b")), bad("token")),
        client(
            "refused-endpoint",
            "An endpoint without TLS.",
            one("a", &web("http://a", 4, 65, 16)),
            bad("endpoint"),
        ),
        client(
            "refused-p256dh",
            "A point of 64 bytes.",
            one("a", &web("https://a", 4, 64, 16)),
            bad("p256dh"),
        ),
        client(
            "refused-p256dh-form",
            "A point that is not in its uncompressed form.",
            one("a", &web("https://a", 2, 65, 16)),
            bad("p256dh"),
        ),
        client("refused-auth", "A secret of 15 bytes.", one("a", &web("https://a", 4, 65, 15)), bad("auth")),
        client("refused-window-minute", "Minute 1440 of a day.", window(&[0], &[0xa0, 0x0b]), bad("windows")),
        client(
            "refused-window-large",
            "Minute 65,536, which must not become 0.",
            window(&[1], &[0x80, 0x80, 0x04]),
            bad("windows"),
        ),
        client("refused-window-empty", "A window without length.", window(&[5], &[5]), bad("windows")),
        client("refused-five-windows", "More than four windows.", five_windows, bad("windows")),
        client(
            "odd-apns-kind",
            "A kind 99 of a newer client, read as alert.",
            one("a", &field(2, &[0x0a, 1, 1, 0x10, 99])),
            Ok(()),
        ),
        client(
            "bad-two-set-push",
            "Two bodies, which protobuf would merge.",
            field(6, &[field(2, &[]), field(2, &[])].concat()),
            Err(FrameError::Field("set_push")),
        ),
        client(
            "bad-many-targets",
            "65 targets: refused before they are read.",
            raw(&[0x0a, 0].repeat(65)),
            Err(FrameError::Field("targets")),
        ),
        (
            "odd-unknown-reply",
            "An answer of a newer server, ignored.",
            From::Server,
            field(10, &[0x08, 7, 0xa2, 0x06, 0x00]),
            Err(FrameError::UnknownFrame),
        ),
    ]
}
