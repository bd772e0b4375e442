//! UDP in memory for quinn: what is sent is there at once or after a delay, in paused time, on addresses that a client may
//! change.
//! **Invariant:** a full queue drops its newest packet, as a kernel does.

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio_util::task::TaskTracker;

const PACKETS_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Inner {
    queues: BTreeMap<SocketAddr, Queue>,
    ports: u16,
    /// From one socket to another.
    delay: Duration,
    under_way: TaskTracker,
    /// Nothing from or to this address passes.
    black_holes: Vec<SocketAddr>,
    /// What goes to the first goes to the second.
    redirected: Option<(SocketAddr, SocketAddr)>,
    /// Every packet that was sent, if somebody looks: from, to, bytes.
    seen: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
}

/// All sockets of a test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Net(Arc<Mutex<Inner>>);

impl Net {
    /// A socket on an address of its own.
    pub(crate) fn socket(&self) -> Arc<Socket> {
        let mut inner = self.0.lock().unwrap();
        inner.ports += 1;
        let address = SocketAddr::from(([10, 0, 0, 1], inner.ports));
        inner.queues.insert(address, Queue::default());
        Arc::new(Socket { net: self.clone(), address })
    }

    /// Swallows what comes from and goes to an address, or no longer.
    pub(crate) fn black_hole(&self, address: SocketAddr, on: bool) {
        let mut inner = self.0.lock().unwrap();
        inner.black_holes.retain(|hole| *hole != address);
        if on {
            inner.black_holes.push(address);
        }
    }

    /// How long every packet takes from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.0.lock().unwrap().delay = delay;
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let (delay, under_way) = {
            let inner = self.0.lock().unwrap();
            (inner.delay, inner.under_way.clone())
        };
        if delay.is_zero() {
            return self.inject(from, to, bytes);
        }
        let (net, bytes) = (self.clone(), bytes.to_vec());
        under_way.spawn(async move {
            tokio::time::sleep(delay).await;
            net.inject(from, to, &bytes);
        });
    }

    /// Leads packets for one address to another; what that one answers comes from the first.
    pub(crate) fn redirect(&self, from: SocketAddr, to: SocketAddr) {
        self.0.lock().unwrap().redirected = Some((from, to));
    }

    /// Remembers packets from now on.
    pub(crate) fn watch(&self) {
        self.0.lock().unwrap().seen = Some(Vec::new());
    }

    /// The packets since the last call.
    pub(crate) fn seen(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        std::mem::take(self.0.lock().unwrap().seen.as_mut().unwrap())
    }

    /// Puts a packet on the wire that no socket sent.
    pub(crate) fn inject(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut inner = self.0.lock().unwrap();
        let (from, to) = match inner.redirected {
            Some((one, two)) if to == one => (from, two),
            Some((one, two)) if from == two => (one, to),
            Some(_) | None => (from, to),
        };
        if inner.black_holes.contains(&from) || inner.black_holes.contains(&to) {
            return;
        }
        if let Some(seen) = &mut inner.seen {
            seen.push((from, to, bytes.to_vec()));
        }
        if let Some(queue) = inner.queues.get_mut(&to)
            && queue.packets.len() < PACKETS_MAX
        {
            queue.packets.push_back((from, bytes.to_vec()));
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Socket {
    net: Net,
    pub(crate) address: SocketAddr,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(segment) {
            self.net.send(self.address, transmit.destination, bytes);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.net.0.lock().unwrap();
        let queue = inner.queues.get_mut(&self.address).unwrap();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some((from, bytes)) = queue.packets.pop_front() else { break };
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            (meta.addr, meta.len, meta.stride, meta.ecn, meta.dst_ip) = (from, length, length, None, None);
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
