//! The server's side of the pipe: sees frames, says frames. **Invariant:** it does nothing by itself.

use super::TAG;
use bytes::Bytes;
use chappe_client::{
    DeviceFilter, EnvelopeId, Epoch, Limits, Outcome, Seq, SubmitId, UnixMillis, Urgency, UserId,
};
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{
    ClientFrame, Deliver, ServerFrame, Submit, SubmitResult, TargetResult, Welcome,
};
use chappe_protocol::id::ConnectionId;
use chappe_protocol::time::Millis;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Frame(ClientFrame),
    Pong(Vec<u8>),
    Close(Vec<u8>),
    End,
}

pub(super) struct Peer(pub(super) DuplexStream);

impl Peer {
    pub(super) async fn seen(&mut self) -> Seen {
        let Ok(first) = self.0.read_u8().await else { return Seen::End };
        let second = self.0.read_u8().await.unwrap();
        assert_eq!(second & 0x80, 0x80, "a client masks");
        let length = match second & 0x7f {
            126 => u64::from(self.0.read_u16().await.unwrap()),
            127 => self.0.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        self.0.read_exact(&mut mask).await.unwrap();
        let mut body = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        body.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        match first & 0x0f {
            2 => Seen::Frame(ClientFrame::decode(body.into()).unwrap()),
            8 => Seen::Close(body),
            10 => Seen::Pong(body),
            kind => panic!("kind {kind}"),
        }
    }

    pub(super) async fn frame(&mut self) -> ClientFrame {
        match self.seen().await {
            Seen::Frame(frame) => frame,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn submit(&mut self) -> Submit {
        match self.frame().await {
            ClientFrame::Submit(submit) => submit,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing comes for so long.
    pub(super) async fn is_quiet(&mut self, ms: u64) {
        let seen = tokio::time::timeout(Duration::from_millis(ms), self.seen()).await;
        assert!(seen.is_err(), "{seen:?}");
    }

    /// All in one write.
    pub(super) async fn say(&mut self, frames: &[ServerFrame]) {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend(raw(0x82, &frame.encode()));
        }
        self.0.write_all(&bytes).await.unwrap();
    }

    pub(super) async fn close(&mut self, code: CloseCode) {
        self.0.write_all(&raw(0x88, &code.code().to_be_bytes())).await.unwrap();
    }
}

pub(super) fn raw(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u8::try_from(body.len()) {
        Ok(short) if short < 126 => bytes.push(short),
        _ => {
            bytes.push(126);
            bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        }
    }
    bytes.extend(body);
    bytes
}

pub(super) fn welcome(from: u64, limits: Limits) -> ServerFrame {
    ServerFrame::Welcome(Welcome {
        session: ConnectionId([1; 16]),
        epoch: Epoch(1),
        from: Seq(from),
        tag: TAG,
        resume_token: Bytes::from_static(b"resume"),
        limits,
        resumed: from > 0,
        server_time: UnixMillis(0),
    })
}

pub(super) fn deliver(seq: u64, prev: u64) -> ServerFrame {
    ServerFrame::Deliver(Deliver {
        seq: Seq(seq),
        prev: Seq(prev),
        envelope_id: EnvelopeId(u128::from(seq).to_be_bytes()),
        sender: None,
        at: UnixMillis(0),
        expires_at: UnixMillis(0),
        payload: Bytes::from_static(b"x"),
        urgency: Urgency::Message,
    })
}

pub(super) fn submit(order: u64) -> Submit {
    let target = chappe_protocol::frame::Target {
        number: 0,
        user: UserId::new("ben").unwrap(),
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
    };
    Submit {
        submit_id: SubmitId(u128::from(order).to_be_bytes()),
        attempt: 1,
        payloads: vec![vec![0; 400].into()],
        targets: vec![target],
        ttl: Millis(0),
        urgency: Urgency::Message,
        ephemeral: false,
    }
}

pub(super) fn accepted(submit: &Submit) -> ServerFrame {
    let id = EnvelopeId(submit.submit_id.0);
    ServerFrame::SubmitResult(SubmitResult {
        submit_id: submit.submit_id,
        attempt: submit.attempt,
        results: vec![TargetResult { number: 0, outcome: Outcome::Accepted, envelope_id: Some(id) }],
    })
}

pub(super) fn ack(upto: u64) -> Seen {
    Seen::Frame(ClientFrame::Ack { upto: Seq(upto) })
}
